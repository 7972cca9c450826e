"""The ASGI app: its routes and what may go wrong on them. The contract is in contract.py.

| route | answers |
|---|---|
| POST /score, /invocations, /v1/chat/completions | one contract on all three, by the body's shape |
| GET /v1/models | the one model |
| GET /health | 200 from the first moment on, 503 if the engine died (liveness) |
| GET /ready | 200 once the model is loaded and until the server is told to stop (readiness) |

Logs hold ids, token counts and times, never a prompt or an answer.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployment.server import answering, contract
from deployment.server.answering import Reply
from deployment.server.errors import RequestError
from deployment.server.serving import Limits, Serving, submit
from deployment.server.traces import Traces

log = logging.getLogger("deployment.server")

SCORING_ROUTES = ("/score", "/invocations", "/v1/chat/completions")
CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a caller who left; nobody reads it."""


def create_app(serving: Serving, traces: Traces | None = None) -> ASGIApp:
    """The app around `serving`, which may still be empty: the model can come later."""

    async def score(request: Request) -> Response:
        return await _score(serving, request)

    async def models(request: Request) -> Response:
        loaded, _ = serving.ready()
        card = {"id": loaded.name, "object": "model", "created": serving.started, "owned_by": "finetune-phi"}
        return JSONResponse({"object": "list", "data": [{**card, "max_model_len": loaded.context}]})

    async def health(request: Request) -> Response:
        dead = serving.is_dead
        return JSONResponse({"status": "dead" if dead else "live"}, status_code=503 if dead else 200)

    async def ready(request: Request) -> Response:
        _, engine = serving.ready()
        running, waiting = engine.load
        status = "draining" if serving.draining else "ready"
        code = 503 if serving.draining else 200
        return JSONResponse({"status": status, "running": running, "waiting": waiting}, status_code=code)

    routes = [Route(path, score, methods=["POST"]) for path in SCORING_ROUTES]
    routes += [
        Route(path, answer, methods=["GET"])
        for path, answer in {"/v1/models": models, "/health": health, "/ready": ready}.items()
    ]
    app = Starlette(routes=routes, exception_handlers={RequestError: _error, HTTPException: _http_error})
    served = _closing_while_draining(app, serving)
    return served if traces is None else traces.around(served, SCORING_ROUTES)


def _closing_while_draining(app: ASGIApp, serving: Serving) -> ASGIApp:
    """Answers of a server that is told to stop end their connections: the caller's next request goes elsewhere."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def closing(message: Message) -> None:
            if message["type"] == "http.response.start" and serving.draining:
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        await app(scope, receive, closing)

    return wrapped


async def _error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    """Starlette's own 404 and 405, in the shape of all other errors."""
    assert isinstance(error, HTTPException)
    shaped = RequestError(error.detail, status=error.status_code, headers=error.headers)
    return JSONResponse(shaped.body, status_code=shaped.status, headers=shaped.headers)


async def _score(serving: Serving, request: Request) -> Response:
    loaded, _ = serving.ready()
    reply = request.state.reply = Reply(loaded.name, began=time.monotonic())
    try:
        asked = contract.parse(await _body(request, serving.limits))
        jobs = await submit(serving, asked)
        answer = answering.stream if asked.stream else answering.whole
        return await answer(request, asked, jobs, reply, serving)
    except ClientDisconnect:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    except RequestError:
        raise
    except Exception as error:  # noqa: BLE001 - a fault of ours; the framework would log its message, texts included
        place = traceback.extract_tb(error.__traceback__)[-1]
        log.error("%s %s at %s:%s", reply.request_id, type(error).__name__, place.filename, place.lineno)
        raise RequestError("the server made a mistake; it is in its log", status=500, code="internal_error") from None


async def _body(request: Request, limits: Limits) -> bytes:
    """The request's body, counted as it comes: a chunked one has no Content-Length to go by."""
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for part in request.stream():
                size += len(part)
                if size > limits.body_bytes:
                    raise RequestError(
                        f"the body is larger than {limits.body_bytes} bytes", status=413, code="body_too_large"
                    )
                parts.append(part)
    except TimeoutError:
        raise RequestError(
            f"the body did not arrive within {limits.body_seconds:g} seconds", status=408, code="body_too_slow"
        ) from None
    return b"".join(parts)
