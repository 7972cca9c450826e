"""A value that was decided for the user travels with its reason, and both are printed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Choice(Generic[T]):
    """What was chosen, and why."""

    value: T
    reason: str

    def __str__(self) -> str:
        return f"{self.value} ({self.reason})"
