"""How long conversations are, in tokens where there is a tokenizer, else in characters; what a `max_length` cuts.

Everything is counted by length, so that 200,000 conversations take no more memory than their different lengths.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from infra.cli import WRONG_USE, UserError
from training.hub import reaching_hub
from training.prompt import IGNORED, encode_conversation
from training.rows import Conversation

LIMITS = (512, 1024, 2048, 4096, 8192)
"""The `max_length` values whose loss is reported, beside the recipe's own. Tokens."""


class Lengths(NamedTuple):
    """Of one conversation, in tokens or characters: all of it, what the assistant says of it (its `<|end|>` included),
    where the first reply begins (in characters: always 0), and the number of replies."""

    total: int
    said: int
    first_reply: int
    replies: int


Measure: TypeAlias = Callable[[Conversation], Lengths]


def in_characters(conversation: Conversation) -> Lengths:
    """Lengths in characters of text."""
    said = [len(message["content"]) for message in conversation if message["role"] == "assistant"]
    return Lengths(sum(len(message["content"]) for message in conversation), sum(said), 0, len(said))


def in_tokens(tokenizer: Any) -> Measure:
    """A measure in tokens: exactly those that training and server use, control tokens included."""

    def measure(conversation: Conversation) -> Lengths:
        _, labels = encode_conversation(tokenizer, conversation)
        said = len(labels) - labels.count(IGNORED)
        first = next(number for number, label in enumerate(labels) if label != IGNORED)
        return Lengths(len(labels), said, first, sum(message["role"] == "assistant" for message in conversation))

    return measure


def load_tokenizer(name: str, revision: str | None = None, *, download: bool) -> Any:
    """The tokenizer of a folder or of a model on the hub; without `download` of one that was downloaded before.

    Raises:
        UserError: exit code 2 if there is none, or none of Phi-3's kind; 1 if the hub cannot be reached.
    """
    if not Path(name).is_dir():
        _check_hub(name, revision, download=download)
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(name, revision=revision or "main", local_files_only=not download)
        tokenizer.model_max_length = sys.maxsize  # it would warn of each conversation that is longer than its model's
        encode_conversation(tokenizer, [{"role": "user", "content": "a"}])
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"cannot count tokens with {name}: {reason}", code=WRONG_USE) from None
    return tokenizer


def _check_hub(name: str, revision: str | None, *, download: bool) -> None:
    """Asked first, because transformers tries for a minute to reach a hub that is not there."""
    if name.count("/") != 1 or name.startswith((".", "/")):
        raise UserError(f"cannot count tokens with {name}: there is no such folder", code=WRONG_USE)
    from huggingface_hub import HfApi, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, "tokenizer_config.json", revision=revision), str):
        return
    if not download:
        raise UserError(f"cannot count tokens with {name}: it has not been downloaded", code=WRONG_USE)
    with reaching_hub(f"the tokenizer of {name}"):
        HfApi().model_info(name, revision=revision, timeout=30)


@dataclass
class Statistics:
    """The lengths of one file's conversations, gathered one by one."""

    totals: Counter[int] = field(default_factory=Counter)
    replies: Counter[int] = field(default_factory=Counter)
    said: int = 0

    def add(self, lengths: Lengths) -> None:
        self.totals[lengths.total] += 1
        self.replies[lengths.replies] += 1
        self.said += lengths.said

    def summary(self) -> dict[str, Any]:
        """`total`, `assistant_share`, and mean, median and tail of the lengths and of the replies a conversation."""
        total = _sum(self.totals)
        return {
            "total": total,
            "assistant_share": round(self.said / max(total, 1), 4),
            "length": _spread(self.totals),
            "replies": _spread(self.replies),
        }

    def cut(self, limit: int) -> dict[str, float]:
        """What a `max_length` of `limit` would cut: how many conversations, and the share of tokens lost."""
        lost = sum((length - limit) * count for length, count in self.totals.items() if length > limit)
        rows = sum(count for length, count in self.totals.items() if length > limit)
        return {"conversations": rows, "token_share": round(lost / max(_sum(self.totals), 1), 4)}


def _sum(counts: Mapping[int, int]) -> int:
    return sum(value * count for value, count in counts.items())


def _spread(counts: Mapping[int, int]) -> dict[str, float]:
    """Mean, extremes and percentiles (the smallest value that so many in a hundred do not exceed)."""
    number = sum(counts.values())
    if not number:
        return {}
    spread: dict[str, float] = {"min": min(counts), "mean": round(_sum(counts) / number, 1)}
    for percent in (50, 95, 99):
        spread[f"p{percent}"] = _percentile(counts, -(-number * percent // 100))
    return {**spread, "max": max(counts)}


def _percentile(counts: Mapping[int, int], rank: int) -> int:
    passed = 0
    for value in sorted(counts):
        passed += counts[value]
        if passed >= rank:
            return value
    raise ValueError(f"there are fewer than {rank} values")


def draw_histogram(path: Path, parts: Mapping[str, Statistics], unit: str, max_length: int | None) -> None:
    """A PNG of how many conversations have which length, in each part. The same counts give the same bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    longest = max(max(part.totals) for part in parts.values())
    width = longest // 60 + 1  # whole numbers, or some bars would hold one length more than others
    figure = Figure(figsize=(8, 4), dpi=100, layout="constrained")
    axes = FigureCanvasAgg(figure).figure.add_subplot()
    for name, part in parts.items():
        lengths = sorted(part.totals)
        weights = [part.totals[length] for length in lengths]
        axes.hist(lengths, bins=range(0, longest + width + 1, width), weights=weights, label=name, alpha=0.8)
    if max_length is not None and max_length <= longest:
        axes.axvline(max_length, color="black", linestyle="--", label=f"max_length {max_length}")
    axes.set(xlabel=f"{unit} in a conversation", ylabel="conversations", yscale="log", xlim=(0, longest + width))
    axes.legend()
    figure.savefig(path, metadata={"Software": None})
