"""The serving benchmark on a tiny model: it measures what it says, and its page shows what was measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bench import serving
from bench.serving import BARS, BASELINE, CONFIGURATIONS, ratios, table
from bench.serving_load import NEW_TOKENS, Target, measure
from infra.cli import UserError

ROOT = Path(__file__).resolve().parents[2]


def one(number: int, config: str, clients: int, speed: float, latency: float) -> dict[str, Any]:
    return {
        "round": number,
        "config": config,
        "clients": clients,
        "tokens_per_cpu_second": speed,
        "latency_p50": latency,
        "probe_p50": 0.002,
        "probe_worst": 0.004,
        "memory": 10**9,
    }


RESULT: dict[str, Any] = {
    "rounds": 2,
    "configs": [BASELINE, "transformers fp32"],
    "startup_seconds": {BASELINE: [20.0, 10.0], "transformers fp32": [9.0, 8.0]},
    "first_token": {"transformers fp32": {"least": 0.15, "median": 0.2}},
    "forward_pass": {"float32": 0.1},
    "runs": [
        one(1, BASELINE, 1, 40, 2),
        one(1, "transformers fp32", 1, 44, 1),
        one(1, BASELINE, 16, 40, 60),
        one(1, "transformers fp32", 16, 200, 10),
        one(2, BASELINE, 1, 50, 2),
        one(2, "transformers fp32", 1, 40, 1),
        one(2, BASELINE, 16, 50, 40),
        one(2, "transformers fp32", 16, 150, 10),
    ],
}


def test_ratios_are_within_a_round_and_latency_counts_the_other_way_round() -> None:
    assert ratios(RESULT, "transformers fp32", "tokens_per_cpu_second", 16) == [5, 3]
    assert ratios(RESULT, "transformers fp32", "latency_p50", 16) == [6, 4]


def test_the_table_says_which_bars_hold() -> None:
    text = table(RESULT)
    assert "| tokens, 1 client | transformers fp32 | 1 x | 0.95 (1.10, 0.80) | no |" in text
    assert "| tokens, 16 clients | transformers fp32 | 4 x | 4.00 (5.00, 3.00) | yes |" in text
    assert "| first token, 1 client | transformers fp32 | 2 forward passes | 1.50 (the best of five) | yes |" in text
    assert "openvino" not in text


def test_bars_name_configurations_that_exist() -> None:
    assert {config for _, config, *_ in BARS} <= set(CONFIGURATIONS)


def test_an_unknown_configuration_is_wrong_use() -> None:
    with pytest.raises(UserError, match="'fastest' is none of"):
        serving._names("fastest")
    with pytest.raises(UserError, match="is not among them"):
        serving._names("transformers bf16")


def test_so_many_clients_ask_at_once_and_all_tokens_are_counted() -> None:
    together, most, asked = 0, 0, 0

    async def score(request: Request) -> Response:
        import asyncio

        nonlocal together, most, asked
        assert (await request.json())["max_tokens"] == NEW_TOKENS
        together, asked = together + 1, asked + 1
        most = max(most, together)
        await asyncio.sleep(0.3)
        together -= 1
        return JSONResponse({"usage": {"completion_tokens": 7}})

    async def health(request: Request) -> Response:
        return Response()

    routes = [Route("/score", score, methods=["POST"]), Route("/health", health)]
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    target = Target("x", f"http://127.0.0.1:{port}", psutil.Process(os.getpid()), guide=False)
    found = measure(target, clients=3, requests=6)
    server.should_exit = True
    thread.join()
    assert (most, asked, found["tokens"]) == (3, 7, 42)  # one request warms up, before the clock starts
    assert 0.3 <= found["latency_p50"] < found["seconds"]
    assert 0 < found["probe_worst"] < 0.3


@pytest.mark.slow
def test_both_servers_are_measured_on_the_same_tiny_model(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    words = ["--shape", "tiny", "--rounds", "1", "--configs", f"{BASELINE},transformers fp32", "--out", str(out)]
    subprocess.run([sys.executable, "-m", "bench.serving", *words], cwd=ROOT, check=True, timeout=1200)
    found = json.loads(out.read_text())
    assert [run["clients"] for run in found["runs"]] == [1, 1, 4, 4, 16, 16]
    assert all(run["tokens"] == max(2, run["clients"]) * NEW_TOKENS for run in found["runs"])
    assert all(run["cpu_seconds"] > 0 for run in found["runs"])


def test_the_guides_figures_are_those_of_the_newest_result() -> None:
    newest = max(serving.RESULTS.glob("*.json"))
    assert table(json.loads(newest.read_text())) in (ROOT / "docs" / "serving.md").read_text()


def test_a_server_that_does_not_start_is_said_with_its_last_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("first\nthe reason\n")
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"])
    target = Target("x", "http://127.0.0.1:9", psutil.Process(), guide=False)
    with pytest.raises(UserError, match="x does not start: the reason"):
        serving._wait(target, process, log)


def test_a_failing_answer_ends_the_measurement() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        return httpx.Response(500)

    target = Target("x", "http://x", psutil.Process(), guide=True)
    with httpx.Client(transport=httpx.MockTransport(refuse)) as client, pytest.raises(httpx.HTTPStatusError):
        target.ask(client)
