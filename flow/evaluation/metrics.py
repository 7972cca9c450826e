"""How near an answer is to the expected one, and what a whole table of answers says.

Exact match and F1 over words are those of SQuAD (case, punctuation and articles do not count):
https://arxiv.org/abs/1606.05250.
"""

from __future__ import annotations

import difflib
import math
import re
import statistics
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

REFUSAL = re.compile(
    r"\b(i (can(no|')t|am (unable|not able)|do(n't| not) know|won't|must decline)|i'm (sorry|unable|not able)"
    r"|as an ai|cannot (help|answer|assist))\b",
    re.IGNORECASE,
)
"""Words by which models decline; a heuristic for English."""


def words(text: str) -> list[str]:
    """The words that count: lower case, without punctuation and articles."""
    plain = "".join(letter for letter in text.lower() if unicodedata.category(letter)[0] not in "PS" or letter == "'")
    return [word for word in plain.split() if word not in ("a", "an", "the")]


def exact(answer: str, expected: str) -> bool:
    return words(answer) == words(expected)


def fuzzy(answer: str, expected: str) -> float:
    """0 to 1: the share of letters in common, in their order."""
    return difflib.SequenceMatcher(None, " ".join(words(answer)), " ".join(words(expected)), autojunk=False).ratio()


def f1(answer: str, expected: str) -> float:
    """0 to 1: the harmonic mean of which share of the answer's words is expected and which of the expected is there."""
    said, wanted = Counter(words(answer)), Counter(words(expected))
    common = sum((said & wanted).values())
    if not said or not wanted:
        return float(said == wanted)
    return 2 * common / (said.total() + wanted.total())


def scored(question: Row, answer: str | None, seconds: float | None, error: str | None = None) -> dict[str, Any]:
    """A row of the table. A question that got no answer scores 0; `seconds` is null where nobody measured."""
    said, expected = answer or "", str(question["expected"])
    return {
        "question": question["question"],
        "turns_before": len(question.get("chat_history") or []),
        "expected": expected,
        "answer": answer,
        "exact": answer is not None and exact(said, expected),
        "fuzzy": round(fuzzy(said, expected), 4) if answer is not None else 0.0,
        "f1": round(f1(said, expected), 4) if answer is not None else 0.0,
        "refused": bool(REFUSAL.search(said)),
        "characters": len(said),
        "seconds": seconds,
        "error": error,
    }


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Means over all questions; lengths and times over those that were answered; times null where none was measured."""
    answered = [row for row in rows if row["answer"] is not None]
    seconds = sorted(row["seconds"] for row in answered if row["seconds"] is not None)
    return {
        "questions": len(rows),
        "unanswered": len(rows) - len(answered),
        "exact": _mean([float(row["exact"]) for row in rows]),
        "fuzzy": _mean([row["fuzzy"] for row in rows]),
        "f1": _mean([row["f1"] for row in rows]),
        "refused": _mean([float(row["refused"]) for row in rows]),
        "characters_median": statistics.median([row["characters"] for row in answered]) if answered else None,
        "seconds_median": round(statistics.median(seconds), 4) if seconds else None,
        "seconds_p95": round(seconds[min(len(seconds) - 1, math.ceil(0.95 * len(seconds)) - 1)], 4)
        if seconds
        else None,
    }


def difference(new: Sequence[Row], old: Sequence[Row]) -> dict[str, Any]:
    """By how much F1 rose, question by question, with its standard error; where it rose, fell and stayed."""
    changes = [one["f1"] - other["f1"] for one, other in zip(new, old, strict=True)]
    error = statistics.stdev(changes) / math.sqrt(len(changes)) if len(changes) > 1 else None
    return {
        "f1_gain": _mean(changes),
        "f1_gain_error": None if error is None else round(error, 4),
        "better": sum(change > 0 for change in changes),
        "worse": sum(change < 0 for change in changes),
        "same": sum(change == 0 for change in changes),
    }


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 4) if values else 0.0
