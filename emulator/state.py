"""What the emulator knows, in one SQLite file that survives a kill at any moment (write-ahead log).

Three kinds of rows: *resources* as ARM answers them, *records* that ARM never shows (a job's process, an endpoint's
keys), and *blobs*, whose bytes lie beside the database as files.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Body = dict[str, Any]

SCHEMA = """
CREATE TABLE IF NOT EXISTS resources (
  id TEXT NOT NULL UNIQUE,       -- lower-cased ARM id: ARM compares ids without case
  type TEXT NOT NULL,            -- lower-cased resource type
  parent TEXT NOT NULL,          -- lower-cased id of the scope that lists it
  created INTEGER PRIMARY KEY AUTOINCREMENT,
  body TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS records (kind TEXT, id TEXT, body TEXT NOT NULL, PRIMARY KEY (kind, id));
CREATE TABLE IF NOT EXISTS blobs (
  account TEXT, container TEXT, name TEXT, path TEXT NOT NULL, body TEXT NOT NULL,
  PRIMARY KEY (account, container, name)
);
CREATE TABLE IF NOT EXISTS requests (
  at REAL, method TEXT, host TEXT, path TEXT, status INTEGER, ms REAL, note TEXT
);
"""


class State:
    """The emulator's store. Every call is one transaction; calls from several threads are serialised."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA busy_timeout=5000;" + SCHEMA)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self._db.in_transaction:
                yield self._db
                return
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    # -- resources ---------------------------------------------------------------------------------------------------

    def get(self, resource_id: str) -> Body | None:
        with self._lock:
            row = self._db.execute("SELECT body FROM resources WHERE id = ?", (resource_id.lower(),)).fetchone()
        return json.loads(row[0]) if row else None

    def put(self, resource_id: str, body: Body, *, parent: str) -> None:
        """Create or replace a resource; its place in the order of creation stays."""
        with self.transaction() as db:
            db.execute(
                "INSERT INTO resources (id, type, parent, body) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (id) DO UPDATE SET body = excluded.body",
                (resource_id.lower(), body["type"].lower(), parent.lower(), json.dumps(body)),
            )

    def children(self, parent: str, resource_type: str) -> list[Body]:
        """The resources of one type directly below `parent`, oldest first."""
        with self._lock:
            rows = self._db.execute(
                "SELECT body FROM resources WHERE parent = ? AND type = ? ORDER BY created",
                (parent.lower(), resource_type.lower()),
            ).fetchall()
        return [json.loads(row[0]) for row in rows]

    def below(self, scope: str) -> list[Body]:
        """Every resource at any depth below `scope`, oldest first."""
        with self._lock:
            rows = self._db.execute(
                "SELECT body FROM resources WHERE substr(id, 1, ?) = ? ORDER BY created",
                (len(scope) + 1, scope.lower() + "/"),
            ).fetchall()
        return [json.loads(row[0]) for row in rows]

    def of_type(self, resource_type: str) -> list[Body]:
        with self._lock:
            rows = self._db.execute(
                "SELECT body FROM resources WHERE type = ? ORDER BY created", (resource_type.lower(),)
            ).fetchall()
        return [json.loads(row[0]) for row in rows]

    def delete(self, resource_id: str) -> None:
        """Delete a resource with everything below it."""
        key = resource_id.lower()
        with self.transaction() as db:
            db.execute("DELETE FROM resources WHERE id = ? OR substr(id, 1, ?) = ?", (key, len(key) + 1, key + "/"))

    # -- records -----------------------------------------------------------------------------------------------------

    def record(self, kind: str, record_id: str) -> Body | None:
        with self._lock:
            row = self._db.execute(
                "SELECT body FROM records WHERE kind = ? AND id = ?", (kind, record_id.lower())
            ).fetchone()
        return json.loads(row[0]) if row else None

    def save_record(self, kind: str, record_id: str, body: Body) -> None:
        with self.transaction() as db:
            db.execute("INSERT OR REPLACE INTO records VALUES (?, ?, ?)", (kind, record_id.lower(), json.dumps(body)))

    def drop_record(self, kind: str, record_id: str) -> None:
        with self.transaction() as db:
            db.execute("DELETE FROM records WHERE kind = ? AND id = ?", (kind, record_id.lower()))

    def records(self, kind: str) -> list[tuple[str, Body]]:
        with self._lock:
            rows = self._db.execute("SELECT id, body FROM records WHERE kind = ? ORDER BY rowid", (kind,)).fetchall()
        return [(row[0], json.loads(row[1])) for row in rows]

    # -- blobs -------------------------------------------------------------------------------------------------------

    def blob(self, account: str, container: str, name: str) -> tuple[Path, Body] | None:
        with self._lock:
            row = self._db.execute(
                "SELECT path, body FROM blobs WHERE account = ? AND container = ? AND name = ?",
                (account, container, name),
            ).fetchone()
        return (Path(row[0]), json.loads(row[1])) if row else None

    def save_blob(self, account: str, container: str, name: str, path: Path, body: Body) -> Path | None:
        """Point a name at a file; returns the file that it pointed at before, if another."""
        with self.transaction() as db:
            before = self.blob(account, container, name)
            db.execute(
                "INSERT OR REPLACE INTO blobs VALUES (?, ?, ?, ?, ?)",
                (account, container, name, str(path), json.dumps(body)),
            )
        return before[0] if before and before[0] != path else None

    def drop_blob(self, account: str, container: str, name: str) -> Path | None:
        with self.transaction() as db:
            before = self.blob(account, container, name)
            db.execute("DELETE FROM blobs WHERE account = ? AND container = ? AND name = ?", (account, container, name))
        return before[0] if before else None

    def list_blobs(self, account: str, container: str, prefix: str = "") -> list[tuple[str, Path, Body]]:
        with self._lock:
            rows = self._db.execute(
                "SELECT name, path, body FROM blobs WHERE account = ? AND container = ? AND substr(name, 1, ?) = ? "
                "ORDER BY name",
                (account, container, len(prefix), prefix),
            ).fetchall()
        return [(row[0], Path(row[1]), json.loads(row[2])) for row in rows]

    # -- requests ----------------------------------------------------------------------------------------------------

    def log_request(self, at: float, method: str, host: str, path: str, status: int, ms: float, note: str = "") -> None:
        with self.transaction() as db:
            db.execute("INSERT INTO requests VALUES (?, ?, ?, ?, ?, ?, ?)", (at, method, host, path, status, ms, note))

    def requests(self) -> list[tuple[float, str, str, str, int, float, str]]:
        with self._lock:
            return self._db.execute("SELECT * FROM requests ORDER BY at").fetchall()
