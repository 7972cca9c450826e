"""Command jobs as real processes: snapshot, inputs, outputs, environment, log, limits, cancellation, queue."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import traceback
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from emulator.arm.schema import ArmError, Body
from emulator.blobs import Blobs
from emulator.home import Home
from emulator.runner import locations
from emulator.runner.process import ManagedProcess, base_environment, identity_environment
from emulator.state import State

TERMINAL = ("Completed", "Failed", "Canceled")
LOG_TAIL = 4000  # characters of the log that a failed job's error carries


class JobRunner:
    """Runs the jobs of one emulator. A job's ARM body holds its status; a record holds times and the error."""

    def __init__(self, home: Home, state: State, blobs: Blobs, *, proxy_port: int, admin_port: int) -> None:
        self._home, self._state, self._blobs = home, state, blobs
        self._proxy_port, self._admin_port = proxy_port, admin_port
        self._inherited = dict(os.environ)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._processes: dict[str, list[ManagedProcess]] = {}
        self._nodes: dict[str, int] = {}  # compute id -> nodes in use

    def recover(self) -> None:
        """Mark jobs that ran when the emulator went away: their node is gone."""
        for job in self._state.of_type("Microsoft.MachineLearningServices/workspaces/jobs"):
            if job["properties"]["status"] not in TERMINAL:
                self._fail(job["id"], "JobNodeLost", "The node that ran the job is gone: the service was restarted.")

    def start(self, job_id: str) -> None:
        task = self._tasks[job_id.lower()] = asyncio.create_task(self._run(job_id))
        task.add_done_callback(lambda done: self._ended(job_id, done))

    def _ended(self, job_id: str, task: asyncio.Task[None]) -> None:
        """A fault of the emulator's own must not leave a job running for ever: mark it, and let the log show why."""
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._fail(job_id, "ServiceError", f"The emulator failed to run the job: {fault!r}")
            traceback.print_exception(fault)

    async def cancel(self, job_id: str) -> None:
        if self._status(job_id) in TERMINAL:
            return
        self._set_status(job_id, "CancelRequested")
        await asyncio.gather(*(process.stop() for process in self._processes.get(job_id.lower(), [])))
        task = self._tasks.get(job_id.lower())
        if task is not None:
            if not self._processes.get(job_id.lower()):
                task.cancel()
            await asyncio.wait([task])
        if self._status(job_id) not in TERMINAL:
            self._finish(job_id, "Canceled")

    async def forget(self, job_id: str) -> None:
        """End a job whose workspace goes."""
        await asyncio.gather(*(process.stop(grace=1) for process in self._processes.get(job_id.lower(), [])))
        if task := self._tasks.pop(job_id.lower(), None):
            task.cancel()
        shutil.rmtree(self._home.work / "jobs" / job_id.split("/")[-1], ignore_errors=True)

    async def stop(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        running = [process for group in self._processes.values() for process in group]
        await asyncio.gather(*(process.stop(grace=2) for process in running))

    # -- one job -------------------------------------------------------------------------------------------------------

    async def _run(self, job_id: str) -> None:
        job = self._state.get(job_id)
        assert job is not None
        properties = job["properties"]
        compute = properties["computeId"].lower()
        nodes = int((properties.get("resources") or {}).get("instanceCount") or 1)
        most = self._state.get(compute)
        limit = most["properties"]["properties"]["scaleSettings"]["maxNodeCount"] if most else nodes
        try:
            if nodes > limit:
                self._fail(job_id, "UserError", f"The job needs {nodes} nodes; the cluster has at most {limit}.")
                return
            while self._nodes.get(compute, 0) + nodes > limit:
                self._set_status(job_id, "Queued")
                await asyncio.sleep(0.2)
            self._nodes[compute] = self._nodes.get(compute, 0) + nodes
            try:
                await self._run_on_node(job_id, job, nodes)
            finally:
                self._nodes[compute] -= nodes
        except (ArmError, OSError) as error:
            self._fail(job_id, getattr(error, "code", "ServiceError"), str(error))
        finally:
            self._processes.pop(job_id.lower(), None)

    async def _run_on_node(self, job_id: str, job: Body, nodes: int) -> None:
        properties, name = job["properties"], job["name"]
        workspace = "/".join(job_id.split("/")[:9])
        folder = self._home.work / "jobs" / name
        shutil.rmtree(folder, ignore_errors=True)
        code, log = folder / "code", folder / "user_logs" / "std_log.txt"
        for made in (code, log.parent):
            made.mkdir(parents=True)
        log.touch()
        store = locations.of_datastore(self._state, workspace, "workspaceartifactstore", "")
        log_blob = f"ExperimentRun/dcid.{name}/user_logs/std_log.txt"
        self._blobs.add_live_file(store.account, store.container, log_blob, log)
        self._set_status(job_id, "Preparing")
        if properties.get("codeId"):
            place = locations.resolve(self._state, workspace, properties["codeId"])
            await asyncio.to_thread(self._blobs.copy_tree, place.account, place.container, place.path, code)
        inputs = {
            key: await asyncio.to_thread(self._input, workspace, folder / "inputs" / key, value)
            for key, value in (properties.get("inputs") or {}).items()
            if value is not None
        }
        outputs = {key: folder / "outputs" / key for key in properties.get("outputs") or {} if key != "default"}
        for output in outputs.values():
            output.mkdir(parents=True)
        command = substitute(properties["command"], inputs, {key: str(path) for key, path in outputs.items()})
        env = self._environment(job_id, properties, inputs, outputs)
        self._set_status(job_id, "Running")
        code_of_exit = await self._execute(job_id, properties, command, code, env, log, nodes)
        if self._status(job_id) == "CancelRequested":
            self._upload(workspace, name, properties, outputs, code, log, log_blob)
            self._finish(job_id, "Canceled")
            return
        self._set_status(job_id, "Finalizing")
        await asyncio.to_thread(self._upload, workspace, name, properties, outputs, code, log, log_blob)
        if code_of_exit == 0:
            self._finish(job_id, "Completed")
        elif code_of_exit is None:
            self._fail(job_id, "JobTimedOut", "The job ran into its time limit and was stopped.")
        else:
            tail = log_text(self._blobs, store.account, store.container, log_blob)[-LOG_TAIL:]
            self._fail(
                job_id,
                "UserError",
                f"Execution failed. User process 'bash' exited with status code {code_of_exit}. "
                f"Please check log file 'user_logs/std_log.txt' for error details. Error: {tail}",
            )

    async def _execute(
        self, job_id: str, properties: Body, command: str, cwd: Path, env: dict[str, str], log: Path, nodes: int
    ) -> int | None:
        """Run the command, once a process for PyTorch distribution; the first non-zero exit code, None for a timeout.

        Azure ML itself starts `processCountPerInstance` processes on each node and sets the ranks
        (learn.microsoft.com/azure/machine-learning/how-to-train-distributed-gpu).
        """
        spread = properties.get("distribution") or {}
        per_node = int(spread.get("processCountPerInstance") or 1) if spread.get("distributionType") == "PyTorch" else 1
        world, port = per_node * nodes, str(20000 + uuid.uuid4().int % 20000)
        group = self._processes[job_id.lower()] = []
        for rank in range(world):
            ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank % per_node), "NODE_RANK": str(rank // per_node)}
            where = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            own = {**env, **ranks, **where} if spread else env
            argv = ["bash", "-c", command]
            group.append(await ManagedProcess.start(self._state, argv, cwd=cwd, env=own, log=log))
        limit = parse_duration((properties.get("limits") or {}).get("timeout"))
        try:
            async with asyncio.timeout(limit):
                codes = await asyncio.gather(*(process.wait() for process in group))
        except TimeoutError:
            await asyncio.gather(*(process.stop() for process in group))
            return None
        return next((code for code in codes if code != 0), 0)

    def _input(self, workspace: str, folder: Path, value: Body) -> str:
        """Bring one input to the node; returns what its placeholder becomes."""
        kind = str(value.get("jobInputType", "")).lower()
        if kind == "literal":
            return str(value["value"])
        place = locations.resolve(self._state, workspace, value["uri"])
        target = folder / place.leaf if kind == "uri_file" else folder
        if self._blobs.copy_tree(place.account, place.container, place.path, target) == 0:
            raise ArmError(400, "UserError", f"The input path '{value['uri']}' holds no files.")
        return str(target)

    def _environment(
        self, job_id: str, properties: Body, inputs: dict[str, str], outputs: dict[str, Path]
    ) -> dict[str, str]:
        job = job_id.split("/")[-1]
        workspace = job_id.split("/")
        identity = self._identity(properties)
        return {
            **base_environment(self._inherited, self._home, self._proxy_port),
            **identity_environment(self._state, self._admin_port, identity),
            "AZUREML_RUN_ID": job,
            "AZUREML_ROOT_RUN_ID": job,
            "AZUREML_EXPERIMENT_NAME": str(properties.get("experimentName", "Default")),
            "AZUREML_ARM_SUBSCRIPTION": workspace[2],
            "AZUREML_ARM_RESOURCEGROUP": workspace[4],
            "AZUREML_ARM_WORKSPACE_NAME": workspace[8],
            **{f"AZURE_ML_INPUT_{key}": value for key, value in inputs.items()},
            **{f"AZURE_ML_OUTPUT_{key}": str(path) for key, path in outputs.items()},
            **(properties.get("environmentVariables") or {}),
        }

    def _identity(self, properties: Body) -> dict[str, str] | None:
        """The job's managed identity: the one it names, else the first one of its cluster."""
        compute = self._state.get(properties["computeId"])
        offered = (compute or {}).get("identity", {}).get("userAssignedIdentities", {}).values()
        wanted = (properties.get("identity") or {}).get("clientId")
        for ids in offered:
            if wanted in (None, ids["clientId"]):
                return {"client_id": ids["clientId"], "principal_id": ids["principalId"]}
        return None

    def _upload(
        self,
        workspace: str,
        name: str,
        properties: Body,
        outputs: dict[str, Path],
        code: Path,
        log: Path,
        log_blob: str,
    ) -> None:
        for key, output in outputs.items():
            uri = (properties["outputs"][key] or {}).get("uri") or locations.output_uri(name, key)
            self._upload_tree(locations.resolve(self._state, workspace, uri), output)
        artifacts = locations.of_datastore(
            self._state, workspace, "workspaceartifactstore", f"ExperimentRun/dcid.{name}"
        )
        for folder in ("outputs", "logs"):
            if (code / folder).is_dir():
                inner = locations.Location(artifacts.account, artifacts.container, f"{artifacts.path}/{folder}")
                self._upload_tree(inner, code / folder)
        self._blobs.add_file(artifacts.account, artifacts.container, log_blob, log)
        shutil.rmtree(log.parent.parent)

    def _upload_tree(self, place: locations.Location, folder: Path) -> None:
        for path in sorted(found for found in folder.rglob("*") if found.is_file()):
            name = f"{place.path.rstrip('/')}/{path.relative_to(folder).as_posix()}"
            self._blobs.add_file(place.account, place.container, name, path)

    # -- status --------------------------------------------------------------------------------------------------------

    def _status(self, job_id: str) -> str:
        job = self._state.get(job_id)
        return job["properties"]["status"] if job else "Canceled"

    def _set_status(self, job_id: str, status: str, **times: Any) -> None:
        job = self._state.get(job_id)
        if job is None or (job["properties"]["status"] == "CancelRequested" and status not in TERMINAL):
            return
        job["properties"]["status"] = status
        record = self._state.record("run", job_id) or {}
        now = datetime.now(UTC).isoformat()
        if status == "Running":
            record.setdefault("startTimeUtc", now)
        if status in TERMINAL:
            record["endTimeUtc"] = now
        with self._state.transaction():
            self._state.put(job_id, job, parent="/".join(job_id.split("/")[:9]))
            self._state.save_record("run", job_id, {**record, **times})

    def _finish(self, job_id: str, status: str) -> None:
        self._set_status(job_id, status)

    def _fail(self, job_id: str, code: str, message: str) -> None:
        error = {"error": {"code": code, "message": message, "details": []}, "time": datetime.now(UTC).isoformat()}
        self._set_status(job_id, "Failed", error=error)


def log_text(blobs: Blobs, account: str, container: str, name: str) -> str:
    found = [path for found, path in blobs.list(account, container, name) if found == name]
    return found[0].read_text(errors="replace") if found else ""


def substitute(command: str, inputs: dict[str, str], outputs: dict[str, str]) -> str:
    """Fill `${{inputs.x}}` and `${{outputs.y}}`, and keep an optional `$[[…]]` only if its input was given.

    Raises ArmError 400 for a name that the job does not have.
    """

    def value(match: re.Match[str]) -> str:
        found = {"inputs": inputs, "outputs": outputs}[match[1]].get(match[2])
        if found is None:
            raise ArmError(400, "UserError", f"The command uses {match[0]}, which the job does not define.")
        return found

    def optional(match: re.Match[str]) -> str:
        names = re.findall(r"\$\{\{\s*inputs\.([\w.-]+)\s*\}\}", match[1])
        return match[1] if all(name in inputs for name in names) else ""

    command = re.sub(r"\$\[\[(.*?)\]\]", optional, command)
    return re.sub(r"\$\{\{\s*(inputs|outputs)\.([\w.-]+)\s*\}\}", value, command)


def parse_duration(text: str | None) -> float | None:
    """Seconds of an ISO 8601 duration of days, hours, minutes and seconds, such as PT1H30M; None for None."""
    if not text:
        return None
    match = re.fullmatch(r"P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:([\d.]+)S)?)?", text)
    if match is None:
        raise ArmError(400, "UserError", f"'{text}' is not a duration.")
    days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
