"""`pulumi`, as far as it is offered where no real one is installed."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from emulator.pulumi_cli import config_commands, operation_commands, stack_commands
from emulator.pulumi_cli.cli import Parser, command, everywhere, project_and_stack
from emulator.pulumi_cli.errors import INTERRUPTED, CliError
from emulator.pulumi_cli.project import read_yaml


def main(argv: list[str]) -> int:
    arguments = _parser().parse_args(_without_dashes(argv))
    try:
        if arguments.cwd:
            os.chdir(arguments.cwd)
        arguments.run(arguments)
    except CliError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.code
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted; what was done is recorded, run the same command again", file=sys.stderr, flush=True)
        return INTERRUPTED
    return 0


def _without_dashes(argv: list[str]) -> list[str]:
    if "--" not in argv:
        return argv
    words = argv[: argv.index("--")]
    return [*words, *(f"{config_commands.AFTER_DASHES}={word}" for word in argv[len(words) + 1 :])]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="pulumi", description=__doc__)
    parser.add_argument("-C", "--cwd", help="run as if started in this folder")
    everywhere(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    command(commands, "version", _version, "print the version")
    command(commands, "whoami", _whoami, "print the user and the backend")
    install = command(commands, "install", _install, "in a policy pack: install its packages; elsewhere all is here")
    for flag in ("--no-plugins", "--no-dependencies", "--reinstall"):
        install.add_argument(flag, action="store_true", help=argparse.SUPPRESS)
    cancel = command(commands, "cancel", _cancel, "interrupt the update that holds the stack")
    cancel.add_argument("-y", "--yes", action="store_true")
    stack_commands.add(commands)
    config_commands.add(commands)
    operation_commands.add(commands)
    return parser


def _version(_: argparse.Namespace) -> None:
    print(f"v{version('pulumi')}")


def _whoami(arguments: argparse.Namespace) -> None:
    user = os.environ.get("USER", "local")
    url = os.environ.get("PULUMI_BACKEND_URL", "")
    print(json.dumps({"user": user, "organizations": [], "url": url}) if arguments.json else user)


def _install(_: argparse.Namespace) -> None:
    """A policy pack has an environment of its own, as Pulumi means it to; a program's is the one that runs this."""
    file = Path.cwd() / "PulumiPolicy.yaml"
    if not file.is_file():
        print("nothing to install: the program runs in the environment that this pulumi runs in")
        return
    runtime = read_yaml(file).get("runtime")
    options = runtime.get("options") if isinstance(runtime, dict) else None
    if not options or not options.get("virtualenv"):
        raise CliError(f"{file} names no runtime.options.virtualenv to install into")
    python = Path.cwd() / options["virtualenv"] / "bin" / "python"
    steps = [[str(python), "-m", "pip", "install", "-q", "-r", "requirements.txt"]]
    if not python.exists():
        steps.insert(0, [sys.executable, "-m", "venv", str(python.parent.parent)])
    for step in steps:
        if subprocess.run(step).returncode != 0:
            raise CliError(f"the policy pack's packages were not installed: `{' '.join(step)}` failed")


def _cancel(arguments: argparse.Namespace) -> None:
    _, stack = project_and_stack(arguments)
    holder = stack.holder()
    if holder is None:
        raise CliError(f"no update of {stack.name!r} is in progress")
    os.kill(holder, signal.SIGINT)
    print(f"The update of '{stack.name}' (process {holder}) has been told to stop.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
