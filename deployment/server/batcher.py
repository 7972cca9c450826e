"""Continuous batching on a plain transformers model: all requests decode together, and join and leave at any step.

One thread owns the model and the key/value cache (cache.py). Between two steps new requests are prefilled as one padded
batch and put under the running rows, finished and cancelled rows are taken out. Each row keeps its own positions, so in
float32 its greedy text is the one that `model.generate` gives.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from deployment.server.decoding import next_tokens
from deployment.server.rows import EngineStopped, QueueFull, Row

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from deployment.server.cache import Batch

PREFILL_TOKENS = 4096
"""Prompt tokens, padding included, in one forward pass: their activations need memory too."""


class Batcher:
    """The engine: `submit` rows from any thread, `close` at the end.

    Args:
        slots: rows that decode at once; more wait.
        queue: rows that may wait; one more raises QueueFull.
        room: tokens that the cache may hold, prompts, answers and padding together; a row that would not fit waits,
            and one that is alone always fits.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        stop_ids: frozenset[int],
        *,
        slots: int = 16,
        queue: int = 64,
        room: int | None = None,
    ) -> None:
        self.slots, self.queue, self._room = slots, queue, room
        self._model, self._stop_ids = model, stop_ids
        self._waiting: deque[Row] = deque()
        self._running: list[Row] = []
        self._cache: Batch | None = None
        self._changed = threading.Condition()
        self._closed = False
        self.steps = 0
        """Forward passes so far."""
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    def submit(self, rows: Sequence[Row]) -> None:
        """Queue all of `rows`, or none.

        Raises:
            QueueFull: not all of them fit.
            EngineStopped: the engine is closed or dead.
        """
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
        """(running, waiting) rows."""
        return len(self._running), len(self._waiting)

    def close(self) -> None:
        """Stop after the present step; rows that are not finished are told that they failed."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        import torch

        try:
            with torch.inference_mode():
                while self._wait_for_work():
                    self._advance()
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

    def _advance(self) -> None:
        """One step for all rows: the newcomers' prompts first, then a token for everyone who runs."""
        try:
            self._drop([place for place, row in enumerate(self._running) if row.cancelled])
            if newcomers := self._admit():
                self._prefill(newcomers)
            elif self._running:
                self._step()
        except RuntimeError as error:  # torch's own, out of memory above all: this batch is lost, not the server
            self._fail(f"the batch failed: {type(error).__name__}")

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

    def _fits(self, newcomers: Sequence[Row]) -> bool:
        """Whether `newcomers` can be prefilled together, and then decode beside the running rows to their ends."""
        everyone = [*self._running, *newcomers]
        if len(everyone) > self.slots:
            return False
        padded = len(newcomers) * max(len(row.prompt) for row in newcomers)
        wasteful = padded > 2 * sum(len(row.prompt) for row in newcomers) or padded > PREFILL_TOKENS
        if len(newcomers) > 1 and wasteful:
            return False
        longest = max(len(row.prompt) + row.max_tokens for row in everyone)
        return self._room is None or len(everyone) == 1 or len(everyone) * longest <= self._room

    def _prefill(self, rows: list[Row]) -> None:
        from deployment.server.cache import Batch

        self._running = [*self._running, *rows]  # first, so that a failure reaches them too
        batch, logits = Batch.prefill(self._model, [row.prompt for row in rows])
        self.steps += 1
        if self._cache is None:
            self._cache = batch
        else:
            self._cache.join(batch)
        self._take(rows, logits)

    def _step(self) -> None:
        assert self._cache is not None
        logits = self._cache.step([row.generated[-1] for row in self._running])
        self.steps += 1
        self._take(self._running, logits)

    def _take(self, rows: list[Row], logits: torch.Tensor) -> None:
        """Give each of `rows` its next token; those that end leave the batch."""
        tokens = next_tokens(logits, [row.choice for row in rows])
        ended = {id(row) for row, token in zip(rows, tokens, strict=True) if row.give(token, self._stop_ids)}
        self._drop([place for place, row in enumerate(self._running) if id(row) in ended])

    def _drop(self, places: list[int]) -> None:
        """Take the running rows at `places` out, from the cache too: the last row comes into each place."""
        for place in reversed(places):
            assert self._cache is not None
            self._cache.drop(place)
            self._running[place] = self._running[-1]
            self._running.pop()
        if not self._running:
            self._cache = None

    def _fail(self, message: str) -> None:
        """Tell all running rows that they failed, and begin anew without them."""
        rows, self._running, self._cache = self._running, [], None
        for row in rows:
            row.fail(message)
