"""Jobs over ARM: what is refused, and what a job looks like."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from emulator.arm.ids import ResourceId
from emulator.arm.operations import ML, Operations
from emulator.arm.resources import Arm, json_body
from emulator.arm.schema import ArmError, Body
from emulator.machinelearning import shapes
from emulator.machinelearning.assets import system_data
from emulator.runner import job_body, job_files, locations
from emulator.runner.jobs import JobRunner, parse_duration
from emulator.runner.pipeline_graph import Graph

JOB = f"{ML}/workspaces/jobs"
CHANGEABLE = ("tags", "displayName", "description", "isArchived")


class Jobs:
    def __init__(self, arm: Arm, operations: Operations, runner: JobRunner) -> None:
        self._arm, self._state, self._operations, self._runner = arm, arm.state, operations, runner
        arm.on("PUT", JOB, self.put)
        arm.on("GET", JOB, self.get)
        arm.on("POST", f"{JOB}/cancel", self.cancel)

    async def put(self, request: Request, rid: ResourceId) -> Response:
        body = await json_body(request)
        properties = body.get("properties", {})
        self._arm.check_parent(rid)
        before = self._state.get(str(rid))
        if before is not None:
            return JSONResponse(self._update(rid, before, properties))
        stored = job_body.new(str(rid), rid.type, properties, system_data())
        self._check(stored)
        stored = shapes.job(stored, self._state.get(rid.parent) or {})
        self._state.put(str(rid), stored, parent=rid.parent)
        self._runner.start(str(rid))
        return JSONResponse(shapes.shown(stored), 201)

    def _update(self, rid: ResourceId, job: Body, wanted: Body) -> Body:
        """A job is created once: of the one that is there, only what describes it changes."""
        job["properties"] |= {key: wanted[key] for key in CHANGEABLE if wanted.get(key) is not None}
        self._state.put(str(rid), job, parent=rid.parent)
        return job

    def _check(self, job: Body) -> None:
        """Raise ArmError 400 for what Azure refuses before a job is queued, and for what is not emulated."""
        kind = job["properties"].get("jobType")
        if kind == "Pipeline":
            return Graph(self._state, job).check()
        if kind != "Command":
            raise ArmError(400, "UserError", f"Jobs of type '{kind}' are not emulated; 'Command' and 'Pipeline' are.")
        self._check_references(job["properties"])
        _check_form(job["properties"])

    def _check_references(self, properties: Body) -> None:
        compute = properties.get("computeId")
        if not compute or self._state.get(compute) is None:
            raise ArmError(400, "UserError", f"Unknown compute target '{str(compute).split('/')[-1]}'.")
        for key in ("environmentId", "codeId"):
            if properties.get(key) and self._state.get(locations.asset_key(self._state, properties[key])) is None:
                raise ArmError(400, "UserError", f"The {key} '{properties[key]}' of the job does not exist.")
        if not properties.get("environmentId"):
            raise ArmError(400, "UserError", "The job has no environment.")

    async def get(self, request: Request, rid: ResourceId) -> Response:
        if not rid.is_collection:
            job = self._arm.existing(rid)
            # of a pipeline's child this service knows the name alone; the run history knows the rest
            return JSONResponse({**job, "properties": None} if self._is_child(job) else shapes.shown(job))
        self._arm.check_parent(rid)
        found = [job for job in self._state.children(rid.parent, rid.type) if not self._is_child(job)]
        if request.query_params.get("listViewType", "ActiveOnly") == "ActiveOnly":
            found = [job for job in found if not job["properties"]["isArchived"]]
        return JSONResponse({"value": [shapes.shown(job) for job in found[::-1]]})

    def _is_child(self, job: Body) -> bool:
        return bool((self._state.record("run", job["id"]) or {}).get("parentRunId"))

    async def cancel(self, request: Request, rid: ResourceId) -> Response:
        job, _ = rid.action
        self._arm.existing(job)
        workspace = self._state.get(job.parent)
        assert workspace is not None
        headers = self._operations.start(workspace["location"], self._runner.cancel(str(job)))
        return Response(status_code=202, headers=headers)


def _check_form(properties: Body) -> None:
    """The same for what the job itself says."""
    if not str(properties.get("command") or "").strip():
        raise ArmError(400, "UserError", "The job has no command.")
    job_files.check_modes(properties)
    parse_duration((properties.get("limits") or {}).get("timeout"))
    kind = (properties.get("distribution") or {}).get("distributionType", "PyTorch")
    if kind != "PyTorch":
        raise ArmError(400, "UserError", f"The distribution '{kind}' is not emulated; 'PyTorch' is.")
