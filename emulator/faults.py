"""Faults on demand: what a service does on a bad day, said by `python -m emulator fault …` and kept until taken back.

    throttle        429 with Retry-After
    error           a status and code of one's choice: 503, 500, or 400 with OutOfQuota
    slow            an answer that comes late
    drop            a connection that ends in the middle of what the client sends
    operations      long-running operations that take longer
    roles           403 from storage until a new role assignment is as old as that
    image-build     environments that cannot be built
    token-lifetime  tokens that expire soon
    clock           tokens and signatures judged by a clock that is ahead, or behind

Of those that answer requests, `match` chooses which (a part of `METHOD host/path`), `after` lets the first ones go by,
`times` ends it.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from emulator.state import State

KINDS = ("throttle", "error", "slow", "drop", "operations", "roles", "image-build", "token-lifetime", "clock")
RECORD = "fault"
ASSIGNMENT = "/providers/microsoft.authorization/roleassignments/"


class Faults:
    """The faults of one emulator. `apply` stands before every request."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._begun: dict[str, float] = {}  # operation's path -> when it was first asked for
        self._assigned = 0.0  # when a role was last assigned

    def all(self) -> list[dict[str, Any]]:
        return [body for _, body in self._state.records(RECORD)]

    def add(self, fault: dict[str, Any]) -> dict[str, Any]:
        """Raises ValueError for a kind that there is not."""
        if fault.get("kind") not in KINDS:
            raise ValueError(f"there is no fault {fault.get('kind')!r}; there are {', '.join(KINDS)}")
        number = max([0, *(body["number"] for body in self.all())]) + 1
        made = {"match": "", "after": 0, "times": 0, "seconds": 5.0, "seen": 0, **fault, "number": number}
        self._state.save_record(RECORD, str(number), made)
        return made

    def clear(self) -> None:
        for body in self.all():
            self._state.drop_record(RECORD, str(body["number"]))

    async def apply(self, scope: Any, receive: Any, send: Any) -> Any:
        """None once the fault has answered; else what takes the place of `receive`."""
        where = f"{scope['method']} {_host(scope)}{scope['path']}".lower()
        if scope["method"] == "PUT" and ASSIGNMENT in where:
            self._assigned = time.time()
        for fault in self.all():
            if not self._strikes(fault, where, scope):
                continue
            scope["state"]["note"] = f"fault: {fault['kind']}"
            match fault["kind"]:
                case "slow":
                    await asyncio.sleep(fault["seconds"])
                case "drop":
                    return _broken(receive)
                case _:
                    await _answer(send, *_response(fault, where))
                    return None
        return receive

    def _strikes(self, fault: dict[str, Any], where: str, scope: Any) -> bool:
        """Whether it is this fault's turn; counts the requests that it is about."""
        if fault["match"].lower() not in where:
            return False
        match fault["kind"]:
            case "operations":
                polled = "operationsstatus/" in where or "operationresults/" in where
                return polled and time.time() - self._begun.setdefault(where, time.time()) < fault["seconds"]
            case "roles":
                signed = dict(scope["headers"]).get(b"authorization") is not None
                return ".blob." in where and signed and time.time() - self._assigned < fault["seconds"]
            case "image-build" | "token-lifetime" | "clock":
                return False
        fault["seen"] += 1
        self._state.save_record(RECORD, str(fault["number"]), fault)
        struck = fault["seen"] - fault["after"]
        return bool(struck > 0 and (not fault["times"] or struck <= fault["times"]))


def image_build_fails(state: State) -> bool:
    return any(body["kind"] == "image-build" for _, body in state.records(RECORD))


def token_lifetime(state: State, usual: int) -> int:
    """Seconds that a token lives."""
    return min(
        [usual, *(int(body["seconds"]) for _, body in state.records(RECORD) if body["kind"] == "token-lifetime")]
    )


def clock(state: State) -> float:
    """The time by which tokens and signatures are judged, in seconds since 1970."""
    skews = [float(body["seconds"]) for _, body in state.records(RECORD) if body["kind"] == "clock"]
    return time.time() + sum(skews)


def _host(scope: Any) -> str:
    return next((value.decode() for key, value in scope["headers"] if key == b"host"), "").split(":")[0]


def _response(fault: dict[str, Any], where: str) -> tuple[int, bytes, str, dict[str, str]]:
    """Status, body, media type and headers, in the shape of the service that is asked."""
    headers: dict[str, str] = {}
    match fault["kind"]:
        case "operations":
            status = 202 if "results/" in where else 200
            return status, b'{"status": "InProgress"}', "application/json", {"retry-after-ms": "100"}
        case "throttle":
            status, code, message = 429, "TooManyRequests", "The request was throttled."
            headers["Retry-After"] = str(int(fault["seconds"]))
        case "roles":
            status, code = 403, "AuthorizationPermissionMismatch"
            message = "This request is not authorized to perform this operation using this permission."
        case _:
            status, code = int(fault.get("status") or 503), str(fault.get("code") or "ServiceUnavailable")
            message = str(fault.get("message") or "The service is not available just now.")
    if ".blob." in where:
        xml = f'<?xml version="1.0" encoding="utf-8"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
        return status, xml.encode(), "application/xml", {**headers, "x-ms-error-code": code}
    return status, json.dumps({"error": {"code": code, "message": message}}).encode(), "application/json", headers


async def _answer(send: Any, status: int, body: bytes, media: str, headers: dict[str, str]) -> None:
    all_headers = {"content-type": media, "content-length": str(len(body)), "x-ms-request-id": "fault", **headers}
    encoded = [(key.encode(), value.encode()) for key, value in all_headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})


async def _cut(receive: Any) -> None:
    """End the connection itself: uvicorn would answer 500 to a request that nobody answers."""
    transport = getattr(getattr(receive, "__self__", None), "transport", None)
    if transport is not None:
        transport.abort()
        await asyncio.sleep(0)


def _broken(receive: Any) -> Any:
    """What a server reads from a client whose connection breaks after the first part of the body."""
    parts = 0

    async def broken() -> Any:
        nonlocal parts
        parts += 1
        if parts > 1:
            await _cut(receive)
            raise ConnectionResetError("a fault ended the connection")
        message = await receive()
        return {**message, "body": message.get("body", b"")[:1024], "more_body": True}

    return broken
