"""The doctor's questions to Azure. Each check yields findings; `infra.preflight` decides what to do about silence."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from infra.arm import Arm
from infra.finding import Finding, command

if TYPE_CHECKING:
    from infra.settings import Settings

ML = "Microsoft.MachineLearningServices"
NAMESPACES = (
    ML,
    "Microsoft.Storage",
    "Microsoft.KeyVault",
    "Microsoft.OperationalInsights",
    "Microsoft.Insights",
    "Microsoft.ContainerRegistry",
    "Microsoft.ManagedIdentity",
)
NEEDED_ACTIONS = (
    "Microsoft.Resources/subscriptions/resourceGroups/write",
    "Microsoft.Resources/subscriptions/resourceGroups/delete",
    f"{ML}/workspaces/write",
    f"{ML}/workspaces/computes/write",
    "Microsoft.Storage/storageAccounts/write",
    "Microsoft.KeyVault/vaults/write",
    "Microsoft.OperationalInsights/workspaces/write",
    "Microsoft.Insights/components/write",
    "Microsoft.ContainerRegistry/registries/write",
    "Microsoft.ManagedIdentity/userAssignedIdentities/write",
    "Microsoft.ManagedIdentity/userAssignedIdentities/assign/action",
)
GRANT = "Microsoft.Authorization/roleAssignments/write"
BLOB_WRITE = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/write"
NAMES = (
    "same-azure",
    "subscription",
    "providers",
    "rights",
    "blob-role",
    "region-size",
    "gpu-quota",
    "soft-deleted-vaults",
    "soft-deleted-workspaces",
)


def checks(
    arm: Arm, base: str, source: str, settings: Settings | None
) -> dict[str, Callable[[], Iterator[Finding]] | None]:
    """The checks below a subscription; None for one that has to know the settings where there are none."""

    def need(check: Callable[[Arm, str, Settings], Iterator[Finding]]) -> Callable[[], Iterator[Finding]] | None:
        return None if settings is None else lambda: check(arm, base, settings)

    return {
        "subscription": lambda: subscription(arm, base, source),
        "providers": lambda: providers(arm, base),
        "rights": need(rights),
        "blob-role": need(blob_role),
        "region-size": need(region_size),
        "gpu-quota": need(gpu_quota),
        "soft-deleted-vaults": need(soft_deleted_vaults),
        "soft-deleted-workspaces": soft_deleted_workspaces,
    }


# --- which Azure ----------------------------------------------------------------------------------------------------


def subscription_id(stack: str) -> tuple[str | None, str]:
    """The subscription that Pulumi's provider would use, and what names it."""
    from infra.stack_config import values_of

    if configured := values_of(stack).get("azure-native:subscriptionId"):
        return str(configured), "azure-native:subscriptionId"
    if found := os.environ.get("ARM_SUBSCRIPTION_ID"):
        return found, "ARM_SUBSCRIPTION_ID"
    if account := _az_account():
        return account.get("id"), "az account show"
    return None, ""


def _az_account() -> dict[str, Any] | None:
    if shutil.which("az") is None:
        return None
    code, text = command("az", "account", "show", "--output", "json")
    try:
        found = json.loads(text) if code == 0 else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def same_azure(arm: Arm) -> Iterator[Finding]:
    """Pulumi's provider reads ARM_* or az, the SDK AZURE_*: they may disagree without a word."""
    account = {} if os.environ.get("ARM_TENANT_ID") and os.environ.get("ARM_SUBSCRIPTION_ID") else _az_account() or {}
    provider = {
        "tenant": os.environ.get("ARM_TENANT_ID") or account.get("tenantId"),
        "subscription": os.environ.get("ARM_SUBSCRIPTION_ID") or account.get("id"),
    }
    sdk = {
        "tenant": arm.claims.get("tid") or os.environ.get("AZURE_TENANT_ID"),
        "subscription": os.environ.get("AZURE_SUBSCRIPTION_ID"),
    }
    why = "Pulumi would create the stack in one place, and the jobs would look for it in another"
    for key, ours in provider.items():
        theirs = sdk[key]
        if ours and theirs and ours.lower() != theirs.lower():
            repair = f"export ARM_{key.upper()}_ID={theirs}, or AZURE_{key.upper()}_ID={ours}, and sign in to that one"
            yield Finding("same-azure", "blocking", f"Pulumi sees the {key} {ours}, the SDK {theirs}", why, repair)
        elif not ours or (key == "tenant" and not theirs):
            side = "Pulumi's provider" if not ours else "the SDK"
            what = f"not checked: which {key} {side} would use is not said by variables or az"
            yield Finding("same-azure", "unknown", what, why, f"export ARM_{key.upper()}_ID=…, or az login")
        else:
            yield Finding("same-azure", "ok", f"one {key}: {ours}")
    yield from _same_client()


def _same_client() -> Iterator[Finding]:
    ours, theirs = os.environ.get("ARM_CLIENT_ID"), os.environ.get("AZURE_CLIENT_ID")
    if (ours or "") != (theirs or "") and (ours or theirs):
        what = f"Pulumi signs in as {ours or 'the az user'}, the SDK as {theirs or 'the az user'}"
        why = "the rights found here are the SDK's; Pulumi may have others"
        repair = "export ARM_CLIENT_ID and AZURE_CLIENT_ID alike, or neither"
        yield Finding("same-azure", "warning", what, why, repair)


def subscription(arm: Arm, base: str, source: str) -> Iterator[Finding]:
    found = arm.get(base, "2022-12-01")
    name, state = found.get("displayName", base), found.get("state", "unknown")
    if state == "Enabled":
        yield Finding("subscription", "ok", f"{name} ({found['subscriptionId']}, from {source}) is enabled")
        return
    why = "Azure lets nothing be created in a subscription that is not enabled"
    repair = "az account set --subscription ANOTHER, or settle it in the portal"
    yield Finding("subscription", "warning" if state == "PastDue" else "blocking", f"{name} is {state}", why, repair)


def providers(arm: Arm, base: str) -> Iterator[Finding]:
    """Resource providers have to be registered once in a subscription."""
    listed = arm.list(f"{base}/providers", "2021-04-01")
    states = {one["namespace"].lower(): one["registrationState"] for one in listed}
    why = "creating its resources fails with MissingSubscriptionRegistration"
    missing = False
    for namespace in NAMESPACES:
        state = states.get(namespace.lower(), "NotRegistered")
        if state == "Registered":
            continue
        missing = True
        if state == "Registering":
            yield Finding("providers", "warning", f"{namespace} is still being registered", why, "wait some minutes")
        else:
            repair = f"az provider register --namespace {namespace} --wait"
            yield Finding("providers", "blocking", f"{namespace} is {state}", why, repair)
    if not missing:
        yield Finding("providers", "ok", f"the {len(NAMESPACES)} resource providers are registered")


# --- rights ---------------------------------------------------------------------------------------------------------


def rights(arm: Arm, base: str, settings: Settings) -> Iterator[Finding]:
    """What the roles of whoever is signed in permit: create everything, and give roles."""
    base = _scope(arm, base, settings)
    held = _permissions(arm, base)
    if lacking := [action for action in NEEDED_ACTIONS if not _permits(held, action)]:
        why = "the resources could not be created or removed"
        what = f"the role Contributor, or one like it, is missing: no {lacking[0]}"
        yield Finding("rights", "blocking", what, why, _role_command(arm, base, "Contributor"))
    if not _permits(held, GRANT):
        why = "the program gives roles to the identity of jobs and endpoints, and would end half-way"
        repair = _role_command(arm, base, "Role Based Access Control Administrator")
        yield Finding("rights", "blocking", f"roles may not be assigned: no {GRANT}", why, repair)
    elif lacking == []:
        yield Finding("rights", "ok", f"may create resources and assign roles ({_roles_held(arm, base)})")


def _scope(arm: Arm, base: str, settings: Settings) -> str:
    """The stack's resource group, if it is there: whoever may do all in it need not own the subscription."""
    from infra.naming import Names

    prefix = Names.of(settings.workload, settings.stack).resource_group
    groups = [one["id"] for one in arm.list(f"{base}/resourcegroups", "2021-04-01") if one["name"].startswith(prefix)]
    return str(groups[0]) if len(groups) == 1 else base


def _role_command(arm: Arm, base: str, role: str) -> str:
    who = arm.claims.get("oid", "OBJECT_ID")
    return f'ask an owner for: az role assignment create --assignee {who} --role "{role}" --scope {base}'


def _permissions(arm: Arm, scope: str) -> list[dict[str, Any]]:
    return arm.list(f"{scope}/providers/Microsoft.Authorization/permissions", "2022-04-01")


def _roles_held(arm: Arm, base: str) -> str:
    """How many assignments stand at the subscription or above, for the reader; groups are not resolved here."""
    query = {"$filter": f"principalId eq '{arm.claims.get('oid', '')}'"}
    held = arm.list(f"{base}/providers/Microsoft.Authorization/roleAssignments", "2022-04-01", **query)
    return f"{len(held)} role assignments of one's own, others through groups"


def _permits(held: list[dict[str, Any]], action: str, *, data: bool = False) -> bool:
    """Roles add up: one that permits is enough, and what a role leaves out is left out of that role only."""
    allow, leave_out = ("dataActions", "notDataActions") if data else ("actions", "notActions")
    return any(
        any(_matches(one, action) for one in role.get(allow) or [])
        and not any(_matches(one, action) for one in role.get(leave_out) or [])
        for role in held
    )


def _matches(pattern: str, action: str) -> bool:
    return re.fullmatch(".*".join(re.escape(part) for part in pattern.split("*")), action, re.IGNORECASE) is not None


def blob_role(arm: Arm, base: str, settings: Settings) -> Iterator[Finding]:
    """Data is uploaded from outside with the deployer's own role, which being Owner does not give."""
    if settings.datastore_auth != "Identity":
        yield Finding("blob-role", "ok", "the datastores use the account's key, so no role on blobs is needed")
        return
    oid = str(arm.claims.get("oid", ""))
    if settings.deployer and settings.deployer.principal_id.lower() == oid.lower():
        yield Finding("blob-role", "ok", "`deployer` is who is signed in: bringing the stack up grants the role")
        return
    scope = _scope(arm, base, settings)
    if _permits(_permissions(arm, scope), BLOB_WRITE, data=True):
        yield Finding("blob-role", "ok", f"may write blobs in {scope}")
        return
    why = "uploading the training data answers 403: with identity-based datastores even an owner needs the role"
    if settings.deployer:
        what = f"`deployer` is {settings.deployer.principal_id}, and {oid} is signed in without a role on blobs"
    else:
        what = f"no role on blobs in {scope}, and `deployer` is not set"
    yield Finding("blob-role", "warning", what, why, f"pulumi config set deployer {oid or 'OBJECT_ID'}")


# --- what the region has --------------------------------------------------------------------------------------------


def _sizes(arm: Arm, base: str, location: str) -> dict[str, dict[str, Any]]:
    path = f"{base}/providers/{ML}/locations/{location}/vmSizes"
    answer = arm.get(path, "2024-04-01")
    # The reference documents `value`; older API versions answered `amlCompute`.
    listed = answer.get("value") or answer.get("amlCompute") or []
    return {one["name"].lower(): one for one in listed}


def region_size(arm: Arm, base: str, settings: Settings) -> Iterator[Finding]:
    offered, size = _sizes(arm, base, settings.location), settings.compute.size
    why = "the cluster could not be created"
    if not offered:
        what = f"not checked: Azure lists no sizes for {settings.location}"
        yield Finding("region-size", "unknown", what, why, "az account list-locations --query [].name")
    elif size.lower() not in offered:
        gpus = sorted(one["name"] for one in offered.values() if one.get("gpus"))
        repair = f"pulumi config set computeSize {gpus[0] if gpus else 'SIZE'}, or another location"
        yield Finding("region-size", "blocking", f"{size} is not offered in {settings.location}", why, repair)
    elif settings.compute.low_priority and offered[size.lower()].get("lowPriorityCapable") is False:
        repair = "pulumi config set computeLowPriority false"
        yield Finding("region-size", "blocking", f"{size} is not offered at low priority", why, repair)
    else:
        yield Finding("region-size", "ok", f"{size} is offered in {settings.location}")


def gpu_quota(arm: Arm, base: str, settings: Settings) -> Iterator[Finding]:
    """Azure ML's own quota. A cluster without it is created all the same, and its first job waits for ever."""
    compute = settings.compute
    size = _sizes(arm, base, settings.location).get(compute.size.lower())
    why = "quota of Azure ML is not that of VMs and starts at 0; the cluster is created, and its first job never starts"
    request = "ask for more: https://ml.azure.com/quota, or pulumi config set computeSize ANOTHER"
    if size is None:
        yield Finding("gpu-quota", "unknown", f"not checked: {compute.size} is not offered", why, request)
        return
    family, cores = str(size["family"]), int(size["vCPUs"])
    row = _usage(arm, base, settings, family)
    what = "low priority" if compute.low_priority else family
    if row is None:
        yield Finding("gpu-quota", "unknown", f"not checked: Azure lists no quota for {what}", why, request)
        return
    limit, used, needed = int(row["limit"]), int(row["currentValue"]), cores * compute.max_nodes
    sum_ = f"{compute.max_nodes} x {compute.size} need {needed} cores of {what}; {limit} are granted, {used} in use"
    if limit < needed:
        yield Finding("gpu-quota", "blocking", sum_, why, request)
    elif limit - used < needed:
        yield Finding("gpu-quota", "warning", sum_, "jobs wait until others give cores back", request)
    else:
        yield Finding("gpu-quota", "ok", sum_)


def _usage(arm: Arm, base: str, settings: Settings, family: str) -> dict[str, Any] | None:
    """The subscription's row for a VM family; rows of single workspaces stand beside it."""
    rows = arm.list(f"{base}/providers/{ML}/locations/{settings.location}/usages", "2024-04-01")
    wanted = "lowpriority" if settings.compute.low_priority else _plain(family)
    for row in rows:
        if "/workspaces/" in str(row.get("id", "")).lower():
            continue
        shown = [_plain(row["name"].get(key) or "") for key in ("value", "localizedValue")]
        if any(wanted in one if settings.compute.low_priority else one.startswith(wanted) for one in shown):
            return row
    return None


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


# --- what is left of former stacks ----------------------------------------------------------------------------------


def soft_deleted_vaults(arm: Arm, base: str, settings: Settings) -> Iterator[Finding]:
    from infra.naming import Names

    prefix = Names.of(settings.workload, settings.stack).key_vault
    listed = arm.list(f"{base}/providers/Microsoft.KeyVault/deletedVaults", "2024-11-01")
    twins = [one for one in listed if str(one["name"]).startswith(prefix)]
    for one in twins:
        place = one.get("properties", {}).get("location", settings.location)
        why = "its name stays taken; a new vault gets other random digits, so nothing fails, but it lingers"
        repair = f"az keyvault purge --name {one['name']} --location {place}"
        yield Finding("soft-deleted-vaults", "warning", f"{one['name']} is soft-deleted", why, repair)
    if not twins:
        yield Finding("soft-deleted-vaults", "ok", f"no soft-deleted vault is called {prefix}…")


def soft_deleted_workspaces() -> Iterator[Finding]:
    what = "not checked: Azure has no operation that lists soft-deleted workspaces"
    why = "a soft-deleted workspace keeps its name for 14 days; new ones get random digits, so it does not collide"
    repair = "look in the portal: Azure Machine Learning, Recently deleted; `make down` purges what it removes"
    yield Finding("soft-deleted-workspaces", "unknown", what, why, repair)
