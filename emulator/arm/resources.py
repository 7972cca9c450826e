"""Azure Resource Manager: dispatch, generic resources, role assignments, soft delete."""

from __future__ import annotations

import json
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from emulator.arm.ids import ResourceId
from emulator.arm.schema import TYPES, ArmError, Body, known, validate
from emulator.entra import Entra
from emulator.home import SUBSCRIPTION_ID, TENANT_ID
from emulator.state import State

Operation = Callable[[Request, ResourceId], Awaitable[Response]]
Hook = Callable[[Body], None]
ARM_AUDIENCES = ("https://management.azure.com", "https://management.core.windows.net", "https://ml.azure.com")
SOFT_DELETED = ("microsoft.machinelearningservices/workspaces", "microsoft.keyvault/vaults")


class Arm:
    """One subscription. Other modules add their operations with `on` and learn of deletions with `on_delete`."""

    def __init__(self, state: State, entra: Entra) -> None:
        self.state, self._entra = state, entra
        self._operations: dict[tuple[str, str], Operation] = {}
        self._deleted: dict[str, Hook] = {}

    def on(self, method: str, resource_type: str, operation: Operation) -> None:
        """Answer `method` on a resource type (or a collection or action, whose type path is one longer)."""
        self._operations[method, resource_type.lower()] = operation

    def on_delete(self, resource_type: str, hook: Hook) -> None:
        """Call `hook` with each resource of the type that goes, also when it goes with its parent."""
        self._deleted[resource_type.lower()] = hook

    async def handle(self, request: Request) -> Response:
        try:
            if self._entra.check(request.headers.get("authorization", ""), ARM_AUDIENCES) is None:
                raise ArmError(
                    401, "AuthenticationFailed", "Authentication failed. The access token is missing or invalid."
                )
            response = await self._dispatch(request)
        except ArmError as error:
            response = error_response(error)
        response.headers["x-ms-request-id"] = response.headers["x-ms-correlation-request-id"] = str(uuid.uuid4())
        return response

    async def _dispatch(self, request: Request) -> Response:
        path = request.scope["path"].rstrip("/")
        parts = path.strip("/").split("/")
        if parts[0].lower() != "subscriptions":
            raise not_emulated(request)
        if len(parts) > 1 and parts[1].lower() != SUBSCRIPTION_ID:
            raise ArmError(404, "SubscriptionNotFound", f"The subscription '{parts[1]}' could not be found.")
        if request.method == "GET" and len(parts) == 1:
            return JSONResponse({"value": [subscription()]})
        if request.method == "GET" and len(parts) == 2:
            return JSONResponse(subscription())
        if len(parts) == 5 and parts[2].lower() == "resourcegroups" and parts[4].lower() == "resources":
            return self._resources_of_group("/" + "/".join(parts[:4]))
        if len(parts) in (3, 4) and (parts[2].lower(), request.method) == ("providers", "GET"):
            return await self._operations["GET", "providers"](request, _namespace(parts))
        rid = ResourceId.parse(path)
        if rid is None:
            raise not_emulated(request)
        operation = self._operations.get((request.method, rid.type.lower()))
        if operation is not None:
            return await operation(request, rid)
        if rid.type.lower() not in TYPES:
            raise not_emulated(request)
        return await self._generic(request, rid)

    async def _generic(self, request: Request, rid: ResourceId) -> Response:
        match request.method:
            case "PUT":
                return await self.put(request, rid)
            case "GET" | "HEAD" if rid.is_collection:
                return JSONResponse({"value": self.state.children(rid.parent, rid.type)})
            case "GET":
                return JSONResponse(self.existing(rid))
            case "HEAD":
                return Response(status_code=204 if self.state.get(str(rid)) else 404)
            case "PATCH":
                return await self._patch(request, rid)
            case "DELETE":
                return self._delete(rid)
        raise not_emulated(request)

    def existing(self, rid: ResourceId) -> Body:
        """A resource that must exist. Raises ArmError 404 as ARM answers, naming group or resource."""
        found = self.state.get(str(rid))
        if found is None:
            self.check_parent(rid)
            if rid.types == ("resourceGroups",):
                raise ArmError(404, "ResourceGroupNotFound", f"Resource group '{rid.name}' could not be found.")
            path = "/".join(part for pair in zip(rid.types, rid.names, strict=True) for part in pair)
            raise ArmError(404, "ResourceNotFound", f"The Resource '{rid.namespace}/{path}' was not found.")
        return found

    def check_parent(self, rid: ResourceId) -> None:
        """Raise ArmError 404 if the resource group or the parent resource of `rid` does not exist."""
        group = (
            ResourceId.parse("/".join(rid.scope.split("/")[:5])) if "/resourcegroups/" in rid.scope.lower() else None
        )
        if group is not None and self.state.get(str(group)) is None:
            raise ArmError(404, "ResourceGroupNotFound", f"Resource group '{group.name}' could not be found.")
        if len(rid.types) > 1 and self.state.get(rid.parent) is None:
            message = (
                f"Can not perform requested operation on nested resource. Parent resource '{rid.names[-2]}' not found."
            )
            raise ArmError(404, "ParentResourceNotFound", message)

    async def put(self, request: Request, rid: ResourceId) -> Response:
        body = await json_body(request)
        stored, created = self.store(rid, body)
        return JSONResponse(stored, 201 if created else 200)

    def store(self, rid: ResourceId, body: Body) -> tuple[Body, bool]:
        """Validate and store a resource as ARM would answer it; tells also whether it is new."""
        validate(rid, body)
        self.check_parent(rid)
        before = self.state.get(str(rid))
        if rid.type.lower() == "microsoft.authorization/roleassignments":
            self._check_role_assignment(rid, body, before)
        if before is None:
            self._check_soft_deleted(rid)
        kind = known(rid)
        kept = before["properties"] if before else {}
        outputs = {key: kept[key] for key in kind.outputs(rid, body) if key in kept} or kind.outputs(rid, body)
        stored = {
            **body,
            "id": str(rid),
            "name": rid.name,
            "type": rid.type,
            "properties": {**body.get("properties", {}), **outputs, "provisioningState": "Succeeded"},
        }
        if "identity" in body:
            stored["identity"] = self.resolve_identity(body["identity"], before)
        self.state.put(str(rid), stored, parent=rid.parent)
        return stored, before is None

    def resolve_identity(self, identity: Body, before: Body | None = None) -> Body:
        """Fill a resource's `identity` with the ids that Azure answers. Raises ArmError for one that does not exist."""
        kind = str(identity.get("type", "None"))
        made: Body = {"type": kind}
        if "SystemAssigned" in kind:
            kept = (before or {}).get("identity", {}).get("principalId")
            made |= {"principalId": kept or str(uuid.uuid4()), "tenantId": TENANT_ID}
        if "UserAssigned" in kind:
            made["userAssignedIdentities"] = {}
            for key in identity.get("userAssignedIdentities") or {}:
                found = self.state.get(key)
                if found is None:
                    raise ArmError(400, "FailedIdentityOperation", f"The identity '{key}' could not be found.")
                ids = {name: found["properties"][name] for name in ("principalId", "clientId")}
                made["userAssignedIdentities"][key] = ids
        return made

    def _check_role_assignment(self, rid: ResourceId, body: Body, before: Body | None) -> None:
        wanted = body["properties"]
        identities = self.state.of_type("Microsoft.ManagedIdentity/userAssignedIdentities")
        is_service = wanted["principalId"] in [found["properties"]["principalId"] for found in identities]
        given = wanted.get("principalType", "User")
        if is_service and given != "ServicePrincipal":
            raise ArmError(
                400,
                "UnmatchedPrincipalType",
                f"The PrincipalId '{wanted['principalId']}' has type 'ServicePrincipal', which is different from "
                f"specified PrinciaplType '{given}'.",  # spelled as Azure spells it
            )
        same = ("roleDefinitionId", "principalId")
        if before is not None:
            if any(before["properties"][key].lower() != wanted[key].lower() for key in same):
                message = "Tenant ID, application ID, principal ID, and scope are not allowed to be updated."
                raise ArmError(400, "RoleAssignmentUpdateNotPermitted", message)
            return
        for other in self.state.children(rid.parent, rid.type):
            if all(other["properties"][key].lower() == wanted[key].lower() for key in same):
                raise ArmError(409, "RoleAssignmentExists", "The role assignment already exists.")

    def _check_soft_deleted(self, rid: ResourceId) -> None:
        if rid.type.lower() not in SOFT_DELETED or self.state.record("soft-deleted", _deleted_key(rid)) is None:
            return
        code = "VaultAlreadyExists" if "vault" in rid.type.lower() else "Conflict"
        message = (
            f"A soft-deleted resource with the name '{rid.name}' exists. Purge or recover it, or choose another name."
        )
        raise ArmError(409, code, message)

    async def _patch(self, request: Request, rid: ResourceId) -> Response:
        found, body = self.existing(rid), await json_body(request)
        for key, value in body.items():
            found[key] = {**found.get(key, {}), **value} if isinstance(value, dict) and key == "properties" else value
        self.state.put(str(rid), found, parent=rid.parent)
        return JSONResponse(found)

    def _delete(self, rid: ResourceId) -> Response:
        if self.state.get(str(rid)) is None:
            return Response(status_code=204)
        self.remove(str(rid))
        return Response(status_code=200)

    def remove(self, resource_id: str, *, purge: bool = False) -> None:
        """Delete a resource with all below it, telling the hooks, children first; vaults and workspaces softly."""
        gone = [*reversed(self.state.below(resource_id)), *filter(None, [self.state.get(resource_id)])]
        for body in gone:
            if hook := self._deleted.get(body["type"].lower()):
                hook(body)
            rid = ResourceId.parse(body["id"])
            if (
                rid is not None
                and rid.type.lower() in SOFT_DELETED
                and not (purge and body["id"].lower() == resource_id.lower())
            ):
                deleted = {**body, "deletedAt": datetime.now(UTC).isoformat()}
                self.state.save_record("soft-deleted", _deleted_key(rid), deleted)
        self.state.delete(resource_id)

    def purge(self, rid: ResourceId) -> bool:
        """Forget a soft-deleted resource; False if there is none."""
        if self.state.record("soft-deleted", _deleted_key(rid)) is None:
            return False
        self.state.drop_record("soft-deleted", _deleted_key(rid))
        return True

    def _resources_of_group(self, group: str) -> Response:
        rid = ResourceId.parse(group)
        assert rid is not None
        self.existing(rid)
        keys = ("id", "name", "type", "location", "tags")
        found = [{key: body[key] for key in keys if key in body} for body in self.state.below(group)]
        return JSONResponse({"value": [body for body in found if body["type"].count("/") == 1]})


def _deleted_key(rid: ResourceId) -> str:
    # A vault's name is taken in its whole region, a workspace's in its resource group.
    return f"{rid.type}/{rid.name}" if "vault" in rid.type.lower() else str(rid)


def _namespace(parts: list[str]) -> ResourceId:
    """`/subscriptions/S/providers[/NAMESPACE]`, which names a namespace and no resource."""
    return ResourceId("/" + "/".join(parts[:2]), "".join(parts[3:]), (), ())


def subscription() -> Body:
    return {
        "id": f"/subscriptions/{SUBSCRIPTION_ID}",
        "subscriptionId": SUBSCRIPTION_ID,
        "tenantId": TENANT_ID,
        "displayName": "Local emulator",
        "state": "Enabled",
    }


def not_emulated(request: Request) -> ArmError:
    request.state.note = "not emulated"
    message = f"The requested operation {request.method} {request.scope['path']} could not be found."
    return ArmError(404, "NotFound", message)


def error_response(error: ArmError) -> JSONResponse:
    body = {"error": {"code": error.code, "message": error.message, "details": [], "additionalInfo": []}}
    return JSONResponse(body, error.status)


async def json_body(request: Request) -> dict[str, Any]:
    """The request's JSON object. Raises ArmError 400 for anything else."""
    try:
        body = json.loads(await request.body() or b"{}")
    except ValueError:
        raise ArmError(
            400, "InvalidRequestContent", "The request content was invalid and could not be deserialized."
        ) from None
    if not isinstance(body, dict):
        raise ArmError(400, "InvalidRequestContent", "The request content must be a JSON object.")
    return body
