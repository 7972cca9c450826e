"""What the routes hand to an engine, and what an engine tells them: the seam between app.py and the engines."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from deployment.server.decoding import Choice, TextStream


@dataclass(frozen=True)
class Text:
    """A piece of an answer."""

    text: str


@dataclass(frozen=True)
class Finished:
    """The end of an answer. `reason` is `stop` (a stop id or string) or `length` (its bound)."""

    reason: str
    completion_tokens: int


@dataclass(frozen=True)
class Failed:
    """The batch that the request was in failed; `message` says why, without any of the request's text."""

    message: str


Event: TypeAlias = Text | Finished | Failed


class QueueFull(Exception):
    """More requests wait than the queue holds."""


class EngineStopped(Exception):
    """The engine takes no requests: it was closed, or its thread died."""


@dataclass(eq=False)
class Row:
    """One request: its prompt's ids, how to choose its tokens, and whom to tell. `tell` is called by the engine."""

    prompt: Sequence[int]
    max_tokens: int
    choice: Choice
    text: TextStream
    tell: Callable[[Event], None]
    generated: list[int] = field(default_factory=list)
    cancelled: bool = False
    reused: int = 0
    """Tokens of the prompt that were not computed again, where the engine says so."""
    first_token: float | None = None
    """When it came, in monotonic seconds."""

    def cancel(self) -> None:
        """Give up the request: it leaves the batch before the next step, and nothing more is told."""
        self.cancelled = True

    def give(self, token: int, stop_ids: frozenset[int]) -> bool:
        """Add a token that an engine chose and tell what it settles; True if the answer ends with it."""
        if self.first_token is None:
            self.first_token = time.monotonic()
        self.generated.append(token)
        if token in stop_ids:
            self._end(self.text.finish(), "stop")
            return True
        text = self.text.push(token)
        if self.text.stopped:
            self._end(text, "stop")
            return True
        if len(self.generated) >= self.max_tokens:
            text += self.text.finish()
            self._end(text, "stop" if self.text.stopped else "length")
            return True
        if text:
            self._tell(Text(text))
        return False

    def fail(self, message: str) -> None:
        self._tell(Failed(message))

    def _end(self, text: str, reason: str) -> None:
        if text:
            self._tell(Text(text))
        self._tell(Finished(reason, len(self.generated)))

    def _tell(self, event: Event) -> None:
        if not self.cancelled:
            self.tell(event)


class Engine(Protocol):
    """What generates: batcher.py, openvino_engine.py or vllm_engine.py. `submit` may be called from any thread."""

    def submit(self, rows: Sequence[Row]) -> None:
        """Queue all of `rows`, or none.

        Raises:
            QueueFull: not all of them fit.
            EngineStopped: the engine is closed or dead.
        """

    @property
    def alive(self) -> bool: ...

    @property
    def load(self) -> tuple[int, int]:
        """(running, waiting) rows."""

    def close(self) -> None:
        """Stop after the present step; rows that are not finished are told that they failed."""
