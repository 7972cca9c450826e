"""`python -m flow.serve`: the page's routes, the flow, who is let in, and what leaves the machine (nothing)."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from infra.cli import WRONG_USE
from infra.outputs import PROJECT
from tests.flow.serving import Served, environment, served
from tests.support.stub_endpoint import Stub, stub_endpoint


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Stub]:
    with stub_endpoint() as made:
        yield made


@pytest.fixture
def stub(endpoint: Stub) -> Stub:
    endpoint.faults, endpoint.pause, endpoint.cut_after, endpoint.left = [], 0.0, None, 0
    endpoint.asked.clear()
    return endpoint


@pytest.fixture(scope="module")
def server(endpoint: Stub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("serve"), endpoint.url) as made:
        yield made


@pytest.fixture
def client(server: Served, stub: Stub) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, trust_env=False, timeout=30) as made:
        made.delete("/conversations")
        yield made


def chat(client: httpx.Client, question: Any, **more: Any) -> list[dict[str, Any]]:
    answer = client.post("/chat", json={"question": question, **more})
    assert answer.status_code == 200, answer.text
    return [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n") if line]


def test_an_answer_comes_in_pieces_and_is_remembered(client: httpx.Client, stub: Stub) -> None:
    *pieces, done = chat(client, "one two three")
    assert [piece["piece"] for piece in pieces] == ["one", " two", " three"]
    assert done["done"] and done["usage"]["completion_tokens"] == 3
    chat(client, "four", conversation=done["conversation"])
    assert [message["content"] for message in stub.asked[-1]["messages"]] == ["one two three"] * 2 + ["four"]
    turns = client.get("/conversation", params={"id": done["conversation"]}).json()
    assert [turn["question"] for turn in turns] == ["one two three", "four"]
    (listed,) = client.get("/conversations").json()
    assert (listed["title"], listed["turns"]) == ("one two three", 2)


def test_the_endpoints_key_is_sent_and_never_shown(client: httpx.Client, stub: Stub, server: Served) -> None:
    chat(client, "hi")
    assert stub.keys[-1] == "Bearer endpoint-key"
    assert "endpoint-key" not in server.log


def test_the_flow_answers_whole_and_in_pieces(client: httpx.Client, stub: Stub) -> None:
    turn = {"inputs": {"question": "q"}, "outputs": {"answer": "a"}}
    body = {"question": "one two", "chat_history": [turn]}
    assert client.post("/score", json=body).json() == {"answer": "one two"}
    assert [message["content"] for message in stub.asked[-1]["messages"]] == ["q", "a", "one two"]
    streamed = client.post("/score", json=body, headers={"Accept": "text/event-stream"}).text
    assert streamed.split("\n\n")[:2] == ['data: {"answer": "one"}', 'data: {"answer": " two"}']


@pytest.mark.parametrize("path", ["/chat", "/score"])
def test_an_endpoint_that_fails_is_one_sentence_with_a_status(client: httpx.Client, stub: Stub, path: str) -> None:
    stub.faults = [(500, {}, {"error": {"message": "out of memory"}})]
    answer = client.post(path, json={"question": "hi"}, headers={"Accept": "text/event-stream"})
    assert answer.status_code in (500, 502)
    assert answer.json()["error"]["message"] == "the endpoint answers 500: out of memory"
    stub.faults = [(401, {}, {})]
    assert "credentials" in client.post(path, json={"question": "hi"}).json()["error"]["message"]


def test_an_answer_that_is_cut_midway_is_an_error_and_not_stored(client: httpx.Client, stub: Stub) -> None:
    stub.cut_after = 1
    *_, last = chat(client, "one two", conversation="c")
    assert "breaks off" in last["error"]
    assert client.get("/conversation", params={"id": "c"}).json() == []
    stub.cut_after = None
    assert chat(client, "again", conversation="c")[-1]["done"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"nonsense", "one JSON object"),
        (b"[1]", "one JSON object"),
        (b"[" * 50_000, "one JSON object"),
        (b"{}", "have to be texts"),
        (b'{"question": 5}', "have to be texts"),
        (b'{"question": "  "}', "the question is empty"),
        (b'{"question": "x", "conversation": ["c"]}', "have to be texts"),
        (json.dumps({"question": "x" * 100_001}).encode(), "100000 is the limit"),
        (json.dumps({"question": "x", "conversation": "c" * 201}).encode(), "conversation's id"),
    ],
)
def test_a_bad_question_is_400_with_the_reason(client: httpx.Client, content: bytes, words: str) -> None:
    answer = client.post("/chat", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and words in answer.json()["error"]["message"]


def test_a_form_of_another_site_cannot_ask(client: httpx.Client, stub: Stub) -> None:
    answer = client.post("/chat", content=b'{"question": "x"}', headers={"Content-Type": "text/plain"})
    assert answer.status_code == 400
    headers = {"Origin": "https://evil.example"}
    assert client.post("/chat", json={"question": "x"}, headers=headers).status_code == 403
    assert client.post("/score", json={"question": "x"}, headers=headers).status_code == 403
    assert client.get("/conversations", headers={"Host": "evil.example"}).status_code == 403
    assert stub.asked == []


@pytest.mark.parametrize("path", ["/chat", "/score"])
def test_a_body_that_is_too_large_is_413_even_without_a_length(client: httpx.Client, path: str) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"question": "'
        for _ in range(11):
            yield b"x" * 100_000
        yield b'"}'

    answer = client.post(path, content=chunks(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413


@pytest.mark.parametrize("conversation", ["it's", 'a"b', "a/b\\c?d#e%2F&id=f", "é 🎉"])
def test_any_conversation_id_can_be_asked_for_and_removed(client: httpx.Client, conversation: str) -> None:
    chat(client, "hi", conversation=conversation)
    assert len(client.get("/conversation", params={"id": conversation}).json()) == 1
    assert client.delete("/conversation", params={"id": conversation}).status_code == 204
    assert client.get("/conversations").json() == []


def test_users_are_apart_and_can_take_or_erase_what_is_theirs(client: httpx.Client) -> None:
    chat(client, "hi", conversation="c")
    client.post("/chat", params={"user": "ann"}, json={"question": "hello", "conversation": "d"})
    assert [one["id"] for one in client.get("/conversations", params={"user": "ann"}).json()] == ["d"]
    taken = client.get("/export", params={"user": "ann"}).json()
    assert [turn["answer"] for turn in taken["conversations"][0]["turns"]] == ["hello"]
    client.delete("/conversations", params={"user": "ann"})
    assert client.get("/export", params={"user": "ann"}).json()["conversations"] == []
    assert len(client.get("/conversations").json()) == 1


def test_who_leaves_ends_the_request_to_the_endpoint(client: httpx.Client, stub: Stub, server: Served) -> None:
    stub.pause = 0.05
    with client.stream("POST", "/chat", json={"question": "w " * 2000, "conversation": "left"}) as answer:
        next(answer.iter_lines())
    seen = threading.Event()
    for _ in range(100):
        if stub.left:
            break
        seen.wait(0.05)
    assert stub.left == 1
    assert client.get("/conversation", params={"id": "left"}).json() == []


def test_a_hundred_conversations_at_once(server: Served, stub: Stub) -> None:
    failures: list[object] = []

    def talk(number: int) -> None:
        with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
            for turn in range(3):
                events = chat(client, f"hello {number} {turn}", conversation=f"many-{number}")
                if not events[-1].get("done"):
                    failures.append(events[-1])

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        for number in (0, 99):
            turns = client.get("/conversation", params={"id": f"many-{number}"}).json()
            assert [turn["answer"] for turn in turns] == [f"hello {number} {turn}" for turn in range(3)]


def test_the_page_loads_nothing_from_elsewhere_and_allows_nothing_to(client: httpx.Client) -> None:
    for path in ("/", "/page.js", "/page.css"):
        answer = client.get(path)
        assert answer.status_code == 200 and "://" not in answer.text
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "innerHTML" not in client.get("/page.js").text


# An exporter of telemetry would ask for its settings some seconds after the first request.
@pytest.mark.parametrize("seconds", [0, pytest.param(15, marks=pytest.mark.slow)])
def test_nothing_leaves_the_machine_and_nothing_is_written_home(
    client: httpx.Client, server: Served, seconds: int
) -> None:
    chat(client, "xylophone")
    client.post("/score", json={"question": "xylophone"})
    assert client.post("/score", json={"query": "xylophone"}).status_code == 400
    threading.Event().wait(seconds)
    assert server.connections and all("127.0.0.1" in line or "localhost" in line for line in server.connections)
    assert list(server.home.rglob("*")) == []
    assert "xylophone" not in server.log and "Traceback" not in server.log


def test_with_a_key_only_its_holders_come_in(stub: Stub, tmp_path: Path) -> None:
    with served(tmp_path, stub.url, CHAT_KEY="secret-key") as made:
        with httpx.Client(base_url=made.url, trust_env=False, timeout=30) as client:
            for path in ("/", "/page.js", "/health"):
                assert client.get(path).status_code == 200
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer ключ".encode()}):
                assert client.get("/conversations", headers=headers).status_code == 401
                assert client.post("/score", json={"question": "x"}, headers=headers).status_code == 401
            client.headers["Authorization"] = "Bearer secret-key"
            assert chat(client, "hi")[-1]["done"]
        assert "secret-key" not in made.log


def test_too_many_at_once_are_told_to_come_again() -> None:
    import asyncio

    from flow.guard import Guard, Limits

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.2)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def three() -> list[httpx.Response]:
        transport = httpx.ASGITransport(Guard(slow, Limits(at_once=2)))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return list(await asyncio.gather(*(client.get("/conversations") for _ in range(3))))

    answers = asyncio.run(three())
    assert sorted(answer.status_code for answer in answers) == [200, 200, 429]
    assert next(answer for answer in answers if answer.status_code == 429).headers["retry-after"] == "1"


@pytest.mark.parametrize("words", [["--host", "0.0.0.0"], ["--host", "::"]])
def test_no_door_is_opened_without_a_key(tmp_path: Path, words: list[str]) -> None:
    env = environment(tmp_path, "http://127.0.0.1:9/score")
    command = [sys.executable, "-m", "flow.serve", *words]
    done = subprocess.run(command, cwd=PROJECT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == WRONG_USE and "no key is set" in done.stderr and "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_one_sentence(server: Served, tmp_path: Path) -> None:
    env = environment(tmp_path, "http://127.0.0.1:9/score")
    command = [sys.executable, "-m", "flow.serve", "--port", server.url.rpartition(":")[2]]
    done = subprocess.run(command, cwd=PROJECT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "cannot listen" in done.stderr and "Traceback" not in done.stderr


def test_the_page_comes_before_the_flow_is_loaded() -> None:
    import asyncio

    from flow.app import Serving, create_app

    class Loading:
        ready = False

    async def visit() -> list[int]:
        serving = Serving(lambda: pytest.fail("asked"), lambda: pytest.fail("asked"), "user")
        transport = httpx.ASGITransport(create_app(serving, cast(Any, Loading())))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return [(await client.get(path)).status_code for path in ("/", "/health", "/ready")]

    assert asyncio.run(visit()) == [200, 200, 503]


@pytest.mark.slow
def test_a_server_killed_between_question_and_answer_leaves_a_conversation_that_goes_on(
    stub: Stub, tmp_path: Path
) -> None:
    for round_number in range(3):
        with served(tmp_path, stub.url) as made, httpx.Client(base_url=made.url, trust_env=False) as client:
            turns = client.get("/conversation", params={"id": "c"}).json()
            assert [turn["question"] for turn in turns] == [f"whole {number}" for number in range(round_number)]
            stub.pause = 0.0
            assert chat(client, f"whole {round_number}", conversation="c")[-1]["done"]
            stub.pause = 0.1
            with client.stream("POST", "/chat", json={"question": "w " * 100, "conversation": "c"}) as answer:
                next(answer.iter_lines())
                made.process.kill()
                made.process.wait()
