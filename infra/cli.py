"""What every verb shares: its exit codes, its way to fail, and `--stack/--outputs/--json`.

Exit codes: 0 done, 1 failed, 2 wrong use, 3 refused by a gate, 130 interrupted.
The result of a verb goes to stdout; everything else, progress included, goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

FAILED, WRONG_USE, REFUSED, INTERRUPTED = 1, 2, 3, 130


class UserError(Exception):
    """A failure that its reader can mend: what happened and why, then the next command to type.

    Printed as it is, without a traceback; `code` becomes the exit status.
    """

    def __init__(self, message: str, *, next_command: str | None = None, code: int = FAILED) -> None:
        super().__init__(message)
        self.message, self.next_command, self.code = message, next_command, code

    def __str__(self) -> str:
        return self.message if self.next_command is None else f"{self.message}\n  next: {self.next_command}"


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that says a wrong use in one line and names the help."""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_USE, f"error: {message}\n  next: {self.prog} --help\n")


def parser(module: str, description: str) -> Parser:
    """A parser for `python -m module`, with the options that every verb has."""
    made = Parser(prog=f"python -m {module}", description=description)
    made.add_argument("--json", action="store_true", help="print the result as one JSON object on stdout")
    return made


def say(*words: object) -> None:
    """One line of progress, on stderr, at once."""
    print(*words, file=sys.stderr, flush=True)


def result(values: Mapping[str, Any], *, as_json: bool) -> None:
    """Print a verb's result: one JSON object, or one `key: value` line each."""
    if as_json:
        print(json.dumps(values), flush=True)
        return
    for key, value in values.items():
        print(f"{key}: {value if isinstance(value, str) else json.dumps(value)}", flush=True)


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Call `main(argv)` and leave with its exit code; a UserError is one clear text, never a traceback."""
    try:
        code = main(sys.argv[1:]) or 0
    except UserError as error:
        say(f"error: {error}")
        code = error.code
    except KeyboardInterrupt:
        say("interrupted; run the same command again to go on")
        code = INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = FAILED
    sys.stdout.flush()
    sys.exit(code)
