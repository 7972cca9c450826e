"""The errors that end a command with a sentence, and the exit codes they leave with.

The codes are the real CLI's, https://github.com/pulumi/pulumi/blob/master/pkg/cmd/pulumi/cmd/exit_codes.go, except
that an interrupted command leaves with 130 as every program of this repository does.
"""

FAILED, UNCONFIRMED, NO_STACK, UNEXPECTED_CHANGES, INTERRUPTED = 1, 2, 6, 7, 130


class CliError(Exception):
    """A command cannot go on; its text is printed after `error: `."""

    def __init__(self, text: str, *, code: int = FAILED) -> None:
        super().__init__(text)
        self.code = code
