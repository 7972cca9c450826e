"""Command jobs as real processes: queue, nodes, limits, cancellation, preemption, and the status that clients see."""

from __future__ import annotations

import asyncio
import os
import traceback
import uuid
from datetime import UTC, datetime
from typing import Any

from emulator.arm.schema import ArmError, Body
from emulator.blob_error import BlobError
from emulator.blobs import Blobs
from emulator.entra import Entra
from emulator.home import Home
from emulator.runner.environments import BUILD_LOG, Environments
from emulator.runner.job_environment import JobEnvironment
from emulator.runner.job_files import JobFiles
from emulator.runner.locations import asset_key
from emulator.runner.pipelines import FAILED, Pipeline
from emulator.runner.process import ManagedProcess
from emulator.runner.wording import parse_duration as parse_duration
from emulator.runner.wording import substitute as substitute
from emulator.state import State

EXECUTION_LOG = "logs/azureml/executionlogs.txt"  # what clients stream of a pipeline
TERMINAL = ("Completed", "Failed", "Canceled")
LOG_TAIL = 4000  # characters of the log that a failed job's error carries
TIMED_OUT, PREEMPTED = "timed out", "preempted"


class JobRunner:
    """Runs the jobs of one emulator. A job's ARM body holds its status; a record holds times and the error."""

    def __init__(
        self, home: Home, state: State, blobs: Blobs, entra: Entra, *, proxy_port: int, admin_port: int
    ) -> None:
        self._home, self._state, self._blobs = home, state, blobs
        inherited = dict(os.environ)
        self._environment = JobEnvironment(home, state, entra, proxy_port, admin_port, inherited)
        self._environments = Environments(home, state, inherited)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._processes: dict[str, list[ManagedProcess]] = {}
        self._preempted: set[str] = set()
        self._nodes: dict[str, int] = {}  # compute id -> nodes in use
        self._queues: dict[str, list[str]] = {}  # compute id -> jobs that wait, the first to come first

    def recover(self) -> None:
        """Mark jobs that ran when the emulator went away: their node is gone, what they wrote to a mount is not."""
        for job in self._state.of_type("Microsoft.MachineLearningServices/workspaces/jobs"):
            if job["properties"]["status"] not in TERMINAL:
                self._salvage(job)
                self._fail(job["id"], "JobNodeLost", "The node that ran the job is gone: the service was restarted.")

    def _salvage(self, job: Body) -> None:
        files = JobFiles.of(self._home, self._state, self._blobs, job)
        if files.folder.exists():
            files.save(ended=False)
            files.keep_logs()
            files.remove()

    def start(self, job_id: str) -> asyncio.Task[None]:
        task = self._tasks[job_id.lower()] = asyncio.create_task(self._run(job_id))
        task.add_done_callback(lambda done: self._ended(job_id, done))
        return task

    def _ended(self, job_id: str, task: asyncio.Task[None]) -> None:
        """A fault of the emulator's own must not leave a job running for ever: mark it, and let the log show why."""
        self._tasks.pop(job_id.lower(), None)
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._fail(job_id, "ServiceError", f"The emulator failed to run the job: {fault!r}")
            traceback.print_exception(fault)

    async def cancel(self, job_id: str) -> None:
        if self._status(job_id) in TERMINAL:
            return
        self._set_status(job_id, "CancelRequested")
        await self._stop_processes(job_id)
        task = self._tasks.get(job_id.lower())
        if task is not None:
            if not self._processes.get(job_id.lower()):
                task.cancel()
            await asyncio.wait([task])
        if self._status(job_id) not in TERMINAL:
            self._set_status(job_id, "Canceled")

    async def preempt(self, job_id: str) -> None:
        """Take the nodes away from a running job, as a low-priority cluster does: SIGTERM, SIGKILL, back to the queue.

        Raises ArmError 409 for a job that does not run.
        """
        if self._status(job_id) != "Running" or not self._processes.get(job_id.lower()):
            raise ArmError(409, "Conflict", f"The job does not run: it is {self._status(job_id)}.")
        self._preempted.add(job_id.lower())
        await self._stop_processes(job_id)

    async def _stop_processes(self, job_id: str, grace: float = 10.0) -> None:
        await asyncio.gather(*(process.stop(grace) for process in self._processes.get(job_id.lower(), [])))

    async def forget(self, job_id: str) -> None:
        """End a job whose workspace goes."""
        await self._stop_processes(job_id, grace=1)
        if task := self._tasks.pop(job_id.lower(), None):
            task.cancel()
        stand_in = {"id": job_id, "name": job_id.split("/")[-1], "properties": {}}
        JobFiles.of(self._home, self._state, self._blobs, stand_in).remove()

    async def stop(self) -> None:
        """End what runs, as a service that goes away: what was written to mounts is kept, the jobs are marked."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*(self._stop_processes(job_id, grace=2) for job_id in list(self._processes)))
        await asyncio.gather(*tasks, return_exceptions=True)
        self.recover()

    # -- one job -------------------------------------------------------------------------------------------------------

    async def _run(self, job_id: str) -> None:
        job = self._state.get(job_id)
        assert job is not None
        try:
            if job["properties"]["jobType"] == "Pipeline":
                await self._run_pipeline(job_id, job)
                return
            while await self._attempt(job_id, job) == PREEMPTED:
                self._preempted.discard(job_id.lower())
        except (ArmError, BlobError, OSError) as error:
            self._fail(job_id, getattr(error, "code", "ServiceError"), str(error))
        finally:
            self._processes.pop(job_id.lower(), None)

    async def _run_pipeline(self, job_id: str, job: Body) -> None:
        files = JobFiles.of(self._home, self._state, self._blobs, job)
        log = files.log(EXECUTION_LOG)

        def say(sentence: str) -> None:
            with log.open("a") as file:
                file.write(f"[{datetime.now(UTC):%Y-%m-%d %H:%M:%SZ}] {sentence}\n")

        self._set_status(job_id, "Running")
        try:
            completed = await Pipeline(self._state, job, self, say).run()
        finally:
            files.keep_logs()
            files.remove()
        if completed:
            self._set_status(job_id, "Completed")
        else:
            self._fail(job_id, "UserError", FAILED)

    async def _attempt(self, job_id: str, job: Body) -> str:
        """Wait for nodes, run on them, give them back; how it ended."""
        files = JobFiles.of(self._home, self._state, self._blobs, job)
        compute = job["properties"]["computeId"].lower()
        if files.nodes > self._most(compute):
            most = self._most(compute)
            self._fail(job_id, "UserError", f"The job needs {files.nodes} nodes; the cluster has at most {most}.")
            return "failed"
        await self._wait_for_nodes(job_id, compute, files.nodes)
        try:
            return await self._run_on_nodes(job_id, job, files)
        finally:
            self._nodes[compute] -= files.nodes

    def _most(self, compute: str) -> int:
        """How many nodes a cluster has at most; it may be scaled while jobs wait."""
        found = self._state.get(compute)
        return int(found["properties"]["properties"]["scaleSettings"]["maxNodeCount"]) if found else 0

    async def _wait_for_nodes(self, job_id: str, compute: str, nodes: int) -> None:
        queue = self._queues.setdefault(compute, [])
        queue.append(job_id)
        try:
            while queue[0] != job_id or self._nodes.get(compute, 0) + nodes > self._most(compute):
                self._set_status(job_id, "Queued")
                await asyncio.sleep(0.1)
            self._nodes[compute] = self._nodes.get(compute, 0) + nodes
        finally:
            queue.remove(job_id)

    async def _run_on_nodes(self, job_id: str, job: Body, files: JobFiles) -> str:
        properties = job["properties"]
        files.remove()
        self._set_status(job_id, "Preparing")
        environment = self._state.get(asset_key(self._state, properties["environmentId"]))
        if environment is None:
            raise ArmError(400, "UserError", f"The environment '{properties['environmentId']}' does not exist.")
        try:
            venv = await self._environments.ready(environment, files.log(BUILD_LOG))
            inputs, outputs = await asyncio.to_thread(files.lay_out)
            command = substitute(properties["command"], inputs, outputs)
            env = self._environment.of(job, inputs, outputs, venv)
            self._set_status(job_id, "Running")
            code = await self._execute(job_id, files, command, env)
            ended = code not in (TIMED_OUT, PREEMPTED) and self._status(job_id) != "CancelRequested"
            if ended:
                self._set_status(job_id, "Finalizing")
            await asyncio.to_thread(files.save, ended=ended)
        finally:
            files.keep_logs()
            failed_log = self._failed_log(files)
            files.remove()
        return self._conclude(job_id, code, failed_log)

    @staticmethod
    def _failed_log(files: JobFiles) -> str:
        logs = sorted((files.folder / "logs" / "user_logs").glob("*.txt"))
        return "".join(path.read_text(errors="replace")[-LOG_TAIL:] for path in logs[:2])

    def _conclude(self, job_id: str, code: int | str, log: str) -> str:
        if self._status(job_id) == "CancelRequested":
            self._set_status(job_id, "Canceled")
        elif code == PREEMPTED:
            self._set_status(job_id, "Queued")
            return PREEMPTED
        elif code == TIMED_OUT:
            self._fail(job_id, "JobTimedOut", "The job ran into its time limit and was stopped.")
        elif code == 0:
            self._set_status(job_id, "Completed")
        else:
            message = (
                f"Execution failed. User process 'bash' exited with status code {code}. "
                f"Please check log file 'user_logs/std_log.txt' for error details. Error: {log}"
            )
            self._fail(job_id, "UserError", message)
        return "ended"

    async def _execute(self, job_id: str, files: JobFiles, command: str, env: dict[str, str]) -> int | str:
        """Run the command, once a process for PyTorch distribution; the first non-zero exit code, or how it was ended.

        Azure ML itself starts `processCountPerInstance` processes on each node and sets the ranks
        (learn.microsoft.com/azure/machine-learning/how-to-train-distributed-gpu).
        """
        group = self._processes[job_id.lower()] = []
        for own, log, node in _processes(files):
            argv = ["bash", "-c", command]
            path = files.log(f"user_logs/{log}")
            group.append(
                await ManagedProcess.start(self._state, argv, cwd=files.code(node), env={**env, **own}, log=path)
            )
        limit = parse_duration((files.properties.get("limits") or {}).get("timeout"))
        try:
            async with asyncio.timeout(limit):
                code = await _first_failure(group)
        except TimeoutError:
            await self._stop_processes(job_id)
            return TIMED_OUT
        if job_id.lower() in self._preempted:
            return PREEMPTED
        return code

    # -- status --------------------------------------------------------------------------------------------------------

    def _status(self, job_id: str) -> str:
        job = self._state.get(job_id)
        return job["properties"]["status"] if job else "Canceled"

    def _set_status(self, job_id: str, status: str, **times: Any) -> None:
        job = self._state.get(job_id)
        if job is None or job["properties"]["status"] == status:
            return
        if job["properties"]["status"] == "CancelRequested" and status not in TERMINAL:
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

    def _fail(self, job_id: str, code: str, message: str) -> None:
        error = {"error": {"code": code, "message": message, "details": []}, "time": datetime.now(UTC).isoformat()}
        self._set_status(job_id, "Failed", error=error)


def _processes(files: JobFiles) -> list[tuple[dict[str, str], str, int]]:
    """Each process of a job: its own variables, the name of its log, its node's number."""
    spread = files.properties.get("distribution") or {}
    if not spread:
        return [({}, "std_log.txt" if files.nodes == 1 else f"std_log_{node}.txt", node) for node in range(files.nodes)]
    per_node = int(spread.get("processCountPerInstance") or 1)
    world, port = per_node * files.nodes, str(20000 + uuid.uuid4().int % 20000)
    found = []
    for rank in range(world):
        ranks = {"RANK": rank, "LOCAL_RANK": rank % per_node, "NODE_RANK": rank // per_node, "WORLD_SIZE": world}
        own = {key: str(value) for key, value in ranks.items()} | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        found.append((own, f"std_log_process_{rank:0{len(str(world - 1))}}.txt", rank // per_node))
    return found


async def _first_failure(group: list[ManagedProcess]) -> int:
    """Wait for all processes; when one fails the others are ended, since they would wait for it. Its code, or 0."""
    waiting = {asyncio.ensure_future(process.wait()) for process in group}
    try:
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if code := next((code for task in done if (code := task.result()) != 0), 0):
                await asyncio.gather(*(process.stop() for process in group))
                return code
    finally:
        for task in waiting:
            task.cancel()
    return 0
