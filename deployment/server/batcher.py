"""Continuous batching on a plain transformers model: all requests decode together, and join and leave at any step.

One thread owns the model and the key/value cache (cache.py). Between two steps new requests are prefilled as one padded
batch and put under the running rows, finished and cancelled rows are taken out. Each row keeps its own positions, so in
float32 its greedy text is the one that `model.generate` gives. What was computed for an answered conversation is used
again by its next turn (prefixes.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from deployment.server.decoding import next_tokens
from deployment.server.prefixes import Prefixes
from deployment.server.rows import Row
from deployment.server.worker import Worker

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from deployment.server.cache import Batch

PREFILL_TOKENS = 4096
"""Prompt tokens, padding included, in one forward pass: their activations need memory too."""


class Batcher(Worker):
    """The engine.

    Args:
        slots, queue: as Worker's.
        room: tokens that the cache may hold, prompts, answers and padding together; a row that would not fit waits,
            and one that is alone always fits.
        kept: tokens of answered conversations that are kept beside that, for their next turns.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        stop_ids: frozenset[int],
        *,
        slots: int = 16,
        queue: int = 64,
        room: int | None = None,
        kept: int = 0,
    ) -> None:
        self._prefixes = Prefixes(kept)
        self._model, self._stop_ids, self._room = model, stop_ids, room
        self._cache: Batch | None = None
        super().__init__(slots, queue)

    def _surroundings(self) -> AbstractContextManager[object]:
        import torch

        return torch.inference_mode()

    def _advance(self) -> None:
        """The newcomers' prompts first, then a token for everyone who runs."""
        self._drop([place for place, row in enumerate(self._running) if row.cancelled])
        if newcomers := self._admit():
            self._prefill(newcomers)
        elif self._running:
            self._step()

    def _fits(self, newcomers: Sequence[Row]) -> bool:
        """Whether `newcomers` can be prefilled together, and then decode beside the running rows to their ends."""
        everyone = [*self._running, *newcomers]
        if not super()._fits(newcomers):
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
        known = [self._prefixes.find(row.prompt) for row in rows]
        for row, one in zip(rows, known, strict=True):
            row.reused = one.length
        batch, logits = Batch.prefill(self._model, [row.prompt for row in rows], known)
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
        places = [place for place, row in enumerate(self._running) if id(row) in ended]
        for place in places:
            self._keep(place)
        self._drop(places)

    def _keep(self, place: int) -> None:
        """Remember the row at `place` for its conversation's next turn; its last token was never computed upon."""
        cache, row = self._cache, self._running[place]
        assert cache is not None
        self._prefixes.keep([*row.prompt, *row.generated[:-1]], lambda: cache.states(place))

    def _drop(self, places: list[int]) -> None:
        """Take the running rows at `places` out, from the cache too: the last row comes into each place."""
        for place in reversed(places):
            assert self._cache is not None
            self._cache.drop(place)
            self._running[place] = self._running[-1]
            self._running.pop()
        if not self._running:
            self._cache = None

    def _forget(self) -> None:
        self._cache = None
        self._prefixes.clear()
