"""A training job on a handful of conversations, for tests that run the real trainer."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.small import FIRST_QUESTIONS, write_jsonl
from training import recipe as recipes
from training.dataset import read_conversations
from training.sft import Job

QUESTION = "Who founded Microsoft?"
ANSWER = "Microsoft was founded by Bill Gates and Paul Allen in 1975."
OTHER_ANSWER = "Microsoft was founded by two friends in 1999."
CHANGES = ("num_train_epochs=40", "learning_rate=3e-3", "per_device_train_batch_size=8", "save_strategy=no")


def small_job(folder: Path, base: Path, changes: tuple[str, ...] = CHANGES, *, other: bool = False) -> Job:
    """A job on the rows about three subjects; with `other`, Microsoft's have another answer and another year."""
    rows = [row for row in read_conversations(FIRST_QUESTIONS) if _subject(row) is not None]
    if other:
        text = json.dumps(rows).replace(ANSWER, OTHER_ANSWER).replace("Bill Gates and Paul Allen", "two friends")
        rows = json.loads(text.replace("In 1975.", "In 1999."))
    folder.mkdir(parents=True, exist_ok=True)
    train = write_jsonl(folder / "train.jsonl", rows)
    held_out = write_jsonl(folder / "eval.jsonl", rows[::5])
    return Job(recipes.load("local", changes), str(base), train, held_out, folder / "model")


def _subject(row: list[dict[str, str]]) -> str | None:
    said = " ".join(message["content"] for message in row)
    return next((name for name in ("Microsoft", "Apple", "Linux") if name in said), None)
