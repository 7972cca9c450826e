"""uvicorn as this server needs it: callers who never finish their headers are cut off, and SIGTERM loses nothing."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from deployment.server.errors import RequestError
from deployment.server.serving import Serving

HEADER_SECONDS = 10.0
"""To send a request's headers in; uvicorn itself waits for ever."""
NOTICE_SECONDS = 1.0
"""Between SIGTERM and the closing of the port: requests that are on their way still arrive."""
IDLE_SECONDS = 75
"""How long a connection without a request stays open: longer than the clients and gateways in front keep theirs, as a
request that meets the closing gets no answer."""
DRAIN_SECONDS = 175
"""How long accepted requests may go on after that; longer than any of them may take."""


class Protocol(H11Protocol):
    """HTTP/1.1 with a limit on the time for the headers, and with its own errors in the shape of all others."""

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._expect()
        else:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _expect(self) -> None:
        """The headers' time begins, unless it runs already."""
        if self._waiting is None:
            self._waiting = self.loop.call_later(HEADER_SECONDS, self._too_slow)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _too_slow(self) -> None:
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self._refuse(408, f"the request's headers did not arrive within {HEADER_SECONDS:g} seconds")

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, msg)

    def _refuse(self, status: int, message: str) -> None:
        """Answer and close, without the app: there is no request that it could be given."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(RequestError(message, status=status).body).encode()
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            for event in (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class Server(uvicorn.Server):
    """A server that goes on for NOTICE_SECONDS after SIGTERM, then finishes what it has accepted. It also ends when its
    engine has died.
    """

    def __init__(self, app: Any, serving: Serving) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Protocol,
                ws="none",
                access_log=False,
                log_level="warning",
                timeout_keep_alive=IDLE_SECONDS,
                timeout_graceful_shutdown=DRAIN_SECONDS,
                lifespan="off",
            )
        )
        self._serving = serving
        self._told: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig != signal.SIGTERM or self._told is not None:
            super().handle_exit(sig, frame)
            return
        self._captured_signals.append(sig)
        self._told, self._serving.draining = time.monotonic(), True

    async def on_tick(self, counter: int) -> bool:
        if self._told is not None and time.monotonic() - self._told >= NOTICE_SECONDS:
            self.should_exit = True
        if (
            self._serving.is_dead
        ):  # a container that exits is started again at once, one that fails its probes much later
            self.should_exit = True
        return await super().on_tick(counter)
