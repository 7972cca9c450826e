"""One thread that owns a model, and the bounded queue in front of it: what batcher.py and openvino_engine.py share."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from deployment.server.rows import EngineStopped, QueueFull, Row


class Worker(ABC):
    """An engine (rows.Engine): `submit` rows from any thread, `close` at the end.

    Args:
        slots: rows that decode at once; more wait.
        queue: rows that may wait; one more raises QueueFull.
    """

    def __init__(self, slots: int, queue: int) -> None:
        self.slots, self.queue = slots, queue
        self._waiting: deque[Row] = deque()
        self._running: list[Row] = []
        self._changed = threading.Condition()
        self._closed = False
        self.steps = 0
        """Forward passes so far."""
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, rows: Sequence[Row]) -> None:
        with self._changed:
            if self._closed or not self._thread.is_alive():
                raise EngineStopped
            self._waiting = deque(row for row in self._waiting if not row.cancelled)
            if len(self._waiting) + len(rows) > self.slots - len(self._running) + self.queue:
                raise QueueFull
            self._waiting.extend(rows)
            self._changed.notify()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def load(self) -> tuple[int, int]:
        return len(self._running), len(self._waiting)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            with self._surroundings():
                while self._wait_for_work():
                    self._advance_or_fail()
        finally:
            with self._changed:
                self._closed = True
                self._running += self._waiting
                self._waiting.clear()
            self._fail("the server is stopping")

    def _wait_for_work(self) -> bool:
        with self._changed:
            while not (self._closed or self._waiting or self._running):
                self._changed.wait()
            return not self._closed

    def _advance_or_fail(self) -> None:
        try:
            self._advance()
        except RuntimeError as error:  # the library's own, out of memory above all: this batch is lost, not the server
            self._fail(f"the batch failed: {type(error).__name__}")

    def _fail(self, message: str) -> None:
        """Tell all running rows that they failed, and begin anew without them."""
        rows, self._running = self._running, []
        self._forget()
        for row in rows:
            row.fail(message)

    def _admit(self) -> list[Row]:
        """The rows that come in now, in the order in which they came."""
        with self._changed:
            newcomers: list[Row] = []
            while self._waiting:
                row = self._waiting[0]
                if not row.cancelled and not self._fits([*newcomers, row]):
                    break
                self._waiting.popleft()
                if not row.cancelled:
                    newcomers.append(row)
            return newcomers

    def _surroundings(self) -> AbstractContextManager[object]:
        """What the thread's whole life happens in."""
        return nullcontext()

    def _fits(self, newcomers: Sequence[Row]) -> bool:
        """Whether all of `newcomers` can come in now."""
        return len(self._running) + len(newcomers) <= self.slots

    @abstractmethod
    def _advance(self) -> None:
        """One step for all rows."""

    @abstractmethod
    def _forget(self) -> None:
        """Drop what is held for the rows that ran; none of them goes on."""
