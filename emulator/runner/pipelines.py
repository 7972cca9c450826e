"""Pipeline jobs: each node runs as a job of its own when what it reads is there.

A step that ran before with the same component and the same inputs is not run again unless the pipeline says
`force_rerun`: learn.microsoft.com/azure/machine-learning/how-to-debug-pipeline-reuse-issues.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from typing import Protocol

from emulator.arm.schema import Body
from emulator.runner.pipeline_graph import BINDING, Graph
from emulator.state import State

FAILED = "Pipeline has some failed steps. See child run or execution logs for more details."


class Runs(Protocol):
    """What a pipeline asks of the runner of jobs."""

    def start(self, job_id: str) -> asyncio.Task[None]: ...

    async def cancel(self, job_id: str) -> None: ...


class Pipeline:
    """One run of a pipeline job. `say` writes a line into its log."""

    def __init__(self, state: State, job: Body, runs: Runs, say: Callable[[str], None]) -> None:
        self._state, self._runs, self._say = state, runs, say
        self._graph = Graph(state, job)
        self._made = self._graph.made
        settings = self._graph.properties.get("settings") or {}
        self._goes_on = settings.get("continue_on_step_failure") is not False  # the service's default is to go on
        self._reuses = not settings.get("force_rerun")

    async def run(self) -> bool:
        """Run every node; whether all of them completed. A failure ends the rest if the job says so."""
        running: dict[asyncio.Task[None], str] = {}
        failed = False
        try:
            while True:
                for name in self._ready() if self._goes_on or not failed else ():
                    running[self._begin(name)] = name
                if not running:
                    return not failed
                ended, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                failed = not self._finish([running.pop(task) for task in ended]) or failed
                if failed and not self._goes_on:
                    await self._cancel(list(running.values()))
        except asyncio.CancelledError:
            await self._cancel(list(running.values()))
            raise

    def _ready(self) -> list[str]:
        """The nodes that wait for nothing any more."""
        done = {name for name in self._made if self._status(name) == "Completed"}
        return [name for name in self._graph.nodes if name not in self._made and self._graph.needs(name) <= done]

    def _begin(self, name: str) -> asyncio.Task[None]:
        child = self._made[name] = self._graph.child(name)
        job = self._graph.job
        root = (self._state.record("run", job["id"]) or {}).get("rootRunId") or job["name"]
        earlier = self._earlier(child)
        if earlier is not None:
            reused = {"azureml.isreused": "true", "azureml.reusedrunid": earlier["name"]}
            child["properties"] |= {"status": "Completed", "outputs": earlier["properties"]["outputs"]}
            child["properties"]["properties"] |= reused
        with self._state.transaction():
            self._state.put(child["id"], child, parent=self._graph.workspace)
            self._state.save_record("run", child["id"], {"parentRunId": job["name"], "rootRunId": root})
        if earlier is not None:
            self._say(f"Reusing {earlier['name']} for {name}:{child['name']}")
            return asyncio.create_task(asyncio.sleep(0))
        self._say(f"Submitting 1 runs, first five are: {name}:{child['name']}")
        return self._runs.start(child["id"])

    def _finish(self, names: list[str]) -> bool:
        """Take note of nodes that ended; whether all of them completed."""
        for name in names:
            status = self._status(name)
            self._say(f"Completing processing run id {self._made[name]['name']}: {name} is {status}")
            if status == "Completed":
                self._made[name] = self._state.get(self._made[name]["id"]) or self._made[name]
                self._state.save_record("step", _key(self._made[name]), {"job": self._made[name]["id"]})
                self._hand_up(name)
        return all(self._status(name) == "Completed" for name in names)

    def _hand_up(self, name: str) -> None:
        """Let the pipeline's own outputs be where the node's are, which is elsewhere when a step was not run again."""
        job = self._state.get(self._graph.job["id"])
        for key, given in (self._graph.nodes[name].get("outputs") or {}).items():
            bound = BINDING.fullmatch(str((given or {}).get("value") or ""))
            if bound and job is not None:
                place = self._made[name]["properties"]["outputs"][key]["uri"]
                job["properties"]["outputs"][bound[2]]["uri"] = place
                self._graph.properties["outputs"][bound[2]]["uri"] = place
        if job is not None:
            self._state.put(job["id"], job, parent=self._graph.workspace)

    def _earlier(self, child: Body) -> Body | None:
        """The job of an earlier run that did the same, if it may stand in."""
        if not self._reuses or child["properties"]["jobType"] != "Command":
            return None
        record = self._state.record("step", _key(child)) or {}
        return self._state.get(str(record.get("job") or ""))

    def _status(self, name: str) -> str:
        found = self._state.get(self._made[name]["id"])
        return str(found["properties"]["status"]) if found else "Canceled"

    async def _cancel(self, names: list[str]) -> None:
        await asyncio.gather(*(self._runs.cancel(self._made[name]["id"]) for name in names))


def _key(child: Body) -> str:
    """What a step does: its component, its inputs, its cluster and its workspace."""
    said = [child["id"].split("/jobs/")[0].lower()]
    said += [child["properties"].get(name) for name in ("componentId", "inputs", "computeId")]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
