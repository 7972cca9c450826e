"""Callers who speak no HTTP, or too slowly; and a server that is told to stop."""

from __future__ import annotations

import json
import socket
import time

import httpx
import pytest

from deployment.server import connections
from deployment.server.model import LoadedModel
from tests.deployment.conftest import Server, serve

ASKED = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}


def connect(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def everything(caller: socket.socket) -> bytes:
    received = b""
    while piece := caller.recv(65536):
        received += piece
    return received


def check_refusal(received: bytes, status: int) -> None:
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), received
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("begun", [b"", b"POST /score HTTP/1.1\r\nHost: x\r\nX-Slow: "])
def test_headers_that_never_end_are_cut_off(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, begun: bytes) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.5)
    with serve(loaded) as server, connect(server) as caller:
        caller.sendall(begun)
        time.sleep(0.3)
        if begun:
            caller.sendall(b"x")  # one more byte now and then must not buy more time
        began = time.monotonic()
        check_refusal(everything(caller), 408)
        assert time.monotonic() - began < 0.4
        assert httpx.post(f"{server.url}/score", json=ASKED, trust_env=False).status_code == 200


def test_a_second_request_on_a_connection_has_its_time_too(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.5)
    with serve(loaded) as server, connect(server) as caller:
        for _ in range(3):
            caller.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            received = b""
            while b'"live"' not in received:
                received += caller.recv(65536)
            time.sleep(0.3)
        caller.sendall(b"GET /health HTTP/1.1\r\nHos")
        check_refusal(everything(caller), 408)


def test_headers_that_came_in_pieces_leave_no_clock_behind(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.5)
    with serve(loaded) as server, connect(server) as caller:
        for pause in (0.7, 0.0):
            for piece in (b"GET /hea", b"lth HTTP/1.1\r\nHo", b"st: x\r\n\r\n"):
                caller.sendall(piece)
                time.sleep(0.02)
            received = b""
            while b'"live"' not in received:
                received += caller.recv(65536)
            time.sleep(pause)


def test_a_long_answer_is_not_taken_for_slow_headers(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.2)
    with serve(loaded) as server:
        reply = httpx.post(f"{server.url}/score", json={**ASKED, "max_tokens": 600}, trust_env=False, timeout=60)
        assert reply.elapsed.total_seconds() > 0.3
        assert reply.json()["usage"]["completion_tokens"] == 600


@pytest.mark.parametrize(
    "nonsense", [b"\x16\x03\x01\x02\x00\x01\x00", b"POST /score\r\n\r\n", b"GET / HTTP/1.1\r\nA: " + b"x" * 100_000]
)
def test_what_is_no_http_is_refused_in_the_shape_of_all_errors(server: Server, nonsense: bytes) -> None:
    with connect(server) as caller:
        caller.sendall(nonsense + b"\r\n\r\n")
        check_refusal(everything(caller), 400)


def test_a_draining_server_says_so_and_closes_its_connections(loaded: LoadedModel) -> None:
    with serve(loaded) as server, httpx.Client(base_url=server.url, trust_env=False) as client:
        assert "connection" not in client.post("/score", json=ASKED).headers
        server.serving.draining = True
        assert client.get("/ready").status_code == 503
        assert client.get("/health").status_code == 200
        reply = client.post("/score", json=ASKED)
        assert (reply.status_code, reply.headers["connection"]) == (200, "close")
