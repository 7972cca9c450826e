"""The store in Azure: Cosmos DB, by Entra identity, in the container that infra/chat_store.py makes.

The partition key is (user, conversation). A partition holds the conversation's turns and one item `head` that counts
them. A turn is stored in one transaction with its head, which has to be the one that was read (its etag); whoever comes
second reads again. A turn's id follows from its key, so that the same key cannot be stored twice.
https://learn.microsoft.com/azure/cosmos-db/nosql/transactional-batch
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from flow.history import PAGE, VERSION, Conversation, Turn, checked_id
from infra.cli import UserError

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential
    from azure.cosmos import ContainerProxy

DATABASE, CONTAINER = "chat", "turns"
HEAD = "head"
BATCH = 100
"""Operations that one transaction may have at most."""
RACING_SECONDS = 30.0
"""How long others may be faster, one after the other, before an append gives up."""


class CosmosHistory:
    """`flow.history.History` in a Cosmos DB account. `ttl`: seconds after which a turn is gone, None for never."""

    def __init__(self, endpoint: str, *, ttl: int | None = None, credential: TokenCredential | None = None) -> None:
        """Connects to the account at the address `endpoint`, as DefaultAzureCredential unless told otherwise.

        Raises UserError if it cannot be reached or nobody is signed in.
        """
        from azure.cosmos import CosmosClient
        from azure.identity import DefaultAzureCredential

        self._ttl = ttl
        with _explained():
            # Session consistency, the account's: this process reads what it wrote.
            self._client = CosmosClient(endpoint, credential or DefaultAzureCredential())
            self._turns: ContainerProxy = self._client.get_database_client(DATABASE).get_container_client(CONTAINER)

    def append(self, user: str, conversation: str, key: str, question: str, answer: str) -> Turn:
        place, until, pause = self._place(user, conversation), time.monotonic() + RACING_SECONDS, 0.005
        while True:
            with _explained():
                turn = self._try(place, key, question, answer, last=time.monotonic() > until)
            if turn is not None:
                return turn
            time.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(pause * 2, 0.5)

    def _try(self, place: tuple[str, str], key: str, question: str, answer: str, *, last: bool) -> Turn | None:
        """The turn as it is stored, now or earlier; None where it is worth another try."""
        from azure.core.exceptions import ServiceResponseError
        from azure.cosmos.exceptions import CosmosBatchOperationError

        head = self._item(place, HEAD)
        turn = Turn(1 + (head["turns"] if head else self._newest(place)), question, answer, time.time())
        try:
            operations = [self._head_operation(place, head, turn), ("create", (self._turn_item(place, key, turn),))]
            self._turns.execute_item_batch(operations, partition_key=[*place])
            return turn
        except (CosmosBatchOperationError, ServiceResponseError) as error:  # the latter: done or not, nobody knows
            if (stored := self._item(place, _turn_id(key))) is not None:
                return _turn(stored)
            # 409 and 412: another was faster; 404: the head is gone, for someone deletes
            if last or getattr(error, "status_code", 409) not in (404, 409, 412):
                raise
            return None

    def _turn_item(self, place: tuple[str, str], key: str, turn: Turn) -> dict[str, Any]:
        return self._entry(place, _turn_id(key), {"kind": "turn", **vars(turn)})

    def _head_operation(self, place: tuple[str, str], head: Mapping[str, Any] | None, turn: Turn) -> tuple[Any, ...]:
        new = self._entry(place, HEAD, {"kind": "head", "turns": turn.number, "updated_at": turn.asked_at})
        if head is None:
            return ("create", (new,))
        return ("replace", (HEAD, new), {"if_match_etag": head["_etag"]})

    def last(self, user: str, conversation: str, count: int) -> list[Turn]:
        items = self._query(
            "SELECT TOP @count * FROM c WHERE c.kind = 'turn' ORDER BY c.number DESC",
            [*self._place(user, conversation)],
            count=count,
        )
        return [_turn(item) for item in items][::-1]

    def page(self, user: str, conversation: str, after: int = 0, count: int = PAGE) -> list[Turn]:
        items = self._query(
            "SELECT TOP @count * FROM c WHERE c.kind = 'turn' AND c.number > @after ORDER BY c.number ASC",
            [*self._place(user, conversation)],
            count=count,
            after=after,
        )
        return [_turn(item) for item in items]

    def conversations(self, user: str, count: int = PAGE) -> list[Conversation]:
        # Sorted here: a user's conversations lie in many partitions, and have few bytes each.
        heads = self._query("SELECT * FROM c WHERE c.kind = 'head'", [checked_id(user, "user")])
        found = [Conversation(head["conversation"], head["turns"], head["updated_at"]) for head in heads]
        return sorted(found, key=lambda one: one.updated_at, reverse=True)[:count]

    def delete(self, user: str, conversation: str) -> None:
        self._delete(self._place(user, conversation))

    def erase(self, user: str) -> None:
        # All items, not only heads: an earlier erasure may have been cut off.
        items = self._query("SELECT c.id, c.conversation FROM c", [checked_id(user, "user")], versioned=False)
        for conversation in dict.fromkeys(item["conversation"] for item in items):
            self._delete((user, conversation))

    def close(self) -> None:
        self._client.__exit__()  # type: ignore[no-untyped-call]

    def _delete(self, place: tuple[str, str]) -> None:
        """Turns first and the head last, again until nothing is left: an interrupted deletion can still be seen."""
        from azure.cosmos.exceptions import CosmosBatchOperationError

        while items := self._query("SELECT c.id FROM c", [*place], versioned=False):
            ids = sorted((item["id"] for item in items), key=lambda one: one == HEAD)
            for start in range(0, len(ids), BATCH):
                with _explained():
                    try:
                        operations = [("delete", (one,)) for one in ids[start : start + BATCH]]
                        self._turns.execute_item_batch(operations, partition_key=[*place])
                    except CosmosBatchOperationError as error:
                        if error.status_code != 404:  # someone else deletes too: look again what is left
                            raise

    def _place(self, user: str, conversation: str) -> tuple[str, str]:
        return checked_id(user, "user"), checked_id(conversation, "conversation")

    def _entry(self, place: tuple[str, str], item_id: str, values: dict[str, Any]) -> dict[str, Any]:
        expiry = {} if self._ttl is None else {"ttl": self._ttl}
        return {"id": item_id, "user": place[0], "conversation": place[1], "version": VERSION, **values, **expiry}

    def _item(self, place: tuple[str, str], item_id: str) -> dict[str, Any] | None:
        from azure.cosmos.exceptions import CosmosResourceNotFoundError

        try:
            return _of_this_version(dict(self._turns.read_item(item_id, partition_key=[*place])))
        except CosmosResourceNotFoundError:
            return None

    def _newest(self, place: tuple[str, str]) -> int:
        """The number of the newest turn of a conversation whose head is missing; 0 for none."""
        found = self.last(*place, 1)
        return found[0].number if found else 0

    def _query(
        self, query: str, partition: list[str], *, versioned: bool = True, **values: int
    ) -> list[dict[str, Any]]:
        parameters: list[dict[str, object]] = [{"name": f"@{name}", "value": value} for name, value in values.items()]
        with _explained():
            found: Iterable[dict[str, Any]] = self._turns.query_items(
                query, parameters=parameters, partition_key=partition
            )
            return [_of_this_version(item) if versioned else item for item in found]


def _turn_id(key: str) -> str:
    """Cosmos DB takes no `/ \\ ? #` in an id, and a key may be any text."""
    return f"turn-{hashlib.sha256(key.encode()).hexdigest()[:40]}"


def _turn(item: Mapping[str, Any]) -> Turn:
    return Turn(item["number"], item["question"], item["answer"], item["asked_at"])


def _of_this_version(item: dict[str, Any]) -> dict[str, Any]:
    if item.get("version") != VERSION:
        raise UserError(
            "the chat history in Cosmos DB holds an item of another version of this program",
            next_command="update this checkout, or start a new conversation",
        )
    return item


@contextmanager
def _explained() -> Iterator[None]:
    """Turns a failure of Cosmos DB into a UserError of one sentence; its own texts can hold the item."""
    from azure.core.exceptions import AzureError, ClientAuthenticationError
    from azure.cosmos.exceptions import CosmosHttpResponseError

    try:
        yield
    except ClientAuthenticationError:
        raise UserError("nobody is signed in who could open the chat store", next_command="az login") from None
    except CosmosHttpResponseError as error:
        raise _refused(error.status_code) from None
    except AzureError as error:
        raise UserError(
            f"the chat store cannot be reached ({type(error).__name__})", next_command="python -m infra.preflight"
        ) from None


def _refused(status: int | None) -> UserError:
    if status in (401, 403):
        return UserError(
            f"the chat store refuses this identity ({status}); it needs the role Cosmos DB Built-in Data Contributor",
            next_command="az login, with the account that made the stack",
        )
    if status == 404:
        return UserError("the chat store has no container `turns` in its database `chat`", next_command="make up")
    return UserError(f"the chat store answers {status}", next_command="try again")
