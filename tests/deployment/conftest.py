"""A small model with random weights, loaded once, and a real server in front of it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import uvicorn

from deployment.server.app import Limits, Serving, create_app
from deployment.server.connections import Protocol
from deployment.server.model import LoadedModel
from deployment.server.traces import Traces
from deployment.server.transformers_engine import TransformersModel, load
from training.small_model import make_small_model

CORPUS = (
    "Who founded Microsoft? Microsoft was founded by Bill Gates and Paul Allen in 1975.",
    "What is the capital of France? The capital of France is Paris. How many legs has a spider? A spider has eight.",
    "Say hello to everyone who reads this. Hello everyone! Grüße aus Köln, schöne Straße.",
)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "small"
    make_small_model(folder, CORPUS, seed=1, hidden=64, layers=2)
    return folder


@pytest.fixture(scope="session")
def loaded(model_folder: Path) -> TransformersModel:
    return load(model_folder, dtype="float32", threads=1)


@dataclass
class Server:
    url: str
    serving: Serving
    process: uvicorn.Server
    traces: Traces | None = None


@contextmanager
def serve(
    loaded: LoadedModel,
    *,
    limits: Limits | None = None,
    slots: int = 4,
    queue: int = 8,
    traces: Traces | None = None,
) -> Iterator[Server]:
    """A real uvicorn on a free loopback port."""
    serving = Serving(limits or Limits())
    serving.start(loaded, slots=slots, queue=queue)
    config = uvicorn.Config(
        create_app(serving, traces), port=0, http=Protocol, ws="none", log_level="error", lifespan="off"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield Server(f"http://127.0.0.1:{port}", serving, server, traces)
    server.should_exit = True
    thread.join()
    assert serving.engine is not None
    serving.engine.close()


@pytest.fixture(scope="session")
def server(loaded: LoadedModel) -> Iterator[Server]:
    with serve(loaded) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30, trust_env=False) as made:
        yield made


def wait_idle(server: Server, seconds: float) -> float:
    """Seconds until the engine has nothing left to do; fails if that takes more than `seconds`."""
    began = time.monotonic()
    assert server.serving.engine is not None
    while any(server.serving.engine.load):
        assert time.monotonic() - began < seconds, "the engine is still busy"
        time.sleep(0.005)
    return time.monotonic() - began


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
