"""The doctor's questions about whoever is signed in: may they create, grant roles, and write blobs?"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from infra.arm import Refused
from infra.finding import Finding

if TYPE_CHECKING:
    from infra.preflight_place import Place
    from infra.settings import Settings

ML = "Microsoft.MachineLearningServices"
NEEDED = (
    "Microsoft.Resources/subscriptions/resourceGroups/write",
    "Microsoft.Resources/subscriptions/resourceGroups/delete",
    f"{ML}/workspaces/write",
    f"{ML}/workspaces/computes/write",
    "Microsoft.Storage/storageAccounts/write",
    "Microsoft.KeyVault/vaults/write",
    "Microsoft.OperationalInsights/workspaces/write",
    "Microsoft.Insights/components/write",
    "Microsoft.ManagedIdentity/userAssignedIdentities/write",
    "Microsoft.ManagedIdentity/userAssignedIdentities/assign/action",
)
REGISTRY_WRITE = "Microsoft.ContainerRegistry/registries/write"
CHAT_WRITES = (
    "Microsoft.DocumentDB/databaseAccounts/write",
    "Microsoft.DocumentDB/databaseAccounts/sqlRoleAssignments/write",
)
BUDGET_WRITE = "Microsoft.Consumption/budgets/write"
CREDENTIAL_WRITE = "Microsoft.ManagedIdentity/userAssignedIdentities/federatedIdentityCredentials/write"
GRANT = "Microsoft.Authorization/roleAssignments/write"
BLOB_WRITE = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/write"
# Owner, User Access Administrator, Role Based Access Control Administrator:
# https://learn.microsoft.com/azure/role-based-access-control/built-in-roles/privileged
GRANTERS = (
    "8e3af657-a8ff-443c-a75c-2fe8c4bcb635",
    "18d7d88d-d35e-4fb5-a5c3-7773c20a72d9",
    "f58310d9-a9f6-439a-9e8d-f62e7b41a168",
)


def needed(settings: Settings) -> list[str]:
    """The actions on resources that bringing this stack up takes."""
    return [
        *NEEDED,
        *([] if settings.registry else [REGISTRY_WRITE]),
        *(CHAT_WRITES if settings.chat_store else []),
        *([BUDGET_WRITE] if settings.budget else []),
        *([CREDENTIAL_WRITE] if settings.github_subject else []),
    ]


def rights(place: Place) -> Iterator[Finding]:
    """What the roles of whoever is signed in permit: create everything, and give roles."""
    held = permissions(place, place.scope)
    if lacking := [action for action in needed(place.settings) if not permits(held, action)]:
        why = "the resources could not be created or removed"
        what = f"the role Contributor, or one like it, is missing: no {lacking[0]}"
        yield Finding("rights", "blocking", what, why, _ask(place, place.scope, "Contributor"))
    if not permits(held, GRANT):
        why = "the program gives roles to the identities of jobs and endpoints, and would end half-way"
        repair = _ask(place, place.scope, "Role Based Access Control Administrator")
        yield Finding("rights", "blocking", f"roles may not be assigned: no {GRANT}", why, repair)
    elif not lacking:
        yield Finding("rights", "ok", f"may create the resources and assign roles in {place.scope}")
        yield from conditions(place)


def conditions(place: Place) -> Iterator[Finding]:
    """The right to assign roles may be limited to some roles or principals; what a condition permits is not read."""
    oid = str(place.arm.claims.get("oid", ""))
    query = {"$filter": f"atScope() and assignedTo('{oid}')"}
    path = f"{place.scope}/providers/Microsoft.Authorization/roleAssignments"
    held = [one.get("properties") or {} for one in place.arm.list(path, "2022-04-01", **query)]
    limited = [one for one in held if "roleassignments" in str(one.get("condition") or "").lower()]
    if not limited or any(_grants_freely(one) for one in held):
        return
    why = (
        f"an assignment that it does not permit fails half-way; this stack assigns {', '.join(_roles(place.settings))}"
    )
    repair = f'az role assignment list --assignee {oid} --all --query "[?condition!=null].condition", and compare'
    yield Finding("rights", "warning", "the right to assign roles has a condition", why, repair)


def _grants_freely(assignment: dict[str, Any]) -> bool:
    role = str(assignment.get("roleDefinitionId", "")).rpartition("/")[2].lower()
    return role in GRANTERS and not assignment.get("condition")


def _roles(settings: Settings) -> list[str]:
    """The names of the roles that the program assigns, all of them to service principals but the deployer's."""
    from infra import roles  # the providers' SDK comes with it, which takes its time

    least = (*roles.LEAST_TRAINING, *roles.LEAST_SERVING)
    granted = [
        *(least if settings.grants == "least" else roles.guide(settings.datastore_auth)),
        *([roles.BLOB_WRITER] if settings.deployer else []),
        *(roles.GITHUB if settings.github_subject else []),
    ]
    return list(dict.fromkeys(one.role.name.replace("_", " ").title() for one in granted))


def _ask(place: Place, scope: str, role: str) -> str:
    who = place.arm.claims.get("oid", "OBJECT_ID")
    return f'ask an owner for: az role assignment create --assignee {who} --role "{role}" --scope {scope}'


def permissions(place: Place, scope: str) -> list[dict[str, Any]]:
    return place.arm.list(f"{scope}/providers/Microsoft.Authorization/permissions", "2022-04-01")


def permits(held: list[dict[str, Any]], action: str, *, data: bool = False) -> bool:
    """Roles add up: one that permits is enough, and what a role leaves out is left out of that role only."""
    allow, leave_out = ("dataActions", "notDataActions") if data else ("actions", "notActions")
    return any(
        any(_matches(one, action) for one in role.get(allow) or [])
        and not any(_matches(one, action) for one in role.get(leave_out) or [])
        for role in held
    )


def _matches(pattern: str, action: str) -> bool:
    return re.fullmatch(".*".join(re.escape(part) for part in pattern.split("*")), action, re.IGNORECASE) is not None


def blob_role(place: Place) -> Iterator[Finding]:
    """Data is uploaded from outside with the deployer's own role, which being Owner does not give."""
    deployer = place.settings.deployer
    if place.settings.datastore_auth != "Identity":
        yield Finding("blob-role", "ok", "the datastores use the account's key, so no role on blobs is needed")
        return
    oid = str(place.arm.claims.get("oid", ""))
    if deployer and deployer.principal_id.lower() == oid.lower():
        yield Finding("blob-role", "ok", "`deployer` is who is signed in: bringing the stack up grants the role")
        return
    if permits(permissions(place, place.scope), BLOB_WRITE, data=True):
        yield Finding("blob-role", "ok", f"may write blobs in {place.scope}")
        return
    why = "uploading the training data answers 403: with identity-based datastores even an owner needs the role"
    if deployer:
        what = f"`deployer` is {deployer.principal_id}, and {oid} is signed in without a role on blobs"
    else:
        what = f"no role on blobs in {place.scope}, and `deployer` is not set"
    yield Finding("blob-role", "warning", what, why, f"pulumi config set deployer {oid or 'OBJECT_ID'}")


def shared_registry(place: Place) -> Iterator[Finding]:
    """The registry of another stack or team: it has to be there, and this stack's identities get a role on it."""
    registry = place.settings.registry
    if registry is None:
        return
    choose = "az acr list --query [].id -o tsv, then pulumi config set containerRegistry ID"
    try:
        found = place.arm.get(registry.id, "2023-07-01")
    except Refused as error:
        if error.status not in (403, 404):
            raise
        missing = "may not be read" if error.status == 403 else "is not there"
        what = f"`containerRegistry` names {registry.id}, which {missing}"
        yield Finding("shared-registry", "blocking", what, "the workspace could not be created with it", choose)
        return
    if not permits(permissions(place, registry.id), GRANT):
        why = "this stack's identities need AcrPull on it, or jobs and endpoints get no image"
        repair = _ask(place, registry.id, "Role Based Access Control Administrator")
        yield Finding("shared-registry", "blocking", f"roles may not be assigned on {registry.name}", why, repair)
        return
    where = found.get("location", "")
    if where and where != place.settings.location:
        why = "every image crosses regions: nodes start later, and the traffic is paid for"
        what = f"{registry.name} lies in {where}, and the stack in {place.settings.location}"
        yield Finding("shared-registry", "warning", what, why, choose)
        return
    yield Finding("shared-registry", "ok", f"{registry.name} is there, and roles may be assigned on it")
