"""From an engine's events to a response: whole or as server-sent events, until the caller leaves or time is over."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from deployment.server import replies
from deployment.server.contract import ChatRequest, Dialect
from deployment.server.errors import RequestError
from deployment.server.rows import Event, Failed, Finished, Text
from deployment.server.safety import OVERLAP, WINDOW
from deployment.server.serving import Job, Limits, Serving

log = logging.getLogger("deployment.server")


@dataclass
class Reply:
    """What every piece of one reply carries, when its request came (monotonic seconds), and how it ended."""

    model: str
    began: float
    request_id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    outcome: str = ""
    """`stop`, `length`, or how it ended without being finished: `left`, `late`, `failed`."""
    jobs: Sequence[Job] = ()

    @property
    def finished(self) -> bool:
        return self.outcome in ("stop", "length")

    @property
    def seconds_to_first_token(self) -> float | None:
        moments = [job.row.first_token for job in self.jobs if job.row.first_token is not None]
        return min(moments) - self.began if moments else None

    @property
    def head(self) -> tuple[str, str, int]:
        return self.request_id, self.model, self.created

    def seconds_left(self, limits: Limits) -> float:
        return max(0.0, self.began + limits.answer_seconds - time.monotonic())

    def end(self, outcome: str, jobs: Sequence[Job]) -> None:
        """Keep and log how it ended: ids, counts and times; never a text."""
        self.outcome, self.jobs = outcome, jobs
        usages = [job.usage for job in jobs]
        log.info(
            "%s %s prompt_tokens=%d completion_tokens=%d seconds=%.3f",
            self.request_id,
            outcome,
            sum(usage.prompt for usage in usages),
            sum(usage.completion for usage in usages),
            time.monotonic() - self.began,
        )


async def whole(request: Request, asked: ChatRequest, jobs: list[Job], reply: Reply, serving: Serving) -> Response:
    """The whole answer at once, in the dialect of the request."""
    outcome, limits = "left", serving.limits
    try:
        async with asyncio.timeout(reply.seconds_left(limits)):
            answers = [await _collect(job, request, limits.poll_seconds) for job in jobs]
            await _look(serving, *(text for text, _ in answers))
        outcome = answers[0][1]
    except TimeoutError:
        outcome = "late"
        raise too_late(limits) from None
    except RequestError:
        outcome = "failed"
        raise
    finally:
        for job in jobs:
            job.row.cancel()
        reply.end(outcome, jobs)
    if asked.dialect is not Dialect.OPENAI:
        texts = [prefix + text for prefix, (text, _) in zip(asked.prefixes, answers, strict=True)]
        return JSONResponse(replies.guide_reply(asked.dialect, texts))
    text, reason = answers[0]
    return JSONResponse(replies.completion(*reply.head, text, reason, jobs[0].usage))


async def _look(serving: Serving, *texts: str) -> None:
    """Raises RequestError if the content filter refuses an answer."""
    if serving.safety is not None:
        await serving.safety.check(texts, "the answer")


async def _collect(job: Job, request: Request, poll: float) -> tuple[str, str]:
    """(text, finish reason) of one job."""
    text, looked = "", time.monotonic()
    while True:
        if time.monotonic() - looked >= poll:  # a stream of events must not keep the look from happening
            looked = time.monotonic()
            await _leave_with(request)
        event = await _next_event(job, request, poll)
        if isinstance(event, Finished):
            return text, event.reason
        assert isinstance(event, Text)
        text += event.text


async def _next_event(job: Job, request: Request, poll: float) -> Event:
    """The next event. Raises RequestError 500 for a failure, ClientDisconnect when the caller leaves meanwhile."""
    while True:
        try:
            event = await asyncio.wait_for(job.events.get(), poll)
        except TimeoutError:
            await _leave_with(request)
            continue
        if isinstance(event, Failed):
            raise RequestError(event.message, status=500, code="engine_failed")
        return event


async def _leave_with(request: Request) -> None:
    """Starlette does not cancel the handler of a plain request whose caller has gone, so this asks."""
    if await request.is_disconnected():
        raise ClientDisconnect


def too_late(limits: Limits) -> RequestError:
    return RequestError(
        f"the answer was not finished within {limits.answer_seconds:g} seconds; ask for fewer tokens or stream",
        status=504,
        code="deadline_exceeded",
    )


async def stream(request: Request, asked: ChatRequest, jobs: list[Job], reply: Reply, serving: Serving) -> Response:
    """The answer as server-sent events. Waits for the first event, so that a failure still has its status."""
    job, limits = jobs[0], serving.limits
    try:
        async with asyncio.timeout(reply.seconds_left(limits)):
            first = await _next_event(job, request, limits.poll_seconds)
    except TimeoutError:
        job.row.cancel()
        raise too_late(limits) from None
    except BaseException:  # whatever ended the wait: the row must not go on; nothing is swallowed
        job.row.cancel()
        raise
    return _Stream(job, _events(job, first, asked, reply, serving), reply.seconds_left(limits))


class _Stream(StreamingResponse):
    """Server-sent events that end at the deadline even if the caller has stopped reading, and so blocks the sending."""

    def __init__(self, job: Job, events: AsyncIterator[bytes], seconds: float) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._job, self._seconds = job, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            # one second more than `_events` itself takes to say that it is late
            async with asyncio.timeout(self._seconds + 1):
                await super().__call__(scope, receive, send)
        except TimeoutError:
            log.info("a caller stopped reading its stream")
        finally:
            self._job.row.cancel()


async def _events(job: Job, first: Event, asked: ChatRequest, reply: Reply, serving: Serving) -> AsyncIterator[bytes]:
    """The stream's bytes. Closed early (the caller left), it takes the row out of the batch."""
    outcome = "left"
    try:
        yield _sse(replies.chunk(*reply.head, {"role": "assistant", "content": ""}))
        async for event in _released(job, first, reply, serving):
            if isinstance(event, Text):
                yield _sse(replies.chunk(*reply.head, {"content": event.text}))
                continue
            outcome = event.reason
            yield _sse(replies.chunk(*reply.head, {}, reason=event.reason))
        if asked.include_usage:
            yield _sse(replies.usage_chunk(*reply.head, job.usage))
        yield b"data: [DONE]\n\n"
    except RequestError as error:
        outcome = "failed"
        yield _sse(error.body)
    finally:
        job.row.cancel()
        reply.end(outcome, [job])


async def _released(job: Job, first: Event, reply: Reply, serving: Serving) -> AsyncIterator[Text | Finished]:
    """The row's events; with a content filter the text in larger pieces, each once it was looked at."""
    event, shown, held = first, "", ""
    enough = WINDOW if serving.safety is not None else 1
    while isinstance(event, Text):
        held += event.text
        if len(held) >= enough:
            await _look(serving, shown[-OVERLAP:] + held)
            yield Text(held)
            shown, held = shown[-OVERLAP:] + held, ""
        event = await _before(job, reply.seconds_left(serving.limits))
    if isinstance(event, Failed):
        raise RequestError(event.message, status=500, code="engine_failed")
    if held:
        await _look(serving, shown[-OVERLAP:] + held)
        yield Text(held)
    yield event


async def _before(job: Job, seconds: float) -> Event:
    try:
        return await asyncio.wait_for(job.events.get(), seconds)
    except TimeoutError:
        return Failed("the answer was not finished before the deadline; ask for fewer tokens")


def _sse(value: Any) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"
