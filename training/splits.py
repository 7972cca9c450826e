"""Which conversations are trained on and which are judged by: none twice, none in both, and everything counted.

Two conversations are the same if they read the same: speakers and texts equal, after Unicode normalisation (NFC),
with one kind of line break, without the white space around a text, without an empty system message. Upper case,
punctuation and inner white space (code!) tell them apart.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from training.lengths import Lengths, Measure
from training.rows import Conversation, Row, conversation_of, fault_of, ignored_keys

TRAIN, EVAL = "train", "eval"
EVAL_FRACTION = 0.05
SHOWN = 20
"""How many bad rows are named; all are counted."""


class Item(NamedTuple):
    """A conversation and how long it is."""

    conversation: Conversation
    lengths: Lengths


Chosen: TypeAlias = tuple[str, Item]
"""TRAIN or EVAL, and what belongs there."""


@dataclass
class Tally:
    """What was met on the way: rows read, bad rows by kind of fault (the first of them named), repetitions by place
    (`in_train`, `in_eval`, `in_both`), and keys that are no part of a conversation."""

    read: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    bad_rows: list[str] = field(default_factory=list)
    duplicates: Counter[str] = field(default_factory=Counter)
    ignored_keys: Counter[str] = field(default_factory=Counter)

    @property
    def dropped(self) -> int:
        return self.faults.total() + self.duplicates.total()

    def reject(self, place: str, kind: str, sentence: str) -> None:
        self.faults[kind] += 1
        if len(self.bad_rows) < SHOWN:
            self.bad_rows.append(f"{place}: {sentence}")


def good_rows(rows: Iterable[Row], tally: Tally) -> Iterator[tuple[str, Conversation]]:
    """Place and conversation of each row without fault; the others are counted."""
    for row in rows:
        tally.read += 1
        if fault := fault_of(row):
            tally.reject(row.place, fault.kind, fault.sentence)
            continue
        tally.ignored_keys.update(ignored_keys(row))
        yield row.place, conversation_of(row)


def measured(
    found: Iterable[tuple[str, Conversation]], tally: Tally, measure: Measure, max_length: int | None
) -> Iterator[Item]:
    """The conversations with their lengths; one without a reply within `max_length` is a bad row."""
    for place, conversation in found:
        lengths = measure(conversation)
        if max_length is not None and lengths.first_reply >= max_length:
            beyond = f"its first reply begins at token {lengths.first_reply + 1}, beyond max_length = {max_length}"
            tally.reject(place, "too_long", beyond)
        else:
            yield Item(conversation, lengths)


def digest(conversation: Conversation) -> bytes:
    """32 bytes that are equal for conversations that read the same."""
    same = [
        {"content": text, "role": message["role"]}
        for message in conversation
        if (text := _normal(message["content"])) or message["role"] != "system"
    ]
    return hashlib.sha256(_ENCODER.encode(same).encode()).digest()


_ENCODER = json.JSONEncoder(sort_keys=True)


def _normal(text: str) -> str:
    text = text.strip()
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def split_by_hash(found: Iterable[Item], tally: Tally, fraction: float = EVAL_FRACTION) -> Iterator[Chosen]:
    """Every conversation once; about `fraction` of them held out, chosen by the hash of their text.

    Where so few are given that none is chosen, the one with the smallest hash is: until the first is chosen all wait
    in memory, which are 20 on average.
    """
    seen: set[bytes] = set()
    waiting: list[tuple[bytes, Item]] = []
    chosen = False
    for item in found:
        key = digest(item.conversation)
        if key in seen:
            tally.duplicates[f"in_{_side(key, fraction)}"] += 1
            continue
        seen.add(key)
        waiting.append((key, item))
        chosen = chosen or _side(key, fraction) == EVAL
        if chosen:
            yield from ((_side(key, fraction), item) for key, item in waiting)
            waiting.clear()
    lowest = min((key for key, _ in waiting), default=b"") if len(waiting) > 1 else b""
    yield from ((EVAL if key == lowest else TRAIN, item) for key, item in waiting)


def _side(key: bytes, fraction: float) -> str:
    return EVAL if int.from_bytes(key[:4], "big") < fraction * 2**32 else TRAIN


def shipped_splits(train: Iterable[Item], held_out: Iterable[Item], tally: Tally) -> Iterator[Chosen]:
    """The source's own splits, each conversation once; one that stands in both is judged by, not trained on."""
    judged: set[bytes] = set()
    for item in held_out:
        if _is_new(digest(item.conversation), judged, tally, "in_eval"):
            yield EVAL, item
    trained: set[bytes] = set()
    for item in train:
        key = digest(item.conversation)
        if key in judged:
            tally.duplicates["in_both"] += 1
        elif _is_new(key, trained, tally, "in_train"):
            yield TRAIN, item


def _is_new(key: bytes, seen: set[bytes], tally: Tally, where: str) -> bool:
    if key in seen:
        tally.duplicates[where] += 1
        return False
    seen.add(key)
    return True
