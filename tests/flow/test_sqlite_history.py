"""What only the file has: processes that race or are killed, permissions, and files that are none."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import random
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from flow.sqlite_history import SqliteHistory
from flow.stores import history_of
from infra.cli import WRONG_USE, UserError
from infra.outputs import StackOutputs

NAMES = [field.name for field in dataclasses.fields(StackOutputs)]
OUTPUTS = StackOutputs(**{name: "" for name in NAMES})


def _append(path: Path, writer: int) -> None:
    store = SqliteHistory(path)
    for number in range(20):
        store.append("user", "c", f"{writer}-{number}", f"{writer}", f"{number}")


def test_twelve_processes_that_make_the_file_together_lose_double_and_reorder_nothing(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append, args=(path, writer)) for writer in range(12)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    turns = SqliteHistory(path).last("user", "c", 1000)
    assert [turn.number for turn in turns] == list(range(1, 241))
    for name in range(12):
        assert [turn.answer for turn in turns if turn.question == str(name)] == [str(n) for n in range(20)]


def test_others_cannot_read_the_file(tmp_path: Path) -> None:
    store = SqliteHistory(tmp_path / "chat.db")
    store.append("user", "c", "k", "q", "a")
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600, path


def test_erased_and_deleted_words_are_not_in_the_files(tmp_path: Path) -> None:
    store = SqliteHistory(tmp_path / "chat.db")
    for number in range(200):
        store.append("user", "c", f"{number}", "xylophone", "a")
        store.append("user", "d", f"{number}", "zeppelin", "a")
    store.delete("user", "c")
    assert all(b"xylophone" not in path.read_bytes() for path in tmp_path.iterdir())
    store.erase("user")
    assert all(b"zeppelin" not in path.read_bytes() for path in tmp_path.iterdir())


def test_a_file_that_is_no_database_is_one_clear_sentence(tmp_path: Path) -> None:
    (tmp_path / "chat.db").write_text("not a database, but long enough to be read as one\n" * 50)
    with pytest.raises(UserError, match="cannot be opened"):
        SqliteHistory(tmp_path / "chat.db")


@pytest.mark.parametrize("version", [0, 2])
def test_a_file_of_another_version_is_refused_and_left_as_it_is(tmp_path: Path, version: int) -> None:
    path = tmp_path / "chat.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE turns (conversation TEXT)")
        db.execute("INSERT INTO turns VALUES ('c')")
        db.execute(f"PRAGMA user_version = {version}")
    with pytest.raises(UserError, match="another version"):
        SqliteHistory(path)
    assert sqlite3.connect(path).execute("SELECT * FROM turns").fetchall() == [("c",)]


def test_what_expired_while_nobody_asked_is_gone_from_the_file_when_it_is_opened(tmp_path: Path) -> None:
    SqliteHistory(tmp_path / "chat.db").append("user", "c", "k", "xylophone", "a")
    SqliteHistory(tmp_path / "chat.db", ttl=1e-6).close()
    assert SqliteHistory(tmp_path / "chat.db").conversations("user") == []


def test_the_environment_says_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CHAT_HISTORY", str(tmp_path / "mine.db"))
    store = history_of(dataclasses.replace(OUTPUTS, chat_store="https://never.documents.azure.com/"))
    assert isinstance(store, SqliteHistory) and (tmp_path / "mine.db").is_file()


@pytest.mark.parametrize("days", ["0", "-1", "soon", "inf", "nan", "1e9"])
def test_an_expiry_is_a_positive_number_of_days(days: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CHAT_HISTORY", str(tmp_path / "mine.db"))
    monkeypatch.setenv("CHAT_TTL_DAYS", days)
    with pytest.raises(UserError, match="CHAT_TTL_DAYS") as refused:
        history_of(OUTPUTS)
    assert refused.value.code == WRONG_USE


WRITER = """
import sys
from pathlib import Path
from flow.sqlite_history import SqliteHistory
store = SqliteHistory(Path(sys.argv[1]))
for number in range(int(sys.argv[2]), 10**9):
    store.append("user", "c", str(number), str(number), "a" * 500)
    print(number, flush=True)
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_loses_no_acknowledged_turn(tmp_path: Path) -> None:
    """40 writers, each killed after an arbitrary time; what one had acknowledged is there for the next."""
    acknowledged, path = -1, tmp_path / "chat.db"
    for _ in range(40):
        command = [sys.executable, "-c", WRITER, str(path), str(acknowledged + 1)]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        for _ in range(random.randint(1, 400)):
            acknowledged = int(writer.stdout.readline())
        writer.kill()
        acknowledged = max([acknowledged, *map(int, writer.stdout.read().split())])
        writer.wait()
        found = SqliteHistory(path).last("user", "c", 10**6)
        assert [turn.number for turn in found] == list(range(1, len(found) + 1))
        assert [int(turn.question) for turn in found] == list(range(len(found)))
        assert len(found) - 1 in (acknowledged, acknowledged + 1)
    print(f"{acknowledged + 1} turns acknowledged over 40 kills, none lost, none doubled")
