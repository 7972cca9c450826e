"""Azure Resource Manager: dispatch, and the resources that need nothing but storing and checking."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from emulator.arm import body as bodies
from emulator.arm import locks, rights, soft_delete, validation
from emulator.arm.ids import ResourceId
from emulator.arm.operations import Handler, Operations
from emulator.arm.schema import TYPES, ArmError, Body, known
from emulator.entra import Entra
from emulator.home import SUBSCRIPTION_ID, TENANT_ID
from emulator.state import State

Hook = Callable[[Body], asyncio.Future[None] | None]
ARM_AUDIENCES = ("https://management.azure.com", "https://management.core.windows.net", "https://ml.azure.com")


class Arm:
    """One subscription. Other modules add their operations with `on` and learn of deletions with `on_delete`."""

    def __init__(self, state: State, entra: Entra) -> None:
        self.state, self._entra = state, entra
        self._operations: dict[tuple[str, str], Handler] = {}
        self._deleted: dict[str, Hook] = {}
        self.operations = Operations(state)
        for kind, handler in self.operations.handlers.items():
            self.on("GET", kind, handler)

    def on(self, method: str, resource_type: str, operation: Handler) -> None:
        """Answer `method` on a resource type (or a collection or action, whose type path is one longer)."""
        self._operations[method, resource_type.lower()] = operation

    def on_delete(self, resource_type: str, hook: Hook) -> None:
        """Call `hook` with each resource of the type that goes, also when it goes with its parent.

        A deletion that may take its time waits for what the hook returns.
        """
        self._deleted[resource_type.lower()] = hook

    async def handle(self, request: Request) -> Response:
        begun = time.perf_counter()
        try:
            claims = self._entra.check(request.headers.get("authorization", ""), ARM_AUDIENCES)
            if claims is None:
                message = "Authentication failed. The access token is missing or invalid."
                raise ArmError(401, "AuthenticationFailed", message)
            request.state.claims = claims
            response = await self._dispatch(request)
        except ArmError as error:
            response = error_response(error)
        response.headers["x-ms-request-id"] = response.headers["x-ms-correlation-request-id"] = str(uuid.uuid4())
        response.headers["x-ms-response-type"] = "standard" if response.status_code < 400 else "error"
        response.headers["x-request-time"] = f"{time.perf_counter() - begun:.3f}"
        return response

    async def _dispatch(self, request: Request) -> Response:
        path = request.scope["path"].rstrip("/")
        parts = path.strip("/").split("/")
        if parts[0].lower() != "subscriptions":
            raise not_emulated(request)
        if len(parts) > 1 and parts[1].lower() != SUBSCRIPTION_ID:
            raise ArmError(404, "SubscriptionNotFound", f"The subscription '{parts[1]}' could not be found.")
        if len(parts) < 3 and request.method == "GET":
            return JSONResponse({"value": [subscription()]} if len(parts) == 1 else subscription())
        if len(parts) in (3, 4) and request.method == "GET" and parts[2].lower() in ("providers", "operationresults"):
            return await self._operations["GET", parts[2].lower()](request, _below_subscription(parts))
        rid = ResourceId.parse(path)
        if rid is None:
            raise not_emulated(request)
        rights.check(self.state, request.state.claims, request.method, rid)
        locks.check(self.state, rid, request.method)
        operation = self._operations.get((request.method, rid.type.lower()))
        if operation is not None:
            return _located(await operation(request, rid), request, rid)
        if rid.type.lower() not in TYPES:
            raise not_emulated(request)
        return await self._generic(request, rid)

    async def _generic(self, request: Request, rid: ResourceId) -> Response:
        match request.method:
            case "PUT":
                return self.answer(rid, *self.store(rid, await json_body(request)))
            case "GET" | "HEAD" if rid.is_collection:
                return JSONResponse({"value": self.listed(rid)})
            case "GET":
                return JSONResponse(self.existing(rid))
            case "HEAD":
                return Response(status_code=204 if self.state.get(str(rid)) else 404)
            case "PATCH":
                return await self._patch(request, rid)
            case "DELETE":
                return self._delete(request, rid)
        raise not_emulated(request)

    def listed(self, rid: ResourceId) -> list[Body]:
        """A collection, of a parent, of a resource group or of the whole subscription."""
        of_subscription = rid.scope.count("/") == 2 and len(rid.types) == 1
        return self.state.of_type(rid.type) if of_subscription else self.state.children(rid.parent, rid.type)

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
        """Raise ArmError 404 if the resource group, the resource that is the scope, or the parent does not exist."""
        group = rid.group
        if group is not None and self.state.get(str(group)) is None:
            raise ArmError(404, "ResourceGroupNotFound", f"Resource group '{group.name}' could not be found.")
        scope = ResourceId.parse(rid.scope)
        if scope is not None and scope.types != ("resourceGroups",):
            self.existing(scope)
        if len(rid.types) > 1 and self.state.get(rid.parent) is None:
            message = (
                f"Can not perform requested operation on nested resource. Parent resource '{rid.names[-2]}' not found."
            )
            raise ArmError(404, "ParentResourceNotFound", message)

    # -- PUT and PATCH -------------------------------------------------------------------------------------------------

    def store(self, rid: ResourceId, body: Body) -> tuple[Body, bool]:
        """Check and store a resource as ARM would answer it; tells also whether it is new."""
        return self.save(rid, *self.check(rid, body))

    def check(self, rid: ResourceId, body: Body) -> tuple[Body, Body | None]:
        """What a PUT would store, and what it would change; a soft-deleted resource may come back.

        Raises ArmError for whatever Azure would refuse.
        """
        self.check_parent(rid)
        self._check_group_stays(rid)
        before = self.state.get(str(rid))
        if before is None and (before := soft_delete.revived(self.state, rid, body)) is not None:
            body = {**before, **body, "properties": {**before["properties"], **(body.get("properties") or {})}}
        validation.check(self.state, rid, body, before)
        return body, before

    def _check_group_stays(self, rid: ResourceId) -> None:
        group = rid.group or rid
        found = self.state.get(str(group)) if group.types == ("resourceGroups",) else None
        if found is not None and found["properties"]["provisioningState"] == "Deleting":
            message = f"The resource group '{group.name}' is in deprovisioning state and cannot perform this operation."
            raise ArmError(409, "ResourceGroupBeingDeleted", message)

    def save(self, rid: ResourceId, body: Body, before: Body | None) -> tuple[Body, bool]:
        """Store a checked resource; tells also whether it is new."""
        kind = known(rid)
        kept = before["properties"] if before else {}
        outputs = {key: kept.get(key, value) for key, value in kind.outputs(rid, body).items()}
        state = {"provisioningState": "Succeeded"} if bodies.has_state(rid) else {}
        written = bodies.writable(rid, body)
        stored = {
            **written,
            "id": str(rid),
            "name": rid.name,
            "type": kind.name,
            "properties": {**(written.get("properties") or {}), **outputs, **state},
        }
        if "identity" in written:
            stored["identity"] = self.resolve_identity(written["identity"], before)
        created = self.state.get(str(rid)) is None
        with self.state.transaction():
            soft_delete.drop(self.state, rid)
            self.state.put(str(rid), stored, parent=rid.parent)
        return stored, created

    def answer(self, rid: ResourceId, stored: Body, created: bool, *, service: str = "") -> Response:
        """A PUT's response: the resource, an operation to poll, or both, as the type's own service does it."""
        long = known(rid).long
        if not long:
            return JSONResponse(stored, 201 if created else 200)
        # A type without a location lies in its parent's; the operation is done, so any region's address will do.
        location = str(stored.get("location") or "global")
        headers = self.operations.start(location, service=service or f"{rid.namespace}/operation")
        if long == "alone":
            return Response(status_code=202, headers=headers)
        going = {**stored, "properties": {**stored["properties"], "provisioningState": "Creating"}}
        if not created:
            going["properties"]["provisioningState"] = "Updating"
        return JSONResponse(going, 201 if created else 200, headers)

    def resolve_identity(self, identity: Body, before: Body | None = None) -> Body:
        """Fill a resource's `identity` with the ids that Azure answers. Raises ArmError for one that does not exist."""
        kind = str(identity.get("type", "None"))
        made: Body = {"type": kind}
        if "systemassigned" in kind.lower():
            kept = ((before or {}).get("identity") or {}).get("principalId")
            made |= {"principalId": kept or str(uuid.uuid4()), "tenantId": TENANT_ID}
        if "userassigned" in kind.lower():
            made["userAssignedIdentities"] = {}
            for key in identity.get("userAssignedIdentities") or {}:
                found = self.state.get(key)
                if found is None:
                    raise ArmError(400, "FailedIdentityOperation", f"The identity '{key}' could not be found.")
                ids = {name: found["properties"][name] for name in ("principalId", "clientId")}
                made["userAssignedIdentities"][key] = ids
        return made

    async def _patch(self, request: Request, rid: ResourceId) -> Response:
        found, body = self.existing(rid), await json_body(request)
        validation.check_body(rid, body, partial=True)
        whole = {**found, **body, "properties": {**found["properties"], **(body.get("properties") or {})}}
        return JSONResponse(self.store(rid, whole)[0])

    # -- DELETE --------------------------------------------------------------------------------------------------------

    def _delete(self, request: Request, rid: ResourceId) -> Response:
        self.check_parent(rid)
        found = self.state.get(str(rid))
        if found is None:
            return Response(status_code=204)
        # Log Analytics has `force` for what Azure ML calls forceToPurge.
        gone = self.remove(str(rid), purge=request.query_params.get("force", "").lower() == "true")
        if not known(rid).long:
            return Response(status_code=200)
        location = str(found.get("location") or "global")
        headers = self.operations.start(location, gone, service=f"{rid.namespace}/operation")
        return Response(status_code=202, headers=headers)

    def remove(self, resource_id: str, *, purge: bool = False) -> Awaitable[Any]:
        """Delete a resource with all below it; awaits the end of what runs in it, which ends also unawaited."""
        ending = self.end(resource_id)
        self.forget(resource_id, purge=purge)
        return ending

    def end(self, resource_id: str) -> Awaitable[Any]:
        """Tell the hooks of a resource and of all below it, children first; awaits what they await."""
        gone = [*reversed(self.state.below(resource_id)), *filter(None, [self.state.get(resource_id)])]
        waiting = [hook(body) for body in gone if (hook := self._deleted.get(body["type"].lower()))]
        return asyncio.gather(*filter(None, waiting))

    def forget(self, resource_id: str, *, purge: bool = False) -> None:
        """Take a resource and all below it out of the store; vaults and workspaces softly, unless it is purged."""
        with self.state.transaction():
            for body in [*self.state.below(resource_id), *filter(None, [self.state.get(resource_id)])]:
                if not (purge and body["id"].lower() == resource_id.lower()):
                    soft_delete.keep(self.state, body)
            self.state.delete(resource_id)


def _below_subscription(parts: list[str]) -> ResourceId:
    """`/subscriptions/S/providers[/NAMESPACE]` or `…/operationresults/ID`, which name no resource."""
    return ResourceId("/" + "/".join(parts[:2]), "".join(parts[3:]), (), tuple(parts[3:]))


def _located(response: Response, request: Request, rid: ResourceId) -> Response:
    """What a PUT in a workspace made has its own address as Location, a long-running one's too; computes have none."""
    nested = rid.namespace.lower() == "microsoft.machinelearningservices" and len(rid.types) > 1
    made = request.method == "PUT" and (response.status_code == 201 or "location" in response.headers)
    if nested and made and rid.types[1].lower() != "computes":
        response.headers["Location"] = str(request.url)
    return response


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
