"""Conversations as the rows that the trainer reads: ids and labels of our own, packed by TRL.

TRL could tokenise and mask by itself, but a user's `<|end|>` would become a control token; see training/prompt.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infra.cli import UserError
from training.dataset import read_conversations
from training.likelihood import Encoded, encode_all
from training.prompt import IGNORED
from training.recipe import Recipe
from training.schedule import Data

WHOLE = ("wrapped", "bfd_split")
"""Strategies that cut rows out of the stream of all tokens, so that no conversation is cut before."""


def encoded(tokenizer: Any, file: Path, recipe: Recipe) -> list[Encoded]:
    """Ids and labels of a file's conversations, each cut at the recipe's `max_length`.

    Raises:
        UserError: a conversation that cannot be turned into tokens, or none with a reply within `max_length`.
    """
    sft = recipe.sft
    max_length = None if sft.get("packing") and sft.get("packing_strategy") in WHOLE else sft.get("max_length")
    try:
        rows = encode_all(tokenizer, read_conversations(file), max_length)
    except ValueError as error:
        raise UserError(f"cannot turn the conversations of {file} into tokens: {error}") from None
    if not rows:
        raise UserError(f"no reply in {file} begins within max_length = {max_length} tokens")
    if sft.get("assistant_only_loss") is False:
        return [(ids, ids) for ids, _ in rows]
    return rows


def prepared(rows: Sequence[Encoded], recipe: Recipe) -> Any:
    """The rows as a datasets.Dataset with `input_ids`, `labels` and, packed, the documents' `seq_lengths`."""
    from datasets import Dataset, disable_progress_bars  # type: ignore[import-untyped]  # no type information
    from trl.data_utils import pack_dataset

    disable_progress_bars()
    sft = recipe.sft
    dataset = Dataset.from_dict({"input_ids": [ids for ids, _ in rows], "labels": [labels for _, labels in rows]})
    if sft.get("shuffle_dataset"):
        dataset = dataset.shuffle(seed=int(sft.get("seed", 42)))
    if sft.get("packing"):
        dataset = pack_dataset(dataset, sft["max_length"], sft.get("packing_strategy", "bfd"))
    return dataset


def facts(conversations: int, dataset: Any) -> Data:
    """What the plan has to know of prepared rows."""
    lengths = [len(row) for row in dataset["input_ids"]]
    documents = [length for row in dataset["seq_lengths"] for length in row] if _packed(dataset) else lengths
    tokens = sum(lengths)
    return Data(
        conversations=conversations,
        rows=len(lengths),
        tokens=tokens,
        learned=sum(label != IGNORED for labels in dataset["labels"] for label in labels),
        longest_row=max(lengths),
        span=sum(length * length for length in documents) / tokens,
    )


def _packed(dataset: Any) -> bool:
    return "seq_lengths" in dataset.column_names
