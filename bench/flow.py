"""What the chat adds to its endpoint: time, by an endpoint that answers at once; and how fast its history is.

    python -m bench.flow [--json] [--out FILE]

Asked directly and through `flow.serve`, in turns, so that whatever else the machine does is in both. The endpoint, the
chat's server and the asking process are three; all use this machine's one monotonic clock.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra import cli
from infra.outputs import PROJECT, StackOutputs

if TYPE_CHECKING:
    import httpx

ROUNDS, CONVERSATIONS, TURNS, APPENDS = 300, 100, 5, 10_000
NOW = "{now}"
"""The endpoint's stand-in answers this word with its clock, at the moment of sending."""


def main(argv: list[str]) -> int:
    parser = cli.parser("bench.flow", "Measure what the chat adds to its endpoint.")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result there too")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as (direct, chat):
        result = {**asyncio.run(measured(direct, chat)), **appends(Path(folder)), "conditions": conditions()}
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n")
    cli.result(result, as_json=given.json)
    return 0


def conditions() -> dict[str, Any]:
    load = os.getloadavg()[0]
    return {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version(), "load": load}


@contextmanager
def running(folder: Path) -> Iterator[tuple[str, str]]:
    """The addresses of a stand-in for the endpoint and of a chat server over it."""
    outputs = folder / "outputs.json"
    outputs.write_text(json.dumps({field.name: "bench" for field in fields(StackOutputs)}))
    ports = free_ports(2)
    env = {
        **os.environ,
        "STACK_OUTPUTS": str(outputs),
        "CHAT_ENDPOINT": f"http://127.0.0.1:{ports[0]}/score",
        "CHAT_ENDPOINT_KEY": "bench",
        "CHAT_HISTORY": str(folder / "chat.db"),
    }
    with ExitStack() as stack:
        words = [["tests.support.stub_endpoint", str(ports[0])], ["flow.serve", "--port", str(ports[1])]]
        for module, port in zip(words, ports, strict=True):
            process = subprocess.Popen([sys.executable, "-m", *module], cwd=PROJECT, env=env, stderr=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            _wait(f"http://127.0.0.1:{port}/ready", process)
        yield env["CHAT_ENDPOINT"], f"http://127.0.0.1:{ports[1]}/chat"


def free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    import httpx

    while True:
        if process.poll() is not None:
            raise cli.UserError(f"{url} ended before it was ready")
        try:
            if httpx.get(url, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)


async def measured(direct: str, chat: str) -> dict[str, Any]:
    import httpx

    limits = httpx.Limits(max_connections=CONVERSATIONS)
    async with httpx.AsyncClient(trust_env=False, timeout=60, limits=limits) as client:
        for url in (direct, chat) * 20:
            await ask(client, url, "warm up")
        times: dict[str, list[tuple[float, float]]] = {direct: [], chat: []}
        for number in range(ROUNDS):
            for url in (direct, chat) if number % 2 else (chat, direct):
                times[url].append(await ask(client, url, f"{NOW} and some more words"))
        began = time.monotonic()
        failed = sum(await asyncio.gather(*(converse(client, chat, number) for number in range(CONVERSATIONS))))
        seconds = time.monotonic() - began
    whole = {url: [one for one, _ in found] for url, found in times.items()}
    first = {url: [one for _, one in found] for url, found in times.items()}
    return {
        "rounds": ROUNDS,
        "added_ms_median": _ms(statistics.median(whole[chat]) - statistics.median(whole[direct])),
        "whole_ms_direct": _spread(whole[direct]),
        "whole_ms_chat": _spread(whole[chat]),
        "first_piece_ms_direct": _spread(first[direct]),
        "first_piece_ms_chat": _spread(first[chat]),
        "conversations_at_once": CONVERSATIONS,
        "turns_each": TURNS,
        "failed": failed,
        "turns_per_second": round(CONVERSATIONS * TURNS / seconds, 1),
    }


async def converse(client: httpx.AsyncClient, chat: str, number: int) -> int:
    """How many turns of one conversation failed."""
    import httpx

    failed = 0
    for turn in range(TURNS):
        try:
            await ask(client, chat, f"{NOW} {turn}", conversation=f"many-{number}")
        except (cli.UserError, httpx.HTTPError):
            failed += 1
    return failed


async def ask(client: httpx.AsyncClient, url: str, question: str, **more: str) -> tuple[float, float]:
    """Seconds of the whole answer, and from the sending of its first piece to its arrival (0 for another question)."""
    body: dict[str, Any] = {"question": question, **more}
    if not url.endswith("/chat"):
        body = {"messages": [{"role": "user", "content": question}], "stream": True}
    began, first = time.monotonic(), 0.0
    async with client.stream("POST", url, json=body) as answer:
        async for piece in _pieces(answer):
            if not first and piece:
                first = time.monotonic() - float(piece) if question.startswith(NOW) else 1.0
    return time.monotonic() - began, first


async def _pieces(answer: httpx.Response) -> AsyncIterator[str]:
    """The pieces of either kind of stream. Raises UserError for one that does not come to its end."""
    async for line in answer.aiter_lines():
        data = line.removeprefix("data: ")
        event = json.loads(data) if data.startswith("{") else {}
        if data == "[DONE]" or event.get("done"):
            return
        for choice in event.get("choices", []):
            yield choice["delta"]["content"]
        if "piece" in event:
            yield event["piece"]
    raise cli.UserError("an answer broke off")


def appends(folder: Path) -> dict[str, Any]:
    """Appends a second of the SQLite store, three rounds over 50 conversations, and their median."""
    from flow.sqlite_history import SqliteHistory

    store, rates, answer = SqliteHistory(folder / "appends.db"), [], "Bill Gates and Paul Allen founded it. " * 6
    for round_number in range(3):
        began = time.monotonic()
        for number in range(APPENDS):
            store.append("user", f"c{number % 50}", f"{round_number}-{number}", "Who founded Microsoft?", answer)
        rates.append(round(APPENDS / (time.monotonic() - began)))
    store.close()
    return {"appends_per_second": statistics.median(rates), "appends_per_second_rounds": rates}


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    quantiles = statistics.quantiles(seconds, n=100)
    return {"median": _ms(statistics.median(seconds)), "p95": _ms(quantiles[94]), "p99": _ms(quantiles[98])}


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)


if __name__ == "__main__":
    cli.run(main)
