"""What a subscription is asked about itself: resource providers, one's permissions at a scope, role assignments.

Shapes: learn.microsoft.com/rest/api/authorization/permissions, .../authorization/role-assignments/list-for-scope and
learn.microsoft.com/rest/api/resources/providers/list.
"""

from __future__ import annotations

import re
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from emulator.arm import rights
from emulator.arm.ids import ResourceId
from emulator.arm.resources import Arm
from emulator.arm.rights import ASSIGNMENT, PERMISSIONS, SUBSCRIPTION
from emulator.arm.schema import TYPES, ArmError, Body


class Subscription:
    def __init__(self, arm: Arm) -> None:
        self._arm = arm
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
        held = rights.assignments(self._arm.state, request.state.claims["oid"])
        found = [one for one in held if rights.covers(one, rid.scope)]
        roles = [one["properties"]["roleDefinitionId"].rsplit("/", 1)[-1].lower() for one in found]
        return JSONResponse({"value": [PERMISSIONS[role] for role in roles if role in PERMISSIONS]})

    async def assignments(self, request: Request, rid: ResourceId) -> Response:
        """One assignment, or those that touch a scope: `atScope()` leaves out what lies below it."""
        if not rid.is_collection:
            return JSONResponse(self._arm.existing(rid))
        query = request.query_params.get("$filter", "")
        wanted = re.search(r"(?:principalId eq '|assignedTo\(')([^']+)'", query)
        held = rights.assignments(self._arm.state, wanted[1] if wanted else None)
        found = [one for one in held if rights.covers(one, rid.scope)]
        if "atScope()" not in query:
            found = [one for one in held if rights.covers(one, rid.scope) or _is_below(one, rid.scope)]
        return JSONResponse({"value": [{**one, "properties": _shown(one)} for one in found]})


def _provider(namespace: str) -> dict[str, Any]:
    short = [kind.name.split("/", 1)[1] for kind in TYPES.values() if kind.name.split("/")[0] == namespace]
    return {
        "id": f"{SUBSCRIPTION}/providers/{namespace}",
        "namespace": namespace,
        "registrationPolicy": "RegistrationRequired",
        "registrationState": "Registered",
        "resourceTypes": [{"resourceType": name, "locations": [], "apiVersions": []} for name in short],
    }


def _shown(assignment: Body) -> Body:
    return {**assignment["properties"], "scope": rights.scope_of(assignment)}


def _is_below(assignment: Body, scope: str) -> bool:
    return f"{rights.scope_of(assignment)}/".lower().startswith(f"{scope}/".lower())
