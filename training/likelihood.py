"""How likely a model finds what the assistant says: nats per token, and how sure that figure is.

The mean is over tokens, not over batches: the trainer's own `eval_loss` is a mean of batch means, which depends on the
batch size. Its uncertainty comes from resampling whole conversations (the percentile bootstrap: Efron and Tibshirani,
An Introduction to the Bootstrap, 1993), since the tokens of one conversation are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from training.prompt import IGNORED, Message, encode_conversation

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Encoded: TypeAlias = tuple[list[int], list[int]]
"""Token ids and labels of one conversation."""
Part: TypeAlias = tuple[float, int]
"""Nats and assistant's tokens of one conversation."""

BATCH_TOKENS = 2048
RESAMPLES = 1000
SEED = 0


@dataclass(frozen=True)
class Likelihood:
    """Nats per assistant token, and over how many tokens; `parts` by conversation, in the order of the rows."""

    nll: float
    tokens: int
    parts: tuple[Part, ...] = ()

    @classmethod
    def of(cls, parts: Sequence[Part]) -> Likelihood:
        tokens = sum(count for _, count in parts)
        return cls(sum(nats for nats, _ in parts) / max(tokens, 1), tokens, tuple(parts))

    @property
    def perplexity(self) -> float:
        """Infinite where it is too large for a float."""
        try:
            return math.exp(self.nll)
        except OverflowError:
            return math.inf


@dataclass(frozen=True)
class Gain:
    """By how many nats per token one model is better than another on the same conversations; negative: worse.

    `error`: the standard error of it; infinite for a single conversation, which says nothing about others.
    """

    nats: float
    error: float


def encode_all(tokenizer: Any, conversations: Sequence[Sequence[Message]], max_length: int | None) -> list[Encoded]:
    """Ids and labels of each conversation, cut at `max_length`; without those that have no assistant's token."""
    rows = []
    for conversation in conversations:
        ids, labels = encode_conversation(tokenizer, conversation)
        if any(label != IGNORED for label in labels[1:max_length]):
            rows.append((ids[:max_length], labels[:max_length]))
    return rows


def likelihood(model: PreTrainedModel, rows: Sequence[Encoded]) -> Likelihood:
    """The token-weighted likelihood of what the assistant says, whatever the batches. Leaves `model` in eval mode."""
    model.train(False)
    parts: list[Part] = [(0.0, 0)] * len(rows)
    for numbers in _batches(rows):
        found = _nats(model, [rows[number] for number in numbers])
        for number, part in zip(numbers, found, strict=True):
            parts[number] = part
    return Likelihood.of(parts)


def _nats(model: PreTrainedModel, batch: Sequence[Encoded]) -> list[Part]:
    """Nats and tokens of each row of one batch."""
    import torch

    ids, labels, mask = _padded(batch)
    with torch.no_grad():
        logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False).logits
        targets = labels[:, 1:].to(model.device)
        losses = torch.nn.functional.cross_entropy(
            logits[:, :-1].float().transpose(1, 2), targets, ignore_index=IGNORED, reduction="none"
        )
    nats, counts = losses.sum(dim=1, dtype=torch.float64).tolist(), (targets != IGNORED).sum(dim=1).tolist()
    return list(zip(nats, counts, strict=True))


def _batches(rows: Sequence[Encoded]) -> Iterator[list[int]]:
    """The numbers of rows of like length, about BATCH_TOKENS a batch."""
    batch: list[int] = []
    for number in sorted(range(len(rows)), key=lambda number: len(rows[number][0])):
        if batch and (len(batch) + 1) * len(rows[number][0]) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _padded(batch: Sequence[Encoded]) -> tuple[Any, Any, Any]:
    """Ids, labels and attention mask, each a tensor of (rows, longest row), padded on the right."""
    import torch

    shape = (len(batch), max(len(ids) for ids, _ in batch))
    ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED)
    for row, (row_ids, row_labels) in enumerate(batch):
        ids[row, : len(row_ids)] = torch.tensor(row_ids)
        labels[row, : len(row_ids)] = torch.tensor(row_labels)
        mask[row, : len(row_ids)] = 1
    return ids, labels, mask


def interval(found: Likelihood) -> tuple[float, float]:
    """The bounds between which the mean lies with 95 % confidence; the mean itself for a single conversation."""
    import numpy

    if len(found.parts) < 2:
        return found.nll, found.nll
    low, high = numpy.percentile(_resampled_means(found.parts), [2.5, 97.5])
    return float(low), float(high)


def gain(before: Likelihood, after: Likelihood) -> Gain:
    """Conversation by conversation, which cancels that some are harder than others for both models.

    Raises:
        ValueError: they were not measured on the same conversations.
    """
    import numpy

    if [tokens for _, tokens in before.parts] != [tokens for _, tokens in after.parts]:
        raise ValueError("the two were not measured on the same conversations")
    differences = [(b - a, tokens) for (b, tokens), (a, _) in zip(before.parts, after.parts, strict=True)]
    if len(differences) < 2:
        return Gain(before.nll - after.nll, math.inf)
    return Gain(before.nll - after.nll, float(numpy.std(_resampled_means(differences), ddof=1)))


def _resampled_means(parts: Sequence[Part]) -> Any:
    """The token-weighted mean of each of RESAMPLES draws of conversations, with replacement; always the same draws."""
    import numpy

    nats, tokens = (numpy.asarray(column, dtype=float) for column in zip(*parts, strict=True))
    source = numpy.random.default_rng(SEED)
    means = numpy.empty(RESAMPLES)
    for number in range(RESAMPLES):
        drawn = source.integers(len(parts), size=len(parts))
        means[number] = nats[drawn].sum() / tokens[drawn].sum()
    return means
