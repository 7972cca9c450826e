"""Workspaces with their two built-in datastores, and the discovery document that leads to the data planes."""

from __future__ import annotations

import uuid

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from emulator.arm.ids import ResourceId
from emulator.arm.operations import ML, Operations
from emulator.arm.resources import Arm, json_body
from emulator.arm.schema import ArmError, Body
from emulator.blobs import Blobs

WORKSPACE = f"{ML}/workspaces"
DATASTORE = f"{WORKSPACE}/datastores"
# The property names that a workspace needs to point at resources that exist.
DEPENDENCIES = ("storageAccount", "keyVault", "applicationInsights", "containerRegistry")


class Workspaces:
    def __init__(self, arm: Arm, operations: Operations, blobs: Blobs) -> None:
        self._arm, self._state, self._operations, self._blobs = arm, arm.state, operations, blobs
        arm.on("PUT", WORKSPACE, self.put)
        arm.on("DELETE", WORKSPACE, self.delete)
        arm.on("GET", DATASTORE, self.datastore)
        arm.on("POST", f"{DATASTORE}/listSecrets", self.list_secrets)
        self.data_plane_routes = [
            Route("/discovery", self.discovery),
            Route("/discovery/workspaces/{workspace_id}", self.discovery),
        ]

    async def put(self, request: Request, rid: ResourceId) -> Response:
        body = await json_body(request)
        properties = body.setdefault("properties", {})
        for name in DEPENDENCIES:
            if properties.get(name) and self._state.get(properties[name]) is None:
                raise ArmError(
                    400, "ValidationError", f"The {name} '{properties[name]}' of the workspace does not exist."
                )
        before = self._state.get(str(rid))
        location = str(body.get("location", "")).replace(" ", "").lower()
        workspace_id = before["properties"]["workspaceId"] if before else str(uuid.uuid4())
        body["properties"] = {
            **properties,
            "workspaceId": workspace_id,
            "discoveryUrl": f"https://{location}.api.azureml.ms/discovery",
            "mlFlowTrackingUri": f"azureml://{location}.api.azureml.ms/mlflow/v1.0{rid}",
        }
        stored, created = self._arm.store(rid, body)
        if created:
            self._make_datastores(rid, stored)
        return JSONResponse(stored, 201 if created else 200)

    def _make_datastores(self, rid: ResourceId, workspace: Body) -> None:
        account = workspace["properties"]["storageAccount"].split("/")[-1]
        identity = workspace["properties"].get("systemDatastoresAuthMode", "accessKey").lower() == "identity"
        containers = {
            "workspaceblobstore": f"azureml-blobstore-{workspace['properties']['workspaceId']}",
            "workspaceartifactstore": "azureml",
        }
        for name, container in containers.items():
            if not self._blobs.has_container(account, container):
                self._blobs.make_container(account, container)
            store_id = ResourceId.parse(f"{rid}/datastores/{name}")
            assert store_id is not None
            body = {
                "id": str(store_id),
                "name": name,
                "type": store_id.type,
                "properties": {
                    "datastoreType": "AzureBlob",
                    "accountName": account,
                    "containerName": container,
                    "endpoint": "core.windows.net",
                    "protocol": "https",
                    "isDefault": name == "workspaceblobstore",
                    "credentials": {"credentialsType": "None" if identity else "AccountKey"},
                    "serviceDataAccessAuthIdentity": "WorkspaceSystemAssignedIdentity" if identity else "None",
                    "subscriptionId": rid.scope.split("/")[2],
                    "resourceGroup": rid.scope.split("/")[4],
                },
            }
            self._state.put(str(store_id), body, parent=str(rid))

    async def delete(self, request: Request, rid: ResourceId) -> Response:
        purge = request.query_params.get("forceToPurge", "").lower() == "true"
        found = self._state.get(str(rid))
        if found is None:
            return Response(status_code=204) if not (purge and self._arm.purge(rid)) else Response(status_code=200)
        self._arm.remove(str(rid), purge=purge)
        return Response(status_code=202, headers=self._operations.start(found["location"]))

    async def datastore(self, request: Request, rid: ResourceId) -> Response:
        if not rid.is_collection:
            return JSONResponse(self._arm.existing(rid))
        self._arm.check_parent(rid)
        found = self._state.children(rid.parent, DATASTORE)
        if request.query_params.get("isDefault", "").lower() == "true":
            found = [store for store in found if store["properties"]["isDefault"]]
        return JSONResponse({"value": found})

    async def list_secrets(self, request: Request, rid: ResourceId) -> Response:
        store, _ = rid.action
        properties = self._arm.existing(store)["properties"]
        if properties["credentials"]["credentialsType"] == "None":
            raise ArmError(400, "UserError", "The datastore has no credentials: it is accessed by identity.")
        token = self._blobs.shared_access.for_account(properties["accountName"])
        return JSONResponse({"secretsType": "Sas", "sasToken": token})

    async def discovery(self, request: Request) -> Response:
        base = f"https://{request.url.hostname}"
        names = ("api", "catalog", "experimentation", "gallery", "history", "hyperdrive", "labeling")
        more = ("modelmanagement", "pipelines", "studio")
        return JSONResponse({name: base for name in (*names, *more)})
