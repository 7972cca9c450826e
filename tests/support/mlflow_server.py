"""A small stand-in for an MLflow server with Azure ML's limits, which refuses, hangs and is away when it is told to."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.parse import urlsplit

MAX_PARAMS, MAX_NAMES, MAX_BATCH, MAX_BATCH_PARAMS, MAX_VALUE = 200, 50, 250, 100, 250
Answer = tuple[int, dict[str, Any]]


@dataclass
class Run:
    """What the server knows of one run. `metrics`: (step, value) by name."""

    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    status: str = "RUNNING"


@dataclass
class Server:
    """`fault` is answered to every request while it is set; `open` is cleared to let requests hang.

    `asked` are the paths of all requests, `authorizations` what they showed.
    """

    folder: Path
    url: str = ""
    fault: Answer | None = None
    open: Event = field(default_factory=Event)
    runs: dict[str, Run] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    authorizations: set[str] = field(default_factory=set)

    @property
    def run(self) -> Run:
        (only,) = self.runs.values()
        return only

    def answer(self, path: str, body: dict[str, Any]) -> Answer:
        self.asked.append(path)
        self.open.wait()
        if self.fault:
            return self.fault
        name = path.removeprefix("/api/2.0/mlflow/").replace("/", "_").replace("-", "_")
        known = getattr(self, f"_{name}", None)
        return known(body) if known else (404, {"error_code": "ENDPOINT_NOT_FOUND", "message": path})

    def _experiments_get_by_name(self, _: dict[str, Any]) -> Answer:
        experiment = {"experiment_id": "7", "name": "finetune-phi", "lifecycle_stage": "active"}
        return 200, {"experiment": experiment}

    def _runs_create(self, body: dict[str, Any]) -> Answer:
        name = f"run{self.asked.count('/api/2.0/mlflow/runs/create')}"
        self.runs[name] = Run()
        return 200, {"run": self._info(name)}

    def _runs_get(self, body: dict[str, Any]) -> Answer:
        return 200, {"run": self._info(body["run_id"])}

    def _runs_update(self, body: dict[str, Any]) -> Answer:
        if body["run_id"] not in self.runs:
            return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": f"no run {body['run_id']}"}
        self.runs[body["run_id"]].status = body["status"]
        return 200, {"run_info": self._info(body["run_id"])["info"]}

    def _runs_log_batch(self, body: dict[str, Any]) -> Answer:
        run = self.runs.setdefault(body["run_id"], Run())
        params = {one["key"]: one.get("value", "") for one in body.get("params", [])}
        metrics = body.get("metrics", [])
        names = {*run.metrics, *(one["key"] for one in metrics)}
        too_many = len(params) > MAX_BATCH_PARAMS or len({**run.params, **params}) > MAX_PARAMS
        too_long = any(len(value) > MAX_VALUE for value in params.values())
        if too_many or too_long or len(metrics) > MAX_BATCH or len(names) > MAX_NAMES:
            return 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "a limit was exceeded"}
        run.params |= params
        run.tags |= {one["key"]: one["value"] for one in body.get("tags", [])}
        for one in metrics:
            run.metrics.setdefault(one["key"], []).append((int(one.get("step", 0)), float(one["value"])))
        return 200, {}

    def _info(self, run_id: str) -> dict[str, Any]:
        info = {"run_id": run_id, "run_uuid": run_id, "experiment_id": "7", "lifecycle_stage": "active"}
        return {"info": {**info, "status": "RUNNING", "artifact_uri": (self.folder / run_id).as_uri()}, "data": {}}


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """The server at `url`, open; its artifacts in `folder`."""
    made = Server(folder)
    made.open.set()
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(made))
    Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
    made.url = f"http://127.0.0.1:{http.server_port}"
    try:
        yield made
    finally:
        made.open.set()
        http.shutdown()
        http.server_close()


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.respond(json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}"))

        def do_GET(self) -> None:
            parts = dict(one.split("=", 1) for one in urlsplit(self.path).query.split("&") if "=" in one)
            length = int(self.headers.get("Content-Length", 0))
            self.respond({**parts, **json.loads(self.rfile.read(length) or b"{}")})

        def respond(self, body: dict[str, Any]) -> None:
            server.authorizations.add(self.headers.get("Authorization", ""))
            status, values = server.answer(urlsplit(self.path).path, body)
            with contextlib.suppress(OSError):  # who asked does not wait any more
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(values).encode())

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
