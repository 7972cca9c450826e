"""Versioned assets: code, data, environments, models, components. A container holds its versions.

A version's content never changes: another content under the same name and version is 409, as in Azure.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from emulator.arm.ids import ResourceId
from emulator.arm.operations import ML
from emulator.arm.resources import Arm, json_body
from emulator.arm.schema import ArmError, Body
from emulator.blobs import Blobs
from emulator.machinelearning import shapes
from emulator.runner import locations

WORKSPACE = f"{ML}/workspaces"
# The collection's name, and the properties that make a version what it is.
KINDS = {
    "codes": ("codeUri",),
    "data": ("dataUri", "dataType"),
    "environments": ("image", "condaFile", "build"),
    "models": ("modelUri", "modelType"),
    "components": ("componentSpec",),
}


def system_data(before: Body | None = None) -> Body:
    """Who made and changed a resource and when. Clients want both times or none."""
    now = datetime.now(UTC).isoformat()
    created = (before or {}).get("systemData", {}).get("createdAt", now)
    by = {"createdBy": "emulator", "createdByType": "Application", "createdAt": created}
    return {**by, "lastModifiedBy": "emulator", "lastModifiedByType": "Application", "lastModifiedAt": now}


class Assets:
    def __init__(self, arm: Arm, blobs: Blobs) -> None:
        self._arm, self._state, self._blobs = arm, arm.state, blobs
        for kind in KINDS:
            arm.on("PUT", f"{WORKSPACE}/{kind}", self.put_container)
            arm.on("GET", f"{WORKSPACE}/{kind}", self.container)
            arm.on("PUT", f"{WORKSPACE}/{kind}/versions", self.put_version)
            arm.on("GET", f"{WORKSPACE}/{kind}/versions", self.version)
            arm.on("DELETE", f"{WORKSPACE}/{kind}/versions", self.delete)
        arm.on("POST", f"{WORKSPACE}/codes/versions/startPendingUpload", self.start_upload)

    async def put_container(self, request: Request, rid: ResourceId) -> Response:
        stored = self._make_container(rid, (await json_body(request)).get("properties", {}))
        return JSONResponse(self._with_versions(stored))

    def _make_container(self, rid: ResourceId, properties: Body) -> Body:
        self._arm.check_parent(rid)
        before = self._state.get(str(rid))
        body = {"id": str(rid), "name": rid.name, "type": rid.type, "systemData": system_data(before)}
        given = shapes.filled(shapes.CONTAINER, {**((before or {}).get("properties", {})), **properties})
        body["properties"] = {**given, "provisioningState": "Succeeded"}
        self._state.put(str(rid), body, parent=rid.parent)
        return body

    def _with_versions(self, container: Body) -> Body:
        versions = self._state.children(container["id"], container["type"] + "/versions")
        numbers = [int(found["name"]) for found in versions if found["name"].isdigit()]
        latest = versions[-1]["name"] if versions else None
        upcoming = str(max(numbers) + 1) if numbers else "1"
        container["properties"] |= {"latestVersion": latest, "nextVersion": upcoming}
        return container

    async def container(self, request: Request, rid: ResourceId) -> Response:
        if not rid.is_collection:
            return JSONResponse(self._with_versions(self._arm.existing(rid)))
        self._arm.check_parent(rid)
        found = [self._with_versions(body) for body in self._state.children(rid.parent, rid.type)]
        shown = [body for body in found if not body["properties"].get("isAnonymous")]
        return JSONResponse({"value": _matching(shown, request)})

    async def put_version(self, request: Request, rid: ResourceId) -> Response:
        body = await json_body(request)
        properties = body.get("properties", {})
        workspace = "/".join(str(rid).split("/")[:9])
        kind = rid.types[1].lower()
        before = self._state.get(str(rid))
        if kind == "models":
            properties["modelUri"] = self._model_uri(workspace, properties)
        if properties.get("condaFile"):
            properties["condaFile"] = shapes.conda(str(properties["condaFile"]))
        if before is not None and kind == "components" and properties.get("isAnonymous"):
            return JSONResponse(before)  # its version is the hash of what it does, its name is not part of that
        if kind == "components" and properties.get("componentSpec"):
            properties["componentSpec"] = {**properties["componentSpec"], "version": rid.name}
        if before is not None:
            for name in KINDS[kind]:
                if name in properties and before["properties"].get(name) != properties[name]:
                    where = f"{rid.names[-2]}:{rid.name}"
                    raise ArmError(409, "Conflict", f"{where} has another {name}; a version is immutable.")
        container = ResourceId.parse(rid.parent)
        assert container is not None
        self._make_container(container, {"isAnonymous": True} if properties.get("isAnonymous") else {})
        kept = before["properties"] if before else {}
        stored = {
            "id": str(rid),
            "name": rid.name,
            "type": rid.type,
            "systemData": system_data(before),
            "properties": shapes.version(kind, {**kept, **properties}),
        }
        self._state.put(str(rid), stored, parent=rid.parent)
        return JSONResponse(stored, 200 if before else 201)

    def _model_uri(self, workspace: str, properties: Body) -> str:
        uri = str(properties.get("modelUri", ""))
        written = locations.absolute(workspace, locations.from_job(self._state, workspace, uri) or uri)
        place = locations.resolve(self._state, workspace, written)
        if not self._blobs.list(place.account, place.container, place.path.rstrip("/")):
            raise ArmError(400, "UserError", f"The model's path '{uri}' holds no files.")
        return written

    async def version(self, request: Request, rid: ResourceId) -> Response:
        if not rid.is_collection:
            return JSONResponse(self._arm.existing(rid))
        query = request.query_params
        if "hash" in query:
            return JSONResponse({"value": self._code_by_hash(rid, query["hash"])})
        self._arm.check_parent(rid)
        found = _matching(self._state.children(rid.parent, rid.type), request)
        if query.get("$orderBy", "").lower().startswith("createdtime desc"):
            found.reverse()
        return JSONResponse({"value": found[: int(query.get("$top") or len(found))]})

    def _code_by_hash(self, rid: ResourceId, digest: str) -> list[Body]:
        # Azure looks in the whole workspace and ignores the name in the path.
        workspace = "/".join(str(rid).split("/")[:9]).lower() + "/"
        versions = self._state.of_type(f"{WORKSPACE}/codes/versions")
        here = [found for found in versions if found["id"].lower().startswith(workspace)]
        return [found for found in here if found["properties"].get("properties", {}).get("hash_sha256") == digest]

    async def delete(self, request: Request, rid: ResourceId) -> Response:
        if self._state.get(str(rid)) is None:
            return Response(status_code=204)
        self._arm.remove(str(rid))
        return Response(status_code=200)

    async def start_upload(self, request: Request, rid: ResourceId) -> Response:
        """A fresh container with a signature for it; the code's version points there afterwards."""
        workspace = "/".join(str(rid).split("/")[:9])
        place = locations.of_datastore(self._state, workspace, "workspaceblobstore", "")
        container = f"{uuid.uuid4().hex[:12]}-{uuid.uuid4()}"
        self._blobs.make_container(place.account, container)
        uri = f"https://{place.account}.blob.core.windows.net:443/{container}"
        token = self._blobs.shared_access.for_container(place.account, container)
        reference = {
            "blobUri": uri,
            "storageAccountArmId": "",
            "credential": {"credentialType": "SAS", "sasUri": f"{uri.replace(':443', '')}?{token}"},
        }
        body = {"pendingUploadId": str(uuid.uuid4()), "pendingUploadType": "TemporaryBlobReference"}
        return JSONResponse({**body, "blobReferenceForConsumption": reference})


def _matching(found: list[Body], request: Request) -> list[Body]:
    view = request.query_params.get("listViewType", "ActiveOnly")
    if view == "All":
        return found
    return [body for body in found if bool(body["properties"].get("isArchived")) == (view == "ArchivedOnly")]
