"""Twenty clients that ask an endpoint without a pause, and what each of their requests got.

python -m tests.support.clients URL COUNT OUT      until SIGTERM; the token is in $TOKEN
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.support.local_azure import ROOT, LocalAzure

PAUSE = 0.1
"""Seconds between an answer and the same client's next request."""
QUESTION = {"messages": [{"role": "user", "content": "Hello?"}], "max_tokens": 4}


@dataclass
class Answers:
    """How many good answers there were of each deployment and text, and all that was not one."""

    good: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)
    slowest: float = 0.0
    began: float = field(default_factory=time.time)

    def take(self, answer: httpx.Response, seconds: float) -> None:
        self.slowest = max(self.slowest, seconds)
        try:
            text = answer.json()["choices"][0]["message"]["content"]
        except (ValueError, KeyError, TypeError):
            text = None
        if answer.status_code == 200 and isinstance(text, str):
            self.good[f"{answer.headers['azureml-model-deployment']}: {text}"] += 1
        else:
            self.bad.append(f"{answer.status_code} {answer.headers.get('azureml-model-deployment')} {answer.text[:80]}")


async def client(http: httpx.AsyncClient, url: str, answers: Answers, stop: asyncio.Event) -> None:
    while not stop.is_set():
        began = time.monotonic()
        try:
            answers.take(await http.post(url, json=QUESTION), time.monotonic() - began)
        except httpx.HTTPError as error:
            answers.bad.append(repr(error))
        await asyncio.sleep(PAUSE)


async def run(url: str, count: int, out: Path) -> None:
    answers, stop = Answers(), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    headers = {"Authorization": f"Bearer {os.environ['TOKEN']}"}
    limits = httpx.Limits(keepalive_expiry=2)  # well before the server's 5 s: else both end a connection at once
    async with httpx.AsyncClient(headers=headers, timeout=60, limits=limits) as http:
        await asyncio.gather(*(client(http, url, answers, stop) for _ in range(count)))
    seconds = time.time() - answers.began
    out.write_text(json.dumps({"good": answers.good, "bad": answers.bad, "slowest": answers.slowest, "s": seconds}))


@contextmanager
def clients(azure: LocalAzure, url: str, out: Path, count: int = 20) -> Iterator[None]:
    """Keep them asking while the block runs; `read(out)` has the answers afterwards."""
    env = {**azure.env, "TOKEN": azure.token("https://ml.azure.com")}
    command = [sys.executable, "-m", "tests.support.clients", url, str(count), str(out)]
    process = subprocess.Popen(command, env=env, cwd=ROOT)
    time.sleep(2)
    try:
        yield
    finally:
        process.terminate()
        process.wait(90)


def read(out: Path) -> tuple[dict[str, int], list[str]]:
    """Good answers by deployment and text, and the bad ones; a line with both for whoever reads the test's output."""
    found = json.loads(out.read_text())
    total = sum(found["good"].values())
    print(
        f"\n{total} answers in {found['s']:.0f} s, {len(found['bad'])} failed, slowest {found['slowest']:.2f} s: "
        f"{found['good']}"
    )
    return found["good"], found["bad"]


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])))
