"""The local store: one SQLite file, safe for many threads and processes at once (WAL, writers take turns)."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flow.history import PAGE, VERSION, Conversation, Turn, checked_id
from infra.cli import UserError

BUSY_SECONDS = 10.0

SCHEMA = """
CREATE TABLE IF NOT EXISTS conversations (
    user TEXT NOT NULL,
    id TEXT NOT NULL,
    turns INTEGER NOT NULL,
    updated_at REAL NOT NULL,
    PRIMARY KEY (user, id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS turns (
    user TEXT NOT NULL,
    conversation TEXT NOT NULL,
    number INTEGER NOT NULL,
    key TEXT NOT NULL,
    question TEXT NOT NULL,
    answer TEXT NOT NULL,
    asked_at REAL NOT NULL,
    PRIMARY KEY (user, conversation, number),
    UNIQUE (user, conversation, key)
) WITHOUT ROWID;
"""
COLUMNS = "number, question, answer, asked_at"
HERE = "user = ? AND conversation = ?"


class SqliteHistory:
    """`flow.history.History` in the file `path`. `ttl`: seconds after which a turn is gone, None for never."""

    def __init__(self, path: Path, *, ttl: float | None = None) -> None:
        """Opens `path` and makes it if it is missing. Raises UserError if that cannot be."""
        self._path, self._ttl = path, ttl
        # One connection has one transaction at a time; threads take turns.
        self._lock = threading.Lock()
        with self._explained("opened"):
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))  # conversations are personal data
            # isolation_level None: no transaction but those that `_transaction` begins
            self._db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            # A commit is in the file's log when it returns, whatever becomes of the process; only a power cut can
            # take the last ones back.
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._prepare()

    def _prepare(self) -> None:
        with self._transaction():
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if version != VERSION and (version or tables):
                raise UserError(
                    f"the chat history {self._path} was written by another version of this program",
                    next_command=f"mv {self._path} {self._path}.old, or set CHAT_HISTORY to another file",
                )
            for statement in SCHEMA.split(";"):
                self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {VERSION}")
            if self._ttl is not None:
                self._db.execute("DELETE FROM turns WHERE asked_at <= ?", (self._oldest(),))
                self._db.execute("DELETE FROM conversations WHERE updated_at <= ?", (self._oldest(),))

    def append(self, user: str, conversation: str, key: str, question: str, answer: str) -> Turn:
        place = (checked_id(user, "user"), checked_id(conversation, "conversation"))
        with self._explained("written"), self._transaction():
            self._forget_expired(place)
            stored = self._db.execute(f"SELECT {COLUMNS} FROM turns WHERE {HERE} AND key = ?", (*place, key)).fetchone()
            if stored is not None:
                return Turn(*stored)
            now = time.time()
            (number,) = self._db.execute(
                "INSERT INTO conversations VALUES (?, ?, 1, ?) ON CONFLICT (user, id) "
                "DO UPDATE SET turns = turns + 1, updated_at = excluded.updated_at RETURNING turns",
                (*place, now),
            ).fetchone()
            self._db.execute(
                "INSERT INTO turns VALUES (?, ?, ?, ?, ?, ?, ?)", (*place, number, key, question, answer, now)
            )
        return Turn(number, question, answer, now)

    def last(self, user: str, conversation: str, count: int) -> list[Turn]:
        rows = self._rows(
            f"SELECT {COLUMNS} FROM turns WHERE {HERE} AND asked_at > ? ORDER BY number DESC LIMIT ?",
            (checked_id(user, "user"), checked_id(conversation, "conversation"), self._oldest(), count),
        )
        return [Turn(*row) for row in reversed(rows)]

    def page(self, user: str, conversation: str, after: int = 0, count: int = PAGE) -> list[Turn]:
        rows = self._rows(
            f"SELECT {COLUMNS} FROM turns WHERE {HERE} AND asked_at > ? AND number > ? ORDER BY number LIMIT ?",
            (checked_id(user, "user"), checked_id(conversation, "conversation"), self._oldest(), after, count),
        )
        return [Turn(*row) for row in rows]

    def conversations(self, user: str, count: int = PAGE) -> list[Conversation]:
        rows = self._rows(
            "SELECT id, turns, updated_at FROM conversations WHERE user = ? AND updated_at > ? "
            "ORDER BY updated_at DESC LIMIT ?",
            (checked_id(user, "user"), self._oldest(), count),
        )
        return [Conversation(*row) for row in rows]

    def delete(self, user: str, conversation: str) -> None:
        place = (checked_id(user, "user"), checked_id(conversation, "conversation"))
        self._remove((f"DELETE FROM turns WHERE {HERE}", "DELETE FROM conversations WHERE user = ? AND id = ?"), place)

    def erase(self, user: str) -> None:
        statements = [f"DELETE FROM {table} WHERE user = ?" for table in ("turns", "conversations")]
        self._remove(statements, (checked_id(user, "user"),))

    def _remove(self, statements: Sequence[str], values: tuple[str, ...]) -> None:
        with self._explained("written"):
            with self._transaction():
                for statement in statements:
                    self._db.execute(statement, values)
            with self._lock:
                # Until then the old text is in the log and in free space (secure_delete leaves what pages moved).
                self._db.execute("VACUUM")
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _oldest(self) -> float:
        """The time before which nothing is shown any more."""
        return 0.0 if self._ttl is None else time.time() - self._ttl

    def _forget_expired(self, place: tuple[str, str]) -> None:
        """Remove a conversation's expired turns; where all are, it begins anew, as Cosmos DB has it."""
        if self._ttl is not None:
            here = (*place, self._oldest())
            self._db.execute(f"DELETE FROM turns WHERE {HERE} AND asked_at <= ?", here)
            self._db.execute("DELETE FROM conversations WHERE user = ? AND id = ? AND updated_at <= ?", here)

    def _rows(self, statement: str, values: tuple[str | float, ...]) -> list[Any]:
        with self._explained("read"), self._lock:
            return self._db.execute(statement, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """A write transaction from its first statement on: BEGIN IMMEDIATE, so that no two read the same number."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f"the chat history {self._path} cannot be {what}: {error}",
                next_command="set CHAT_HISTORY to another file",
            ) from None
