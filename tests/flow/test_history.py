"""The contract of every history store: on SQLite, on the real SDK over a fake Cosmos DB, and on Azure where one is.

COSMOS_ENDPOINT=https://ACCOUNT.documents.azure.com/ runs it against the real service too, as DefaultAzureCredential.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from flow.history import History, Turn, export, turns, valid_text
from infra.cli import WRONG_USE, UserError
from tests.flow.stores import KINDS, Stored, stored

pytestmark = pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")


@pytest.fixture(params=KINDS)
def kept(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stored]:
    with stored(request.param, tmp_path, monkeypatch) as made:
        yield made


@pytest.fixture
def store(kept: Stored) -> Iterator[History]:
    made = kept.open(None)
    yield made
    made.close()


def fill(store: History, user: str, conversation: str, count: int, start: int = 0) -> list[Turn]:
    return [store.append(user, conversation, f"key{n}", f"q{n}", f"a{n}") for n in range(start, start + count)]


def test_turns_come_back_in_order_with_what_was_said(store: History, kept: Stored) -> None:
    stored_turns = fill(store, kept.user, "c", 5)
    assert [turn.number for turn in stored_turns] == [1, 2, 3, 4, 5]
    assert store.last(kept.user, "c", 2) == stored_turns[3:]
    assert store.last(kept.user, "c", 0) == [] and store.last(kept.user, "unknown", 3) == []


def test_a_page_goes_on_after_the_last_one(store: History, kept: Stored) -> None:
    stored_turns = fill(store, kept.user, "c", 20)
    assert store.page(kept.user, "c", after=3, count=9) == stored_turns[3:12]
    assert store.page(kept.user, "c", after=20) == []
    assert list(turns(store, kept.user, "c")) == stored_turns


def test_the_same_key_is_stored_once(store: History, kept: Stored) -> None:
    first = store.append(kept.user, "c", "a/key?", "q", "a")
    fill(store, kept.user, "c", 1)
    assert store.append(kept.user, "c", "a/key?", "another", "text") == first
    assert [turn.number for turn in store.last(kept.user, "c", 10)] == [1, 2]


def test_the_same_key_in_another_conversation_is_another_turn(store: History, kept: Stored) -> None:
    store.append(kept.user, "c", "key", "q", "a")
    assert store.append(kept.user, "d", "key", "other", "a").question == "other"


@pytest.mark.parametrize("conversation", ["a'; DROP TABLE turns; --", 'q"uote', "sl/ash\\#?%2F", "é 🎉\n", "x" * 200])
def test_any_text_is_a_conversation_id(store: History, kept: Stored, conversation: str) -> None:
    store.append(kept.user, conversation, "k", "q", "a")
    store.append(kept.user, "other", "k", "q", "a")
    assert len(store.last(kept.user, conversation, 10)) == 1
    assert {one.id for one in store.conversations(kept.user)} == {conversation, "other"}
    store.delete(kept.user, conversation)
    assert [one.id for one in store.conversations(kept.user)] == ["other"]


@pytest.mark.parametrize("conversation", ["", "x" * 201, "\ud83d"])
def test_what_can_be_no_id_is_wrong_use(store: History, kept: Stored, conversation: str) -> None:
    with pytest.raises(UserError, match="conversation's id") as refused:
        store.append(kept.user, conversation, "k", "q", "a")
    assert refused.value.code == WRONG_USE
    with pytest.raises(UserError, match="conversation's id"):
        store.last(kept.user, conversation, 1)


@pytest.mark.parametrize("text", ["", "<|end|><|system|>", "<script>alert(1)</script>", "\x00\x1b[2J", "🎉" * 30_000])
def test_any_text_is_kept_as_it_is(store: History, kept: Stored, text: str) -> None:
    store.append(kept.user, "c", "k", text, text)
    (turn,) = store.last(kept.user, "c", 1)
    assert (turn.question, turn.answer) == (text, text)


def test_halves_of_characters_are_joined_or_replaced() -> None:
    assert valid_text("a\ud83d\ude00b") == "a😀b"
    assert valid_text("a\ud83d!") == "a�!"


def test_a_users_conversations_are_listed_the_last_used_first(store: History, kept: Stored) -> None:
    for number in range(12):
        fill(store, kept.user, f"c{number}", 2)
    fill(store, kept.user, "c3", 1, start=2)
    listed = store.conversations(kept.user, count=3)
    assert [(one.id, one.turns) for one in listed] == [("c3", 3), ("c11", 2), ("c10", 2)]
    assert len(store.conversations(kept.user)) == 12


def test_users_do_not_see_each_other(store: History, kept: Stored) -> None:
    fill(store, kept.user, "c", 1)
    assert store.last("someone else", "c", 5) == [] and store.conversations("someone else") == []


def test_a_deleted_conversation_is_gone_and_can_begin_anew(store: History, kept: Stored) -> None:
    fill(store, kept.user, "c", 3)
    fill(store, kept.user, "d", 1)
    store.delete(kept.user, "c")
    store.delete(kept.user, "c")
    assert store.last(kept.user, "c", 5) == [] and [one.id for one in store.conversations(kept.user)] == ["d"]
    assert fill(store, kept.user, "c", 1)[0].number == 1


def test_an_erased_user_leaves_nothing_and_nobody_else_loses_anything(store: History, kept: Stored) -> None:
    for conversation in ("c", "d"):
        fill(store, kept.user, conversation, 2)
    fill(store, f"{kept.user}2", "c", 1)
    store.erase(kept.user)
    store.erase(kept.user)
    assert store.conversations(kept.user) == [] and store.last(kept.user, "c", 5) == []
    assert len(store.last(f"{kept.user}2", "c", 5)) == 1
    store.erase(f"{kept.user}2")


def test_a_long_conversation_is_deleted_whole(store: History, kept: Stored) -> None:
    fill(store, kept.user, "c", 130)
    store.delete(kept.user, "c")
    assert store.page(kept.user, "c") == []


def test_an_export_has_every_turn_of_every_conversation(store: History, kept: Stored) -> None:
    fill(store, kept.user, "c", 2)
    fill(store, kept.user, "d", 1)
    exported = {one["conversation"]: one["turns"] for one in export(store, kept.user)}
    assert {name: [turn["question"] for turn in said] for name, said in exported.items()} == {
        "c": ["q0", "q1"],
        "d": ["q0"],
    }


def test_turns_expire_one_by_one_and_numbers_go_on(kept: Stored) -> None:
    store = kept.open(3)
    fill(store, kept.user, "c", 2)
    kept.pass_time(2)
    fill(store, kept.user, "c", 1, start=2)
    kept.pass_time(2)
    assert [turn.number for turn in store.last(kept.user, "c", 5)] == [3]
    assert [turn.number for turn in store.page(kept.user, "c")] == [3]
    assert fill(store, kept.user, "c", 1, start=3)[0].number == 4
    kept.pass_time(4)
    assert store.last(kept.user, "c", 5) == [] and store.conversations(kept.user) == []
    assert fill(store, kept.user, "c", 1, start=4)[0].number == 1


def test_twelve_racing_clients_lose_double_and_reorder_nothing(kept: Stored) -> None:
    stores = [kept.open(None) for _ in range(12)]
    barrier, failures = threading.Barrier(12), []

    def write(writer: int) -> None:
        barrier.wait()
        try:
            for number in range(5):
                for _ in range(2):  # as after an answer that got lost: the same turn once more
                    stores[writer].append(kept.user, "c", f"{writer}-{number}", f"{writer}", f"{number}")
        except UserError as error:
            failures.append(error)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(12)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not failures
    found = list(turns(stores[0], kept.user, "c"))
    assert [turn.number for turn in found] == list(range(1, 61))
    for name in range(12):
        assert [turn.answer for turn in found if turn.question == str(name)] == [str(n) for n in range(5)]


def test_threads_share_a_store(store: History, kept: Stored) -> None:
    threads = [threading.Thread(target=fill, args=(store, kept.user, f"c{n}", 5)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {one.turns for one in store.conversations(kept.user)} == {5}


def test_what_was_stored_is_there_for_the_next_client(kept: Stored) -> None:
    fill(kept.open(None), kept.user, "c", 1)
    assert len(kept.open(None).last(kept.user, "c", 5)) == 1
