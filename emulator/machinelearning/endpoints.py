"""Managed online endpoints and their deployments over ARM."""

from __future__ import annotations

import json
import math
import re
import secrets
from datetime import UTC, datetime, timedelta

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from emulator.arm.ids import ResourceId
from emulator.arm.operations import ML, Operations
from emulator.arm.resources import Arm, json_body
from emulator.arm.rights import ROLE, SCORE
from emulator.arm.schema import ArmError, Body
from emulator.entra import LIFETIME, Entra
from emulator.machinelearning import shapes
from emulator.machinelearning.assets import system_data
from emulator.machinelearning.computes import QUOTA, SIZES
from emulator.runner.deployments import INITIALIZER, SERVER, DeploymentRunner

ENDPOINT = f"{ML}/workspaces/onlineEndpoints"
DEPLOYMENT = f"{ENDPOINT}/deployments"
NAME = r"[a-zA-Z][a-zA-Z0-9-]{1,30}[a-zA-Z0-9]"
PROBE = {"failureThreshold": 30, "successThreshold": 1, "timeout": "PT2S", "period": "PT10S", "initialDelay": "PT10S"}
MOVING = ("Creating", "Updating", "Deleting")
RESERVE = 1.2  # of the cores, kept for upgrades: learn.microsoft.com/azure/machine-learning/how-to-manage-quotas
REQUESTS = {"maxQueueWait": "PT0.5S", "requestTimeout": "PT5S", "maxConcurrentRequestsPerInstance": 1}


class Endpoints:
    def __init__(self, arm: Arm, operations: Operations, entra: Entra, runner: DeploymentRunner) -> None:
        self._arm, self._state, self._operations = arm, arm.state, operations
        self._entra, self._runner = entra, runner
        arm.on("PUT", ENDPOINT, self.put)
        arm.on("GET", ENDPOINT, self.get)
        arm.on("PATCH", ENDPOINT, self.patch)
        arm.on("DELETE", ENDPOINT, self.delete)
        arm.on("POST", f"{ENDPOINT}/listKeys", self.keys)
        arm.on("POST", f"{ENDPOINT}/regenerateKeys", self.regenerate)
        arm.on("POST", f"{ENDPOINT}/token", self.token)
        arm.on("PUT", DEPLOYMENT, self.put_deployment)
        arm.on("GET", DEPLOYMENT, self.get)
        arm.on("DELETE", DEPLOYMENT, self.delete_deployment)
        arm.on("POST", f"{DEPLOYMENT}/getLogs", self.logs)
        arm.on("GET", "Microsoft.Insights/metrics", self.metrics)
        arm.on("GET", "Microsoft.Insights/eventtypes/values", self.events)
        arm.on("PUT", "Microsoft.Authorization/roleDefinitions", self.put_role)

    async def get(self, request: Request, rid: ResourceId) -> Response:
        if not rid.is_collection:
            return JSONResponse(self._arm.existing(rid))
        self._arm.check_parent(rid)
        return JSONResponse({"value": self._state.children(rid.parent, rid.type)})

    # -- endpoints -----------------------------------------------------------------------------------------------------

    async def put(self, request: Request, rid: ResourceId) -> Response:
        body = await json_body(request)
        self._arm.check_parent(rid)
        before = self._state.get(str(rid))
        properties = body.get("properties", {})
        self._check_endpoint(rid, body, before)
        kept = before["properties"] if before else {}
        location = body["location"].replace(" ", "").lower()
        address = f"https://{rid.name}.{location}.inference.ml.azure.com"
        headers = self._operations.start(location)
        stored: Body = {
            "id": str(rid),
            "name": rid.name,
            "type": rid.type,
            "location": location,
            "tags": body.get("tags") or {},
            "kind": body.get("kind") or "Managed",
            "systemData": system_data(before),
            "identity": (before or {}).get("identity")
            or self._arm.resolve_identity(body.get("identity") or {"type": "SystemAssigned"}),
            "properties": {
                **shapes.filled(shapes.ENDPOINT, properties),
                "properties": {
                    **(properties.get("properties") or {}),
                    "azureml.onlineendpointid": str(rid).lower(),
                    "AzureAsyncOperationUri": headers["Azure-AsyncOperation"],
                },
                "traffic": properties.get("traffic") or {},
                "scoringUri": kept.get("scoringUri", f"{address}/score"),
                "swaggerUri": f"{address}/swagger.json",
                "provisioningState": "Succeeded",
            },
        }
        with self._state.transaction():
            self._state.put(str(rid), stored, parent=rid.parent)
            if before is None:
                self._state.save_record("endpoint-keys", str(rid), _new_keys())
        going: Body = {"provisioningState": "Updating"}
        if before is None:
            going = {"provisioningState": "Creating", "scoringUri": None, "swaggerUri": None}
        answered = {**stored, "properties": {**stored["properties"], **going}}
        return JSONResponse(answered, 200 if before else 201, headers)

    def _check_endpoint(self, rid: ResourceId, body: Body, before: Body | None) -> None:
        if not re.fullmatch(NAME, rid.name):
            raise ArmError(
                400,
                "BadArgument",
                f"The endpoint name '{rid.name}' must be 3-32 letters, digits and '-', a letter first.",
            )
        if not body.get("location"):
            raise ArmError(400, "LocationRequired", "The location property is required for this definition.")
        for other in self._state.of_type(ENDPOINT):
            if other["name"].lower() == rid.name.lower() and other["id"].lower() != str(rid).lower():
                raise ArmError(
                    409, "Conflict", f"There is already an endpoint with the name '{rid.name}' in this region."
                )
        properties = body.get("properties", {})
        if before is not None:
            wanted, has = (body.get("identity") or {}).get("type"), before["identity"]["type"]
            if wanted and wanted.lower() != has.lower():
                raise ArmError(400, "BadArgument", "The identity of an endpoint cannot be changed after its creation.")
            if properties.get("authMode", "").lower() != before["properties"]["authMode"].lower():
                raise ArmError(400, "BadArgument", "The authentication mode of an endpoint cannot be changed.")
        traffic = properties.get("traffic") or {}
        if sum(traffic.values()) not in (0, 100):
            raise ArmError(
                400,
                "BadArgument",
                f"The traffic of all deployments must add up to 0 or 100, not {sum(traffic.values())}.",
            )
        mirror = properties.get("mirrorTraffic") or {}
        deployments = [found["name"] for found in self._state.children(str(rid), DEPLOYMENT)]
        for name in {**traffic, **mirror}:
            if name not in deployments:
                raise ArmError(400, "BadArgument", f"The deployment '{name}' in the traffic rules does not exist.")
        _check_mirror({name: share for name, share in mirror.items() if share}, traffic)

    async def metrics(self, request: Request, rid: ResourceId) -> Response:
        """What Azure Monitor knows of an endpoint; of any other resource it knows nothing here."""
        scope = ResourceId.parse(rid.scope)
        if scope is None or scope.type.lower() != ENDPOINT.lower():
            raise ArmError(404, "NotFound", f"Metrics of '{rid.scope}' are not emulated.")
        self._arm.existing(scope)
        return JSONResponse(self._runner.measured.answer(rid.scope, request.query_params))

    async def events(self, request: Request, rid: ResourceId) -> Response:
        """The activity log, which holds why deployments failed: learn.microsoft.com/rest/api/monitor/activity-logs."""
        wanted = re.search(r"resourceUri eq '([^']+)'", request.query_params.get("$filter", ""))
        found = [
            {
                "resourceId": deployment,
                "eventTimestamp": datetime.fromtimestamp(event["at"], UTC).isoformat(),
                "operationName": {"value": f"{DEPLOYMENT}/write"},
                "status": {"value": "Failed"},
                "properties": {"statusMessage": json.dumps({"error": event})},
            }
            for deployment, event in self._state.records("deployment-failure")
            if wanted is None or wanted[1].lower() == deployment
        ]
        return JSONResponse({"value": found})

    async def put_role(self, request: Request, rid: ResourceId) -> Response:
        """A custom role, for callers above all; built-in ones are there already."""
        given = (await json_body(request)).get("properties") or {}
        if not (given.get("roleName") and given.get("permissions") and given.get("assignableScopes")):
            raise ArmError(400, "InvalidRoleDefinition", "A role needs roleName, permissions and assignableScopes.")
        known = self._state.get(str(rid)) is not None
        made = {"id": str(rid), "name": rid.name, "type": ROLE, "properties": given}
        self._state.put(str(rid), made, parent=rid.scope)
        return JSONResponse(made, 200 if known else 201)

    async def patch(self, request: Request, rid: ResourceId) -> Response:
        found, change = self._arm.existing(rid), await json_body(request)
        found["tags"] = change.get("tags", found["tags"])
        self._state.put(str(rid), found, parent=rid.parent)
        return JSONResponse(found, 202, self._operations.start(found["location"]))

    async def delete(self, request: Request, rid: ResourceId) -> Response:
        found = self._state.get(str(rid))
        if found is None:
            return Response(status_code=204)

        async def work() -> None:
            for deployment in self._state.children(str(rid), DEPLOYMENT):
                await self._runner.remove(deployment["id"])
            self._state.drop_record("endpoint-keys", str(rid))
            self._state.delete(str(rid))

        return Response(status_code=202, headers=self._operations.start(found["location"], work()))

    def _keys(self, rid: ResourceId) -> tuple[ResourceId, Body]:
        endpoint, _ = rid.action
        found = self._arm.existing(endpoint)
        if found["properties"]["authMode"].lower() != "key":
            raise ArmError(400, "BadArgument", "The endpoint does not use keys: it is authenticated by tokens.")
        keys = self._state.record("endpoint-keys", str(endpoint))
        assert keys is not None
        return endpoint, keys

    async def keys(self, request: Request, rid: ResourceId) -> Response:
        return JSONResponse(self._keys(rid)[1])

    async def regenerate(self, request: Request, rid: ResourceId) -> Response:
        endpoint, keys = self._keys(rid)
        which = str((await json_body(request)).get("keyType", "")).lower() + "Key"
        if which not in keys:
            raise ArmError(400, "BadArgument", "keyType must be Primary or Secondary.")
        keys[which] = secrets.token_urlsafe(24)
        self._state.save_record("endpoint-keys", str(endpoint), keys)
        return Response(status_code=202, headers=self._operations.start("local"))

    async def token(self, request: Request, rid: ResourceId) -> Response:
        """For this endpoint alone, which asks nobody about the roles of who shows it."""
        endpoint, _ = rid.action
        self._arm.existing(endpoint)
        who = {"client_id": request.state.claims["appid"], "object_id": request.state.claims["oid"]}
        issued = self._entra.issue("azureml", **who, endpointName=endpoint.name, actions=json.dumps([SCORE]))
        expiry = int((datetime.now(UTC) + timedelta(seconds=LIFETIME)).timestamp())
        times = {"expiryTimeUtc": expiry, "refreshAfterTimeUtc": expiry - LIFETIME // 2}
        return JSONResponse({"accessToken": issued, "tokenType": "Bearer", **times})

    # -- deployments ---------------------------------------------------------------------------------------------------

    async def put_deployment(self, request: Request, rid: ResourceId) -> Response:
        body = await json_body(request)
        self._arm.check_parent(rid)
        before = self._state.get(str(rid))
        properties = body.get("properties", {})
        self._check_still(before)
        self._check_deployment(rid, body)
        self._check_quota(rid, body)
        headers = self._operations.start(body["location"], self._runner.create(str(rid)))
        stored = {
            "id": str(rid),
            "name": rid.name,
            "type": rid.type,
            "location": body["location"],
            "tags": body.get("tags") or {},
            "kind": "Managed",
            "sku": {"name": "Default", "tier": "Standard", "capacity": 1, **(body.get("sku") or {})},
            "systemData": system_data(before),
            "properties": {
                **shapes.filled(shapes.DEPLOYMENT, properties),
                "properties": {
                    **(properties.get("properties") or {}),
                    "AzureAsyncOperationUri": headers["Azure-AsyncOperation"],
                },
                "scaleSettings": properties.get("scaleSettings") or {"scaleType": "Default"},
                "livenessProbe": {**PROBE, **(properties.get("livenessProbe") or {})},
                "readinessProbe": {**PROBE, **(properties.get("readinessProbe") or {})},
                "requestSettings": {**REQUESTS, **(properties.get("requestSettings") or {})},
                "provisioningState": "Updating" if before else "Creating",
            },
        }
        self._state.put(str(rid), stored, parent=rid.parent)
        return JSONResponse(stored, 200 if before else 201, headers)

    def _check_deployment(self, rid: ResourceId, body: Body) -> None:
        properties = body.get("properties", {})
        if not re.fullmatch(NAME, rid.name):
            raise ArmError(
                400, "BadArgument", f"The deployment name '{rid.name}' must be 3-32 letters, digits and '-'."
            )
        size = str(properties.get("instanceType", ""))
        if size.lower() not in [name.lower() for name in SIZES]:
            raise ArmError(400, "BadArgument", f"The instance type '{size}' is not supported in this region.")
        for key in ("model", "environmentId"):
            if properties.get(key) and self._state.get(properties[key].removeprefix("azureml:")) is None:
                raise ArmError(400, "BadArgument", f"The {key} '{properties[key]}' of the deployment does not exist.")

    @staticmethod
    def _check_still(before: Body | None) -> None:
        if before is not None and (state := before["properties"]["provisioningState"]) in MOVING:
            message = f"The deployment '{before['name']}' is {state.lower()}; wait until that has ended."
            raise ArmError(409, "Conflict", message)

    def _check_quota(self, rid: ResourceId, body: Body) -> None:
        """The cores of all deployments of a family, with the service's reserve, stay within the family's quota."""
        wanted = str(body["properties"]["instanceType"])
        family, cores, *_ = next(size for name, size in SIZES.items() if name.lower() == wanted.lower())
        others = [one for one in self._state.of_type(DEPLOYMENT) if one["id"].lower() != str(rid).lower()]
        held = sum(_cores(one, family) for one in others)
        needed = _reserved(cores, int((body.get("sku") or {}).get("capacity") or 1))
        if held + needed > QUOTA:
            message = f"Not enough quota available for {wanted} in SubscriptionId. Current usage/limit: {held}/{QUOTA}."
            detail = f"Additional needed: {needed} (20 % of the cores are reserved for upgrades)."
            raise ArmError(400, "OutOfQuota", f"{message} {detail}")

    async def delete_deployment(self, request: Request, rid: ResourceId) -> Response:
        found = self._state.get(str(rid))
        if found is None:
            return Response(status_code=204)
        self._check_still(found)
        endpoint = self._state.get(rid.parent)
        if endpoint and (
            endpoint["properties"]["traffic"].get(rid.name) or endpoint["properties"]["mirrorTraffic"].get(rid.name)
        ):
            raise ArmError(
                409, "Conflict", f"The deployment '{rid.name}' has traffic; move it away before deleting it."
            )
        found["properties"]["provisioningState"] = "Deleting"
        self._state.put(str(rid), found, parent=rid.parent)
        headers = self._operations.start(found["location"], self._runner.remove(str(rid)))
        return Response(status_code=202, headers=headers)

    async def logs(self, request: Request, rid: ResourceId) -> Response:
        deployment, _ = rid.action
        self._arm.existing(deployment)
        wanted = await json_body(request)
        container = INITIALIZER if wanted.get("containerType") == "StorageInitializer" else SERVER
        return JSONResponse({"content": self._runner.log(str(deployment), int(wanted.get("tail") or 100), container)})


def _check_mirror(mirror: dict[str, int], traffic: dict[str, int]) -> None:
    """One deployment, at most half of the requests, and none that has traffic of its own.

    learn.microsoft.com/azure/machine-learning/how-to-safely-rollout-online-endpoints (test with mirrored traffic)
    """
    if len(mirror) > 1 or sum(mirror.values()) > 50:
        raise ArmError(400, "BadArgument", "Traffic is mirrored to one deployment, and 50 % of it at most.")
    if both := [name for name in mirror if traffic.get(name)]:
        raise ArmError(400, "BadArgument", f"The deployment '{both[0]}' has traffic, so none can be mirrored to it.")


def _reserved(cores: int, instances: int) -> int:
    return math.ceil(cores * instances * RESERVE)


def _cores(deployment: Body, family: str) -> int:
    """What a deployment takes of a family's quota."""
    size = SIZES.get(str(deployment["properties"]["instanceType"]), ("", 0))
    return _reserved(size[1], int(deployment["sku"].get("capacity") or 1)) if size[0] == family else 0


def _new_keys() -> Body:
    return {"primaryKey": secrets.token_urlsafe(24), "secondaryKey": secrets.token_urlsafe(24)}
