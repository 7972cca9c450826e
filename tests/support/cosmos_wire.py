"""Cosmos DB's wire protocol, as much as a chat's history needs: one container, over TLS, for the real SDK.

Account, container, key ranges, items, If-Match, atomic batches, expiry, queries with paging and with a prefix of a
hierarchical key. Only Entra tokens are let in, and nothing can be created but items, as with keys switched off.
https://learn.microsoft.com/rest/api/cosmos-db/
"""

from __future__ import annotations

import json
import re
import ssl
import threading
import time
import urllib.parse
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import trustme
from azure.cosmos import PartitionKey

Item = dict[str, Any]
BASE = "/dbs/chat/colls/turns"
CONTAINER = {
    "id": "turns",
    "_rid": "4hE6AOxYhQQ=",
    "_self": "dbs/4hE6AA==/colls/4hE6AOxYhQQ=/",
    "partitionKey": {"paths": ["/user", "/conversation"], "kind": "MultiHash", "version": 2},
    "defaultTtl": -1,
}
RANGES = {"PartitionKeyRanges": [{"id": "0", "minInclusive": "", "maxExclusive": "FF", "status": "online"}]}
MULTI_HASH = PartitionKey(path=["/user", "/conversation"], kind="MultiHash", version=2)


class Refused(Exception):
    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status, self.code = status, code


@dataclass
class CosmosWire:
    """The container's items by (user, conversation, id). `url` and `authority` (a PEM file) are what a client needs."""

    url: str = ""
    authority: str = ""
    items: dict[tuple[str, str, str], Item] = field(default_factory=dict)
    later: float = 0.0
    """Seconds that this Cosmos DB's clock is ahead."""
    page: int = 7
    """Items in an answer at most, so that every list has pages."""
    faults: list[int | str] = field(default_factory=list)
    """What goes wrong with the next writes: a status, or `cut` (done, but the answer is lost)."""
    lock: threading.RLock = field(default_factory=threading.RLock)
    requests: list[str] = field(default_factory=list)

    def now(self) -> float:
        return time.time() + self.later

    def item(self, place: tuple[str, str], item_id: str) -> Item | None:
        found = self.items.get((*place, item_id))
        if found is not None and "ttl" in found and found["_written"] + found["ttl"] <= self.now():
            del self.items[(*place, item_id)]
            return None
        return found

    def live(self) -> list[Item]:
        found = [self.item((user, conversation), item_id) for user, conversation, item_id in list(self.items)]
        return [item for item in found if item is not None]

    # -- writing ------------------------------------------------------------------------------------------------------

    def write(self, place: tuple[str, str], item_id: str, body: Item) -> Item:
        assert (body["user"], body["conversation"]) == place, "the key in the item is not the key of the request"
        assert not set("/\\?#") & set(item_id) and len(item_id) < 1024, item_id
        made = {**body, "_etag": f'"{uuid.uuid4()}"', "_ts": int(self.now()), "_written": self.now(), "_rid": item_id}
        self.items[(*place, item_id)] = made
        return made

    def apply(self, place: tuple[str, str], operation: Item) -> Item:
        """One operation of a batch; raises Refused."""
        body = operation.get("resourceBody", {})
        item_id = operation.get("id") or body["id"]
        found = self.item(place, item_id)
        match operation["operationType"]:
            case "Create":
                if found is not None:
                    raise Refused(409, "Conflict")
                return self.write(place, item_id, body)
            case "Replace":
                if found is None:
                    raise Refused(404, "NotFound")
                if operation.get("ifMatch", found["_etag"]) != found["_etag"]:
                    raise Refused(412, "PreconditionFailed")
                return self.write(place, item_id, body)
            case "Delete":
                if found is None:
                    raise Refused(404, "NotFound")
                return self.items.pop((*place, item_id))
        raise Refused(400, "BadRequest")

    def batch(self, place: tuple[str, str], operations: list[Item]) -> tuple[int, list[Item]]:
        """All or nothing: 207 with a 424 for each operation that another one's failure took along."""
        if not 0 < len(operations) <= 100:
            raise Refused(400, "BadRequest")
        before, results = dict(self.items), []
        for number, operation in enumerate(operations):
            try:
                made = self.apply(place, operation)
                results.append({"statusCode": 201, "eTag": made["_etag"], "requestCharge": 1})
            except Refused as refused:
                self.items = before
                results = [{"statusCode": 424, "requestCharge": 0} for _ in operations]
                results[number]["statusCode"] = refused.status
                return 207, results
        return 200, results

    # -- queries ------------------------------------------------------------------------------------------------------

    def query(self, text: str, values: dict[str, Any], among: list[Item]) -> list[Item]:
        """`SELECT [TOP @n] *|c.a, c.b FROM c [WHERE c.a OP VALUE AND …] [ORDER BY c.a ASC|DESC]` and nothing else."""
        shape = r"SELECT (?:TOP (@\w+) )?(.+?) FROM c(?: WHERE (.+?))?(?: ORDER BY c\.(\w+) (ASC|DESC))?"
        parsed = re.fullmatch(shape, text.strip())
        if parsed is None:
            raise Refused(400, "BadRequest")
        top, wanted, where, order, direction = parsed.groups()
        for condition in where.split(" AND ") if where else []:
            name, operator, value = re.fullmatch(r"c\.(\w+) (=|>) (.+)", condition).groups()  # type: ignore[union-attr]
            compared = values[value] if value.startswith("@") else value.strip("'")
            among = [
                item
                for item in among
                if name in item and (item[name] == compared if operator == "=" else item[name] > compared)
            ]
        if order:
            among = sorted(among, key=lambda item: item[order], reverse=direction == "DESC")
        among = among[: values[top]] if top else among
        return among if wanted == "*" else [{k: item[k] for k in re.findall(r"c\.(\w+)", wanted)} for item in among]


def _handler(wire: CosmosWire) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self._guarded(self._get)

        def do_POST(self) -> None:
            self._guarded(self._post)

        def do_PUT(self) -> None:
            self._answer(403, {"code": "Forbidden"})

        def _guarded(self, act: Any) -> None:
            self.raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.path = urllib.parse.unquote(self.path).rstrip("/")
            wire.requests.append(f"{self.command} {self.path}")
            if not urllib.parse.unquote(self.headers.get("Authorization", "")).startswith("type=aad&ver=1.0&sig="):
                self._answer(401, {"code": "Unauthorized"})
                return
            try:
                with wire.lock:
                    act()
            except Refused as refused:
                self._answer(refused.status, {"code": refused.code, "message": refused.code})

        def _get(self) -> None:
            if self.path in ("", "/"):
                region = [{"name": "East US 2", "databaseAccountEndpoint": wire.url}]
                account = {"id": "fake", "writableLocations": region, "readableLocations": region}
                self._answer(200, {**account, "userConsistencyPolicy": {"defaultConsistencyLevel": "Session"}})
            elif self.path == BASE:
                self._answer(200, CONTAINER)
            elif self.path.endswith("/pkranges"):
                known = self.headers.get("If-None-Match") == '"1"'
                self._answer(304 if known else 200, None if known else RANGES, etag='"1"')
            elif self.path.startswith(f"{BASE}/docs/"):
                found = wire.item(self._place(), self.path.rpartition("/")[2])
                if found is None:
                    raise Refused(404, "NotFound")
                self._answer(200, found, etag=found["_etag"])
            else:
                raise Refused(404, "NotFound")

        def _post(self) -> None:
            if self.path != f"{BASE}/docs":
                raise Refused(403, "Forbidden")
            if self.headers.get("x-ms-documentdb-isquery", "").lower() == "true":
                self._query()
                return
            fault = wire.faults.pop(0) if wire.faults else None
            if isinstance(fault, int):
                self._answer(fault, {"code": "Fault"}, **{"x-ms-retry-after-ms": "5"})
                return
            assert self.headers["x-ms-cosmos-is-batch-request"] == "True"
            assert self.headers["x-ms-cosmos-batch-atomic"] == "True"
            status, results = wire.batch(self._place(), json.loads(self.raw))
            if fault == "cut":
                self.close_connection = True
                self.connection.close()
                return
            self._answer(status, results)

        def _query(self) -> None:
            asked = json.loads(self.raw)
            values = {one["name"]: one["value"] for one in asked.get("parameters", [])}
            found = wire.query(asked["query"], values, self._scope())
            start = int(self.headers.get("x-ms-continuation") or 0)
            page = found[start : start + wire.page]
            more = {"x-ms-continuation": str(start + wire.page)} if start + wire.page < len(found) else {}
            self._answer(200, {"_rid": CONTAINER["_rid"], "Documents": page, "_count": len(page)}, **more)

        def _scope(self) -> list[Item]:
            """The items of the key, or of the range of hashed keys, that the request names."""
            if "x-ms-documentdb-partitionkey" in self.headers:
                place = self._place()
                return [item for item in wire.live() if (item["user"], item["conversation"]) == place]
            first, end = self.headers["x-ms-start-epk"], self.headers["x-ms-end-epk"]
            return [item for item in wire.live() if first <= _hashed(item) < end]

        def _place(self) -> tuple[str, str]:
            user, conversation = json.loads(self.headers["x-ms-documentdb-partitionkey"])
            return user, conversation

        def _answer(self, status: int, body: Any, **headers: str) -> None:
            raw = b"" if body is None else json.dumps(body).encode()
            self.send_response(status)
            always = {"x-ms-request-charge": "1", "x-ms-session-token": "0:-1#1"}
            for name, value in {**headers, **always}.items():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

    return Handler


def _hashed(item: Item) -> str:
    return str(MULTI_HASH._get_effective_partition_key_string([item["user"], item["conversation"]]))


@contextmanager
def cosmos_wire(folder: Path) -> Iterator[CosmosWire]:
    """A running fake on a free port of this machine. Its authority's certificate is written into `folder`."""
    authority, wire = trustme.CA(), CosmosWire()
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(wire))
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    wire.url, wire.authority = f"https://localhost:{server.server_port}/", str(folder / "authority.pem")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield wire
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
