"""`python -m deployment.server` as Azure ML starts it: the staged files alone, and SIGTERM at any time."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from deployment.image import stage_context
from deployment.server.transformers_engine import load
from infra.cli import UserError
from tests.deployment.conftest import free_port


@pytest.fixture
def context(tmp_path: Path) -> Path:
    stage_context(tmp_path / "context")
    return tmp_path / "context"


@pytest.fixture
def mounted(tmp_path: Path, model_folder: Path) -> Path:
    shutil.copytree(model_folder, tmp_path / "mounted" / "model" / "leaf")
    return tmp_path / "mounted"


@pytest.fixture
def process(context: Path, mounted: Path) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    port = free_port()
    started = subprocess.Popen(
        # -S would hide the libraries too; the staged folder comes first on sys.path and shadows the repository
        [sys.executable, "-m", "deployment.server", "--threads", "1"],
        cwd=context,
        env={**os.environ, "HOST": "127.0.0.1", "PORT": str(port), "AZUREML_MODEL_DIR": str(mounted)},
        stderr=subprocess.PIPE,
        text=True,
    )
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
        yield started, client
    started.kill()
    started.wait()


def wait_for(client: httpx.Client, path: str, seconds: float) -> float:
    began = time.monotonic()
    while True:
        try:
            if client.get(path).status_code == 200:
                return time.monotonic() - began
        except httpx.TransportError:
            pass
        assert time.monotonic() - began < seconds, f"{path} is not answered with 200"
        time.sleep(0.05)


def test_live_before_ready_and_no_accepted_request_is_lost_on_sigterm(
    process: tuple[subprocess.Popen[str], httpx.Client],
) -> None:
    started, client = process
    wait_for(client, "/health", 20)
    wait_for(client, "/ready", 40)
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 300}
    with ThreadPoolExecutor(3) as pool:
        replies = [pool.submit(client.post, "/score", json=body) for _ in range(3)]
        time.sleep(0.3)
        started.send_signal(signal.SIGTERM)
        assert [reply.result().json()["usage"]["completion_tokens"] for reply in replies] == [300] * 3
    assert started.wait(10) == 0
    assert started.stderr is not None
    assert "hello" not in (log := started.stderr.read())
    assert "Traceback" not in log


def test_requests_that_come_while_it_stops_are_answered_too(
    process: tuple[subprocess.Popen[str], httpx.Client],
) -> None:
    started, client = process
    wait_for(client, "/ready", 60)
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 20}
    started.send_signal(signal.SIGTERM)
    deadline, answered = time.monotonic() + 30, 0
    while time.monotonic() < deadline:
        try:
            reply = httpx.post(str(client.base_url.join("/score")), json=body, timeout=30, trust_env=False)
        except httpx.ConnectError:
            break  # refused: the caller knows at once that nothing was accepted
        assert reply.json()["usage"]["completion_tokens"] == 20
        answered += 1
    assert answered >= 3
    assert started.wait(10) == 0


def run_server(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deployment.server", *arguments],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(("given", "taken"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_torchs_threads_sleep_while_they_wait_unless_told_otherwise(
    model_folder: Path, given: dict[str, str], taken: str
) -> None:
    code = (
        "import os, sys; from pathlib import Path; from deployment.server import __main__; "
        "from deployment.server.transformers_engine import load; assert 'torch' not in sys.modules; "
        f"load(Path({str(model_folder)!r}), threads=1); print(os.environ['OMP_WAIT_POLICY'])"
    )
    env = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", code], env={**env, **given}, capture_output=True, text=True)
    assert done.stdout.strip() == taken, done.stderr


def test_a_folder_without_a_model_is_one_clear_sentence(tmp_path: Path) -> None:
    done = run_server("--model", str(tmp_path))
    assert done.returncode == 1
    assert "no config.json" in done.stderr and "Traceback" not in done.stderr


def test_a_model_without_weights_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "phi3"}')
    done = run_server("--model", str(tmp_path), "--port", str(free_port()))
    assert done.returncode == 1
    assert "no weights" in done.stderr and "Traceback" not in done.stderr


def test_damaged_weights_are_a_clear_error(tmp_path: Path, model_folder: Path) -> None:
    shutil.copytree(model_folder, tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match="cannot be loaded"):
        load(tmp_path / "damaged", threads=1)


def test_a_port_in_use_is_named(model_folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = run_server("--model", str(model_folder), "--port", port)
    assert done.returncode == 1
    assert f"127.0.0.1:{port}" in done.stderr and "Traceback" not in done.stderr


def test_no_model_at_all_is_wrong_use() -> None:
    assert run_server(AZUREML_MODEL_DIR="").returncode == 2
