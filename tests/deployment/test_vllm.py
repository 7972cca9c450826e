"""The shim in front of vLLM, against a stand-in that speaks the part of its completions route that is used.

vLLM itself has never run here: these tests show what we ask for and how we take what comes.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from deployment.server import vllm_engine
from deployment.server.rows import EngineStopped, Failed, QueueFull
from deployment.server.transformers_engine import TransformersModel
from deployment.server.vllm_engine import VllmEngine
from infra.cli import UserError
from tests.deployment.conftest import free_port
from tests.deployment.test_batcher import finish, row


@dataclass
class StandIn:
    """Streams the ids 40, 41, 42, … one by one, two in each third chunk."""

    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    open: int = 0
    status: int = 200
    pause: float = 0.002

    async def completions(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        if self.status != 200:
            return JSONResponse({"object": "error"}, self.status)
        return StreamingResponse(self._chunks(body["max_tokens"]), media_type="text/event-stream")

    async def _chunks(self, count: int) -> AsyncIterator[str]:
        self.open += 1
        try:
            sent = 0
            while sent < count:
                ids = [40 + (sent + more) % 200 for more in range(2 if sent % 3 == 0 else 1)][: count - sent]
                sent += len(ids)
                yield f"data: {json.dumps({'choices': [{'index': 0, 'text': 'x', 'token_ids': ids}]})}\n\n"
                await asyncio.sleep(self.pause)
            yield "data: [DONE]\n\n"
        finally:
            self.open -= 1


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    made = StandIn()

    async def health(request: Request) -> Response:
        return Response()

    routes = [Route("/v1/completions", made.completions, methods=["POST"]), Route("/health", health)]
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    made.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    yield made
    server.should_exit = server.force_exit = True
    thread.join()


@pytest.fixture
def engine(stand_in: StandIn, loaded: TransformersModel) -> Iterator[VllmEngine]:
    made = VllmEngine(stand_in.url, loaded.stop_ids, slots=2, queue=2)
    yield made
    if made.alive:
        made.close()


def wait_until(condition: Any, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_it_asks_by_ids_and_decides_itself_where_an_answer_ends(
    stand_in: StandIn, engine: VllmEngine, loaded: TransformersModel
) -> None:
    made, events = row(loaded, "hello", 7, temperature=0.5, seed=3)
    engine.submit([made])
    _, end = finish(events)
    assert (made.generated, end.reason) == ([40, 41, 42, 43, 44, 45, 46], "length")
    (asked,) = stand_in.asked
    assert asked["prompt"] == list(made.prompt)
    assert (asked["temperature"], asked["seed"], asked["ignore_eos"]) == (0.5, 3, True)


def test_a_stop_id_ends_the_answer_and_the_request(stand_in: StandIn, loaded: TransformersModel) -> None:
    engine = VllmEngine(stand_in.url, frozenset([44]))
    made, events = row(loaded, "hello", 2000)
    engine.submit([made])
    assert finish(events)[1].completion_tokens == 5
    wait_until(lambda: stand_in.open == 0)
    engine.close()


def test_a_cancelled_row_closes_its_request(stand_in: StandIn, engine: VllmEngine, loaded: TransformersModel) -> None:
    made, _ = row(loaded, "hello", 100_000)
    engine.submit([made])
    wait_until(lambda: stand_in.open == 1)
    made.cancel()
    wait_until(lambda: stand_in.open == 0 and engine.load == (0, 0))


def test_a_full_queue_is_refused_and_comes_free(
    stand_in: StandIn, engine: VllmEngine, loaded: TransformersModel
) -> None:
    rows = [row(loaded, "hello", 100_000)[0] for _ in range(5)]
    with pytest.raises(QueueFull):
        engine.submit(rows)
    engine.submit(rows[:4])
    assert engine.load == (2, 2)
    for one in rows:
        one.cancel()
    wait_until(lambda: engine.load == (0, 0))


@pytest.mark.parametrize("status", [400, 500])
def test_a_refusal_of_vllm_is_a_failure_without_its_text(
    stand_in: StandIn, engine: VllmEngine, loaded: TransformersModel, status: int
) -> None:
    stand_in.status = status
    made, events = row(loaded, "hello", 7)
    engine.submit([made])
    assert events.get(timeout=10) == Failed("the engine failed: HTTPStatusError")
    stand_in.status = 200
    made, events = row(loaded, "hello", 7)
    engine.submit([made])
    finish(events)


def test_a_vllm_that_is_gone_is_a_failure(loaded: TransformersModel) -> None:
    engine = VllmEngine(f"http://127.0.0.1:{free_port()}", loaded.stop_ids)
    made, events = row(loaded, "hello", 7)
    engine.submit([made])
    assert events.get(timeout=10) == Failed("the engine failed: ConnectError")
    engine.close()


def test_closing_tells_everyone(stand_in: StandIn, engine: VllmEngine, loaded: TransformersModel) -> None:
    made, events = row(loaded, "hello", 100_000)
    engine.submit([made])
    wait_until(lambda: stand_in.open == 1)
    engine.close()
    while not isinstance(event := events.get(timeout=5), Failed):
        pass
    assert event.message == "the server is stopping"
    with pytest.raises(EngineStopped):
        engine.submit([made])


def test_it_waits_for_vllm_to_come_up(stand_in: StandIn, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_URL", stand_in.url)
    vllm_engine.load(model_folder).start(2, 2).close()
    monkeypatch.setenv("VLLM_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(vllm_engine, "PATIENCE", 0.1)
    with pytest.raises(UserError, match="vLLM does not answer"):
        vllm_engine.load(model_folder).start(2, 2)
