"""`python -m flow.serve` as a user starts it, in a home of its own, with every connection it makes noted."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from infra.outputs import PROJECT, StackOutputs
from tests.deployment.conftest import free_port

WATCH = """
import os, sys
def note(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        with open(os.environ["NOTED"], "a") as file:
            print(event, arguments[1:] if event == "socket.connect" else arguments[:2], file=file)
sys.addaudithook(note)
"""


@dataclass
class Served:
    """A running server: its address, home, log, connections, and the seconds until its page came."""

    url: str
    folder: Path
    process: subprocess.Popen[bytes]
    seconds: float

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    @property
    def connections(self) -> list[str]:
        noted = self.folder / "connections"
        return noted.read_text().splitlines() if noted.exists() else []


def environment(folder: Path, endpoint: str, **more: str) -> dict[str, str]:
    """A user's, with a stack whose endpoint is at `endpoint`, and nothing of who runs the tests."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "home").mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(WATCH)
    names = [field.name for field in dataclasses.fields(StackOutputs)]
    (folder / "outputs.json").write_text(json.dumps({**dict.fromkeys(names, ""), "stack": "test"}))
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder / "home"),
        "PYTHONPATH": str(folder),
        "NOTED": str(folder / "connections"),
        "STACK_OUTPUTS": str(folder / "outputs.json"),
        "CHAT_ENDPOINT": endpoint,
        "CHAT_ENDPOINT_KEY": "endpoint-key",
        "CHAT_HISTORY": str(folder / "chat.db"),
        "CHAT_USER": "user",
        **more,
    }


@contextmanager
def served(folder: Path, endpoint: str, *words: str, cwd: Path = PROJECT, **more: str) -> Iterator[Served]:
    port = free_port()
    command = [sys.executable, "-m", "flow.serve", "--port", str(port), *words]
    env, began = environment(folder, endpoint, **more), time.monotonic()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=cwd, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        wait_ready(f"http://127.0.0.1:{port}/", process, folder / "log")
        seconds = time.monotonic() - began
        wait_ready(f"http://127.0.0.1:{port}/ready", process, folder / "log")
        yield Served(f"http://127.0.0.1:{port}", folder, process, seconds)
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_ready(url: str, process: subprocess.Popen[bytes], log: Path, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text()
        try:
            if httpx.get(url, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.02)
    raise AssertionError(log.read_text())
