"""The content filter before and after the model, against a stand-in for Azure AI Content Safety."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deployment.server import safety
from deployment.server.model import LoadedModel
from deployment.server.safety import MOST_CHARACTERS, OVERLAP, ContentSafety, configured, pieces_of
from infra.cli import UserError
from tests.deployment.conftest import Server, free_port, serve, wait_idle

ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 12}


@dataclass
class Judge:
    """Finds `bad` wherever it is said; notes what it was shown and with which token."""

    bad: str = "zanzibar"
    url: str = ""
    seen: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    status: int = 200

    async def analyze(self, request: Request) -> Response:
        text = (await request.json())["text"]
        assert 0 < len(text) <= MOST_CHARACTERS
        assert request.query_params["api-version"] == safety.VERSION
        self.seen.append(text)
        self.tokens.add(request.headers["authorization"])
        found = [{"category": name, "severity": 0} for name in ("Hate", "SelfHarm", "Sexual")]
        found.append({"category": "Violence", "severity": 4 if self.bad in text else 2})
        return JSONResponse({"blocklistsMatch": [], "categoriesAnalysis": found}, self.status)


@pytest.fixture
def judge() -> Iterator[Judge]:
    made = Judge()
    routes = [Route("/contentsafety/text:analyze", made.analyze, methods=["POST"])]
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    made.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    yield made
    server.should_exit = True
    thread.join()


@pytest.fixture
def guarded(loaded: LoadedModel, judge: Judge) -> Iterator[Server]:
    with serve(loaded) as server:
        server.serving.safety = ContentSafety(judge.url, lambda: "a-token")
        yield server


def ask(server: Server, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/score", json={**ASKED, **body}, timeout=30, trust_env=False)


def test_both_sides_are_looked_at_with_the_identitys_token(guarded: Server, judge: Judge) -> None:
    text = ask(guarded).json()["choices"][0]["message"]["content"]
    assert judge.seen == ["hello", text]
    assert judge.tokens == {"Bearer a-token"}


@pytest.mark.parametrize("stream", [False, True])
def test_a_refused_message_never_reaches_the_model(guarded: Server, judge: Judge, stream: bool) -> None:
    messages = [{"role": "user", "content": "fine"}, {"role": "user", "content": "to zanzibar"}]
    reply = ask(guarded, messages=messages, stream=stream)
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "content_filter")
    assert "zanzibar" not in reply.text
    assert guarded.serving.engine is not None and guarded.serving.engine.load == (0, 0)


def test_a_refused_answer_is_held_back(guarded: Server, judge: Judge) -> None:
    text = ask(guarded).json()["choices"][0]["message"]["content"]
    judge.bad = text[2:6]
    reply = ask(guarded)
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "content_filter")
    assert text not in reply.text


def test_a_stream_gives_no_piece_before_it_was_looked_at(
    guarded: Server, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployment.server.answering.WINDOW", 10)

    def pieces(reply: httpx.Response) -> tuple[str, list[Any]]:
        lines = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]
        good = [line for line in lines if "choices" in line]
        return "".join(one["choices"][0]["delta"].get("content", "") for one in good), lines

    asked = {"messages": [{"role": "user", "content": "1975?"}], "max_tokens": 40, "stream": True}
    text, _ = pieces(ask(guarded, **asked))
    assert len(text) > 40
    judge.bad = text[25:37]  # longer than a window, so never whole in one piece
    judge.seen.clear()
    shown, lines = pieces(ask(guarded, **asked))
    assert lines[-1]["error"]["code"] == "content_filter"
    assert text.startswith(shown) and 0 < len(shown) < len(text)
    assert judge.bad not in shown
    wait_idle(guarded, 5)


@pytest.mark.parametrize("status", [500, 401])
def test_a_filter_that_cannot_be_asked_answers_nothing_unless_told_to(
    guarded: Server, judge: Judge, status: int
) -> None:
    judge.status = status
    reply = ask(guarded)
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "content_filter_unavailable")
    assert guarded.serving.safety is not None
    guarded.serving.safety.fail_open = True
    assert ask(guarded).status_code == 200
    guarded.serving.safety = ContentSafety(f"http://127.0.0.1:{free_port()}", lambda: "x")
    assert ask(guarded).status_code == 503


def test_an_identity_without_a_token_counts_as_a_filter_that_cannot_be_asked(guarded: Server, judge: Judge) -> None:
    def nothing() -> str:
        raise ValueError("no identity")

    guarded.serving.safety = ContentSafety(judge.url, nothing)
    reply = ask(guarded)
    assert reply.status_code == 503
    assert "identity" not in reply.text
    assert judge.seen == []


def test_long_texts_are_looked_at_whole() -> None:
    text = "".join(chr(97 + number % 26) for number in range(25_000))
    pieces = pieces_of(text)
    assert pieces[0] + "".join(piece[OVERLAP:] for piece in pieces[1:]) == text
    assert max(map(len, pieces)) <= MOST_CHARACTERS
    assert (pieces_of(" \n"), pieces_of("x")) == ([], ["x"])


def test_it_is_off_unless_configured() -> None:
    assert configured({}) is None
    made = configured({"CONTENT_SAFETY_ENDPOINT": "https://x.cognitiveservices.azure.com", "AZURE_CLIENT_ID": "c"})
    assert made is not None and (made.severity, made.fail_open) == (4, False)
    for wrong in ({"CONTENT_SAFETY_ENDPOINT": "http://x"}, {"CONTENT_SAFETY_SEVERITY": "3"}):
        with pytest.raises(UserError, match="cannot be used"):
            configured({"CONTENT_SAFETY_ENDPOINT": "https://x", **wrong})
