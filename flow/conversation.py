"""The conversation, pure: messages in, an answer (whole or in pieces) out. Nothing of Prompt flow in here.

The endpoint speaks OpenAI's chat on its scoring address; see deployment/server/contract.py.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from infra.cli import UserError

if TYPE_CHECKING:
    import httpx

RETRIED = (408, 429, 503)
"""Answers that say "not now": worth another try until the deadline."""


@dataclass(frozen=True)
class Endpoint:
    """Where to ask. `headers` is called before each request (in a thread, as it may renew a token)."""

    url: str
    headers: Callable[[], Mapping[str, str]]


@dataclass(frozen=True)
class Settings:
    """How to ask. `window` is the number of earlier turns that go along; times are in seconds."""

    system: str | None = None
    window: int = 8
    max_tokens: int = 256
    temperature: float = 0.0
    deadline: float = 120.0
    first_pause: float = 0.5


@dataclass
class Reply:
    """What is known of an answer once its stream is over. `usage` has OpenAI's keys."""

    text: str = ""
    usage: dict[str, int] = field(default_factory=dict)


def messages(
    question: str, earlier: Sequence[tuple[str, str]], settings: Settings = Settings()
) -> list[dict[str, str]]:
    """The messages to send: the system prompt if there is one, the last turns (question, answer), the question."""
    made = [{"role": "system", "content": settings.system}] if settings.system else []
    for asked, answered in earlier[max(0, len(earlier) - settings.window) :]:
        made += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return [*made, {"role": "user", "content": question}]


async def ask(
    endpoint: Endpoint,
    said: Sequence[Mapping[str, str]],
    settings: Settings = Settings(),
    *,
    reply: Reply | None = None,
    client: httpx.AsyncClient | None = None,
) -> AsyncIterator[str]:
    """The answer's pieces as they come; `reply` is filled along the way.

    The first piece comes only once the endpoint has accepted the request, so a failure to be answered is raised before
    anything is yielded.

    Raises:
        UserError: the endpoint cannot be reached, refuses, says "not now" until the deadline, or breaks off.
    """
    import httpx

    reply = Reply() if reply is None else reply
    body = {
        "messages": [dict(message) for message in said],
        "max_tokens": settings.max_tokens,
        "temperature": settings.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    try:
        async with _client(client, settings) as used, _accepted(used, endpoint, body, settings) as response:
            async for piece in _pieces(response, reply):
                yield piece
    except httpx.ConnectError as error:
        raise UserError(
            f"the endpoint cannot be reached: {error}", next_command="python -m deployment.status"
        ) from None
    except httpx.TransportError as error:
        raise UserError(
            f"the endpoint broke off before the answer was whole ({type(error).__name__}); it was not stored",
            next_command="ask again",
        ) from None


@asynccontextmanager
async def _client(given: httpx.AsyncClient | None, settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """The given client, which stays open, or one of our own."""
    import httpx

    if given is not None:
        yield given
        return
    async with httpx.AsyncClient(timeout=httpx.Timeout(settings.deadline, connect=10)) as made:
        yield made


@asynccontextmanager
async def _accepted(
    client: httpx.AsyncClient, endpoint: Endpoint, body: Mapping[str, Any], settings: Settings
) -> AsyncIterator[httpx.Response]:
    """A response with status 200 whose body is still to be read; "not now" is retried until the deadline."""
    deadline, pause = time.monotonic() + settings.deadline, settings.first_pause
    while True:
        headers = dict(await asyncio.to_thread(endpoint.headers))
        async with client.stream("POST", endpoint.url, json=body, headers=headers) as response:
            if response.status_code == 200:
                yield response
                return
            refused = await _refusal(response)
            wait = max(_retry_after(response.headers), pause * random.uniform(0.75, 1.25))
        if response.status_code not in RETRIED or time.monotonic() + wait > deadline:
            raise refused
        await asyncio.sleep(wait)
        pause = min(pause * 2, 10.0)


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds; 0 without the header, or with its rare form of a date."""
    try:
        return max(0.0, float(headers.get("retry-after", "0")))
    except ValueError:
        return 0.0


async def _refusal(response: httpx.Response) -> UserError:
    """One sentence for a status that is not 200, with the server's own reason if it gives one."""
    raw = await response.aread()
    try:
        reason = json.loads(raw)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        reason = response.reason_phrase or "no reason given"
    status = response.status_code
    if status in (401, 403):
        return UserError(
            f"the endpoint refuses these credentials ({status}): {reason}",
            next_command="az login, with an account that may call the endpoint (onlineEndpoints/score/action)",
        )
    busy = " and goes on doing so" if status in RETRIED else ""
    return UserError(f"the endpoint answers {status}{busy}: {reason}", next_command="python -m deployment.logs")


async def _pieces(response: httpx.Response, reply: Reply) -> AsyncIterator[str]:
    """The texts of a stream of `chat.completion.chunk` events, until [DONE]."""
    async for line in response.aiter_lines():
        data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
        if data == "[DONE]":
            return
        if not data:
            continue
        event = _event(data)
        if "error" in event:
            raise UserError(f"the endpoint failed while it answered: {event['error'].get('message')}")
        if event.get("usage"):
            reply.usage = dict(event["usage"])
        for choice in event.get("choices", []):
            if piece := choice.get("delta", {}).get("content"):
                reply.text += piece
                yield piece
    raise UserError("the answer breaks off before its end; it was not stored", next_command="ask again")


def _event(data: str) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        raise UserError(
            "the endpoint sends something that is no chat stream", next_command="python -m deployment.smoke"
        )
    return event
