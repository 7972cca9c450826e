"""Keys and values of all rows of a batch, padded on the left to one length, in buffers with room to grow.

Row by row, `.` is padding (masked out), `p` a prompt's token, `g` a generated one, `_` room for more:

    row 0   . . . p p p g g _ _
    row 1   p p p p p g g g _ _
    row 2   . . . . . p p g _ _

Transformers' own cache is copied whole at each token, which at 16 rows costs as much as the model; here a token is
written into its place. A row that leaves is overwritten by the last one, and one that comes is put under the others.

Imported by the engine's thread only, as torch and transformers take seconds to import.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from deployment.server.prefixes import Known, States

ROOM = 64
"""Columns that a buffer gets beyond what it needs."""


class Columns(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer's buffers, `keys` and `values`: [row capacity, heads, column capacity, head size]."""

    keys: torch.Tensor
    values: torch.Tensor
    is_sliding = False  # the whole length is kept; where a model's window ends, its mask alone says

    def __init__(self, batch: Batch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._batch = batch

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.keys, self.values = (self._room(states) for states in (key_states, value_states))
        self.is_initialized = True

    def _room(self, states: torch.Tensor) -> torch.Tensor:
        """Zeros, not garbage: what is masked out is still multiplied by 0, and NaN would stay NaN."""
        _, heads, _, size = states.shape
        return states.new_zeros(self._batch.row_capacity, heads, self._batch.column_capacity, size)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the newest columns; the rows' keys and values from the first column that anyone uses."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows, first, end = len(self._batch), self._batch.first, self._batch.end
        written = slice(end - key_states.shape[2], end)
        self.keys[:rows, :, written] = key_states
        self.values[:rows, :, written] = value_states
        return self.keys[:rows, :, first:end], self.values[:rows, :, first:end]

    def get_seq_length(self) -> int:
        return self._batch.past

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._batch.end - self._batch.first, 0

    def get_max_length(self) -> int:
        return -1

    def recall(self, row: int, states: tuple[torch.Tensor, torch.Tensor], count: int, end: int) -> None:
        """Put the first `count` columns of `states` into `row`, to end at column `end`."""
        if not self.is_initialized:
            self.lazy_initialization(states[0][None], states[1][None])
        for buffer, known in zip((self.keys, self.values), states, strict=True):
            buffer[row, :, end - count : end] = known[:, :count]

    def move_row(self, source: int, target: int) -> None:
        self.keys[target], self.values[target] = self.keys[source], self.values[source]

    def regrow(self, rows: int, first: int, end: int, offset: int) -> None:
        """Into new buffers of the batch's present capacity, the used columns moved to begin at `offset`."""
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = self._room(old)
            new[:rows, :, offset : offset + end - first] = old[:rows, :, first:end]
            setattr(self, name, new)

    def take(self, other: Columns, row: int, length: int) -> None:
        """Put `other`'s rows in at `row` and below; their last `length` columns end where this batch's do."""
        count, target = len(other._batch), slice(self._batch.end - length, self._batch.end)
        source = slice(other._batch.end - length, other._batch.end)
        self.keys[row : row + count, :, target] = other.keys[:count, :, source]
        self.values[row : row + count, :, target] = other.values[:count, :, source]


class Batch:
    """The rows' cache and how long each row is.

    Attributes:
        lengths: tokens of each row, all of which end in column `end`.
        first, end: the columns in use, `first` that of the longest row's first token.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self.lengths: list[int] = []
        self.first = self.end = self.past = 0
        self.row_capacity = self.column_capacity = 0
        layers = [Columns(self) for _ in range(model.config.num_hidden_layers)]
        self._layers, self._cache = layers, Cache(layers=cast(Any, layers))

    def __len__(self) -> int:
        return len(self.lengths)

    @classmethod
    def prefill(
        cls, model: PreTrainedModel, prompts: Sequence[Sequence[int]], known: Sequence[Known]
    ) -> tuple[Batch, torch.Tensor]:
        """A batch of `prompts`, and the logits [rows, vocabulary] of the token after each.

        All rows compute as many columns as the one of which the least is known needs.
        """
        made = cls(model)
        made.lengths = [len(prompt) for prompt in prompts]
        longest = max(made.lengths)
        made.row_capacity, made.column_capacity = len(prompts), longest + ROOM
        new = max(len(prompt) - one.length for prompt, one in zip(prompts, known, strict=True))
        made.end, made.past = longest, longest - new
        for row, one in enumerate(known):
            for layer, states in zip(made._layers, one.states, strict=False):
                layer.recall(row, states, max(0, made.lengths[row] - new), made.past)
        ids = torch.tensor([[0] * (new - len(prompt)) + list(prompt[-new:]) for prompt in prompts])
        return made, made._forward(ids)

    def states(self, place: int) -> States:
        """A copy of the row at `place`."""
        used = slice(self.end - self.lengths[place], self.end)
        return [(layer.keys[place, :, used].clone(), layer.values[place, :, used].clone()) for layer in self._layers]

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Append one token to each row; the logits [rows, vocabulary] of the next."""
        self._reserve(len(self), new=1)
        self.past = self.end - self.first
        self.end += 1
        self.lengths = [length + 1 for length in self.lengths]
        return self._forward(torch.tensor(tokens)[:, None])

    def _forward(self, ids: torch.Tensor) -> torch.Tensor:
        device = self._model.device
        lengths = torch.tensor(self.lengths, device=device)[:, None]
        # how far each column lies from the row's first token; before that is padding
        positions = torch.arange(self.end - self.first, device=device)[None] - (self.end - self.first) + lengths
        output = self._model(
            input_ids=ids.to(device),
            attention_mask=(positions >= 0).long(),
            position_ids=positions.clamp(min=0)[:, -ids.shape[1] :],
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return cast("torch.Tensor", output.logits[:, -1])

    def join(self, other: Batch) -> None:
        """Put the rows of `other` under this batch's own."""
        longest = max(other.lengths)
        self._reserve(len(self) + len(other), length=longest)
        for mine, theirs in zip(self._layers, other._layers, strict=True):
            mine.take(theirs, len(self), longest)
        self.lengths += other.lengths
        self.first = min(self.first, self.end - longest)

    def drop(self, place: int) -> None:
        """Take the row at `place` out; the last row comes into its place."""
        last = len(self) - 1
        if place != last:
            for layer in self._layers:
                layer.move_row(last, place)
            self.lengths[place] = self.lengths[last]
        self.lengths.pop()
        self.first = self.end - max(self.lengths, default=0)

    def _reserve(self, rows: int, *, new: int = 0, length: int = 0) -> None:
        """Room for `rows` rows, of `length` columns before `end` and `new` ones after it."""
        used = max(self.end - self.first, length)
        if rows <= self.row_capacity and self.end + new <= self.column_capacity and self.end - length >= 0:
            return
        self.row_capacity = rows  # no more than now: many short rows and a few long ones would make a huge product
        self.column_capacity = used + new + ROOM
        offset = used - (self.end - self.first)
        for layer in self._layers:
            layer.regrow(len(self), self.first, self.end, offset)
        self.first, self.end = offset, used
