"""Clients of one server: so many at a time, each asking again as soon as it has its answer."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from statistics import median
from typing import Any

import httpx
import psutil

QUESTION = "Who founded Microsoft? " * 2
NEW_TOKENS = 64
NUMBERS = count(100)
"""Each question begins with one of its own: nobody gains by having answered it before."""


@dataclass
class Target:
    """A server that runs. `guide`: it speaks as MLflow's scoring server does and does not count its tokens."""

    name: str
    url: str
    process: psutil.Process
    guide: bool
    startup: tuple[float, float] = (0.0, 0.0)
    """Seconds until it was ready, by the clock and of the processor's time."""
    errors: list[str] = field(default_factory=list)

    def cpu_seconds(self) -> float:
        """So far, of the process and of what it has started."""
        family = [self.process, *self.process.children(recursive=True)]
        return sum(sum(one.cpu_times()[:2]) for one in family)

    def memory(self) -> int:
        family = [self.process, *self.process.children(recursive=True)]
        return sum(int(one.memory_info().rss) for one in family)

    def ask(self, client: httpx.Client) -> tuple[float, int]:
        """(seconds, new tokens) of one request. MLflow's answer holds no counts: all tokens are granted to it."""
        began = time.perf_counter()
        path, body = self._request()
        reply = client.post(f"{self.url}{path}", json=body)
        reply.raise_for_status()
        tokens = NEW_TOKENS if self.guide else int(reply.json()["usage"]["completion_tokens"])
        return time.perf_counter() - began, tokens

    def _request(self) -> tuple[str, dict[str, Any]]:
        question = f"{next(NUMBERS)} {QUESTION}"
        if self.guide:
            params = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "return_full_text": False}
            return "/invocations", {"inputs": [question], "params": params}
        messages = [{"role": "user", "content": question}]
        return "/score", {"messages": messages, "max_tokens": NEW_TOKENS, "temperature": 0}


def measure(target: Target, clients: int, requests: int) -> dict[str, Any]:
    """So many requests from so many clients, with the server's health asked meanwhile."""
    with httpx.Client(timeout=600, trust_env=False, limits=httpx.Limits(max_connections=100)) as client:
        target.ask(client)
        cpu, began = target.cpu_seconds(), time.perf_counter()
        with _probes(target, client) as probes, ThreadPoolExecutor(clients) as pool:
            answers = list(pool.map(lambda _: target.ask(client), range(requests)))
        wall, spent = time.perf_counter() - began, target.cpu_seconds() - cpu
    tokens = sum(count for _, count in answers)
    return {
        "tokens": tokens,
        "seconds": round(wall, 3),
        "cpu_seconds": round(spent, 3),
        "tokens_per_second": round(tokens / wall, 2),
        "tokens_per_cpu_second": round(tokens / spent, 2),
        "latency_p50": round(median(seconds for seconds, _ in answers), 4),
        "probe_p50": round(median(probes), 5),
        "probe_worst": round(max(probes), 5),
        "memory": target.memory(),
    }


@contextmanager
def _probes(target: Target, client: httpx.Client) -> Iterator[list[float]]:
    """Seconds that the health route takes, asked five times a second from beside."""
    took: list[float] = []
    over = threading.Event()
    path = "/ping" if target.guide else "/health"

    def probe() -> None:
        while not over.wait(0.2):
            began = time.perf_counter()
            client.get(f"{target.url}{path}").raise_for_status()
            took.append(time.perf_counter() - began)

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        yield took
    finally:
        over.set()
        thread.join()
        took += [] if took else [0.0]


def first_token(target: Target, times: int = 5) -> dict[str, float]:
    """Seconds until the first piece of text, one client; the least and the median."""
    took = []
    with httpx.Client(timeout=600, trust_env=False) as client:
        for _ in range(times):
            body = {**target._request()[1], "stream": True, "max_tokens": 4}
            began = time.perf_counter()
            with client.stream("POST", f"{target.url}/score", json=body) as reply:
                for line in reply.iter_lines():
                    if line.startswith("data: {") and _text(line):
                        took.append(time.perf_counter() - began)
                        break
    return {"least": round(min(took), 4), "median": round(median(took), 4)}


def _text(line: str) -> str:
    choices = json.loads(line.removeprefix("data: "))["choices"]
    return str(choices[0]["delta"].get("content") or "") if choices else ""
