"""The one error that ends a command with a sentence."""


class CliError(Exception):
    """A command cannot go on; its text is printed after `error: `."""
