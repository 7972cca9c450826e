"""Continuous batching on a plain transformers model: all requests decode together, and join and leave at any step.

One thread owns the model and the key/value cache. The cache is padded on the left, so that every row's newest token
stands in the last column:

    row 0   . . . p p p g g        p prompt, g generated, . padding (masked out)
    row 1   p p p p p g g g
    row 2   . . . . . p p g

Between two steps new requests are prefilled as one padded batch and put under the running rows, finished and cancelled
rows are taken out, and columns that are padding in every row are cut off. Each row keeps its own positions, so in
float32 its greedy text is the one that `model.generate` gives.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from deployment.server.decoding import Choice, TextStream, next_tokens

if TYPE_CHECKING:
    import torch
    from transformers import DynamicCache, PreTrainedModel


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

    def cancel(self) -> None:
        """Give up the request: it leaves the batch before the next step, and nothing more is told."""
        self.cancelled = True


class Batcher:
    """The engine: `submit` rows from any thread, `close` at the end.

    Args:
        slots: rows that decode at once; more wait.
        queue: rows that may wait; one more raises QueueFull.
    """

    def __init__(self, model: PreTrainedModel, stop_ids: frozenset[int], *, slots: int = 16, queue: int = 64) -> None:
        self.slots, self.queue = slots, queue
        self._model, self._stop_ids = model, stop_ids
        self._waiting: deque[Row] = deque()
        self._running: list[Row] = []
        self._cache: _Cache | None = None
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
            self._keep([place for place, row in enumerate(self._running) if not row.cancelled])
            if newcomers := self._admit():
                self._prefill(newcomers)
            elif self._running:
                self._step()
        except RuntimeError as error:  # torch's own, out of memory above all: this batch is lost, not the server
            self._fail(f"the batch failed: {type(error).__name__}")

    def _admit(self) -> list[Row]:
        with self._changed:
            newcomers: list[Row] = []
            while self._waiting and len(self._running) + len(newcomers) < self.slots:
                row = self._waiting.popleft()
                if not row.cancelled:
                    newcomers.append(row)
            return newcomers

    def _prefill(self, rows: list[Row]) -> None:
        self._running = [*self._running, *rows]  # first, so that a failure reaches them too
        cache, logits = _Cache.prefill(self._model, [row.prompt for row in rows])
        self.steps += 1
        self._cache = cache if self._cache is None else self._cache.join(cache)
        self._take(rows, logits)

    def _step(self) -> None:
        assert self._cache is not None
        logits = self._cache.step(self._model, [row.generated[-1] for row in self._running])
        self.steps += 1
        self._take(self._running, logits)

    def _take(self, rows: list[Row], logits: torch.Tensor) -> None:
        """Give each of `rows` its next token; those that end leave the batch."""
        tokens = next_tokens(logits, [row.choice for row in rows])
        ended = {id(row) for row, token in zip(rows, tokens, strict=True) if self._give(row, token)}
        self._keep([place for place, row in enumerate(self._running) if id(row) not in ended])

    def _give(self, row: Row, token: int) -> bool:
        """Add `token` to `row` and tell what it settles; True if the answer ends with it."""
        row.generated.append(token)
        if token in self._stop_ids:
            self._end(row, row.text.finish(), "stop")
            return True
        text = row.text.push(token)
        if row.text.stopped:
            self._end(row, text, "stop")
        elif len(row.generated) >= row.max_tokens:
            text += row.text.finish()
            self._end(row, text, "stop" if row.text.stopped else "length")
        elif text:
            self._tell(row, Text(text))
            return False
        else:
            return False
        return True

    def _end(self, row: Row, text: str, reason: str) -> None:
        if text:
            self._tell(row, Text(text))
        self._tell(row, Finished(reason, len(row.generated)))

    def _tell(self, row: Row, event: Event) -> None:
        if not row.cancelled:
            row.tell(event)

    def _keep(self, places: list[int]) -> None:
        """Keep the running rows at `places`, in the cache too."""
        if len(places) == len(self._running):
            return
        self._running = [self._running[place] for place in places]
        self._cache = self._cache.select(places) if places and self._cache is not None else None

    def _fail(self, message: str) -> None:
        """Tell all running rows that they failed, and begin anew without them."""
        rows, self._running, self._cache = self._running, [], None
        for row in rows:
            self._tell(row, Failed(message))


class _Cache:
    """Keys and values of all rows, left-padded to one length.

    Attributes:
        kv: transformers' cache; each layer's keys and values are [rows, heads, length, head size].
        mask: [rows, length], 1 where there is a token and 0 where there is padding.
    """

    def __init__(self, kv: DynamicCache, mask: torch.Tensor) -> None:
        self.kv, self.mask = kv, mask

    @property
    def _layers(self) -> list[Any]:
        """The layers, all of transformers' DynamicLayer, whose `keys` and `values` are set once a prompt went in."""
        return list(self.kv.layers)

    @classmethod
    def prefill(cls, model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> tuple[_Cache, torch.Tensor]:
        """A cache of `prompts`, and the logits [rows, vocabulary] of the token after each."""
        import torch
        from transformers import DynamicCache

        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        # a cache without the model's config: every layer keeps its whole length, which is what `join` and `select`
        # work on; the mask alone restricts a sliding window
        made = cls(DynamicCache(), mask.to(model.device))
        return made, made._forward(model, ids.to(model.device))

    def step(self, model: PreTrainedModel, tokens: Sequence[int]) -> torch.Tensor:
        """Append one token to each row; the logits [rows, vocabulary] of the next."""
        import torch

        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        return self._forward(model, torch.tensor(tokens, device=model.device)[:, None])

    def _forward(self, model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
        positions = (self.mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        output = model(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.kv,
            use_cache=True,
            logits_to_keep=1,
        )
        return cast("torch.Tensor", output.logits[:, -1])

    def join(self, other: _Cache) -> _Cache:
        """This cache with the rows of `other` under its own."""
        import torch

        length = max(self.mask.shape[1], other.mask.shape[1])
        for mine, theirs in zip(self._layers, other._layers, strict=True):
            mine.keys = torch.cat([_pad(mine.keys, length), _pad(theirs.keys, length)])
            mine.values = torch.cat([_pad(mine.values, length), _pad(theirs.values, length)])
        pads = [torch.nn.functional.pad(mask, (length - mask.shape[1], 0)) for mask in (self.mask, other.mask)]
        self.mask = torch.cat(pads)
        return self

    def select(self, places: Sequence[int]) -> _Cache:
        """This cache with only the rows at `places`, without columns that are padding in all of them."""
        import torch

        rows = torch.tensor(places, device=self.mask.device)
        mask = self.mask[rows]
        empty = int(mask.shape[1] - mask.sum(dim=1).max())
        for layer in self._layers:
            layer.keys = layer.keys[rows, :, empty:]
            layer.values = layer.values[rows, :, empty:]
        self.mask = mask[:, empty:]
        return self


def _pad(states: torch.Tensor, length: int) -> torch.Tensor:
    """`states` [rows, heads, length, head size] with zeros on the left up to `length`."""
    import torch

    return torch.nn.functional.pad(states, (0, 0, length - states.shape[2], 0))
