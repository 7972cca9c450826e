"""Jobs over ARM, and the run-history service that clients follow them by."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from emulator.arm.ids import ResourceId
from emulator.arm.operations import ML, Operations
from emulator.arm.resources import ARM_AUDIENCES, Arm, error_response, json_body
from emulator.arm.schema import ArmError, Body
from emulator.blobs import Blobs
from emulator.entra import Entra
from emulator.machinelearning.assets import system_data
from emulator.runner import locations
from emulator.runner.jobs import JobRunner

JOB = f"{ML}/workspaces/jobs"
OUTPUT_TYPES = {  # run history spells a job's output types in its own way
    "uri_folder": "UriFolder",
    "uri_file": "UriFile",
    "mltable": "MLTable",
    "custom_model": "CustomModel",
    "mlflow_model": "MLFlowModel",
    "triton_model": "TritonModel",
}


class Jobs:
    def __init__(self, arm: Arm, operations: Operations, blobs: Blobs, entra: Entra, runner: JobRunner) -> None:
        self._arm, self._state, self._operations = arm, arm.state, operations
        self._blobs, self._entra, self._runner = blobs, entra, runner
        arm.on("PUT", JOB, self.put)
        arm.on("GET", JOB, self.get)
        arm.on("POST", f"{JOB}/cancel", self.cancel)
        history = "/history/v1.0/subscriptions/{s}/resourceGroups/{g}/providers/{p}/workspaces/{w}"
        self.data_plane_routes = [
            Route(history + "/runs/{run}/details", self.details),
            Route(history + "/runs/{run}", self.run),
            Route(history + "/rundata", self.rundata, methods=["POST"]),
            Route(history + "/experiments/{experiment}/runs/{run}", self.patch_run, methods=["PATCH"]),
            Route(
                history.replace("history", "data", 1) + "/dataversion/batchGetResolvedUris", self.uris, methods=["POST"]
            ),
            Route(
                history.replace("history", "modelregistry", 1) + "/models/batchGetResolvedUris",
                self.paths,
                methods=["POST"],
            ),
        ]

    async def put(self, request: Request, rid: ResourceId) -> Response:
        body = await json_body(request)
        properties = body.get("properties", {})
        self._arm.check_parent(rid)
        before = self._state.get(str(rid))
        if before is not None:
            return JSONResponse(before)  # a job is created once; Azure answers the one that is there
        if properties.get("jobType") != "Command":
            kind = properties.get("jobType")
            raise ArmError(400, "UserError", f"Jobs of type '{kind}' are not emulated; 'Command' is.")
        self._check_references(properties)
        outputs = properties.get("outputs") or {}
        for name, output in outputs.items():
            output["uri"] = (output or {}).get("uri") or locations.output_uri(rid.name, name)
        outputs["default"] = {
            "jobOutputType": "uri_folder",
            "uri": f"azureml://datastores/workspaceartifactstore/ExperimentRun/dcid.{rid.name}",
            "mode": "ReadWriteMount",
        }
        studio = f"https://ml.azure.com/runs/{rid.name}?wsid={rid.parent}"
        services = {
            "Studio": {"jobServiceType": "Studio", "endpoint": studio, "status": "Running"},
            "Tracking": {"jobServiceType": "Tracking", "endpoint": f"azureml://{rid.parent}"},
        }
        stored: Body = {
            "id": str(rid),
            "name": rid.name,
            "type": rid.type,
            "systemData": system_data(),
            "properties": {
                "properties": {},
                "tags": {},
                "experimentName": "Default",
                "isArchived": False,
                **properties,
                "outputs": outputs,
                "services": services,
                "status": "Starting",
            },
        }
        self._state.put(str(rid), stored, parent=rid.parent)
        self._runner.start(str(rid))
        return JSONResponse(stored, 201)

    def _check_references(self, properties: Body) -> None:
        compute = properties.get("computeId")
        if not compute or self._state.get(compute) is None:
            raise ArmError(400, "UserError", f"Unknown compute target '{str(compute).split('/')[-1]}'.")
        for key in ("environmentId", "codeId"):
            if properties.get(key) and self._state.get(properties[key]) is None:
                raise ArmError(400, "UserError", f"The {key} '{properties[key]}' of the job does not exist.")
        if not properties.get("environmentId"):
            raise ArmError(400, "UserError", "The job has no environment.")

    async def get(self, request: Request, rid: ResourceId) -> Response:
        if not rid.is_collection:
            return JSONResponse(self._arm.existing(rid))
        self._arm.check_parent(rid)
        found = self._state.children(rid.parent, rid.type)
        if request.query_params.get("listViewType", "ActiveOnly") == "ActiveOnly":
            found = [job for job in found if not job["properties"]["isArchived"]]
        return JSONResponse({"value": found[::-1]})

    async def cancel(self, request: Request, rid: ResourceId) -> Response:
        job, _ = rid.action
        self._arm.existing(job)
        workspace = self._state.get(job.parent)
        assert workspace is not None
        headers = self._operations.start(workspace["location"], self._runner.cancel(str(job)))
        return Response(status_code=202, headers=headers)

    # -- run history ---------------------------------------------------------------------------------------------------

    def _job(self, request: Request, run: str) -> Body:
        if self._entra.check(request.headers.get("authorization", ""), ARM_AUDIENCES) is None:
            raise ArmError(401, "AuthenticationFailed", "The access token is missing or invalid.")
        p = request.path_params
        group = f"/subscriptions/{p['s']}/resourceGroups/{p['g']}"
        found = self._state.get(f"{group}/providers/{p['p']}/workspaces/{p['w']}/jobs/{run}")
        if found is None:
            raise ArmError(404, "UserError", f"Run {run} was not found.")
        return found

    async def details(self, request: Request) -> Response:
        try:
            job = self._job(request, request.path_params["run"])
        except ArmError as error:
            return error_response(error)
        return JSONResponse({**self._summary(job), "logFiles": self._log_files(job)})

    def _summary(self, job: Body) -> Body:
        properties, record = job["properties"], self._state.record("run", job["id"]) or {}
        return {
            "runId": job["name"],
            "target": properties["computeId"].split("/")[-1],
            "status": properties["status"],
            "startTimeUtc": record.get("startTimeUtc"),
            "endTimeUtc": record.get("endTimeUtc"),
            "error": record.get("error"),
            "warnings": [],
            "properties": properties["properties"],
            "tags": properties["tags"],
        }

    def _log_files(self, job: Body) -> dict[str, str]:
        workspace = "/".join(job["id"].split("/")[:9])
        prefix = f"ExperimentRun/dcid.{job['name']}/"
        place = locations.of_datastore(self._state, workspace, "workspaceartifactstore", prefix)
        files = {}
        for name, _ in self._blobs.list(place.account, place.container, prefix + "user_logs/"):
            token = self._blobs.shared_access.for_blob(place.account, place.container, name)
            files[name[len(prefix) :]] = (
                f"https://{place.account}.blob.core.windows.net/{place.container}/{name}?{token}"
            )
        return files

    async def run(self, request: Request) -> Response:
        try:
            return JSONResponse(self._summary(self._job(request, request.path_params["run"])))
        except ArmError as error:
            return error_response(error)

    async def patch_run(self, request: Request) -> Response:
        try:
            job, change = self._job(request, request.path_params["run"]), await json_body(request)
        except ArmError as error:
            return error_response(error)
        job["properties"]["tags"] |= change.get("tags") or {}
        if "hidden" in change:
            job["properties"]["isArchived"] = bool(change["hidden"])
        self._state.put(job["id"], job, parent="/".join(job["id"].split("/")[:9]))
        return JSONResponse(self._summary(job))

    async def rundata(self, request: Request) -> Response:
        try:
            wanted = await json_body(request)
            job = self._job(request, str(wanted.get("runId")))
        except ArmError as error:
            return error_response(error)
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
        if self._entra.check(request.headers.get("authorization", ""), ARM_AUDIENCES) is None:
            return error_response(ArmError(401, "AuthenticationFailed", "The access token is missing or invalid."))
        p = request.path_params
        workspace = f"/subscriptions/{p['s']}/resourceGroups/{p['g']}/providers/{p['p']}/workspaces/{p['w']}"
        values = (await json_body(request)).get("values") or []
        return JSONResponse({"values": {uri: {key: locations.absolute(workspace, uri)} for uri in values}})
