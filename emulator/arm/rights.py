"""What a caller may do, and which resource providers the subscription has: the reads that a doctor makes first.

Shapes: learn.microsoft.com/rest/api/authorization/permissions, .../authorization/role-assignments/list-for-scope and
learn.microsoft.com/rest/api/resources/providers/list.
"""

from __future__ import annotations

import re
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from emulator.arm.ids import ResourceId
from emulator.arm.resources import ARM_AUDIENCES, Arm
from emulator.arm.schema import TYPES, ArmError, Body
from emulator.entra import Entra
from emulator.home import DEPLOYER_OBJECT_ID, SUBSCRIPTION_ID

SUBSCRIPTION = f"/subscriptions/{SUBSCRIPTION_ID}"
ASSIGNMENT = "Microsoft.Authorization/roleAssignments"
BLOBS = "Microsoft.Storage/storageAccounts/blobServices"
_CONTAINERS = [f"{BLOBS}/containers/{verb}" for verb in ("delete", "read", "write")]
_DATA = [f"{BLOBS}/containers/blobs/{verb}" for verb in ("delete", "read", "write", "move/action", "add/action")]
OWNER, BLOB_WRITER = "8e3af657-a8ff-443c-a75c-2fe8c4bcb635", "ba92f5b4-2d11-453d-a403-e96b0029c9fe"


def _permission(actions: list[str], excepted: list[str], data: list[str]) -> Body:
    return {"actions": actions, "notActions": excepted, "dataActions": data, "notDataActions": []}


# What the built-in roles that occur here permit: learn.microsoft.com/azure/role-based-access-control/built-in-roles
PERMISSIONS = {
    OWNER: _permission(["*"], [], []),
    "b24988ac-6180-42a0-ab88-20f7382dd24c": _permission(
        ["*"], ["Microsoft.Authorization/*/Delete", "Microsoft.Authorization/*/Write"], []
    ),
    BLOB_WRITER: _permission(_CONTAINERS, [], _DATA),
    "2a2b9908-6ea1-4ae2-8e65-a410df84e7d1": _permission([_CONTAINERS[1]], [], [_DATA[1]]),
    "7f951dda-4ed3-4680-a7ca-43fe172d538d": _permission(["Microsoft.ContainerRegistry/registries/pull/read"], [], []),
}


class Rights:
    """Provider registrations, permissions at a scope, and the list of role assignments."""

    def __init__(self, arm: Arm, entra: Entra) -> None:
        self._arm, self._entra = arm, entra
        arm.on("GET", "providers", self.providers)
        arm.on("GET", "Microsoft.Authorization/permissions", self.permissions)
        arm.on("GET", ASSIGNMENT, self.assignments)

    async def providers(self, request: Request, rid: ResourceId) -> Response:
        """Every namespace that is emulated, all of them registered."""
        value = [_provider(name) for name in sorted({kind.name.split("/")[0] for kind in TYPES.values()})]
        if not rid.namespace:
            return JSONResponse({"value": value})
        for one in value:
            if one["namespace"].lower() == rid.namespace.lower():
                return JSONResponse(one)
        message = f"The resource namespace '{rid.namespace}' is invalid."
        raise ArmError(404, "InvalidResourceNamespace", message)

    async def permissions(self, request: Request, rid: ResourceId) -> Response:
        """What the caller's roles at this scope and above permit, one entry for each role."""
        claims = self._entra.check(request.headers.get("authorization", ""), ARM_AUDIENCES) or {}
        found = [one for one in self._all() if _principal(one) == claims.get("oid") and _covers(one, rid.scope)]
        roles = [one["properties"]["roleDefinitionId"].rsplit("/", 1)[-1].lower() for one in found]
        return JSONResponse({"value": [PERMISSIONS[role] for role in roles if role in PERMISSIONS]})

    async def assignments(self, request: Request, rid: ResourceId) -> Response:
        """One assignment, or those that touch a scope: `atScope()` leaves out what lies below it."""
        if not rid.is_collection:
            return JSONResponse(self._arm.existing(rid))
        query = request.query_params.get("$filter", "")
        wanted = re.search(r"(?:principalId eq '|assignedTo\(')([^']+)'", query)
        found = [one for one in self._all() if _covers(one, rid.scope) or _is_below(one, rid.scope)]
        if "atScope()" in query:
            found = [one for one in found if _covers(one, rid.scope)]
        if wanted:
            found = [one for one in found if _principal(one) == wanted[1]]
        return JSONResponse({"value": [{**one, "properties": _shown(one)} for one in found]})

    def _all(self) -> list[Body]:
        return [_own(OWNER), _own(BLOB_WRITER), *self._arm.state.of_type(ASSIGNMENT)]


def _provider(namespace: str) -> dict[str, Any]:
    short = [kind.name.split("/", 1)[1] for kind in TYPES.values() if kind.name.split("/")[0] == namespace]
    return {
        "id": f"{SUBSCRIPTION}/providers/{namespace}",
        "namespace": namespace,
        "registrationPolicy": "RegistrationRequired",
        "registrationState": "Registered",
        "resourceTypes": [{"resourceType": name, "locations": [], "apiVersions": []} for name in short],
    }


def _own(role: str) -> Body:
    """What the one who uses the emulator holds on the subscription, as its owner would who also uploads data."""
    return {
        "id": f"{SUBSCRIPTION}/providers/{ASSIGNMENT}/{role}",
        "name": role,
        "type": ASSIGNMENT,
        "properties": {
            "roleDefinitionId": f"{SUBSCRIPTION}/providers/Microsoft.Authorization/roleDefinitions/{role}",
            "principalId": DEPLOYER_OBJECT_ID,
            "principalType": "ServicePrincipal",
        },
    }


def _scope(assignment: Body) -> str:
    return str(assignment["id"]).split("/providers/Microsoft.Authorization/")[0]


def _shown(assignment: Body) -> Body:
    return {**assignment["properties"], "scope": _scope(assignment)}


def _principal(assignment: Body) -> str:
    return str(assignment["properties"]["principalId"])


def _covers(assignment: Body, scope: str) -> bool:
    """Whether an assignment is made at `scope` or above it."""
    return f"{scope}/".lower().startswith(f"{_scope(assignment)}/".lower())


def _is_below(assignment: Body, scope: str) -> bool:
    return f"{_scope(assignment)}/".lower().startswith(f"{scope}/".lower())
