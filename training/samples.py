"""What two models reply to the same prompts, side by side, and what is wrong with the replies.

The prompts are held-out conversations up to their first reply, spread evenly over the file; the replies are greedy, so
that the same models give the same table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from training.prompt import Message, encode_prompt, stop_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROMPTS = 12
NEW_TOKENS = 64
LONGEST = 2000
"""Characters of a prompt that a reader still reads; longer ones are taken only where there are no others."""
FEWEST_TRIGRAMS = 12
"""A shorter reply is not called repetitive."""
REPETITIVE = 0.35
"""A reply whose share of different trigrams is below this repeats itself. Prose has 0.9 and more, tables and code
0.6; a model in a loop comes to 0.2 within 64 tokens. A judgement of ours, made on replies of small models."""


@dataclass(frozen=True)
class Reply:
    """`text` without control tokens; `tokens` before the stop token; `stopped`: it ended by itself."""

    text: str
    tokens: int
    stopped: bool
    distinct_3: float

    @property
    def fault(self) -> str | None:
        """What is wrong with it: `empty` or `repetitive`."""
        if not self.text.strip():
            return "empty"
        repeats = self.tokens - 2 >= FEWEST_TRIGRAMS and self.distinct_3 < REPETITIVE
        return "repetitive" if repeats else None

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "fault": self.fault}


@dataclass(frozen=True)
class Prompt:
    """The messages before a conversation's first reply, and that reply as the file has it."""

    messages: tuple[Message, ...]
    reference: str

    @property
    def length(self) -> int:
        """In characters."""
        return sum(len(message["content"]) for message in self.messages)


def prompts_of(conversations: Sequence[Sequence[Message]], count: int = PROMPTS) -> list[Prompt]:
    """The beginnings of `count` conversations, or of all if there are fewer; always the same for the same file."""
    prompts = [_prompt(conversation) for conversation in conversations]
    short = [prompt for prompt in prompts if prompt.length <= LONGEST] or prompts
    step = max(len(short) / count, 1)
    return [short[int(number * step)] for number in range(min(count, len(short)))]


def _prompt(conversation: Sequence[Message]) -> Prompt:
    first = next(n for n, message in enumerate(conversation) if message["role"] == "assistant")
    return Prompt(tuple(conversation[:first]), conversation[first]["content"])


def distinct_3(ids: Sequence[int]) -> float:
    """The share of different ones among all runs of three tokens; 1 for a reply without any."""
    trigrams = list(zip(ids, ids[1:], ids[2:], strict=False))
    return len(set(trigrams)) / len(trigrams) if trigrams else 1.0


def replies(model: PreTrainedModel, tokenizer: Any, prompts: Sequence[Prompt]) -> list[Reply]:
    """The greedy replies, at most NEW_TOKENS long. Leaves `model` in eval mode."""
    import torch
    from transformers import GenerationConfig

    model.train(False)
    rows = [encode_prompt(tokenizer, prompt.messages) for prompt in prompts]
    longest = max(map(len, rows))
    padding = stop_ids(tokenizer)[1]
    ids = torch.tensor([[padding] * (longest - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=model.device)
    # an own configuration: a base model's may ask for sampling
    greedy = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=stop_ids(tokenizer), pad_token_id=padding
    )
    with torch.no_grad():
        said = model.generate(ids, attention_mask=mask, generation_config=greedy)[:, longest:]  # type: ignore[operator]
    return [_reply(tokenizer, row) for row in said.tolist()]


def _reply(tokenizer: Any, ids: list[int]) -> Reply:
    stops = [number for number, one in enumerate(ids) if one in stop_ids(tokenizer)]
    own = ids[: stops[0]] if stops else ids
    text = str(tokenizer.decode(own, skip_special_tokens=True))
    return Reply(text, len(own), bool(stops), round(distinct_3(own), 4))


def summary(found: Sequence[Reply]) -> dict[str, float]:
    """Figures over all replies; `distinct_3` is their mean."""
    count = len(found)
    return {
        "samples": count,
        "stop_rate": round(sum(reply.stopped for reply in found) / count, 4),
        "distinct_3": round(sum(reply.distinct_3 for reply in found) / count, 4),
        "empty_samples": sum(reply.fault == "empty" for reply in found),
        "degenerate_samples": sum(reply.fault is not None for reply in found),
    }


def as_markdown(prompts: Sequence[Prompt], before: Sequence[Reply] | None, after: Sequence[Reply]) -> str:
    """A table for a reader: prompt, both replies, the file's own."""
    head = ["prompt", *(["before"] if before else []), "after", "reference"]
    lines = [f"# Samples\n\nGreedy replies, at most {NEW_TOKENS} tokens.\n", f"| {' | '.join(head)} |"]
    lines.append(f"|{' --- |' * len(head)}")
    for number, prompt in enumerate(prompts):
        asked = "<br>".join(f"**{message['role']}**: {_cell(message['content'])}" for message in prompt.messages)
        cells = [asked, *([_shown(before[number])] if before else []), _shown(after[number]), _cell(prompt.reference)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _shown(reply: Reply) -> str:
    notes = [reply.fault or "", "" if reply.stopped else "cut off"]
    said = ", ".join(note for note in notes if note)
    return _cell(reply.text) + (f" *({said})*" if said else "")


def _cell(text: str, longest: int = 300) -> str:
    """Text that cannot leave its cell of a table."""
    short = text if len(text) <= longest else text[: longest - 1] + "…"
    for character, instead in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("`", "\\`"), ("*", "\\*")):
        short = short.replace(character, instead)
    return "<br>".join(short.split("\n")) or " "
