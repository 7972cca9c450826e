"""The evaluation inside the job, by all its processes together: training/evaluate.py is the same by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training import ranks, samples
from training.evaluate import SECOND_DOMAIN, Measured, Questions, read_questions
from training.likelihood import Encoded, Likelihood, encode_all, likelihood
from training.recipe import Recipe
from training.samples import Reply

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Asked:
    """What the model before and the model after are asked, and in which arithmetic."""

    questions: Questions
    held_out: list[Encoded]
    second: list[Encoded]
    tokenizer: Any
    bf16: bool


def asked(tokenizer: Any, held_out: Path, rows: list[Encoded], recipe: Recipe, bf16: bool) -> Asked:
    """`rows` are the held-out file's as the trainer would see them. Raises UserError for a file that cannot be read."""
    questions = read_questions(held_out, None if recipe.job.gate_max_forgetting is None else SECOND_DOMAIN)
    length = recipe.sft.get("max_length")
    if recipe.sft.get("assistant_only_loss") is False:  # whatever is learned, the assistant's tokens are what counts
        rows = encode_all(tokenizer, questions.held_out, length)
    return Asked(questions, rows, encode_all(tokenizer, questions.second, length), tokenizer, bf16)


def measured(model: PreTrainedModel | None, asked: Asked) -> Measured:
    """What all processes measured together; the first one writes the replies. `model` is None where none was loaded."""
    import torch

    kind = model.device.type if model is not None else "cpu"
    with torch.autocast(kind, torch.bfloat16) if asked.bf16 else nullcontext():
        held_out = _shared(model, asked.held_out)
        second = _shared(model, asked.second) if asked.second else None
        own = samples.replies(model, asked.tokenizer, asked.questions.prompts) if model and ranks.is_first() else []
    return Measured(held_out, second, tuple(_from_first(own)))


def _shared(model: PreTrainedModel | None, rows: Sequence[Encoded]) -> Likelihood:
    """Each process that has a model measures a share of the rows; all know all parts afterwards."""
    sharing = int(ranks.added(float(model is not None))[0])
    nats, tokens = [0.0] * len(rows), [0.0] * len(rows)
    numbers = range(ranks.rank(), len(rows), sharing) if model is not None else range(0)
    if model is not None and numbers:
        for number, part in zip(numbers, likelihood(model, [rows[n] for n in numbers]).parts, strict=True):
            nats[number], tokens[number] = part
    found = ranks.added(*nats, *tokens)
    return Likelihood.of([(found[n], int(found[len(rows) + n])) for n in range(len(rows))])


def _from_first(replies: list[Reply]) -> list[Reply]:
    """What the first process wrote, for all of them: the verdict must be the same everywhere."""
    if ranks.processes() == 1:
        return replies
    from torch import distributed

    values = [replies]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def noted(found: Measured) -> dict[str, Any]:
    """As JSON can keep it: a job that is started again does not measure its base model again."""
    second = list(found.second.parts) if found.second else None
    return {
        "held_out": list(found.held_out.parts),
        "second": second,
        "replies": [asdict(reply) for reply in found.replies],
    }


def recalled(values: Mapping[str, Any]) -> Measured:
    """What `noted` wrote."""
    held_out, second = (
        Likelihood.of([(nats, tokens) for nats, tokens in values[name]]) if values[name] is not None else None
        for name in ("held_out", "second")
    )
    assert held_out is not None
    return Measured(held_out, second, tuple(Reply(**reply) for reply in values["replies"]))
