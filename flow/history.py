"""Where conversations are kept: one contract, SQLite on this machine and Cosmos DB (cosmos_history.py) in Azure.

A turn is a question with its answer, stored together once the answer is whole: a crash in between leaves a
conversation that simply goes on. `append` may be repeated with the same `key` and stores once; turns get their numbers
in the order in which they were stored, without gaps, whoever else appends.

Calls block, each for one short transaction, and any thread may make them: callers in an event loop use a thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from infra.cli import WRONG_USE, UserError

VERSION = 1
"""Of what a store holds; one of another version is refused rather than guessed at."""
LONGEST_ID = 200
"""Characters of a user's or a conversation's id."""
PAGE = 100
"""Turns, or conversations, that a listing holds unless told otherwise."""


@dataclass(frozen=True)
class Turn:
    """A question and its answer. `number` counts from 1; `asked_at` is in Unix seconds."""

    number: int
    question: str
    answer: str
    asked_at: float


@dataclass(frozen=True)
class Conversation:
    """One line of a user's list: how many turns were ever stored, when the last was (Unix seconds)."""

    id: str
    turns: int
    updated_at: float


class History(Protocol):
    """What every store gives. Ids are any text of 1 to 200 characters; others are a UserError (wrong use).

    Every method raises UserError where the store cannot be reached, refuses, or holds items of another version.
    """

    def append(self, user: str, conversation: str, key: str, question: str, answer: str) -> Turn:
        """Store a turn at the conversation's end, once for each `key`, and give it back as stored."""
        ...

    def last(self, user: str, conversation: str, count: int) -> list[Turn]:
        """The newest `count` turns, oldest first; none for an unknown conversation."""
        ...

    def page(self, user: str, conversation: str, after: int = 0, count: int = PAGE) -> list[Turn]:
        """The first `count` turns with numbers above `after`, oldest first."""
        ...

    def conversations(self, user: str, count: int = PAGE) -> list[Conversation]:
        """A user's conversations, the most recently used first."""
        ...

    def delete(self, user: str, conversation: str) -> None:
        """Remove a conversation; nothing happens if there is none."""
        ...

    def erase(self, user: str) -> None:
        """Remove all that a user ever said and was answered."""
        ...

    def close(self) -> None: ...


def export(history: History, user: str) -> Iterator[dict[str, Any]]:
    """All that is kept of a user, one `{"conversation", "turns"}` each, read page by page."""
    for conversation in history.conversations(user, count=1_000_000):
        yield {"conversation": conversation.id, "turns": [vars(turn) for turn in turns(history, user, conversation.id)]}


def turns(history: History, user: str, conversation: str) -> Iterator[Turn]:
    """Every turn of a conversation, oldest first, read page by page."""
    after = 0
    while page := history.page(user, conversation, after):
        yield from page
        after = page[-1].number


def checked_id(text: str, of: str) -> str:
    """`text` if it can be an id. Raises UserError (wrong use) otherwise, saying that of what it was."""
    if not 0 < len(text) <= LONGEST_ID:
        raise UserError(f"the {of}'s id has {len(text)} characters, not 1 to {LONGEST_ID}", code=WRONG_USE)
    if text != valid_text(text):
        raise UserError(f"the {of}'s id is not valid Unicode text", code=WRONG_USE)
    return text


def valid_text(text: str) -> str:
    """The text as it can be stored: surrogates joined to their characters, lone ones replaced by `?`.

    JSON can carry halves of a character ("\\ud83d"), and a model that writes byte by byte really sends them.
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\ufffd\ufffd", "\ufffd")
