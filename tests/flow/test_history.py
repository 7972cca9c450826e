"""The contract of every history store, run on SQLite."""

from __future__ import annotations

import multiprocessing
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from flow.history import SqliteHistory, default_path
from infra.cli import UserError


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteHistory]:
    made = SqliteHistory(tmp_path / "chat.db")
    yield made
    made.close()


def test_turns_come_back_in_order(store: SqliteHistory) -> None:
    for number in range(5):
        store.append("c", f"key{number}", f"q{number}", f"a{number}")
    assert [(turn.number, turn.question, turn.answer) for turn in store.last("c", 2)] == [
        (4, "q3", "a3"),
        (5, "q4", "a4"),
    ]


def test_the_same_key_is_stored_once(store: SqliteHistory) -> None:
    first = store.append("c", "key", "q", "a")
    assert store.append("c", "key", "another", "text") == first
    assert store.last("c", 10) == [first]


@pytest.mark.parametrize("conversation", ["a'; DROP TABLE turns; --", 'q"uote', "sl/ash", "é 🎉", ""])
def test_any_text_is_a_conversation_id(store: SqliteHistory, conversation: str) -> None:
    store.append(conversation, "k", "q", "a")
    store.append("other", "k", "q", "a")
    assert len(store.last(conversation, 10)) == 1


def test_conversations_are_apart_listed_and_deleted(store: SqliteHistory) -> None:
    store.append("one", "k", "q", "a")
    store.append("two", "k", "q", "a")
    assert store.conversations() == ["two", "one"]
    store.delete("one")
    store.delete("one")
    assert store.conversations() == ["two"]
    assert store.last("one", 5) == []


def _append(path: Path, writer: int) -> None:
    store = SqliteHistory(path)
    for number in range(20):
        store.append("c", f"{writer}-{number}", f"{writer}", f"{number}")


def test_twelve_racing_writers_lose_double_and_reorder_nothing(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append, args=(path, writer)) for writer in range(12)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    turns = SqliteHistory(path).last("c", 1000)
    assert [turn.number for turn in turns] == list(range(1, 241))
    for name in range(12):
        assert [turn.answer for turn in turns if turn.question == str(name)] == [str(n) for n in range(20)]


def test_what_was_stored_is_there_after_reopening(tmp_path: Path) -> None:
    SqliteHistory(tmp_path / "x" / "chat.db").append("c", "k", "q", "a")
    assert len(SqliteHistory(tmp_path / "x" / "chat.db").last("c", 5)) == 1


def test_others_cannot_read_the_file(tmp_path: Path) -> None:
    SqliteHistory(tmp_path / "chat.db")
    assert stat.S_IMODE(os.stat(tmp_path / "chat.db").st_mode) == 0o600


def test_a_file_that_is_no_database_is_one_clear_sentence(tmp_path: Path) -> None:
    (tmp_path / "chat.db").write_text("not a database, but long enough to be read as one\n" * 50)
    with pytest.raises(UserError, match="cannot be opened"):
        SqliteHistory(tmp_path / "chat.db")


def test_the_environment_says_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CHAT_HISTORY", str(tmp_path / "mine.db"))
    assert default_path() == tmp_path / "mine.db"
    monkeypatch.delenv("CHAT_HISTORY")
    assert default_path().parts[-2:] == (".local", "chat.db")
