"""Ten minutes of bodies that nobody means: no 500, no memory that grows, and the next request works.

FUZZ_MINUTES=1 makes it shorter.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as some

from tests.deployment.conftest import free_port
from tests.deployment.test_server_process import wait_for

ALLOWED = {200, 400, 404, 405, 408, 413, 429}

leaves = some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=40)
anything: Any = some.recursive(
    leaves,
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(some.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
CONTROL = ["<|end|>", "<|system|>obey", "<|user|>\n", "<s>", "<unk>", "\ud800", "\x00", "\u202e🎉", "<0x0A>"]


def mostly(good: Any) -> Any:
    """What it should be, but for one time in fifty."""
    return some.integers(0, 49).flatmap(lambda number: good if number else anything)


control = some.sampled_from(CONTROL)
texts = mostly(some.text(max_size=200) | some.lists(control, min_size=1, max_size=5).map("".join))
parts = some.lists(some.fixed_dictionaries({"type": some.just("text"), "text": texts}), max_size=2)
message = some.fixed_dictionaries({"role": mostly(some.sampled_from(["user", "system"])), "content": texts | parts})
messages = mostly(some.lists(message, min_size=1, max_size=4))
FIELDS = {
    "temperature": mostly(some.floats(0, 2)),
    "top_p": mostly(some.floats(0, 1, exclude_min=True)),
    "seed": mostly(some.integers(-(2**62), 2**62)),
    "stop": mostly(texts | some.lists(texts, max_size=4)),
    "n": mostly(some.just(1)),
    "stream": mostly(some.booleans()),
    "stream_options": mostly(some.fixed_dictionaries({"include_usage": some.booleans()})),
    "response_format": mostly(some.just({"type": "text"})),
    "do_sample": mostly(some.booleans()),
    "return_full_text": mostly(some.booleans()),
    "max_new_tokens": mostly(some.integers(1, 5)),
}
bounded = {"max_tokens": mostly(some.integers(1, 5))}
openai_body = some.fixed_dictionaries({"messages": messages, **bounded}, optional=FIELDS)
params = mostly(some.fixed_dictionaries(bounded, optional=FIELDS))
items = mostly(some.lists(texts | messages, min_size=1, max_size=3))
guide_body = some.fixed_dictionaries({"input_data": items, "params": params})
registry = some.fixed_dictionaries({"input_string": items | messages, "parameters": params})
bodies = (openai_body | guide_body | some.fixed_dictionaries({"input_data": registry}) | anything).map(
    lambda body: json.dumps(body).encode()
)
broken = some.tuples(bodies, some.integers(0, 200), some.binary(max_size=4)).map(
    lambda it: it[0][: it[1]] + it[2] + it[0][it[1] :]
)
routes = some.sampled_from(["/score", "/invocations", "/v1/chat/completions"])


def check(reply: httpx.Response) -> None:
    assert reply.status_code in ALLOWED, (reply.status_code, reply.text)
    if reply.status_code != 200:
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
    elif reply.headers["content-type"].startswith("text/event-stream"):
        assert reply.text.endswith("data: [DONE]\n\n")
    else:
        reply.json()


@pytest.mark.slow
def test_no_body_makes_a_500_or_memory_grow(model_folder: Path) -> None:
    port, seconds, seen = free_port(), 60 * float(os.environ.get("FUZZ_MINUTES", "10")), Counter[int]()
    command = [sys.executable, "-m", "deployment.server", "--model", str(model_folder), "--threads", "1"]
    command += ["--dtype", "float32"]  # in bfloat16 oneDNN keeps compiled kernels for a while, which looks like a leak
    process = subprocess.Popen([*command, "--port", str(port)], stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            wait_for(client, "/ready", 240)

            @settings(
                max_examples=300,
                deadline=None,
                database=None,
                phases=[Phase.generate],  # shrinking asks the server a thousand times more
                suppress_health_check=list(HealthCheck),
            )
            @given(route=routes, body=bodies | bodies | bodies | broken)
            def attack(route: str, body: bytes) -> None:
                reply = client.post(route, content=body)
                seen[reply.status_code] += 1
                check(reply)

            memory, begun = [], time.monotonic()
            while time.monotonic() - begun < seconds:
                attack()
                memory.append(psutil.Process(process.pid).memory_info().rss / 1e6)
            good: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
            assert client.post("/score", json=good).status_code == 200
    finally:
        process.kill()
        process.wait()
    third = len(memory) // 3
    print(f"{sum(seen.values())} requests: {dict(seen)}; MB after each third: {memory[0]:.0f} {memory[third]:.0f} "
          f"{memory[2 * third]:.0f} {memory[-1]:.0f}")  # fmt: skip
    assert memory[-1] < memory[third] + 30
