"""Keys and values of answered conversations: the next turn begins with the same tokens, and computes only what is new.

Found by the tokens themselves, whoever asks. The ones used longest ago go first when the bound on their tokens is met.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import torch

States: TypeAlias = "Sequence[tuple[torch.Tensor, torch.Tensor]]"
"""Each layer's keys and values of one row, without padding: [heads, tokens, head size]."""


@dataclass(frozen=True, eq=False)
class Kept:
    """One conversation's tokens, and each layer's keys and values for them."""

    tokens: list[int]
    states: States


@dataclass(frozen=True)
class Known:
    """The first `length` tokens of a prompt need not be computed: they begin `states`, too."""

    length: int = 0
    states: States = ()


class Prefixes:
    """What is kept, the one used longest ago first. `room` bounds the tokens of all together; 0 keeps nothing."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._kept: list[Kept] = []

    @property
    def tokens(self) -> int:
        return sum(len(kept.tokens) for kept in self._kept)

    def find(self, prompt: Sequence[int]) -> Known:
        """The longest known beginning of `prompt`, but never all of it: its last token's logits are wanted."""
        # of several alike the newest, so that what all prompts begin with keeps no old conversation alive
        found = max(reversed(self._kept), key=lambda kept: shared(kept.tokens, prompt), default=None)
        if found is None:
            return Known()
        self._kept.remove(found)
        self._kept.append(found)
        return Known(min(shared(found.tokens, prompt), len(prompt) - 1), found.states)

    def keep(self, tokens: list[int], copied: Callable[[], States]) -> None:
        """Keep what `copied` gives for `tokens`, if there is room for it; earlier turns of it are dropped."""
        if len(tokens) > self._room or any(kept.tokens[: len(tokens)] == tokens for kept in self._kept):
            return
        self._kept = [kept for kept in self._kept if kept.tokens != tokens[: len(kept.tokens)]]
        while self._kept and self.tokens + len(tokens) > self._room:
            self._kept.pop(0)
        self._kept.append(Kept(tokens, copied()))

    def clear(self) -> None:
        self._kept.clear()


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
