"""What all commands share: the parser, and how they find the project and the stack."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from emulator.pulumi_cli.errors import FAILED
from emulator.pulumi_cli.project import Project
from emulator.pulumi_cli.state import Backend, Stack

Run = Callable[[argparse.Namespace], None]


class Parser(argparse.ArgumentParser):
    """One that takes no half names, so that no option it lacks passes for another, and leaves as Pulumi does."""

    def __init__(self, **more: Any) -> None:
        super().__init__(allow_abbrev=False, **more)

    def error(self, message: str) -> NoReturn:
        self.exit(FAILED, f"error: {message}; this local pulumi offers what `{self.prog} --help` lists\n")


def command(commands: Any, name: str, run: Run, text: str, **more: Any) -> Parser:
    """A new subcommand, with the options that every command of Pulumi has."""
    made: Parser = commands.add_parser(name, help=text, description=text, **more)
    made.add_argument("-s", "--stack", help="the stack (default: the selected one)")
    made.add_argument("-j", "--json", action="store_true", help="print JSON")
    made.add_argument("-C", "--cwd", default=argparse.SUPPRESS, help="run as if started in this folder")
    everywhere(made)
    made.set_defaults(run=run)
    return made


def everywhere(parser: argparse.ArgumentParser) -> None:
    """Options about asking, colours and logs, which have nothing to do here: it prints plainly and logs nothing."""
    for flag in ("--non-interactive", "--logtostderr", "--logflow"):
        parser.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    parser.add_argument("--color", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    parser.add_argument("-v", "--verbose", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def backend() -> Backend:
    return Backend(Project.find(Path.cwd().resolve()))


def project_and_stack(arguments: argparse.Namespace) -> tuple[Project, Stack]:
    """The project of the working directory, and the stack that is named or selected."""
    found = backend()
    return found.project, found.stack(arguments.stack)


def show(value: Any, *, as_json: bool) -> None:
    """One value, alone on stdout."""
    print(json.dumps(value) if as_json or not isinstance(value, str) else value)
