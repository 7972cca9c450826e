"""The question before something is created or removed."""

from __future__ import annotations

import sys

from infra.cli import REFUSED, WRONG_USE, UserError


def ask(question: str) -> None:
    """Return if the answer is yes. Raises UserError for another one, or where there is nobody to answer."""
    if not sys.stdin.isatty():
        raise UserError(f"{question} There is nobody to ask", next_command="add --yes", code=WRONG_USE)
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UserError("nothing was done: the answer was not yes", code=REFUSED)
