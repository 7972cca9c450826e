"""Registries: made over ARM, found by discovery, and filled by sharing a workspace's models (`models.share`).

Azure keeps a registry's files in storage accounts of its own; so does this, in one that no subscription shows.
"""

from __future__ import annotations

import asyncio
import re
import uuid

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from emulator.arm.ids import ResourceId
from emulator.arm.operations import ML, Operations
from emulator.arm.resources import ARM_AUDIENCES, Arm, error_response, json_body
from emulator.arm.schema import ArmError, Body
from emulator.blobs import Blobs
from emulator.entra import Entra
from emulator.home import SUBSCRIPTION_ID, TENANT_ID
from emulator.machinelearning.assets import system_data
from emulator.machinelearning.data_plane import Handler
from emulator.runner import locations
from emulator.runner.locations import Location

REGISTRY = f"{ML}/registries"
MODEL = f"{REGISTRY}/models"
VERSION = f"{MODEL}/versions"
BASE = "/mferp/managementfrontend/subscriptions/{s}/resourceGroups/{g}/providers/{p}/registries/{r}"
DEFAULT_VERSION = "azureml_default"  # what azure-ai-ml asks for where no version is named
NAME = r"[a-zA-Z0-9][a-zA-Z0-9_-]{1,31}"


class Registries:
    def __init__(self, arm: Arm, operations: Operations, blobs: Blobs, entra: Entra) -> None:
        self._arm, self._state, self._operations = arm, arm.state, operations
        self._blobs, self._entra = blobs, entra
        arm.on("PUT", REGISTRY, self.put)
        arm.on("GET", REGISTRY, self.get)
        arm.on("DELETE", REGISTRY, self.delete)
        self.routes: list[Route] = []
        self._on("GET", "/registrymanagement/v1.0/registries/{r}/discovery", self.discovery)
        self._on("POST", BASE + "/import", self.share)
        for kind in ("models", "components", "environments", "codes"):
            self._on("GET", f"{BASE}/{kind}", self.containers)
            self._on("GET", f"{BASE}/{kind}/{{n}}", self.container)
            self._on("GET", f"{BASE}/{kind}/{{n}}/versions", self.versions)
            self._on("GET", f"{BASE}/{kind}/{{n}}/versions/{{v}}", self.version)
        self._on("POST", BASE + "/datarefs/{n}/versions/{v}", self.reference)

    def _on(self, method: str, path: str, handler: Handler) -> None:
        async def answer(request: Request) -> Response:
            try:
                if self._entra.check(request.headers.get("authorization", ""), ARM_AUDIENCES) is None:
                    raise ArmError(401, "AuthenticationFailed", "The access token is missing or invalid.")
                return await handler(request)
            except ArmError as error:
                return error_response(error)

        self.routes.append(Route(path, answer, methods=[method]))

    # -- over ARM ------------------------------------------------------------------------------------------------------

    async def put(self, request: Request, rid: ResourceId) -> Response:
        body, before = await json_body(request), self._state.get(str(rid))
        self._arm.check_parent(rid)
        if not re.fullmatch(NAME, rid.name):
            raise ArmError(400, "ValidationError", f"The registry name '{rid.name}' is not valid.")
        self._check_name_is_free(rid)
        location = str(body.get("location") or "").replace(" ", "").lower()
        if not location:
            raise ArmError(400, "LocationRequired", "The location property is required for this definition.")
        host = f"https://{location}.api.azureml.ms"
        properties = body.get("properties") or {}
        stored = {
            "id": str(rid),
            "name": rid.name,
            "type": rid.type,
            "location": location,
            "tags": body.get("tags") or {},
            "identity": self._arm.resolve_identity(body.get("identity") or {"type": "SystemAssigned"}, before),
            "systemData": system_data(before),
            "properties": {
                "publicNetworkAccess": "Enabled",
                **properties,
                "discoveryUrl": f"{host}/registrymanagement/v1.0/registries/{rid.name}/discovery",
                "mlFlowRegistryUri": f"azureml://{location}.api.azureml.ms/mlflow/v1.0{rid}",
                "provisioningState": "Succeeded",
            },
        }
        self._state.put(str(rid), stored, parent=rid.parent)
        self._blobs.make_container(_account(rid.name), "models")
        return Response(status_code=202, headers=self._operations.start(location, service=f"{ML}/registryOperation"))

    def _check_name_is_free(self, rid: ResourceId) -> None:
        for other in self._state.of_type(REGISTRY):
            if other["name"].lower() == rid.name.lower() and other["id"].lower() != str(rid).lower():
                raise ArmError(409, "Conflict", f"The registry name '{rid.name}' is in use already.")

    async def get(self, request: Request, rid: ResourceId) -> Response:
        if not rid.is_collection:
            return JSONResponse(self._arm.existing(rid))
        return JSONResponse({"value": self._arm.listed(rid)})

    async def delete(self, request: Request, rid: ResourceId) -> Response:
        found = self._state.get(str(rid))
        if found is None:
            return Response(status_code=204)
        self._blobs.drop_account(_account(rid.name))
        gone = self._arm.remove(str(rid))
        headers = self._operations.start(found["location"], gone, service=f"{ML}/registryOperation")
        return Response(status_code=202, headers=headers)

    # -- as its clients see it -----------------------------------------------------------------------------------------

    def _registry(self, request: Request) -> Body:
        name = request.path_params["r"]
        for found in self._state.of_type(REGISTRY):
            if found["name"].lower() == name.lower():
                return found
        raise ArmError(404, "RegistryNotFound", f"The registry '{name}' could not be found.")

    async def discovery(self, request: Request) -> Response:
        found = self._registry(request)
        location, address = found["location"], f"https://{found['location']}.api.azureml.ms/"
        return JSONResponse(
            {
                "registryName": found["name"],
                "tenantId": TENANT_ID,
                "subscriptionId": found["id"].split("/")[2],
                "resourceGroup": found["id"].split("/")[4],
                "primaryRegion": location,
                "primaryRegionResourceProviderUri": address,
                "registryFqdns": {location: {"uri": address}},
            }
        )

    async def share(self, request: Request) -> Response:
        """Copy a workspace's model into the registry; a version is there once."""
        registry, wanted = self._registry(request), (await json_body(request)).get("properties") or {}
        if not registry["id"].startswith(f"/subscriptions/{SUBSCRIPTION_ID}/"):
            raise ArmError(403, "AuthorizationFailed", f"The registry '{registry['name']}' is not yours to write to.")
        name, version = str(wanted.get("destinationName")), str(wanted.get("destinationVersion"))
        workspace, source = self._source(str(wanted.get("sourceAssetId")))
        target = f"{registry['id']}/models/{name}/versions/{version}"
        if self._state.get(target) is not None:
            raise ArmError(409, "Conflict", f"The model '{name}:{version}' is in the registry already.")
        place = locations.resolve(self._state, workspace, source["id"])
        path = f"{name}/{version}/{uuid.uuid4().hex[:8]}/{place.leaf}"
        self._copy(place, Location(_account(registry["name"]), "models", path))
        uri = f"https://{_account(registry['name'])}.blob.core.windows.net/models/{path}"
        properties = {**source["properties"], "modelUri": uri, "provisioningState": "Succeeded"}
        address = f"azureml://registries/{registry['name']}/models/{name}"
        self._put(f"{registry['id']}/models/{name}", registry["id"], address, MODEL, {"isArchived": False})
        self._put(target, f"{registry['id']}/models/{name}", f"{address}/versions/{version}", VERSION, properties)
        return Response(status_code=202, headers=self._operations.start(registry["location"]))

    def _put(self, key: str, parent: str, address: str, kind: str, properties: Body) -> None:
        body = {"id": address, "name": key.split("/")[-1], "type": kind, "systemData": system_data()}
        self._state.put(key, {**body, "properties": properties}, parent=parent)

    def _copy(self, source: Location, to: Location) -> None:
        for name, path in self._blobs.list(source.account, source.container, source.path.rstrip("/")):
            rest = name[len(source.path.rstrip("/")) :]
            if rest == "" or rest.startswith("/"):
                self._blobs.add_file(to.account, to.container, to.path + rest, path)

    def _source(self, asset: str) -> tuple[str, Body]:
        """The model of `azureml://locations/L/workspaces/GUID/models/N/versions/V`, with its workspace's id."""
        match = re.fullmatch(r"azureml://locations/[^/]+/workspaces/([^/]+)/models/([^/]+)/versions/([^/]+)", asset)
        for found in self._state.of_type(f"{ML}/workspaces") if match else []:
            if match and found["properties"]["workspaceId"] == match[1]:
                model = self._state.get(f"{found['id']}/models/{match[2]}/versions/{match[3]}")
                if model is not None:
                    return found["id"], model
        raise ArmError(404, "ResourceNotFound", f"The asset '{asset}' could not be found.")

    async def containers(self, request: Request) -> Response:
        registry, kind = self._registry(request), _kind(request)
        return JSONResponse({"value": self._state.children(registry["id"], f"{REGISTRY}/{kind}")})

    async def container(self, request: Request) -> Response:
        found = self._existing(request, f"/{_kind(request)}/{request.path_params['n']}")
        versions = self._versions(request)
        numbers = [int(one["name"]) for one in versions if one["name"].isdigit()]
        found["properties"] |= {"latestVersion": versions[-1]["name"], "nextVersion": str(max(numbers, default=0) + 1)}
        return JSONResponse(found)

    def _existing(self, request: Request, path: str) -> Body:
        found = self._state.get(self._registry(request)["id"] + path)
        if found is None:
            raise ArmError(404, "ResourceNotFound", f"The asset '{path.lstrip('/')}' was not found in the registry.")
        return found

    def _versions(self, request: Request) -> list[Body]:
        container = f"{self._registry(request)['id']}/{_kind(request)}/{request.path_params['n']}"
        return self._state.children(container, f"{REGISTRY}/{_kind(request)}/versions")

    async def versions(self, request: Request) -> Response:
        # A new name has no versions rather than a 404: azure-ai-ml 1.35 asks before it shares, and stops at one.
        found, query = self._versions(request), request.query_params
        if "desc" in query.get("$orderBy", "").lower():
            found.reverse()
        return JSONResponse({"value": found[: int(query.get("$top") or len(found))]})

    async def version(self, request: Request) -> Response:
        """One version; a component's default one, which is its newest, has a name of its own."""
        name, version = request.path_params["n"], request.path_params["v"]
        if version == DEFAULT_VERSION and (found := self._versions(request)):
            return JSONResponse(found[-1])
        return JSONResponse(self._existing(request, f"/{_kind(request)}/{name}/versions/{version}"))

    async def reference(self, request: Request) -> Response:
        """A signed address of the container, in which clients look for the path of the version's address."""
        found = self._existing(request, "/models/{n}/versions/{v}".format(**request.path_params))
        account, uri = _account(self._registry(request)["name"]), found["properties"]["modelUri"]
        await asyncio.to_thread(self._blobs.made, account)
        token = self._blobs.shared_access.for_container(account, "models")
        container = f"https://{account}.blob.core.windows.net/models"
        credential = {"credentialType": "SAS", "sasUri": f"{container}?{token}"}
        return JSONResponse({"blobReferenceForConsumption": {"blobUri": uri, "credential": credential}})


def _kind(request: Request) -> str:
    """Which kind of asset a request is about: the part of the path after the registry's name."""
    return request.url.path.split("/registries/", 1)[1].split("/")[1]


def _account(registry: str) -> str:
    return "reg" + re.sub(r"[^a-z0-9]", "", registry.lower())[:21]
