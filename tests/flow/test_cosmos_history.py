"""What only a service has: it throttles, it loses answers, it refuses. The real SDK over the fake."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flow.cosmos_history import CosmosHistory
from infra.cli import UserError
from tests.flow.stores import Token
from tests.support.cosmos_wire import CosmosWire, cosmos_wire

pytestmark = pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")


@pytest.fixture
def wire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CosmosWire]:
    with cosmos_wire(tmp_path) as made:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", made.authority)
        yield made


@pytest.fixture
def store(wire: CosmosWire) -> CosmosHistory:
    return CosmosHistory(wire.url, credential=Token())


def test_a_throttled_append_waits_as_it_is_told(store: CosmosHistory, wire: CosmosWire) -> None:
    wire.faults = [429, 429]
    assert store.append("u", "c", "k", "q", "a").number == 1
    assert wire.faults == []


def test_an_append_whose_answer_was_lost_is_stored_once_when_repeated(store: CosmosHistory, wire: CosmosWire) -> None:
    wire.faults = ["cut"]
    first = store.append("u", "c", "k", "q", "a")
    assert store.append("u", "c", "k", "q", "a") == first
    assert store.last("u", "c", 5) == [first]


@pytest.mark.parametrize(("status", "words"), [(403, "refuses this identity"), (401, "refuses this identity")])
def test_an_identity_without_the_role_is_told_which(
    store: CosmosHistory, wire: CosmosWire, status: int, words: str
) -> None:
    wire.faults = [status] * 5
    with pytest.raises(UserError, match=words):
        store.append("u", "c", "k", "q", "a")
    wire.faults = []
    assert store.last("u", "c", 5) == []


def test_a_store_that_is_down_is_one_sentence_without_the_text(store: CosmosHistory, wire: CosmosWire) -> None:
    wire.faults = [500] * 50
    with pytest.raises(UserError) as refused:
        store.append("u", "c", "k", "xylophone", "a")
    assert "500" in str(refused.value) and "xylophone" not in str(refused.value)


def test_an_account_that_cannot_be_reached_is_one_sentence() -> None:
    with pytest.raises(UserError, match="chat store"):
        CosmosHistory("https://localhost:1/", credential=Token()).last("u", "c", 1)


def test_an_item_of_another_version_is_refused_and_left(store: CosmosHistory, wire: CosmosWire) -> None:
    store.append("u", "c", "k", "q", "a")
    for item in wire.items.values():
        item["version"] = 2
    for act in (lambda: store.last("u", "c", 1), lambda: store.append("u", "c", "k2", "q", "a")):
        with pytest.raises(UserError, match="another version"):
            act()
    assert len(wire.items) == 2
    store.erase("u")  # what is to be erased need not be understood
    assert wire.items == {}


def test_numbers_go_on_where_the_head_is_missing(store: CosmosHistory, wire: CosmosWire) -> None:
    store.append("u", "c", "k", "q", "a")
    del wire.items[("u", "c", "head")]
    assert store.append("u", "c", "k2", "q", "a").number == 2


def test_only_items_are_created(store: CosmosHistory, wire: CosmosWire) -> None:
    store.append("u", "c", "k", "q", "a")
    store.erase("u")
    written = {request for request in wire.requests if not request.startswith("GET")}
    assert written == {"POST /dbs/chat/colls/turns/docs"}
