"""MLflow by the workspace's tracking URI: requests go on to the workspace's own MLflow, which knows the jobs' runs.

MLflow 3's logged models are answered as Azure ML answers them, with an empty 404 (Azure/azure-sdk-for-python#44896);
so `client.download_artifacts(run, …)` of MLflow 3 fails here too, and an artifact's own address has to be used.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from emulator.arm.resources import json_body
from emulator.arm.schema import ArmError, Body
from emulator.entra import Entra
from emulator.home import PROJECT, Home
from emulator.machinelearning.data_plane import DataPlane, workspace_of
from emulator.runner.job_environment import experiment_id
from emulator.runner.process import ManagedProcess
from emulator.state import State

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
STATUS = {"Completed": "FINISHED", "Failed": "FAILED", "Canceled": "KILLED"}
PATIENCE = 120.0  # seconds that a server may take to start: it imports MLflow and migrates a fresh database


class Tracking(DataPlane):
    def __init__(self, home: Home, state: State, entra: Entra) -> None:
        super().__init__(state, entra)
        self._home, self._servers = home, dict[str, tuple[ManagedProcess, str]]()
        self._starting: dict[str, asyncio.Lock] = {}
        self._known: dict[str, str] = {}  # job id -> the status that its run has
        self._client = httpx.AsyncClient(trust_env=False, timeout=60)
        for version in ("v1.0", "v2.0"):
            for method in METHODS:
                self.on(method, f"mlflow/{version}", "/api/2.0/mlflow/{path:path}", self.forward)
                self.on(method, f"mlflow/{version}", "/api/2.0/preview/mlflow/{path:path}", self.forward)

        self.on("POST", "metric/v2.0", "/runs/{run}/batch", self.log_metrics)

    async def close(self) -> None:
        await asyncio.gather(*(process.stop(grace=2) for process, _ in self._servers.values()))
        await self._client.aclose()

    async def forward(self, request: Request) -> Response:
        workspace, path = workspace_of(request), request.path_params["path"]
        if path.startswith("logged-models"):
            request.state.note = "Azure ML does not have it"
            return Response(status_code=404)
        if path == "runs/get-run-data-status":
            return JSONResponse({"is_complete": True})
        async with self._starting.setdefault(workspace.lower(), asyncio.Lock()):
            base = await self._server(workspace)
            await self._make_runs(workspace, base)
        if path == "experiments/create" and (made := await self._create_experiment(workspace, base, request)):
            return made
        is_async = path == "runs/log-batch-async"
        answer = await self._client.request(
            request.method,
            f"{base}/api/2.0/mlflow/{'runs/log-batch' if is_async else path}",
            params=request.query_params,
            content=await request.body(),
            headers={"content-type": request.headers.get("content-type", "application/json")},
        )
        if answer.status_code == 404 and "json" not in answer.headers.get("content-type", ""):
            raise _not_there(request)
        return Response(answer.content, answer.status_code, media_type=answer.headers.get("content-type"))

    async def log_metrics(self, request: Request) -> Response:
        """The metrics that azureml-core sends in its own form, which old trainers use beside MLflow."""
        workspace, metrics = workspace_of(request), []
        for one in (await json_body(request)).get("values") or []:
            for point in one.get("value") or []:
                when = _milliseconds(point.get("createdUtc")) or int(time.time() * 1000)
                numbers = [value for value in (point.get("data") or {}).values() if isinstance(value, int | float)]
                step = point.get("step") or 0
                metrics += [{"key": one["name"], "value": value, "timestamp": when, "step": step} for value in numbers]
        async with self._starting.setdefault(workspace.lower(), asyncio.Lock()):
            base = await self._server(workspace)
            await self._make_runs(workspace, base)
        body = {"run_id": request.path_params["run"], "metrics": metrics}
        answer = await self._client.post(f"{base}/api/2.0/mlflow/runs/log-batch", json=body)
        return JSONResponse({"errors": []}, answer.status_code)

    # -- the server ----------------------------------------------------------------------------------------------------

    async def _server(self, workspace: str) -> str:
        """The address of a workspace's MLflow, started if need be."""
        process, base = self._servers.get(workspace.lower(), (None, ""))
        if process is None or process.returncode is not None:
            process, base = await self._start(workspace)
            self._servers[workspace.lower()] = process, base
        return base

    async def _start(self, workspace: str) -> tuple[ManagedProcess, str]:
        folder = self.folder(workspace)
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        found = self._state.get(workspace)
        assert found is not None
        artifacts = found["properties"]["mlFlowTrackingUri"].replace("/v1.0/", "/v2.0/") + "/experiments"
        words = ["-m", "emulator.tracking_server", str(folder / "mlflow.db"), str(port), artifacts]
        env = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "AZUREML_"))}
        env |= {"PYTHONPATH": str(PROJECT), "MLFLOW_DISABLE_TELEMETRY": "true"}
        argv = [sys.executable, *words]
        process = await ManagedProcess.start(self._state, argv, cwd=folder, env=env, log=folder / "log.txt")
        await self._wait_for(process, port, folder)
        return process, f"http://127.0.0.1:{port}"

    def folder(self, workspace: str) -> Path:
        parts = workspace.split("/")
        return self._home.path / "mlflow" / f"{parts[4]}-{parts[8]}".lower()

    async def _wait_for(self, process: ManagedProcess, port: int, folder: Path) -> None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and process.returncode is None:
            try:
                if (await self._client.get(f"http://127.0.0.1:{port}/health")).status_code == 200:
                    return
            except httpx.TransportError:
                await asyncio.sleep(0.1)
        await process.stop(grace=1)
        raise ArmError(503, "ServiceUnavailable", f"MLflow did not start; its log is {folder / 'log.txt'}.")

    # -- the runs of jobs ----------------------------------------------------------------------------------------------

    async def _make_runs(self, workspace: str, base: str) -> None:
        """Let MLflow's store have each job of the workspace, with its present status."""
        for job in self._state.children(workspace, "Microsoft.MachineLearningServices/workspaces/jobs"):
            status = STATUS.get(job["properties"]["status"], "RUNNING")
            if self._known.get(job["id"]) != status:
                await self._put_run(base, workspace, self._run_of(job, status))
                self._known[job["id"]] = status

    def _run_of(self, job: Body, status: str) -> Body:
        record = self._state.record("run", job["id"]) or {}
        return {
            "run_id": job["name"],
            "name": job["properties"].get("displayName") or job["name"],
            "experiment": job["properties"]["experimentName"],
            "status": status,
            "start_time": _milliseconds(record.get("startTimeUtc") or job["systemData"]["createdAt"]),
            "end_time": _milliseconds(record.get("endTimeUtc")),
        }

    async def _put_run(self, base: str, workspace: str, run: Body) -> str:
        run = {**run, "experiment_id": experiment_id(workspace, run["experiment"])}
        answer = await self._client.put(f"{base}/emulator/runs", json=run)
        if answer.status_code != 200:
            raise ArmError(500, "InternalError", f"MLflow did not take the run: see {self.folder(workspace)}/log.txt.")
        return str(answer.json()["experiment_id"])

    async def _create_experiment(self, workspace: str, base: str, request: Request) -> Response | None:
        """A new experiment gets the number that jobs in it will name; None leaves one that is there to MLflow."""
        name = str((await json_body(request)).get("name") or "")
        known = await self._client.get(f"{base}/api/2.0/mlflow/experiments/get-by-name", params={"name": name})
        if not name or known.status_code == 200:
            return None
        now = int(time.time() * 1000)
        run = {"run_id": "", "name": "", "experiment": name, "status": "", "start_time": now, "end_time": None}
        return JSONResponse({"experiment_id": await self._put_run(base, workspace, run)})


def _milliseconds(when: Any) -> int | None:
    return int(datetime.fromisoformat(when).timestamp() * 1000) if when else None


def _not_there(request: Request) -> ArmError:
    request.state.note = "not emulated"
    return ArmError(404, "NotFound", f"The operation {request.method} {request.url.path} could not be found.")
