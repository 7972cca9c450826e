"""Whether a principal's roles permit something, wherever Azure asks: Azure Resource Manager, storage, pulling, scoring.

learn.microsoft.com/azure/role-based-access-control/overview; what the built-in roles permit:
.../role-based-access-control/built-in-roles. Of a role that is not in PERMISSIONS nothing is known here, so it permits
nothing.
"""

from __future__ import annotations

import re
from typing import Any

from emulator.arm.ids import ResourceId
from emulator.arm.schema import ArmError, Body
from emulator.home import DEPLOYER_OBJECT_ID, SUBSCRIPTION_ID
from emulator.state import State

SUBSCRIPTION = f"/subscriptions/{SUBSCRIPTION_ID}"
ASSIGNMENT = "Microsoft.Authorization/roleAssignments"
ROLE = "Microsoft.Authorization/roleDefinitions"
BLOBS = "Microsoft.Storage/storageAccounts/blobServices"
READ_BLOBS = f"{BLOBS}/containers/blobs/read"
PULL = "Microsoft.ContainerRegistry/registries/pull/read"
ML = "Microsoft.MachineLearningServices"
SCORE = f"{ML}/workspaces/onlineEndpoints/score/action"
OWNER, BLOB_WRITER = "8e3af657-a8ff-443c-a75c-2fe8c4bcb635", "ba92f5b4-2d11-453d-a403-e96b0029c9fe"
DATA_SCIENTIST = "f6c7c914-8db3-469d-8ca1-694a8f32e121"

_CONTAINERS = [f"{BLOBS}/containers/{verb}" for verb in ("delete", "read", "write")]
_DATA = [f"{BLOBS}/containers/blobs/{verb}" for verb in ("delete", "read", "write", "move/action", "add/action")]
_IDENTITY = "Microsoft.ManagedIdentity/userAssignedIdentities"
_COSMOS = "Microsoft.DocumentDB/databaseAccounts"


def _permission(actions: list[str], excepted: list[str], data: list[str]) -> Body:
    return {"actions": actions, "notActions": excepted, "dataActions": data, "notDataActions": []}


PERMISSIONS: dict[str, Body] = {
    OWNER: _permission(["*"], [], []),
    # Contributor
    "b24988ac-6180-42a0-ab88-20f7382dd24c": _permission(
        ["*"], ["Microsoft.Authorization/*/Delete", "Microsoft.Authorization/*/Write"], []
    ),
    # Reader
    "acdd72a7-3385-48ef-bd42-f606fba81ae7": _permission(["*/read"], [], []),
    # User Access Administrator
    "18d7d88d-d35e-4fb5-a5c3-7773c20a72d9": _permission(["*/read", "Microsoft.Authorization/*"], [], []),
    # Role Based Access Control Administrator
    "f58310d9-a9f6-439a-9e8d-f62e7b41a168": _permission(
        ["*/read", f"{ASSIGNMENT}/write", f"{ASSIGNMENT}/delete"], [], []
    ),
    # Storage Account Contributor
    "17d1049b-9a84-46fb-8f53-869881c3d3ab": _permission(
        ["Microsoft.Authorization/*/read", "Microsoft.Storage/storageAccounts/*"], [], []
    ),
    # Storage Blob Data Owner
    "b7e6dc6d-f1e8-4753-8033-0f276bb0955b": _permission([f"{BLOBS}/containers/*"], [], [f"{BLOBS}/containers/blobs/*"]),
    BLOB_WRITER: _permission(_CONTAINERS, [], _DATA),
    # Storage Blob Data Reader
    "2a2b9908-6ea1-4ae2-8e65-a410df84e7d1": _permission([_CONTAINERS[1]], [], [_DATA[1]]),
    # AcrPull, AcrPush
    "7f951dda-4ed3-4680-a7ca-43fe172d538d": _permission([PULL], [], []),
    "8311e382-0749-4cb8-b61a-304f252e45ec": _permission(
        [PULL, "Microsoft.ContainerRegistry/registries/push/write"], [], []
    ),
    DATA_SCIENTIST: _permission(
        [f"{ML}/workspaces/*/{verb}" for verb in ("read", "action", "delete", "write")],
        [
            *(f"{ML}/workspaces/{what}" for what in ("delete", "write", "listKeys/action")),
            *(f"{ML}/workspaces/computes/{what}" for what in ("*/write", "*/delete", "listKeys/action")),
        ],
        [],
    ),
    # AzureML Compute Operator
    "e503ece1-11d0-4e8e-8e2c-7a6c3bf38815": _permission([f"{ML}/workspaces/computes/*"], [], []),
    # AzureML Metrics Writer (preview)
    "635dd51f-9968-44d3-b7fb-6d9a6bd613ae": _permission([f"{ML}/workspaces/metrics/*/write"], [], []),
    # AzureML Registry User
    "1823dd4f-9b8c-4ab6-ab4e-7397a3684615": _permission([f"{ML}/registries/read", f"{ML}/registries/assets/*"], [], []),
    # Managed Identity Contributor, Managed Identity Operator
    "e40ec5ca-96e0-45a2-b4ff-59039f2c2b59": _permission(
        [f"{_IDENTITY}/{verb}" for verb in ("read", "write", "delete")], [], []
    ),
    "f1a07417-d97a-45cb-824c-7a7467783830": _permission(
        [f"{_IDENTITY}/*/read", f"{_IDENTITY}/*/assign/action"], [], []
    ),
    # Monitoring Reader
    "43d0d8ad-25c7-4714-9337-8ba259a9fe05": _permission(["*/read"], [], []),
    # DocumentDB Account Contributor, Cosmos DB Account Reader Role
    "5bd9cd88-fe45-4216-938b-f97437e15450": _permission([f"{_COSMOS}/*"], [], []),
    "fbdf93bf-df7d-467e-a4d2-9458aa1360c8": _permission([f"{_COSMOS}/*/read"], [], []),
}


def permits(state: State, principal: str, scope: str, action: str, *, data: bool = False) -> bool:
    """Roles add up, and hold for all that lies below the scope that they are assigned at."""
    allow, leave_out = ("dataActions", "notDataActions") if data else ("actions", "notActions")
    for assignment in assignments(state, principal):
        role = _role(state, str(assignment["properties"]["roleDefinitionId"]).rsplit("/", 1)[-1].lower())
        if role is None or not covers(assignment, scope):
            continue
        if _among(role[allow], action) and not _among(role[leave_out], action):
            return True
    return False


def check(state: State, claims: Body, method: str, rid: ResourceId) -> None:
    """Raise ArmError 403 as Azure Resource Manager does, unless the caller's roles permit the request."""
    action, scope = _asked(method, rid)
    if "peration" in action or action.startswith("Microsoft.Authorization/permissions/"):
        return  # how an operation stands, and what one may do oneself, everybody may ask
    if permits(state, claims["oid"], scope, action):
        return
    message = (
        f"The client '{claims['appid']}' with object id '{claims['oid']}' does not have authorization to perform "
        f"action '{action}' over scope '{scope}' or the scope is invalid. If access was recently granted, please "
        "refresh your credentials."
    )
    raise ArmError(403, "AuthorizationFailed", message)


def _asked(method: str, rid: ResourceId) -> tuple[str, str]:
    """The action that a request needs, and where: learn.microsoft.com/…/role-based-access-control/role-definitions."""
    kind = rid.type
    if rid.namespace == "Microsoft.Resources":
        kind = "/".join(("Microsoft.Resources/subscriptions", *rid.types))
    if method == "POST":
        return f"{kind}/action", str(rid.action[0])
    verbs = {"GET": "read", "HEAD": "read", "DELETE": "delete"}
    return f"{kind}/{verbs.get(method, 'write')}", rid.parent if rid.is_collection else str(rid)


def assignments(state: State, principal: str | None = None) -> list[Body]:
    """Those of a principal, or all. The one who uses the emulator holds on the subscription what its owner would who
    also uploads data.
    """
    found = [_own(OWNER), _own(BLOB_WRITER), *state.of_type(ASSIGNMENT)]
    return found if principal is None else [one for one in found if principal_of(one) == principal]


def principal_of(assignment: Body) -> str:
    return str(assignment["properties"]["principalId"])


def scope_of(assignment: Body) -> str:
    return str(assignment["id"]).split("/providers/Microsoft.Authorization/")[0]


def covers(assignment: Body, scope: str) -> bool:
    """Whether an assignment is made at `scope` or above it."""
    return f"{scope}/".lower().startswith(f"{scope_of(assignment)}/".lower())


def _own(role: str) -> Body:
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


def _role(state: State, name: str) -> dict[str, Any] | None:
    """A built-in role, or a custom one by its first permission."""
    if name in PERMISSIONS:
        return PERMISSIONS[name]
    own = [one["properties"]["permissions"][0] for one in state.of_type(ROLE) if one["name"].lower() == name]
    return {**_permission([], [], []), **own[0]} if own else None


def _among(patterns: list[str], action: str) -> bool:
    return any(re.fullmatch(_pattern(one), action, re.IGNORECASE) for one in patterns)


def _pattern(text: str) -> str:
    """`*` is anything, and `computes/*/write` is `computes/write` too, as the built-in roles of Azure ML need it."""
    return re.escape(text).replace(r"/\*/", "/(?:.*/)?").replace(r"\*", ".*")
