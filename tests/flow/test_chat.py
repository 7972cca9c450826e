"""The chat on its command line and in its store, against the real server."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from flow.chat import Chat, _command, checked, once, session
from flow.conversation import Endpoint, Reply, Settings
from flow.sqlite_history import SqliteHistory
from infra.cli import WRONG_USE, UserError
from tests.deployment.conftest import Server, free_port


@pytest.fixture
def chat(server: Server, tmp_path: Path) -> Chat:
    store = SqliteHistory(tmp_path / "chat.db")
    return Chat(Endpoint(f"{server.url}/score", dict), store, "c", settings=Settings(max_tokens=12))


def test_the_real_server_answers_in_pieces_and_the_turn_is_stored(chat: Chat) -> None:
    pieces: list[str] = []
    reply = asyncio.run(chat.answer("  Who founded Microsoft? ", pieces.append))
    assert reply.text == "".join(pieces)
    assert reply.usage["completion_tokens"] == 12
    (turn,) = chat.history.last("user", "c", 5)
    assert (turn.question, turn.answer) == ("Who founded Microsoft?", reply.text)


def test_the_second_question_carries_the_first_turn(chat: Chat) -> None:
    first = asyncio.run(chat.answer("hello")).usage["prompt_tokens"]
    second = asyncio.run(chat.answer("hello")).usage["prompt_tokens"]
    assert second > 2 * first


def test_an_endpoint_that_is_down_stores_nothing(chat: Chat) -> None:
    chat.endpoint = Endpoint(f"http://127.0.0.1:{free_port()}/score", dict)
    with pytest.raises(UserError, match="cannot be reached"):
        asyncio.run(chat.answer("hello"))
    assert chat.history.last("user", "c", 5) == []


def test_the_answer_goes_to_stdout_and_json_is_one_object(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    once(chat, "hello", as_json=True)
    printed = json.loads(capsys.readouterr().out)
    assert set(printed) == {"answer", "conversation", "usage"}
    once(chat, "hello again", as_json=False)
    stored = chat.history.last("user", "c", 1)[0].answer
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
        chats = [Chat(chat.endpoint, chat.history, f"c{number}", settings=settings) for number in range(100)]
        return list(await asyncio.gather(*(one.answer("hello") for one in chats)))

    replies = asyncio.run(everyone())
    assert {reply.usage["completion_tokens"] for reply in replies} == {2}
    assert len(chat.history.conversations("user")) == 100


def test_help_and_wrong_use_need_no_heavy_import() -> None:
    code = (
        "import sys, flow.chat; "
        "print([name for name in ('torch', 'azure.ai.ml', 'promptflow', 'httpx') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    done = subprocess.run([sys.executable, "-m", "flow.chat", " "], capture_output=True, text=True)
    assert done.returncode == WRONG_USE and "Traceback" not in done.stderr


def test_a_turn_that_cannot_be_stored_is_said_after_the_answer(chat: Chat) -> None:
    pieces: list[str] = []
    chat.history.close()
    chat.settings = Settings(max_tokens=4, window=0)
    with pytest.raises(UserError, match="cannot be read"):
        asyncio.run(chat.answer("hello", pieces.append))
    assert pieces == []


class ReadOnly(SqliteHistory):
    def append(self, *given: object, **named: object) -> NoReturn:
        raise UserError("the disk is full")


def test_an_answer_that_cannot_be_stored_is_shown_and_said(chat: Chat, tmp_path: Path) -> None:
    pieces: list[str] = []
    chat.history = ReadOnly(tmp_path / "full.db")
    with pytest.raises(UserError, match="whole but was not stored: the disk is full"):
        asyncio.run(chat.answer("hello", pieces.append))
    assert pieces


def test_an_interrupted_answer_leaves_the_session_and_stores_nothing(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["hello", "/history", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    monkeypatch.setattr("flow.chat._show", interrupt)
    assert session(chat) == 0
    assert "interrupted" in capsys.readouterr().err
    assert chat.history.last("user", "c", 5) == []


def interrupt(piece: str) -> NoReturn:
    raise KeyboardInterrupt


def test_neither_answers_nor_history_steer_a_terminal(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    chat.history.append("user", "c", "k", "\x1b[2Jq", "\x1b]0;title\x07a\u202eb")
    for command in ("/history", "/export"):
        _command(chat, command)
    shown = capsys.readouterr().out
    assert not {"\x1b", "\x07", "\u202e"} & set(shown) and "[2Jq" in shown


@pytest.mark.parametrize("conversation", ["", "x" * 201])
def test_a_conversation_id_that_can_be_none_is_wrong_use(conversation: str) -> None:
    words = ["hello", "--conversation", conversation, "--outputs", "/dev/null"]
    done = subprocess.run([sys.executable, "-m", "flow.chat", *words], capture_output=True, text=True)
    assert done.returncode == WRONG_USE and "conversation's id" in done.stderr and "Traceback" not in done.stderr
