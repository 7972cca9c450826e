"""The conversation: what is sent, what is retried, what is stored; against the real server where one is needed."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from flow.chat import Chat, checked, once, session
from flow.conversation import Endpoint, Reply, Settings, ask, messages
from flow.history import SqliteHistory
from infra.cli import WRONG_USE, UserError
from tests.deployment.conftest import Server, free_port

FAST = Settings(deadline=5, first_pause=0.01)


def test_messages_hold_the_system_prompt_the_last_turns_and_the_question() -> None:
    earlier = [(f"q{n}", f"a{n}") for n in range(5)]
    made = messages("now", earlier, Settings(system="be brief", window=1))
    assert made == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "q4"},
        {"role": "assistant", "content": "a4"},
        {"role": "user", "content": "now"},
    ]
    assert messages("now", earlier, Settings(window=0)) == [{"role": "user", "content": "now"}]


def stream_of(*pieces: str, end: str = "data: [DONE]\n\n") -> bytes:
    events = [{"choices": [{"delta": {"content": piece}}]} for piece in pieces]
    return "".join(f"data: {json.dumps(event)}\n\n" for event in events).encode() + end.encode()


def gather(answers: list[httpx.Response], settings: Settings = FAST) -> tuple[str, int]:
    """The text, and how many requests it took, from a transport that gives `answers` in turn."""
    asked: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return answers[min(len(asked), len(answers)) - 1]

    async def run() -> str:
        async with httpx.AsyncClient(transport=httpx.MockTransport(handle)) as client:
            endpoint = Endpoint("https://endpoint/score", lambda: {"Authorization": "Bearer t"})
            said = messages("hi", [])
            return "".join([piece async for piece in ask(endpoint, said, settings, client=client)])

    text = asyncio.run(run())
    assert all(request.headers["authorization"] == "Bearer t" for request in asked)
    return text, len(asked)


@pytest.mark.parametrize("status", [408, 429, 503])
def test_not_now_is_tried_again(status: int) -> None:
    busy = [httpx.Response(status), httpx.Response(status, headers={"retry-after": "0.02"})]
    assert gather([*busy, httpx.Response(200, content=stream_of("a", "b"))]) == ("ab", 3)


def test_not_now_ends_at_the_deadline() -> None:
    with pytest.raises(UserError, match="429 and goes on"):
        gather([httpx.Response(429)], Settings(deadline=0.1, first_pause=0.01))
    with pytest.raises(UserError, match="429"):
        gather([httpx.Response(429, headers={"retry-after": "600"})])


@pytest.mark.parametrize(("status", "words"), [(400, "too long"), (401, "credentials"), (500, "answers 500")])
def test_other_refusals_are_told_at_once(status: int, words: str) -> None:
    error = {"error": {"message": "too long"}}
    with pytest.raises(UserError, match=words):
        gather([httpx.Response(status, json=error), httpx.Response(200, content=stream_of("never"))])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (stream_of("half", end=""), "breaks off"),
        (stream_of("half", end='data: {"error": {"message": "out of memory"}}\n\n'), "out of memory"),
        (b"data: nonsense\n\n", "no chat stream"),
    ],
)
def test_an_answer_cut_midway_is_an_error(content: bytes, words: str) -> None:
    with pytest.raises(UserError, match=words):
        gather([httpx.Response(200, content=content)])


@pytest.fixture
def chat(server: Server, tmp_path: Path) -> Chat:
    store = SqliteHistory(tmp_path / "chat.db")
    return Chat(Endpoint(f"{server.url}/score", dict), store, "c", Settings(max_tokens=12))


def test_the_real_server_answers_in_pieces_and_the_turn_is_stored(chat: Chat) -> None:
    pieces: list[str] = []
    reply = asyncio.run(chat.answer("  Who founded Microsoft? ", pieces.append))
    assert reply.text == "".join(pieces)
    assert reply.usage["completion_tokens"] == 12
    (turn,) = chat.history.last("c", 5)
    assert (turn.question, turn.answer) == ("Who founded Microsoft?", reply.text)


def test_the_second_question_carries_the_first_turn(chat: Chat) -> None:
    first = asyncio.run(chat.answer("hello")).usage["prompt_tokens"]
    second = asyncio.run(chat.answer("hello")).usage["prompt_tokens"]
    assert second > 2 * first


def test_an_endpoint_that_is_down_stores_nothing(chat: Chat) -> None:
    chat.endpoint = Endpoint(f"http://127.0.0.1:{free_port()}/score", dict)
    with pytest.raises(UserError, match="cannot be reached"):
        asyncio.run(chat.answer("hello"))
    assert chat.history.last("c", 5) == []


def test_the_answer_goes_to_stdout_and_json_is_one_object(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    once(chat, "hello", as_json=True)
    printed = json.loads(capsys.readouterr().out)
    assert set(printed) == {"answer", "conversation", "usage"}
    once(chat, "hello again", as_json=False)
    stored = chat.history.last("c", 1)[0].answer
    shown = "".join(letter for letter in stored if letter.isprintable() or letter in "\n\t")
    assert capsys.readouterr().out == shown + "\n"


def test_a_session_has_its_commands(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["hello", "/history", "/export", "/new", "/history", "/what", "", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert session(chat) == 0
    shown = capsys.readouterr()
    assert "1. hello" in shown.out
    (exported,) = [line for line in shown.out.splitlines() if line.startswith('{"messages"')]
    assert [message["role"] for message in json.loads(exported)["messages"]] == ["user", "assistant"]
    assert chat.conversation != "c"
    assert "unknown command /what" in shown.err


@pytest.mark.parametrize("question", ["", "  \n", "x" * 100_001])
def test_questions_have_limits(question: str) -> None:
    with pytest.raises(UserError) as refused:
        checked(question)
    assert refused.value.code == WRONG_USE


def test_a_hundred_conversations_at_once(chat: Chat) -> None:
    async def everyone() -> list[Reply]:
        settings = Settings(max_tokens=2, deadline=60, first_pause=0.05)
        chats = [Chat(chat.endpoint, chat.history, f"c{number}", settings) for number in range(100)]
        return list(await asyncio.gather(*(one.answer("hello") for one in chats)))

    replies = asyncio.run(everyone())
    assert {reply.usage["completion_tokens"] for reply in replies} == {2}
    assert len(chat.history.conversations()) == 100


def test_the_prompt_flow_tool_gives_the_history_on(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("promptflow")
    from flow import flow_tool

    monkeypatch.setattr(flow_tool, "load_outputs", lambda: None)
    monkeypatch.setattr(flow_tool, "endpoint_of", lambda outputs: Endpoint(f"{server.url}/score", dict))
    call: Callable[..., Any] = flow_tool.chat
    alone = asyncio.run(call("hello", []))
    turn = {"inputs": {"question": "hello"}, "outputs": {"answer": alone}}
    assert isinstance(alone, str) and isinstance(asyncio.run(call("hello", [turn])), str)


def test_help_and_wrong_use_need_no_heavy_import() -> None:
    code = (
        "import sys, flow.chat; "
        "print([name for name in ('torch', 'azure.ai.ml', 'promptflow', 'httpx') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    done = subprocess.run([sys.executable, "-m", "flow.chat", " "], capture_output=True, text=True)
    assert done.returncode == WRONG_USE and "Traceback" not in done.stderr
