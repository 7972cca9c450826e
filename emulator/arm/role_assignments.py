"""Role assignments: which are refused, and how.

learn.microsoft.com/azure/role-based-access-control/troubleshooting and
learn.microsoft.com/rest/api/authorization/role-assignments/create.
"""

from __future__ import annotations

import re

from emulator.arm.directory import ROLES, principals
from emulator.arm.ids import ResourceId
from emulator.arm.schema import GUID, ArmError, Body
from emulator.home import TENANT_ID
from emulator.state import State

ASSIGNMENT = "microsoft.authorization/roleassignments"
_SAME = ("roleDefinitionId", "principalId")


def check(state: State, rid: ResourceId, body: Body, before: Body | None) -> None:
    """Raise ArmError for a role or principal that is not there, one of another type, or one that has it already."""
    if rid.type.lower() != ASSIGNMENT:
        return
    wanted = body["properties"]
    _check_role(state, wanted["roleDefinitionId"])
    _check_principal(state, wanted)
    if before is not None:
        if any(before["properties"][key].lower() != wanted[key].lower() for key in _SAME):
            message = "Tenant ID, application ID, principal ID, and scope are not allowed to be updated."
            raise ArmError(400, "RoleAssignmentUpdateNotPermitted", message)
        return
    for other in state.children(rid.parent, rid.type):
        if all(other["properties"][key].lower() == wanted[key].lower() for key in _SAME):
            message = f"The role assignment already exists. The ID of the existing role assignment is {other['name']}."
            raise ArmError(409, "RoleAssignmentExists", message)


def _check_role(state: State, definition: str) -> None:
    _, _, role = definition.rpartition("/providers/Microsoft.Authorization/roleDefinitions/")
    if not role or not re.fullmatch(GUID, role):
        raise ArmError(400, "InvalidRoleDefinitionId", f"The role definition ID '{definition}' is not valid.")
    custom = {one["name"].lower() for one in state.of_type("Microsoft.Authorization/roleDefinitions")}
    if role.lower() not in {*ROLES, *custom}:
        message = f"The specified role definition with ID '{role}' does not exist."
        raise ArmError(400, "RoleDefinitionDoesNotExist", message)


def _check_principal(state: State, wanted: Body) -> None:
    """People and groups are taken as they are: the emulator's directory holds service principals only."""
    principal, given = wanted["principalId"], wanted.get("principalType") or "User"  # the API's default
    if not re.fullmatch(GUID, principal):
        raise ArmError(400, "InvalidPrincipalId", f"A valid principal ID must be provided, which '{principal}' is not.")
    is_service = principal.lower() in principals(state)
    if is_service and given.lower() != "serviceprincipal":
        message = (
            f"The PrincipalId '{principal}' has type 'ServicePrincipal', which is different from "
            f"specified PrinciaplType '{given}'."  # spelled as Azure spells it
        )
        raise ArmError(400, "UnmatchedPrincipalType", message)
    if given.lower() == "serviceprincipal" and not is_service:
        message = (
            f"Principal {principal} does not exist in the directory {TENANT_ID}. "
            "Check that you have the correct principal ID."
        )
        raise ArmError(400, "PrincipalNotFound", message)
