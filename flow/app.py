"""The chat over HTTP: its page, its conversations, and the flow.

| route | answers |
|---|---|
| GET / | the page; its script and style are /page.js and /page.css |
| POST /chat | `{"question", "conversation"?, "key"?}` → server-sent events: `{"piece"}`…, `{"done"}` or `{"error"}` |
| GET /conversations, DELETE /conversations | the user's list; erase all of it |
| GET /conversation?id=, DELETE /conversation?id= | its turns, a page at a time (`after=`); remove it |
| GET /export | all that is kept of the user |
| POST /score, GET /swagger.json | the flow, as Prompt flow serves it |
| GET /health, /ready | 200; /ready only once the flow is loaded |

`user=` in the query names whose conversations are meant, for a key's holder who serves several; else they are those of
whoever runs the server.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from flow.chat import Chat, new_conversation
from flow.conversation import Endpoint, Reply, Settings
from flow.guard import told
from flow.history import History, checked_id, export
from infra.cli import REFUSED, WRONG_USE, UserError

if TYPE_CHECKING:
    import httpx

    from flow.prompt_flow import LateFlow

log = logging.getLogger("flow")

PAGE = Path(__file__).resolve().parent / "page"
# Everything comes from here, nothing may be embedded or framed: an answer that got into the page could do nothing.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGE_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
STATUS = {WRONG_USE: 400, REFUSED: 403}
"""Of a UserError by its exit code; any other is 502, for what failed lies behind this server."""


@dataclass
class Serving:
    """What the routes share. `endpoint` and `history` are found at the first question: the page comes at once."""

    find_endpoint: Callable[[], Endpoint]
    find_history: Callable[[], History]
    user: str
    settings: Settings = field(default_factory=Settings)
    client: httpx.AsyncClient | None = None
    _endpoint: Endpoint | None = None
    _history: History | None = None
    _finding: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def endpoint(self) -> Endpoint:
        async with self._finding:
            if self._endpoint is None:
                self._endpoint = await asyncio.to_thread(self.find_endpoint)
        return self._endpoint

    async def history(self) -> History:
        async with self._finding:
            if self._history is None:
                self._history = await asyncio.to_thread(self.find_history)
        return self._history


def create_app(serving: Serving, flow: LateFlow | None = None) -> ASGIApp:
    """The app around `serving`; with `flow`, Prompt flow's app, behind /score."""

    async def ready(request: Request) -> Response:
        loaded = flow is None or flow.ready
        return JSONResponse({"status": "ready" if loaded else "loading"}, 200 if loaded else 503)

    def routed(act: Callable[[Serving, Request], Any]) -> Callable[[Request], Any]:
        async def handle(request: Request) -> Response:
            answer: Response = await act(serving, request)
            return answer

        return handle

    routes = [
        Route("/chat", routed(_chat), methods=["POST"]),
        Route("/conversations", routed(_list), methods=["GET"]),
        Route("/conversations", routed(_erase), methods=["DELETE"]),
        Route("/conversation", routed(_turns), methods=["GET"]),
        Route("/conversation", routed(_delete), methods=["DELETE"]),
        Route("/export", routed(_export), methods=["GET"]),
    ]
    routes += [Route("/health", _live, methods=["GET"]), Route("/ready", ready, methods=["GET"])]
    for path, name in {"/": "index.html", "/page.js": "page.js", "/page.css": "page.css"}.items():
        routes.append(Route(path, _file(name), methods=["GET"]))
    if flow is not None:
        routes += [Route(path, flow) for path in ("/score", "/swagger.json")]
    return Starlette(routes=routes, exception_handlers={UserError: _failed})


def _file(name: str) -> Callable[[Request], Any]:
    async def page(request: Request) -> Response:
        return FileResponse(PAGE / name, headers=PAGE_HEADERS)

    return page


async def _live(request: Request) -> Response:
    return JSONResponse({"status": "live"})


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, UserError)
    return told(STATUS.get(error.code, 502), error.message)


def _user(serving: Serving, request: Request) -> str:
    return checked_id(request.query_params.get("user", serving.user), "user")


async def _chat(serving: Serving, request: Request) -> Response:
    body = await _object(request)
    question, conversation = body.get("question"), body.get("conversation") or new_conversation()
    key = body.get("key")
    if not isinstance(question, str) or not isinstance(conversation, str) or not isinstance(key, str | None):
        raise UserError("`question`, `conversation` and `key` have to be texts", code=WRONG_USE)
    endpoint, history = await serving.endpoint(), await serving.history()
    user = _user(serving, request)
    chat = Chat(endpoint, history, conversation, user, serving.settings, serving.client)
    reply = Reply()
    pieces = chat.stream(question, reply=reply, key=key)
    first = await anext(pieces, "")  # what fails before the first piece still has its status
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(_events(chat, first, pieces, reply), media_type="text/event-stream", headers=headers)


async def _object(request: Request) -> dict[str, Any]:
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        raise UserError("the body has to be application/json", code=WRONG_USE)
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise UserError("the body has to be one JSON object", code=WRONG_USE)
    return body


async def _events(chat: Chat, first: str, pieces: Any, reply: Reply) -> AsyncIterator[bytes]:
    try:
        async with aclosing(pieces):
            yield _event({"piece": first, "conversation": chat.conversation})
            async for piece in pieces:
                yield _event({"piece": piece})
        yield _event({"done": True, "conversation": chat.conversation, "usage": reply.usage})
    except UserError as error:
        yield _event({"error": error.message})


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


async def _list(serving: Serving, request: Request) -> Response:
    """Each conversation with its first question as a title."""
    history, user = await serving.history(), _user(serving, request)
    listed = await asyncio.to_thread(history.conversations, user)
    firsts = await asyncio.gather(*(asyncio.to_thread(history.page, user, one.id, 0, 1) for one in listed))
    titles = [first[0].question[:80] if first else "" for first in firsts]
    return JSONResponse([{**vars(one), "title": title} for one, title in zip(listed, titles, strict=True)])


async def _turns(serving: Serving, request: Request) -> Response:
    history, user, conversation = await serving.history(), _user(serving, request), _id(request)
    after = request.query_params.get("after", "0")
    if not after.isdecimal():
        raise UserError("`after` is the number of a turn", code=WRONG_USE)
    page = await asyncio.to_thread(history.page, user, conversation, min(int(after), 2**53))
    return JSONResponse([vars(turn) for turn in page])


async def _delete(serving: Serving, request: Request) -> Response:
    history, user, conversation = await serving.history(), _user(serving, request), _id(request)
    await asyncio.to_thread(history.delete, user, conversation)
    return Response(status_code=204)


async def _erase(serving: Serving, request: Request) -> Response:
    history, user = await serving.history(), _user(serving, request)
    await asyncio.to_thread(history.erase, user)
    return Response(status_code=204)


async def _export(serving: Serving, request: Request) -> Response:
    history, user = await serving.history(), _user(serving, request)
    kept = await asyncio.to_thread(lambda: list(export(history, user)))
    headers = {"Content-Disposition": 'attachment; filename="conversations.json"'}
    return JSONResponse({"user": user, "conversations": kept}, headers=headers)


def _id(request: Request) -> str:
    return checked_id(request.query_params.get("id", ""), "conversation")
