"""The next token of a row, and the text of a growing list of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

UNFINISHED = "\ufffd"
"""What a tokenizer gives for bytes that are not yet a whole character."""


COLDEST = 1e-4
"""Below this temperature the best token is taken: logits divided by less come near what a float can hold."""


@dataclass(frozen=True)
class Choice:
    """How one row's tokens are chosen: greedy at temperature 0, else by nucleus sampling from its own generator."""

    temperature: float
    top_p: float
    seed: int | None

    @property
    def greedy(self) -> bool:
        return self.temperature < COLDEST

    @cached_property
    def generator(self) -> torch.Generator:
        import torch

        generator = torch.Generator()
        _ = generator.seed() if self.seed is None else generator.manual_seed(self.seed)
        return generator


def next_tokens(logits: torch.Tensor, choices: Sequence[Choice]) -> list[int]:
    """The next token id of each row.

    Args:
        logits: [rows, vocabulary], any float type.
        choices: one for each row. A row's result depends on nothing but its own logits and generator, so a seed gives
            the same text whatever else is in the batch (up to the rounding of the logits).
    """
    greedy: list[int] = logits.argmax(dim=-1).tolist()
    return [
        token if choice.greedy else _sample(logits[row], choice)
        for row, (token, choice) in enumerate(zip(greedy, choices, strict=True))
    ]


def _sample(logits: torch.Tensor, choice: Choice) -> int:
    """One draw from softmax(logits / temperature), cut to the smallest set of tokens whose mass reaches top_p."""
    import torch

    mass, order = torch.softmax(logits.float().cpu() / choice.temperature, dim=-1).sort(descending=True, stable=True)
    cut = mass.cumsum(dim=-1) - mass >= choice.top_p
    cut[0] = False  # in float32 a very small top_p is 0, and no token would be left
    mass[cut] = 0.0
    drawn = torch.multinomial(mass, 1, generator=choice.generator)
    return int(order[drawn])


class Decoder(Protocol):
    """The part of a Hugging Face tokenizer that is used here."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str: ...


class TextStream:
    """Text from tokens that come one by one, each piece final, cut at the first stop string.

    A token's text depends on those before it (word marks, characters of several byte tokens), so each step decodes a
    short tail twice, without and with the new tokens, and the difference is new. What might be the start of a stop
    string is held back until it is decided.
    """

    def __init__(self, decoder: Decoder, stops: Sequence[str] = ()) -> None:
        self._decoder, self._stops = decoder, stops
        self._ids: list[int] = []
        self._context = 0  # the tail that is decoded for context begins here
        self._read = 0  # tokens before this place have given their text
        self._held = ""
        self.stopped = False
        """True once a stop string was met: all further text is dropped."""

    def push(self, token: int) -> str:
        """The text that the new token settles; often one word, sometimes nothing."""
        self._ids.append(token)
        before, after = self._decode(self._context, self._read), self._decode(self._context, len(self._ids))
        if after.endswith(UNFINISHED) or len(after) <= len(before):
            return ""
        self._context, self._read = self._read, len(self._ids)
        return self._release(after[len(before) :])

    def finish(self) -> str:
        """What was still held back when no more tokens come."""
        before, after = self._decode(self._context, self._read), self._decode(self._context, len(self._ids))
        text = self._release(after[len(before) :])
        text, self._held = text + ("" if self.stopped else self._held), ""
        return text

    def _decode(self, start: int, end: int) -> str:
        return self._decoder.decode(self._ids[start:end], skip_special_tokens=True)

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if stop.startswith(text[-size:])), 0)
