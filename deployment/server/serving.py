"""What the routes share: the model with its engine, the limits, and the way of a request into the engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from deployment.server.contract import ChatRequest
from deployment.server.decoding import Choice, TextStream
from deployment.server.errors import RequestError
from deployment.server.fields import Sampling
from deployment.server.model import LoadedModel
from deployment.server.replies import Usage
from deployment.server.rows import Engine, EngineStopped, Event, QueueFull, Row
from deployment.server.safety import ContentSafety
from training.prompt import encode_prompt


@dataclass(frozen=True)
class Limits:
    """What one request may ask for."""

    body_bytes: int = 1_000_000
    body_seconds: float = 30.0
    """To send the whole body in."""
    answer_seconds: float = 170.0
    """From the request's first byte to the answer's last; Azure's gateway cuts at 180."""
    default_max_tokens: int = 512
    """New tokens where the request names no bound (less if the context is nearly full)."""
    poll_seconds: float = 0.1
    """Between two looks whether a waiting caller is still there."""


@dataclass
class Serving:
    """Nothing until `start`, then the model and its engine.

    `encoder` has one thread: a megabyte takes a second, which the event loop does not have, and a tokenizer has a state
    that two threads would share.
    """

    limits: Limits = field(default_factory=Limits)
    loaded: LoadedModel | None = None
    engine: Engine | None = None
    safety: ContentSafety | None = None
    draining: bool = False
    """The server is about to stop: it says so where it is asked whether it is ready, and answers what still comes."""
    encoder: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "encoder"))
    started: int = field(default_factory=lambda: int(time.time()))

    def start(self, loaded: LoadedModel, *, slots: int = 16, queue: int = 64) -> None:
        self.loaded = loaded
        self.engine = loaded.start(slots, queue)

    @property
    def is_dead(self) -> bool:
        """The engine was there and is gone: nothing will be answered any more."""
        return self.engine is not None and not self.engine.alive

    def ready(self) -> tuple[LoadedModel, Engine]:
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


async def submit(serving: Serving, asked: ChatRequest) -> list[Job]:
    """Queue a job for each conversation.

    Raises:
        RequestError: 400 if one does not fit the context or is refused by the content filter, 429 if the queue is full,
            503 if the engine has stopped.
    """
    loaded, engine = serving.ready()
    prompts = await asyncio.get_running_loop().run_in_executor(serving.encoder, _encode, loaded, asked)
    bounds = [_bound(prompt, asked.sampling, loaded, serving.limits) for prompt in prompts]
    if serving.safety is not None:
        texts = (message["content"] for messages in asked.conversations for message in messages)
        await serving.safety.check(texts, "a message")
    jobs = [_job(loaded, asked.sampling, prompt, bound) for prompt, bound in zip(prompts, bounds, strict=True)]
    try:
        engine.submit([job.row for job in jobs])
    except QueueFull:
        raise RequestError(
            "too many requests are waiting", status=429, code="queue_full", headers={"Retry-After": "1"}
        ) from None
    except EngineStopped:
        raise RequestError("the server is stopping", status=503, headers={"Retry-After": "5"}) from None
    return jobs


def _encode(loaded: LoadedModel, asked: ChatRequest) -> list[list[int]]:
    return [encode_prompt(loaded.encoder, messages) for messages in asked.conversations]


def _bound(prompt: Sequence[int], sampling: Sampling, loaded: LoadedModel, limits: Limits) -> int:
    """The bound on a prompt's new tokens. Raises RequestError 400 if they do not fit the context."""
    room = loaded.context - len(prompt)
    wanted = sampling.max_tokens or max(1, min(room, limits.default_max_tokens))
    if wanted > room:
        raise RequestError(
            f"the model's context is {loaded.context} tokens; the messages take {len(prompt)} and the answer "
            f"may take {wanted}: shorten the messages or lower `max_tokens`",
            param="messages",
            code="context_length_exceeded",
        )
    return wanted


def _job(loaded: LoadedModel, sampling: Sampling, prompt: list[int], bound: int) -> Job:
    loop, defaults = asyncio.get_running_loop(), loaded.defaults
    temperature = defaults.temperature if sampling.temperature is None else sampling.temperature
    top_p = defaults.top_p if sampling.top_p is None else sampling.top_p
    events: asyncio.Queue[Event] = asyncio.Queue()

    def tell(event: Event) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(events.put_nowait, event)

    choice = Choice(temperature, top_p, sampling.seed)
    return Job(Row(prompt, bound, choice, TextStream(loaded.decoder, sampling.stop), tell), events)
