"""Where conversations are kept: one contract, and SQLite as its first store.

A turn is a question with its answer, stored together once the answer is whole: a crash in between leaves a
conversation that simply goes on. `append` may be repeated with the same `key` and stores once; turns get their numbers
in the order in which they were stored, without gaps, whoever else appends.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from infra.cli import UserError
from infra.outputs import PROJECT

BUSY_SECONDS = 10.0


@dataclass(frozen=True)
class Turn:
    """A question and its answer. `number` counts from 1; `asked_at` is in Unix seconds."""

    number: int
    question: str
    answer: str
    asked_at: float


class History(Protocol):
    """What every store gives; a Cosmos DB store has the same four methods and passes the same tests."""

    def append(self, conversation: str, key: str, question: str, answer: str) -> Turn:
        """Store a turn at the conversation's end, once for each `key`, and give it back as stored."""
        ...

    def last(self, conversation: str, count: int) -> list[Turn]:
        """The newest `count` turns, oldest first; none for an unknown conversation."""
        ...

    def conversations(self) -> list[str]:
        """The ids of all conversations, the most recently used first."""
        ...

    def delete(self, conversation: str) -> None:
        """Remove a conversation; nothing happens if there is none."""
        ...


SCHEMA = """
CREATE TABLE IF NOT EXISTS turns (
    conversation TEXT NOT NULL,
    number INTEGER NOT NULL,
    key TEXT NOT NULL,
    question TEXT NOT NULL,
    answer TEXT NOT NULL,
    asked_at REAL NOT NULL,
    PRIMARY KEY (conversation, number),
    UNIQUE (conversation, key)
) WITHOUT ROWID
"""
COLUMNS = "number, question, answer, asked_at"


class SqliteHistory:
    """The local store: one file, safe for many processes at once (WAL, writers take turns)."""

    def __init__(self, path: Path) -> None:
        """Opens `path` and makes it if it is missing. Raises UserError if that cannot be."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # isolation_level None: no transaction but those that `_transaction` begins
            self._db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            os.chmod(path, 0o600)  # conversations are personal data
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute(SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f"the chat history {path} cannot be opened: {error}", next_command="set CHAT_HISTORY to another file"
            ) from None

    def append(self, conversation: str, key: str, question: str, answer: str) -> Turn:
        with self._transaction():
            stored = self._db.execute(
                f"SELECT {COLUMNS} FROM turns WHERE conversation = ? AND key = ?", (conversation, key)
            ).fetchone()
            if stored is not None:
                return Turn(*stored)
            (newest,) = self._db.execute(
                "SELECT coalesce(max(number), 0) FROM turns WHERE conversation = ?", (conversation,)
            ).fetchone()
            turn = Turn(newest + 1, question, answer, time.time())
            self._db.execute(
                "INSERT INTO turns VALUES (?, ?, ?, ?, ?, ?)",
                (conversation, turn.number, key, turn.question, turn.answer, turn.asked_at),
            )
        return turn

    def last(self, conversation: str, count: int) -> list[Turn]:
        rows = self._db.execute(
            f"SELECT {COLUMNS} FROM turns WHERE conversation = ? ORDER BY number DESC LIMIT ?", (conversation, count)
        ).fetchall()
        return [Turn(*row) for row in reversed(rows)]

    def conversations(self) -> list[str]:
        rows = self._db.execute("SELECT conversation FROM turns GROUP BY conversation ORDER BY max(asked_at) DESC")
        return [conversation for (conversation,) in rows]

    def delete(self, conversation: str) -> None:
        self._db.execute("DELETE FROM turns WHERE conversation = ?", (conversation,))

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """A write transaction from its first statement on: BEGIN IMMEDIATE, so that no two read the same maximum."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


def default_path() -> Path:
    """$CHAT_HISTORY, or `.local/chat.db` in the project."""
    given = os.environ.get("CHAT_HISTORY")
    return Path(given) if given else PROJECT / ".local" / "chat.db"
