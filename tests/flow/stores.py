"""The stores under test, each with what a test needs to look behind it."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flow.cosmos_history import CosmosHistory
from flow.history import History
from flow.sqlite_history import SqliteHistory
from tests.support.cosmos_wire import cosmos_wire

if TYPE_CHECKING:
    from azure.core.credentials import AccessToken

KINDS = ("sqlite", "cosmos", *(["azure"] if os.environ.get("COSMOS_ENDPOINT") else []))


class Token:
    """An Entra token that the fake lets in."""

    def get_token(self, *scopes: str, **more: object) -> AccessToken:
        from azure.core.credentials import AccessToken

        return AccessToken("token", int(time.time()) + 3600)


@dataclass
class Stored:
    """A kind of store: `open` gives another client of the same data, `pass_time` lets seconds go by."""

    open: Callable[[int | None], History]
    pass_time: Callable[[float], None]
    user: str = "user"


@contextmanager
def stored(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stored]:
    with ExitStack() as stack:
        if kind == "sqlite":
            clock = Clock()
            monkeypatch.setattr("flow.sqlite_history.time", clock)
            yield Stored(lambda ttl: SqliteHistory(folder / "chat.db", ttl=ttl), clock.go_on)
        elif kind == "cosmos":
            wire = stack.enter_context(cosmos_wire(folder))
            monkeypatch.setenv("REQUESTS_CA_BUNDLE", wire.authority)

            def pass_time(seconds: float) -> None:
                wire.later += seconds

            yield Stored(lambda ttl: CosmosHistory(wire.url, ttl=ttl, credential=Token()), pass_time)
        else:
            made = Stored(lambda ttl: CosmosHistory(os.environ["COSMOS_ENDPOINT"], ttl=ttl), time.sleep)
            made.user = f"test-{uuid.uuid4()}"
            stack.callback(lambda: made.open(None).erase(made.user))
            yield made


class Clock:
    """The module `time`, as far as a store needs it, with hands."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def time(self) -> float:
        return time.time() + self.ahead

    def go_on(self, seconds: float) -> None:
        self.ahead += seconds
