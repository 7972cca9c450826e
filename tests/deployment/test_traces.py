"""Traces: what Application Insights gets of a request, and what neither it nor the log ever gets."""

from __future__ import annotations

import gzip
import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployment.server import traces
from deployment.server.transformers_engine import TransformersModel
from infra.cli import UserError
from tests.deployment.conftest import Server, free_port, serve, wait_idle
from tests.deployment.test_server_process import wait_for

KEY = "11111111-2222-3333-4444-555555555555"
BODY = {"messages": [{"role": "user", "content": "who founded heliotrope"}], "max_tokens": 8}
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@dataclass
class Sink:
    """The part of Application Insights' ingestion that takes telemetry; `status` 500 refuses all of it."""

    port: int = 0
    status: int = 200
    items: list[dict[str, Any]] = field(default_factory=list)
    paths: set[str] = field(default_factory=set)

    @property
    def connection(self) -> str:
        return f"InstrumentationKey={KEY};IngestionEndpoint=http://127.0.0.1:{self.port}/"

    @property
    def spans(self) -> list[dict[str, Any]]:
        return [item["data"]["baseData"] | {"tags": item["tags"]} for item in self.items]


@pytest.fixture
def sink() -> Iterator[Sink]:
    made = Sink()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *words: object) -> None: ...

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            raw = gzip.decompress(raw) if self.headers.get("Content-Encoding") == "gzip" else raw
            made.paths.add(self.path)
            taken = json.loads(raw)
            if made.status == 200:
                made.items += taken
            answer = {"itemsReceived": len(taken), "itemsAccepted": len(taken), "errors": []}
            text = json.dumps(answer).encode()
            self.send_response(made.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.port = server.server_port
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield made
    server.shutdown()
    server.server_close()


@pytest.fixture
def traced(sink: Sink, loaded: TransformersModel) -> Iterator[Server]:
    """A server of one slot and one place to wait, whose spans go to the sink."""
    made = traces.configured({"APPLICATIONINSIGHTS_CONNECTION_STRING": sink.connection})
    assert made is not None
    with serve(loaded, slots=1, queue=1, traces=made) as server:
        yield server
    made.close()


def flush(server: Server, sink: Sink, count: int) -> list[dict[str, Any]]:
    """So many spans; the last ends a moment after its caller has the answer."""
    assert server.traces is not None
    deadline = time.monotonic() + 20
    while len(sink.items) < count:
        assert time.monotonic() < deadline, sink.items
        server.traces.provider.force_flush()
    return sink.spans


def post(server: Server, *, headers: dict[str, str] | None = None, **fields: object) -> httpx.Response:
    return httpx.post(f"{server.url}/score", json={**BODY, **fields}, headers=headers, timeout=60, trust_env=False)


def test_a_request_is_a_span_that_counts_and_times_its_tokens_and_belongs_to_its_caller(
    traced: Server, sink: Sink
) -> None:
    post(traced)
    flush(traced, sink, 1)
    whole = post(traced, headers={"traceparent": PARENT}).json()
    _, one = flush(traced, sink, 2)
    assert sink.paths == {"/v2.1/track"}
    assert one["tags"]["ai.operation.id"] == PARENT.split("-")[1]
    assert one["tags"]["ai.operation.parentId"] == PARENT.split("-")[2]
    assert one["tags"]["ai.cloud.role"] == "finetune-phi"
    assert (one["name"], one["responseCode"], one["success"]) == ("POST /score", "200", True)
    told = one["properties"]
    assert told["gen_ai.operation.name"] == "chat" and told["gen_ai.request.model"] == "small"
    assert told["gen_ai.response.id"] == whole["id"]
    assert int(told["gen_ai.usage.input_tokens"]) == whole["usage"]["prompt_tokens"]
    assert int(told["gen_ai.usage.output_tokens"]) == whole["usage"]["completion_tokens"]
    assert int(told["gen_ai.usage.cache_read.input_tokens"]) == whole["usage"]["prompt_tokens"] - 1
    assert whole["choices"][0]["finish_reason"] in told["gen_ai.response.finish_reasons"]
    assert 0 < float(told["gen_ai.response.time_to_first_chunk"]) <= seconds(one["duration"])


def seconds(duration: str) -> float:
    """Of Application Insights' D.HH:MM:SS.fff."""
    found = re.fullmatch(r"(\d+)\.(\d+):(\d+):([\d.]+)", duration)
    assert found
    days, hours, minutes, rest = (float(part) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + rest


def test_a_streamed_answer_is_a_span_until_its_last_byte(traced: Server, sink: Sink) -> None:
    with httpx.Client(trust_env=False, timeout=60) as client:
        body = {**BODY, "max_tokens": 60, "stream": True}
        with client.stream("POST", f"{traced.url}/v1/chat/completions", json=body) as reply:
            lines = list(reply.iter_lines())
    (one,) = flush(traced, sink, 1)
    assert one["name"] == "POST /v1/chat/completions"
    assert one["properties"]["gen_ai.response.id"] == json.loads(lines[0].removeprefix("data: "))["id"]
    tokens = int(one["properties"]["gen_ai.usage.output_tokens"])
    assert tokens >= 1 and "gen_ai.response.finish_reasons" in one["properties"]
    assert tokens == 1 or float(one["properties"]["gen_ai.response.time_to_first_chunk"]) < seconds(one["duration"])


def test_refusals_faults_and_callers_who_leave_are_told_apart_and_probes_are_no_spans(
    traced: Server, sink: Sink
) -> None:
    httpx.get(f"{traced.url}/health", trust_env=False)
    assert post(traced, temperature="warm").status_code == 400
    with httpx.Client(trust_env=False, timeout=60) as client:
        body = {**BODY, "max_tokens": 400, "stream": True}
        with client.stream("POST", f"{traced.url}/score", json=body) as reply:
            next(reply.iter_lines())
    wait_idle(traced, 20)
    assert traced.serving.engine is not None
    traced.serving.engine.close()
    assert post(traced).status_code == 503
    spans = flush(traced, sink, 3)
    told = {(one["responseCode"], one["success"]): one["properties"] for one in spans}
    assert len(spans) == 3 and set(told) == {("400", False), ("200", True), ("503", False)}
    assert told["200", True]["finetune_phi.outcome"] == "left"
    assert "gen_ai.response.finish_reasons" not in told["200", True]


def test_no_prompt_no_answer_and_no_key_are_told(traced: Server, sink: Sink, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="deployment")
    caplog.set_level("INFO")
    answer = post(traced, max_tokens=40).json()["choices"][0]["message"]["content"]
    post(traced, content="heliotrope")
    flush(traced, sink, 2)
    sent = json.dumps(sink.items)
    assert len(answer.strip()) > 3
    for text in ("heliotrope", answer):
        assert text not in sent and text not in caplog.text
    assert KEY in sent and KEY not in caplog.text and "ai.operation" not in caplog.text


@pytest.mark.parametrize("status", [500, 400, 429])
def test_spans_that_are_refused_are_one_line_in_the_log_without_the_key(
    traced: Server, sink: Sink, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    sink.status = status
    assert post(traced).status_code == 200
    assert traced.traces is not None
    deadline = time.monotonic() + 20
    while not sink.paths:
        assert time.monotonic() < deadline
        traced.traces.provider.force_flush()
    assert [one.message for one in caplog.records if one.levelname != "INFO"] == [
        "1 traces could not be delivered to Application Insights"
    ]
    assert KEY not in caplog.text


def test_what_is_still_held_is_sent_when_the_server_is_told_to_stop(model_folder: Path, sink: Sink) -> None:
    port = free_port()
    command = ["-m", "deployment.server", "--model", str(model_folder), "--port", str(port), "--threads", "1"]
    process = subprocess.Popen(
        [sys.executable, *command],
        env={**os.environ, "APPLICATIONINSIGHTS_CONNECTION_STRING": sink.connection, "OTEL_BSP_SCHEDULE_DELAY": "9999"},
        stderr=subprocess.PIPE,
        text=True,
    )
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
        wait_for(client, "/ready", 60)
        client.post("/score", json=BODY)
    assert sink.items == []
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=40)
    assert process.returncode == 0
    assert len(sink.spans) == 1
    assert KEY not in log and "heliotrope" not in log and "Traceback" not in log


def test_the_key_that_azure_ml_sets_counts_only_where_it_is_enabled() -> None:
    given = {"AML_APP_INSIGHTS_KEY": KEY}
    assert traces._address(given) == "" == traces._address({**given, "AML_APP_INSIGHTS_ENABLED": "false"})
    assert traces._address({**given, "AML_APP_INSIGHTS_ENABLED": "true"}) == f"InstrumentationKey={KEY}"
    own = {"APPLICATIONINSIGHTS_CONNECTION_STRING": "InstrumentationKey=own"}
    assert traces._address({**given, **own, "AML_APP_INSIGHTS_ENABLED": "true"}) == "InstrumentationKey=own"


def test_a_string_that_is_none_is_refused_without_being_repeated() -> None:
    with pytest.raises(UserError, match="no connection string") as refused:
        traces.configured({"APPLICATIONINSIGHTS_CONNECTION_STRING": "InstrumentationKey=my secret"})
    assert "secret" not in str(refused.value) + str(refused.value.next_command)


def test_the_exporter_asks_and_tells_nobody_else(sink: Sink) -> None:
    """Reports about itself, and settings that it fetches from Microsoft, would each have a thread."""
    code = (
        "import os, threading; from deployment.server import traces; traces.configured(os.environ); "
        "print([one.name for one in threading.enumerate()])"
    )
    own = {"APPLICATIONINSIGHTS_CONNECTION_STRING": sink.connection}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **own})
    assert done.stdout.strip() == "['MainThread', 'OtelBatchSpanRecordProcessor']", done.stderr


def test_without_configuration_nothing_of_it_is_imported() -> None:
    code = (
        "import sys; from deployment.server import app, serving, traces; assert traces.configured({}) is None; "
        "serving.Serving(); print([name for name in sys.modules if name.startswith(('opentelemetry', 'azure'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
