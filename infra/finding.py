"""What the doctor answers with, and how it asks the commands of this machine."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from infra.outputs import PROJECT

Level = Literal["blocking", "warning", "ok", "unknown"]


@dataclass(frozen=True)
class Finding:
    """One answer. `why` and `repair` are empty where all is well."""

    check: str
    level: Level
    what: str
    why: str = ""
    repair: str = ""


Check = Callable[[], Iterator[Finding]]


def unmade(check: str, reason: str, repair: str) -> Finding:
    """A check that could not be made, which is not the same as one that found nothing."""
    return Finding(check, "unknown", f"not checked: {reason}", "what is not checked may still fail later", repair)


def command(*words: str) -> tuple[int, str]:
    """A command's exit code, and what it printed: its output if it worked, else its complaint."""
    done = subprocess.run(words, cwd=PROJECT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return done.returncode, done.stdout if done.returncode == 0 else done.stderr or done.stdout
