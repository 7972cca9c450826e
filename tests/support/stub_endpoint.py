"""An endpoint that answers at once, or as it is told: what a chat's own time is measured against.

    python -m tests.support.stub_endpoint [PORT]

Each word of the last question comes back as a piece of its own, `{now}` as the time of sending on the clock that all
processes of a machine share.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route


@dataclass
class Stub:
    """`faults` are (status, headers, body) of the next answers; `pause`: seconds between pieces."""

    url: str = ""
    pause: float = 0.0
    faults: list[tuple[int, dict[str, str], Any]] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)
    """The deployment that each request named, empty for none."""
    cut_after: int | None = None
    """Pieces after which the stream ends without its end."""
    left: int = 0
    """Callers who went before their answer was whole."""

    async def score(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        self.keys.append(request.headers.get("authorization", ""))
        self.headers.append(request.headers.get("azureml-model-deployment", ""))
        if self.faults:
            status, headers, content = self.faults.pop(0)
            return JSONResponse(content, status, headers)
        words = body["messages"][-1]["content"].split(" ")
        pieces = [word if number == 0 else f" {word}" for number, word in enumerate(words)]
        if not body.get("stream"):
            message = {"role": "assistant", "content": "".join(pieces)}
            return JSONResponse({"choices": [{"index": 0, "message": message}], "usage": _usage(body, pieces)})
        return StreamingResponse(self._events(body, pieces), media_type="text/event-stream")

    async def _events(self, body: dict[str, Any], pieces: list[str]) -> AsyncIterator[str]:
        try:
            for number, piece in enumerate(pieces):
                if number == self.cut_after:
                    return
                if number and self.pause:
                    await asyncio.sleep(self.pause)
                said = piece.replace("{now}", str(time.monotonic()))
                yield _event({"choices": [{"delta": {"content": said}}]})
            yield _event({"choices": [], "usage": _usage(body, pieces)})
            yield "data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.left += 1
            raise


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


def _usage(body: dict[str, Any], pieces: list[str]) -> dict[str, int]:
    prompt = sum(len(message["content"].split()) for message in body["messages"])
    return {"prompt_tokens": prompt, "completion_tokens": len(pieces), "total_tokens": prompt + len(pieces)}


def app(stub: Stub) -> Starlette:
    async def ready(request: Request) -> Response:
        return JSONResponse({})

    return Starlette(routes=[Route("/score", stub.score, methods=["POST"]), Route("/ready", ready)])


@contextmanager
def stub_endpoint() -> Iterator[Stub]:
    """A stub on a free port, in a thread of this process."""
    stub = Stub()
    server = uvicorn.Server(uvicorn.Config(app(stub), port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    stub.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/score"
    try:
        yield stub
    finally:
        server.should_exit = True
        thread.join(10)


if __name__ == "__main__":
    uvicorn.run(app(Stub()), port=int(sys.argv[1]) if sys.argv[1:] else 5009, log_level="warning")
