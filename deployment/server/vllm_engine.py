"""The engine for Azure's GPUs: vLLM's own server in the same container, asked by token ids. It has never run with vLLM.

vLLM batches by itself; what stands in front of it is the same contract as everywhere else: our prompts (no user text
becomes a control token), our limits, our stop strings. The fields asked for are those of its completions route
(docs.vllm.ai, OpenAI-compatible server): `prompt` as ids, `return_token_ids`, `ignore_eos`.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deployment.server.model import LoadedModel, described
from deployment.server.rows import EngineStopped, QueueFull, Row

if TYPE_CHECKING:
    import httpx

PATIENCE = 900.0
"""Seconds in which vLLM has to come up: it compiles and captures graphs first."""


@dataclass(frozen=True)
class VllmModel(LoadedModel):
    url: str

    def start(self, slots: int, queue: int) -> VllmEngine:
        _wait_until_up(self.url)
        return VllmEngine(self.url, self.stop_ids, slots=slots, queue=queue)


def load(folder: Path) -> VllmModel:
    """The model's description, and where vLLM listens: $VLLM_URL, which the Dockerfile sets."""
    return VllmModel(**described(folder), url=os.environ.get("VLLM_URL", "http://127.0.0.1:8000"))


def _wait_until_up(url: str) -> None:
    """Raises UserError if vLLM does not answer in time."""
    import time

    import httpx

    from infra.cli import UserError

    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/health", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(1)
    raise UserError(f"vLLM does not answer at {url} within {PATIENCE:g} seconds; its own log says why")


class VllmEngine:
    """Every row is one streamed request to vLLM; one event loop in a thread asks for all of them.

    Args:
        slots, queue: together the rows that vLLM is asked for at once; one more raises QueueFull.
    """

    def __init__(self, url: str, stop_ids: frozenset[int], *, slots: int = 16, queue: int = 64) -> None:
        self._url, self._stop_ids, self._slots, self._most = url, stop_ids, slots, slots + queue
        self._rows: set[Row] = set()
        self._closed = False
        self._changed = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()
        self._client: httpx.AsyncClient = self._call(_client(url))

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def submit(self, rows: Sequence[Row]) -> None:
        with self._changed:
            if self._closed or not self._thread.is_alive():
                raise EngineStopped
            if len(self._rows) + len(rows) > self._most:
                raise QueueFull
            self._rows.update(rows)
        for row in rows:
            asyncio.run_coroutine_threadsafe(self._serve(row), self._loop)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def load(self) -> tuple[int, int]:
        count = len(self._rows)
        return min(count, self._slots), max(0, count - self._slots)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            rows = list(self._rows)
        for row in rows:
            row.fail("the server is stopping")
            row.cancel()
        self._call(self._client.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _serve(self, row: Row) -> None:
        import httpx

        try:
            async with asyncio.TaskGroup() as together:
                asking = together.create_task(self._ask(row))
                together.create_task(_until_cancelled(row, asking))
        except* (httpx.HTTPError, ValueError, KeyError) as errors:
            row.fail(f"the engine failed: {type(errors.exceptions[0]).__name__}")
        finally:
            with self._changed:
                self._rows.discard(row)

    async def _ask(self, row: Row) -> None:
        async with self._client.stream("POST", "/v1/completions", json=_request(row)) as reply:
            reply.raise_for_status()
            async for token in _tokens(reply):
                if row.give(token, self._stop_ids):
                    return
        raise ValueError("the stream ended before the answer did")


async def _client(url: str) -> httpx.AsyncClient:
    import httpx

    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(base_url=url, trust_env=False, limits=limits, timeout=httpx.Timeout(None, connect=5))


async def _until_cancelled(row: Row, asking: asyncio.Task[None]) -> None:
    """vLLM gives a request up when its connection closes."""
    while not asking.done():
        if row.cancelled:
            asking.cancel()
        await asyncio.sleep(0.05)


def _request(row: Row) -> dict[str, Any]:
    """Where an answer ends is decided here, from each token as it comes."""
    return {
        "prompt": list(row.prompt),
        "max_tokens": row.max_tokens,
        "temperature": row.choice.temperature,
        "top_p": row.choice.top_p,
        "seed": row.choice.seed,
        "ignore_eos": True,
        "stream": True,
        "return_token_ids": True,
    }


async def _tokens(reply: httpx.Response) -> AsyncIterator[int]:
    async for line in reply.aiter_lines():
        if line.startswith("data: {"):
            for choice in json.loads(line.removeprefix("data: "))["choices"]:
                for token in choice["token_ids"]:
                    yield token
