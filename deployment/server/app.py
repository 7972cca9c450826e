"""The ASGI app: routes, limits, streaming, cancellation. The contract is in contract.py.

| route | answers |
|---|---|
| POST /score, /invocations, /v1/chat/completions | one contract on all three, by the body's shape |
| GET /v1/models | the one model |
| GET /health | 200 from the first moment on, 503 if the engine died (liveness) |
| GET /ready | 200 once the model is loaded (readiness) |

Logs hold ids, token counts and times, never a prompt or an answer.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from deployment.server import contract
from deployment.server.batcher import Batcher, EngineStopped, Event, Failed, Finished, QueueFull, Row, Text
from deployment.server.contract import ChatRequest, RequestError, Sampling, Usage
from deployment.server.decoding import Choice, TextStream
from deployment.server.model import LoadedModel
from training.prompt import encode_prompt

log = logging.getLogger("deployment.server")

SCORING_ROUTES = ("/score", "/invocations", "/v1/chat/completions")
CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a caller who left; nobody reads it."""


@dataclass(frozen=True)
class Limits:
    """What one request may ask for."""

    body_bytes: int = 1_000_000
    body_seconds: float = 30.0
    """To send the whole body in."""
    answer_seconds: float = 170.0
    """To be answered in; Azure's gateway cuts at 180."""
    default_max_tokens: int = 512
    """New tokens where the request names no bound (less if the context is nearly full)."""
    poll_seconds: float = 0.1
    """Between two looks whether a waiting caller is still there."""


@dataclass
class Serving:
    """What the routes share: nothing until `start`, then the model and its engine."""

    limits: Limits = field(default_factory=Limits)
    loaded: LoadedModel | None = None
    engine: Batcher | None = None
    encoding: threading.Lock = field(default_factory=threading.Lock)
    started: int = field(default_factory=lambda: int(time.time()))

    def start(self, loaded: LoadedModel, *, slots: int = 16, queue: int = 64) -> None:
        self.loaded = loaded
        self.engine = Batcher(loaded.model, loaded.stop_ids, slots=slots, queue=queue)

    def ready(self) -> tuple[LoadedModel, Batcher]:
        """The model and its engine. Raises RequestError 503 until both are there."""
        if self.loaded is None or self.engine is None:
            raise RequestError(
                "the model is still being loaded", status=503, code="not_ready", headers={"Retry-After": "2"}
            )
        return self.loaded, self.engine


@dataclass
class Job:
    """One conversation on its way through the engine."""

    row: Row
    events: asyncio.Queue[Event]

    @property
    def usage(self) -> Usage:
        return Usage(len(self.row.prompt), len(self.row.generated))


def create_app(serving: Serving) -> Starlette:
    """The app around `serving`, which may still be empty: the model can come later."""

    async def score(request: Request) -> Response:
        return await _score(serving, request)

    async def models(request: Request) -> Response:
        loaded, _ = serving.ready()
        card = {"id": loaded.name, "object": "model", "created": serving.started, "owned_by": "finetune-phi"}
        return JSONResponse({"object": "list", "data": [{**card, "max_model_len": loaded.context}]})

    async def health(request: Request) -> Response:
        dead = serving.engine is not None and not serving.engine.alive
        return JSONResponse({"status": "dead" if dead else "live"}, status_code=503 if dead else 200)

    async def ready(request: Request) -> Response:
        _, engine = serving.ready()
        running, waiting = engine.load
        return JSONResponse({"status": "ready", "running": running, "waiting": waiting})

    routes = [Route(path, score, methods=["POST"]) for path in SCORING_ROUTES]
    routes += [
        Route(path, answer, methods=["GET"])
        for path, answer in {"/v1/models": models, "/health": health, "/ready": ready}.items()
    ]
    return Starlette(routes=routes, exception_handlers={RequestError: _error, HTTPException: _http_error})


async def _error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    """Starlette's own 404 and 405, in the shape of all other errors."""
    assert isinstance(error, HTTPException)
    shaped = RequestError(error.detail, status=error.status_code, headers=error.headers)
    return JSONResponse(shaped.body, status_code=shaped.status, headers=shaped.headers)


async def _score(serving: Serving, request: Request) -> Response:
    began = time.monotonic()
    loaded, engine = serving.ready()
    try:
        asked = contract.parse(await _body(request, serving.limits))
        prompts = await asyncio.to_thread(_encode, serving, loaded, asked)
        jobs = _submit(loaded, engine, asked.sampling, _bounds(prompts, asked.sampling, loaded, serving.limits))
        request_id = f"chatcmpl-{uuid.uuid4().hex}"
        answer = _stream if asked.stream else _whole
        return await answer(serving, request, asked, jobs, _Reply(request_id, loaded.name, began))
    except ClientDisconnect:
        return Response(status_code=CLIENT_CLOSED_REQUEST)


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


def _encode(serving: Serving, loaded: LoadedModel, asked: ChatRequest) -> list[list[int]]:
    """The prompts' ids. In a thread, as a megabyte takes a second; one at a time, as the tokenizer has a state."""
    with serving.encoding:
        return [encode_prompt(loaded.encoder, messages) for messages in asked.conversations]


def _bounds(
    prompts: Sequence[list[int]], sampling: Sampling, loaded: LoadedModel, limits: Limits
) -> list[tuple[list[int], int]]:
    """Each prompt with its bound on new tokens. Raises RequestError 400 if they do not fit the context."""
    bounds = []
    for prompt in prompts:
        room = loaded.context - len(prompt)
        wanted = sampling.max_tokens or max(1, min(room, limits.default_max_tokens))
        if wanted > room:
            raise RequestError(
                f"the model's context is {loaded.context} tokens; the messages take {len(prompt)} and the answer "
                f"may take {wanted}: shorten the messages or lower `max_tokens`",
                param="messages",
                code="context_length_exceeded",
            )
        bounds.append((prompt, wanted))
    return bounds


def _submit(
    loaded: LoadedModel, engine: Batcher, sampling: Sampling, bounds: Sequence[tuple[list[int], int]]
) -> list[Job]:
    """Queue a job for each prompt. Raises RequestError 429 if the queue is full, 503 if the engine has stopped."""
    loop = asyncio.get_running_loop()
    jobs = [_job(loaded, sampling, prompt, bound, loop) for prompt, bound in bounds]
    try:
        engine.submit([job.row for job in jobs])
    except QueueFull:
        raise RequestError(
            "too many requests are waiting", status=429, code="queue_full", headers={"Retry-After": "1"}
        ) from None
    except EngineStopped:
        raise RequestError("the server is stopping", status=503, headers={"Retry-After": "5"}) from None
    return jobs


def _job(
    loaded: LoadedModel, sampling: Sampling, prompt: list[int], bound: int, loop: asyncio.AbstractEventLoop
) -> Job:
    defaults = loaded.defaults
    temperature = defaults.temperature if sampling.temperature is None else sampling.temperature
    top_p = defaults.top_p if sampling.top_p is None else sampling.top_p
    events: asyncio.Queue[Event] = asyncio.Queue()

    def tell(event: Event) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(events.put_nowait, event)

    choice = Choice.make(temperature, top_p, sampling.seed)
    return Job(Row(prompt, bound, choice, TextStream(loaded.decoder, sampling.stop), tell), events)


@dataclass(frozen=True)
class _Reply:
    """What every piece of one reply carries, and when its request came (monotonic seconds)."""

    request_id: str
    model: str
    began: float
    created: int = field(default_factory=lambda: int(time.time()))

    def log(self, outcome: str, jobs: Sequence[Job]) -> None:
        usages = [job.usage for job in jobs]
        log.info(
            "%s %s prompt_tokens=%d completion_tokens=%d seconds=%.3f",
            self.request_id,
            outcome,
            sum(usage.prompt for usage in usages),
            sum(usage.completion for usage in usages),
            time.monotonic() - self.began,
        )


async def _whole(serving: Serving, request: Request, asked: ChatRequest, jobs: list[Job], reply: _Reply) -> Response:
    """The whole answer at once, in the dialect of the request."""
    outcome = "left"
    try:
        async with asyncio.timeout(serving.limits.answer_seconds):
            answers = [await _collect(job, request.is_disconnected, serving.limits.poll_seconds) for job in jobs]
        outcome = answers[0][1]
    except TimeoutError:
        outcome = "late"
        raise _too_late(serving.limits) from None
    except RequestError:
        outcome = "failed"
        raise
    finally:
        for job in jobs:
            job.row.cancel()
        reply.log(outcome, jobs)
    if asked.guide:
        return JSONResponse([prefix + text for prefix, (text, _) in zip(asked.prefixes, answers, strict=True)])
    text, reason = answers[0]
    return JSONResponse(contract.completion(reply.request_id, reply.model, reply.created, text, reason, jobs[0].usage))


async def _collect(job: Job, left: Callable[[], Awaitable[bool]], poll: float) -> tuple[str, str]:
    """(text, finish reason) of one job. Raises ClientDisconnect when the caller leaves meanwhile.

    Starlette does not cancel the handler of a plain request whose caller has gone, hence the polling.
    """
    text = ""
    looked = time.monotonic()
    while True:
        if time.monotonic() - looked >= poll:
            looked = time.monotonic()
            if await left():
                raise ClientDisconnect
        try:
            event = await asyncio.wait_for(job.events.get(), poll)
        except TimeoutError:
            continue
        if isinstance(event, Text):
            text += event.text
        elif isinstance(event, Finished):
            return text, event.reason
        else:
            raise RequestError(event.message, status=500, code="engine_failed")


def _too_late(limits: Limits) -> RequestError:
    return RequestError(
        f"the answer was not finished within {limits.answer_seconds:g} seconds; ask for fewer tokens or stream",
        status=504,
        code="deadline_exceeded",
    )


async def _stream(serving: Serving, request: Request, asked: ChatRequest, jobs: list[Job], reply: _Reply) -> Response:
    """The answer as server-sent events. Waits for the first event, so that a failure still has its status."""
    job = jobs[0]
    try:
        async with asyncio.timeout(serving.limits.answer_seconds):
            first = await _first_event(job, request.is_disconnected, serving.limits.poll_seconds)
    except BaseException:  # whatever ended the wait: the row must not go on; nothing is swallowed
        job.row.cancel()
        raise
    deadline = reply.began + serving.limits.answer_seconds
    return StreamingResponse(
        _events(job, first, asked, reply, deadline),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


async def _first_event(job: Job, left: Callable[[], Awaitable[bool]], poll: float) -> Event:
    while True:
        try:
            event = await asyncio.wait_for(job.events.get(), poll)
        except TimeoutError:
            if await left():
                raise ClientDisconnect from None
            continue
        if isinstance(event, Failed):
            raise RequestError(event.message, status=500, code="engine_failed")
        return event


async def _events(job: Job, first: Event, asked: ChatRequest, reply: _Reply, deadline: float) -> AsyncIterator[bytes]:
    """The stream's bytes. Closed early (the caller left), it takes the row out of the batch."""
    head = (reply.request_id, reply.model, reply.created)
    outcome = "left"
    try:
        yield _sse(contract.chunk(*head, {"role": "assistant", "content": ""}))
        event: Event = first
        while isinstance(event, Text):
            yield _sse(contract.chunk(*head, {"content": event.text}))
            event = await _next_event(job, deadline)
        if isinstance(event, Failed):
            outcome = "failed"
            yield _sse(RequestError(event.message, status=500, code="engine_failed").body)
            return
        outcome = event.reason
        yield _sse(contract.chunk(*head, {}, reason=event.reason))
        if asked.include_usage:
            yield _sse(contract.usage_chunk(*head, job.usage))
        yield b"data: [DONE]\n\n"
    finally:
        job.row.cancel()
        reply.log(outcome, [job])


async def _next_event(job: Job, deadline: float) -> Event:
    try:
        return await asyncio.wait_for(job.events.get(), max(0.0, deadline - time.monotonic()))
    except TimeoutError:
        return Failed("the answer was not finished before the deadline; ask for fewer tokens")


def _sse(value: Any) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"
