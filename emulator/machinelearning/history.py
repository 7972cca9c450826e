"""The run-history service: how clients follow a job, find what it wrote, and change its tags."""

from __future__ import annotations

import uuid

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from emulator.arm.resources import json_body
from emulator.arm.schema import Body
from emulator.blobs import Blobs
from emulator.entra import Entra
from emulator.machinelearning.data_plane import DataPlane, workspace_of
from emulator.runner import locations
from emulator.runner.job_environment import experiment_id
from emulator.state import State

OUTPUT_TYPES = {  # run history spells a job's output types in its own way
    "uri_folder": "UriFolder",
    "uri_file": "UriFile",
    "mltable": "MLTable",
    "custom_model": "CustomModel",
    "mlflow_model": "MLFlowModel",
    "triton_model": "TritonModel",
}
HISTORY = "history/v1.0"
LOG_FOLDERS = ("azureml-logs/", "user_logs/", "system_logs/", "logs/azureml/")


def _error(known: Body | None) -> Body | None:
    """A run's error with the members that nobody set, as the service answers it."""
    if known is None:
        return None
    inside: Body = dict.fromkeys(("severity", "messageFormat", "referenceCode", "detailsUri", "target", "innerError"))
    inside |= {"messageParameters": {}, "details": [], "debugInfo": None, "additionalInfo": None, **known["error"]}
    around = dict.fromkeys(("correlation", "environment", "location"))
    return {**around, "componentName": "CommonRuntime", **known, "error": inside}


class History(DataPlane):
    def __init__(self, state: State, blobs: Blobs, entra: Entra) -> None:
        super().__init__(state, entra)
        self._blobs = blobs
        for base in ("/runs/{run}", "/experiments/{experiment}/runs/{run}", "/experimentids/{id}/runs/{run}"):
            self.on("GET", HISTORY, base, self.run)
            self.on("PATCH", HISTORY, base, self.change)
            self.on("GET", HISTORY, f"{base}/details", self.details)
            self.on("GET", HISTORY, f"{base}/children", self.children)
        self.on("GET", HISTORY, "/runs/{run}/serviceinstances/{node}", self.services)
        self.on("POST", HISTORY, "/rundata", self.rundata)
        self.on("POST", "data/v1.0", "/dataversion/batchGetResolvedUris", self.uris)
        self.on("POST", "modelregistry/v1.0", "/models/batchGetResolvedUris", self.paths)

    def _named(self, request: Request) -> Body:
        return self.job(request, request.path_params["run"])

    async def run(self, request: Request) -> Response:
        return JSONResponse(self._summary(self._named(request)))

    async def details(self, request: Request) -> Response:
        job = self._named(request)
        return JSONResponse({**self._summary(job), "logFiles": self._log_files(job)})

    async def children(self, request: Request) -> Response:
        """The runs of a pipeline's nodes; a command job has none."""
        parent = self._named(request)
        jobs = self._state.children("/".join(parent["id"].split("/")[:9]), parent["type"])
        found = [job for job in jobs if self._record(job).get("parentRunId") == parent["name"]]
        return JSONResponse({"value": [self._summary(job) for job in found]})

    def _record(self, job: Body) -> Body:
        return self._state.record("run", job["id"]) or {}

    async def services(self, request: Request) -> Response:
        self._named(request)
        return JSONResponse({"instances": {}})

    def _summary(self, job: Body) -> Body:
        properties, record = job["properties"], self._record(job)
        kind = "PipelineRun" if properties["jobType"] == "Pipeline" else "scriptrun"
        return {
            "runId": job["name"],
            "rootRunId": record.get("rootRunId") or job["name"],
            "parentRunId": record.get("parentRunId"),
            "runUuid": str(uuid.uuid5(uuid.NAMESPACE_URL, job["id"])),
            "runNumber": self._number(job),
            "runType": f"azureml.{'StepRun' if record.get('parentRunId') else kind}",
            "runTypeV2": {"orchestrator": "Execution", "traits": ["remote", "CommonRuntime"]},
            "experimentId": experiment_id("/".join(job["id"].split("/")[:9]), properties["experimentName"]),
            "dataContainerId": f"dcid.{job['name']}",
            "createdUtc": job["systemData"]["createdAt"],
            "heartbeatEnabled": False,
            "displayName": properties.get("displayName"),
            "description": properties.get("description"),
            "hidden": properties["isArchived"],
            "target": str(properties.get("computeId") or "").split("/")[-1] or None,
            "status": properties["status"],
            "startTimeUtc": record.get("startTimeUtc"),
            "endTimeUtc": record.get("endTimeUtc"),
            "error": _error(record.get("error")),
            "warnings": [],
            "services": {},
            "actionUris": {},
            "inputDatasets": [],
            "outputDatasets": [],
            "properties": properties["properties"],
            "tags": properties["tags"],
        }

    def _number(self, job: Body) -> int:
        """A run's number in its workspace, as azureml-core wants it: the older ones and itself."""
        jobs = self._state.children("/".join(job["id"].split("/")[:9]), job["type"])
        return 1 + next(number for number, one in enumerate(jobs) if one["id"] == job["id"])

    def _log_files(self, job: Body) -> dict[str, str]:
        workspace, prefix = "/".join(job["id"].split("/")[:9]), f"ExperimentRun/dcid.{job['name']}/"
        place = locations.of_datastore(self._state, workspace, "workspaceartifactstore", prefix)
        files = {}
        for name, _ in self._blobs.list(place.account, place.container, prefix):
            if name[len(prefix) :].startswith(LOG_FOLDERS):
                files[name[len(prefix) :]] = self._blobs.signed_uri(place.account, place.container, name)
        return files

    async def change(self, request: Request) -> Response:
        job, change = self._named(request), await json_body(request)
        job["properties"]["tags"] |= change.get("tags") or {}
        for name in ("displayName", "description"):
            if name in change:
                job["properties"][name] = change[name]
        if "hidden" in change:
            job["properties"]["isArchived"] = bool(change["hidden"])
        self._state.put(job["id"], job, parent="/".join(job["id"].split("/")[:9]))
        return JSONResponse(self._summary(job))

    async def rundata(self, request: Request) -> Response:
        job = self.job(request, str((await json_body(request)).get("runId")))
        outputs = {
            name: {"assetId": output["uri"], "type": OUTPUT_TYPES.get(output.get("jobOutputType", ""), "UriFolder")}
            for name, output in job["properties"]["outputs"].items()
            if name != "default"
        }
        metadata = {**self._summary(job), "outputs": {} if job["properties"]["status"] != "Completed" else outputs}
        return JSONResponse({"runMetadata": metadata})

    async def uris(self, request: Request) -> Response:
        """Where outputs lie, by the asset ids that `rundata` gave."""
        return await self._resolved(request, "uri")

    async def paths(self, request: Request) -> Response:
        """The same for model outputs, whose answer spells it `path`."""
        return await self._resolved(request, "path")

    async def _resolved(self, request: Request, key: str) -> Response:
        workspace = workspace_of(request)
        values = (await json_body(request)).get("values") or []
        return JSONResponse({"values": {uri: {key: locations.absolute(workspace, uri)} for uri in values}})
