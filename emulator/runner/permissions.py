"""Whether a principal's role assignments permit something, as the services behind Azure ML ask it."""

from __future__ import annotations

from fnmatch import fnmatchcase

from emulator.arm.rights import ASSIGNMENT, BLOB_WRITER, OWNER, PERMISSIONS, SUBSCRIPTION
from emulator.arm.schema import Body
from emulator.home import DEPLOYER_OBJECT_ID
from emulator.state import State

READ_BLOBS = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/read"
PULL = "Microsoft.ContainerRegistry/registries/pull/read"
ROLE = "Microsoft.Authorization/roleDefinitions"
SCORE = "Microsoft.MachineLearningServices/workspaces/onlineEndpoints/score/action"
# learn.microsoft.com/azure/role-based-access-control/built-in-roles/ai-machine-learning
DATA_SCIENTIST = "f6c7c914-8db3-469d-8ca1-694a8f32e121"
ML = "Microsoft.MachineLearningServices/workspaces"
ROLES: dict[str, Body] = {
    **PERMISSIONS,
    DATA_SCIENTIST: {
        "actions": [f"{ML}/*/read", f"{ML}/*/action", f"{ML}/*/delete", f"{ML}/*/write"],
        "notActions": [f"{ML}/delete", f"{ML}/write", f"{ML}/computes/*/write", f"{ML}/computes/*/delete"],
        "dataActions": [],
        "notDataActions": [],
    },
}


def permits(state: State, principal: str, scope: str, action: str, *, data: bool = False) -> bool:
    """Roles add up, and hold for all that lies below the scope that they are assigned at."""
    allow, leave_out = ("dataActions", "notDataActions") if data else ("actions", "notActions")
    for assignment in _assignments(state, principal):
        at = str(assignment["id"]).split("/providers/Microsoft.Authorization/")[0]
        role = _role(state, str(assignment["properties"]["roleDefinitionId"]).rsplit("/", 1)[-1].lower())
        if role is None or not f"{scope}/".lower().startswith(f"{at}/".lower()):
            continue
        if _among(role[allow], action) and not _among(role[leave_out], action):
            return True
    return False


def _role(state: State, name: str) -> Body | None:
    """A built-in role, or a custom one by its first permission."""
    own = [one["properties"]["permissions"][0] for one in state.of_type(ROLE) if one["name"].lower() == name]
    empty: Body = {"actions": [], "notActions": [], "dataActions": [], "notDataActions": []}
    return ROLES.get(name) or ({**empty, **own[0]} if own else None)


def _assignments(state: State, principal: str) -> list[Body]:
    found = [one for one in state.of_type(ASSIGNMENT) if one["properties"]["principalId"] == principal]
    if principal == DEPLOYER_OBJECT_ID:
        found += [_at_subscription(OWNER), _at_subscription(BLOB_WRITER)]
    return found


def _at_subscription(role: str) -> Body:
    return {"id": f"{SUBSCRIPTION}/providers/{ASSIGNMENT}/{role}", "properties": {"roleDefinitionId": f"/{role}"}}


def _among(patterns: list[str], action: str) -> bool:
    return any(fnmatchcase(action.lower(), pattern.lower()) for pattern in patterns)
