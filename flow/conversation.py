"""The conversation, pure: a question and earlier turns in, an answer in pieces out. Nothing of Prompt flow in here.

The endpoint speaks OpenAI's chat on its scoring address; see deployment/server/contract.py.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flow.history import valid_text
from infra.cli import REFUSED, UserError

if TYPE_CHECKING:
    import httpx

log = logging.getLogger("flow")

RETRIED = (408, 429, 503)
"""Answers that say "not now": worth another try until the deadline."""
MODEL_STATUS = "ms-azureml-model-error-statuscode"
"""Azure ML's gateway answers 424 for every status of the container but 200, and says here which it was.
https://learn.microsoft.com/azure/machine-learning/how-to-troubleshoot-online-endpoints#http-status-codes"""
TOO_LONG = ("context_length_exceeded", "maximum context length")
"""How our server, and vLLM's, say that messages do not fit the context."""
CHECKED_CHARACTERS = 200
"""How much of an answer is held back for a check, where there is one."""

Check = Callable[[str], Awaitable[str | None]]
"""Says why a text may not pass, or None where it may. Whatever it raises counts as a refusal."""


@dataclass(frozen=True)
class Endpoint:
    """Where to ask. `headers` is called before each request (in a thread, as it may renew a token)."""

    url: str
    headers: Callable[[], Mapping[str, str]]


@dataclass(frozen=True)
class Settings:
    """How to ask. Times are in seconds.

    window: how many earlier turns go along at most.
    context: tokens of the model's context; fewer turns go along where they would not fit beside the answer. The
        default is that of Phi-3-mini-4k; a model with less says so, and is asked again with less.
    check: what question and answer have to pass; both pass without it.
    """

    system: str | None = None
    window: int = 20
    context: int = 4096
    max_tokens: int = 256
    temperature: float = 0.0
    deadline: float = 120.0
    first_pause: float = 0.5
    check: Check | None = None


@dataclass
class Reply:
    """What is known of an answer once its stream is over. `usage` has OpenAI's keys."""

    text: str = ""
    usage: dict[str, int] = field(default_factory=dict)


class TooLong(Exception):
    """The endpoint says that the messages do not fit the model's context; `reason` is in its words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def messages(
    question: str, earlier: Sequence[tuple[str, str]], settings: Settings = Settings()
) -> list[dict[str, str]]:
    """The messages to send: the system prompt if there is one, the last turns (question, answer) that fit, the
    question.
    """
    made = [{"role": "system", "content": settings.system}] if settings.system else []
    room = settings.context - settings.max_tokens - tokens(question)
    room -= tokens(settings.system) if settings.system else 0
    kept: list[dict[str, str]] = []
    for asked, answered in [*reversed(earlier)][: settings.window]:
        room -= tokens(asked) + tokens(answered)
        if room < 0:
            break
        kept = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}, *kept]
    return [*made, *kept, {"role": "user", "content": question}]


def tokens(text: str) -> int:
    """About how many tokens a message takes, rather too many than too few: only the endpoint has the tokenizer.

    Phi-3's takes 4 bytes a token in English prose and 2.5 to 3 in code and most other languages. Where this is too
    few, the endpoint refuses and `ask` leaves turns out.
    """
    return len(text.encode("utf-8", "replace")) // 3 + 8


async def ask(
    endpoint: Endpoint,
    question: str,
    earlier: Sequence[tuple[str, str]] = (),
    settings: Settings = Settings(),
    *,
    reply: Reply | None = None,
    client: httpx.AsyncClient | None = None,
) -> AsyncGenerator[str, None]:
    """The answer's pieces as they come; `reply` is filled along the way.

    The first piece comes only once the endpoint has accepted the request, so a failure to be answered is raised before
    anything is yielded. Closing the iterator, or cancelling who waits for it, ends the request.

    Raises:
        UserError: the endpoint cannot be reached, refuses, says "not now" until the deadline, or breaks off; exit code
            3 where the check does not let question or answer pass.
    """
    import httpx

    reply = Reply() if reply is None else reply
    until, began = time.monotonic() + settings.deadline, time.monotonic()
    await _pass(settings.check, question, "question")
    try:
        async with _client(client) as used, _answering(used, endpoint, question, earlier, settings, until) as response:
            pieces = _pieces(response, reply, until)
            async with aclosing(pieces if settings.check is None else _checked(pieces, settings.check)) as passing:
                async for piece in passing:
                    yield piece
    except httpx.ConnectError as error:
        log.warning("no connection: %s", error)
        raise UserError("the endpoint cannot be reached", next_command="python -m deployment.status") from None
    except httpx.RequestError as error:
        log.warning("broke off after %.3f s: %s", time.monotonic() - began, type(error).__name__)
        raise UserError(
            f"the endpoint broke off before the answer was whole ({type(error).__name__}); it was not stored",
            next_command="ask again",
        ) from None
    usage = reply.usage.get("prompt_tokens"), reply.usage.get("completion_tokens")
    log.info("answered prompt_tokens=%s completion_tokens=%s seconds=%.3f", *usage, time.monotonic() - began)


@asynccontextmanager
async def _client(given: httpx.AsyncClient | None) -> AsyncIterator[httpx.AsyncClient]:
    """The given client, which stays open, or one of our own."""
    import httpx

    if given is not None:
        yield given
        return
    async with httpx.AsyncClient() as made:
        yield made


@asynccontextmanager
async def _answering(
    client: httpx.AsyncClient,
    endpoint: Endpoint,
    question: str,
    earlier: Sequence[tuple[str, str]],
    settings: Settings,
    until: float,
) -> AsyncIterator[httpx.Response]:
    """A response with status 200 whose body is still to be read; with fewer turns where all are too long."""
    while True:
        said = messages(question, earlier, settings)
        body = {
            "messages": said,
            "max_tokens": settings.max_tokens,
            "temperature": settings.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        try:
            async with _accepted(client, endpoint, body, settings, until) as response:
                yield response
                return
        except TooLong as error:
            sent = sum(message["role"] == "assistant" for message in said)
            if sent == 0:
                raise UserError(f"the question is too long for the model: {error.reason}") from None
            earlier = earlier[len(earlier) - sent // 2 :]
            log.info("too long; asking again with %d earlier turns", len(earlier))


@asynccontextmanager
async def _accepted(
    client: httpx.AsyncClient, endpoint: Endpoint, body: Mapping[str, Any], settings: Settings, until: float
) -> AsyncIterator[httpx.Response]:
    """A response with status 200 whose body is still to be read; "not now" is retried until the deadline."""
    import httpx

    pause = settings.first_pause
    while True:
        headers = dict(await asyncio.to_thread(endpoint.headers))
        patience = httpx.Timeout(max(0.1, until - time.monotonic()), connect=10)
        async with client.stream("POST", endpoint.url, json=body, headers=headers, timeout=patience) as response:
            if response.status_code == 200:
                yield response
                return
            status = _status(response)
            refused = _refusal(status, await _reason(response))
            wait = max(_retry_after(response.headers), pause * random.uniform(0.75, 1.25))
        log.info("refused status=%d gateway_status=%d", status, response.status_code)
        if status not in RETRIED or time.monotonic() + wait > until:
            raise refused
        await asyncio.sleep(wait)
        pause = min(pause * 2, 10.0)


def _status(response: httpx.Response) -> int:
    """The container's own status where the gateway hides it behind 424."""
    hidden = response.headers.get(MODEL_STATUS, "") if response.status_code == 424 else ""
    return int(hidden) if hidden.isdecimal() else response.status_code


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds; 0 without the header, or with its rare form of a date."""
    try:
        return max(0.0, float(headers.get("retry-after", "0")))
    except ValueError:
        return 0.0


async def _reason(response: httpx.Response) -> str:
    """The server's own reason, with its code; the words of the status where it gives none."""
    raw = await response.aread()
    try:
        error = json.loads(raw)["error"]
        if error.get("code") in TOO_LONG or TOO_LONG[1] in error["message"]:
            raise TooLong(str(error["message"]))
        return str(error["message"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return response.reason_phrase or "no reason given"


def _refusal(status: int, reason: str) -> UserError:
    """One sentence for a status that is not 200."""
    if status in (401, 403):
        return UserError(
            f"the endpoint refuses these credentials ({status}): {reason}",
            next_command="az login, with an account that may call the endpoint (onlineEndpoints/score/action)",
        )
    busy = " and goes on doing so" if status in RETRIED else ""
    return UserError(f"the endpoint answers {status}{busy}: {reason}", next_command="python -m deployment.logs")


async def _pieces(response: httpx.Response, reply: Reply, until: float) -> AsyncGenerator[str, None]:
    """The texts of a stream of `chat.completion.chunk` events, until [DONE]."""
    async for line in response.aiter_lines():
        data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
        if data == "[DONE]":
            return
        if time.monotonic() > until:
            raise UserError("the answer was not whole at the deadline; it was not stored", next_command="ask again")
        if not data:
            continue
        event = _event(data)
        if "error" in event:
            log.warning("failed midway")
            raise UserError(f"the endpoint failed while it answered: {_told(event['error'])}; it was not stored")
        if isinstance(usage := event.get("usage"), dict):
            reply.usage = usage
        if piece := _content(event):
            reply.text += piece
            yield piece
    raise UserError("the answer breaks off before its end; it was not stored", next_command="ask again")


def _event(data: str) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        raise _no_stream()
    return event


def _content(event: Mapping[str, Any]) -> str:
    try:
        return "".join(valid_text(choice["delta"].get("content") or "") for choice in event.get("choices") or [])
    except (KeyError, TypeError, AttributeError):
        raise _no_stream() from None


def _told(error: object) -> str:
    return str(error["message"]) if isinstance(error, dict) and "message" in error else "it gives no reason"


def _no_stream() -> UserError:
    return UserError("the endpoint sends something that is no chat stream", next_command="python -m deployment.smoke")


async def _pass(check: Check | None, text: str, what: str) -> None:
    """Raises UserError (refused) unless the check lets the text pass; one that fails lets nothing pass."""
    if check is None:
        return
    try:
        reason = await check(text)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with it, nothing passes unchecked
        log.error("the check failed: %s", type(error).__name__)
        reason = "the check itself failed"
    if reason is not None:
        raise UserError(f"the {what} is not let through: {reason}", code=REFUSED)


async def _checked(pieces: AsyncIterator[str], check: Check) -> AsyncGenerator[str, None]:
    """The same pieces, held back until the answer up to there has passed the check."""
    whole, shown = "", 0
    async for piece in pieces:
        whole += piece
        if len(whole) - shown >= CHECKED_CHARACTERS:
            await _pass(check, whole, "answer")
            yield whole[shown:]
            shown = len(whole)
    await _pass(check, whole, "answer")
    if shown < len(whole):
        yield whole[shown:]
