"""Who may ask the chat's server, how much and how many at once: an ASGI app around another.

Without a key only this machine is let in, and no page of another site may ask through the browser of somebody here:
requests have to name this machine as their host, and this server as their origin.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN_PATHS = frozenset({"/", "/page.js", "/page.css", "/health", "/ready"})
"""Without anything of anybody in them."""
THIS_MACHINE = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class Limits:
    """`key`: what callers have to bring, none if empty. `any_host`: a gateway in front decides who may come."""

    key: str = ""
    any_host: bool = False
    body_bytes: int = 1_000_000
    at_once: int = 128
    """Requests that are being answered; more are told to come again."""


class Guard:
    """The app with its limits in front."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app, self._limits, self._running = app, limits, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refused = self._refusal(scope["path"], Headers(scope=scope))
        if refused is not None:
            await refused(scope, receive, send)
            return
        self._running += 1
        try:
            await self._limited(scope, receive, send)
        finally:
            self._running -= 1

    def _refusal(self, path: str, headers: Mapping[str, str]) -> JSONResponse | None:
        host = headers.get("host", "")
        if not (self._limits.key or self._limits.any_host) and urlsplit(f"//{host}").hostname not in THIS_MACHINE:
            return told(403, "this server answers to this machine only")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return told(403, "pages of another site may not ask here")
        if path not in OPEN_PATHS and not self._knows_the_key(headers):
            return told(401, "the key is missing or wrong", {"WWW-Authenticate": "Bearer"})
        if path not in OPEN_PATHS and self._running >= self._limits.at_once:
            return told(429, "too many questions at once; ask again in a moment", {"Retry-After": "1"})
        return None

    def _knows_the_key(self, headers: Mapping[str, str]) -> bool:
        given = headers.get("authorization", "").removeprefix("Bearer ")
        return not self._limits.key or hmac.compare_digest(given.encode(), self._limits.key.encode())

    async def _limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The app, with a body that was counted as it came: a chunked one has no length to go by."""
        body = await self._body(receive)
        if body is None:
            too_large = f"the body is larger than {self._limits.body_bytes} bytes"
            await told(413, too_large, {"Connection": "close"})(scope, receive, send)
            return
        given = iter([body])

        async def replayed() -> Message:
            return (
                {"type": "http.request", "body": whole} if (whole := next(given, None)) is not None else await receive()
            )

        await self._app(scope, replayed, send)

    async def _body(self, receive: Receive) -> bytes | None:
        """The whole body; None if it is too large.

        Up to ten times the limit is read all the same: a caller who is still sending when the connection closes is told
        of a reset, and not of the reason.
        """
        parts, size, more = [], 0, True
        while more and size <= 10 * self._limits.body_bytes:
            message = await receive()
            part, more = message.get("body", b""), message.get("more_body", False)
            size += len(part)
            if size <= self._limits.body_bytes:
                parts.append(part)
        return b"".join(parts) if size <= self._limits.body_bytes else None


def told(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error in the shape that the endpoint's server has too."""
    return JSONResponse({"error": {"message": message}}, status, headers)
