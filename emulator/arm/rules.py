"""What single resource types ask for beyond their body's shape: dates, references, combinations.

Each check raises ArmError; the sentences are the resource provider's own where a source is named beside them.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

from emulator.arm.directory import principals
from emulator.arm.ids import ResourceId
from emulator.arm.schema import ArmError, Body
from emulator.state import State

COSMOS = "microsoft.documentdb/databaseaccounts"
COSMOS_ROLES = ("00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000002")  # Reader, Contributor
FIRST_BUDGET = date(2017, 6, 1)
MONTHS = {"monthly": 1, "billingmonth": 1, "quarterly": 3, "billingquarter": 3, "annually": 12, "billingannual": 12}
MOST_CREDENTIALS = 20  # federated ones of one identity


def check(state: State, rid: ResourceId, body: Body, before: Body | None) -> None:
    """Raise ArmError for what the type's own rules forbid."""
    properties = body.get("properties") or {}
    match rid.type.lower():
        case "microsoft.keyvault/vaults":
            _vault(properties, before)
        case "microsoft.operationalinsights/workspaces":
            _log_analytics(properties)
        case "microsoft.insights/components":
            _insights(state, properties)
        case "microsoft.consumption/budgets":
            _budget(properties, before)
        case "microsoft.managedidentity/userassignedidentities/federatedidentitycredentials":
            _credential(state, rid, properties)
        case "microsoft.documentdb/databaseaccounts/sqldatabases":
            _cosmos_resource(state, rid, properties)
        case "microsoft.documentdb/databaseaccounts/sqldatabases/containers":
            _cosmos_resource(state, rid, properties)
            _container(properties["resource"]["partitionKey"])
        case "microsoft.documentdb/databaseaccounts/sqlroleassignments":
            _cosmos_role(state, rid, properties)


def _refused(message: str, code: str = "BadRequest", status: int = 400) -> ArmError:
    return ArmError(status, code, message)


def _vault(properties: Body, before: Body | None) -> None:
    held = (before or {}).get("properties", {})
    properties.pop("createMode", None)  # said in a request, never answered
    if properties.get("enablePurgeProtection") is False:
        raise _refused(
            'The property "enablePurgeProtection" cannot be set to false. '
            "Enabling the purge protection for a vault is an irreversible action."
        )
    if held.get("enablePurgeProtection"):
        properties["enablePurgeProtection"] = True  # it stays when it is left unsaid
    if properties.get("enableSoftDelete") is False:
        raise _refused(
            'The property "enableSoftDelete" can be set to false only for creating new vault. '
            "Enabling the 'soft delete' functionality is an irreversible action."
        )
    if "softDeleteRetentionInDays" in held:
        properties.setdefault("softDeleteRetentionInDays", held["softDeleteRetentionInDays"])


def _log_analytics(properties: Body) -> None:
    """learn.microsoft.com/azure/azure-monitor/logs/data-retention-configure: 30 to 730 days; 7 where it is free."""
    days = properties.get("retentionInDays")
    is_free = ((properties.get("sku") or {}).get("name") or "").lower() == "free"
    if days is not None and (days != 7 if is_free else not 30 <= days <= 730):
        raise _refused("'RetentionInDays' property doesn't match the SKU limits.", "InvalidParameter")


def _insights(state: State, properties: Body) -> None:
    logs = properties.get("WorkspaceResourceId")
    if logs and not exists(state, logs, "microsoft.operationalinsights/workspaces"):
        raise _refused(f"The Log Analytics workspace '{logs}' does not exist.")


def _budget(properties: Body, before: Body | None) -> None:
    """learn.microsoft.com/rest/api/consumption/budgets: the period starts on the first of a month, in the current
    period or at most twelve months ahead; a budget that exists keeps its start.
    """
    start = date.fromisoformat(properties["timePeriod"]["startDate"][:10])
    end = properties["timePeriod"].get("endDate")
    today = datetime.now(UTC).date()
    months = MONTHS[properties["timeGrain"].lower()]
    if start.day != 1 or start < FIRST_BUDGET:
        raise _refused(f"The start date {start} must be the first of a month, on or after {FIRST_BUDGET}.")
    if end and date.fromisoformat(end[:10]) <= start:
        raise _refused(f"The end date {end[:10]} must be after the start date {start}.")
    ahead = (start.year - today.year) * 12 + start.month - today.month
    if before is None and not -months < ahead <= 12:
        raise _refused(
            f"The start date {start} must lie in the current period of the budget, "
            f"which began less than {months} month(s) ago, or within the next twelve months."
        )


def _credential(state: State, rid: ResourceId, properties: Body) -> None:
    """learn.microsoft.com/entra/workload-id/workload-identity-federation-considerations"""
    others = [one for one in state.children(rid.parent, rid.type) if one["name"].lower() != rid.name.lower()]
    for other in others:
        if all(other["properties"][key] == properties[key] for key in ("issuer", "subject")):
            raise _refused("Issuer and subject combination already exists for this Managed Identity.", "Conflict", 409)
    if len(others) >= MOST_CREDENTIALS:
        raise _refused(f"A managed identity has at most {MOST_CREDENTIALS} federated identity credentials.")


def _cosmos_resource(state: State, rid: ResourceId, properties: Body) -> None:
    if properties["resource"]["id"] != rid.name:
        raise _refused(f"The id '{properties['resource']['id']}' of the resource is not its name '{rid.name}'.")
    options = properties.get("options") or {}
    account = state.get("/".join(str(rid).split("/")[:9])) or {}
    names = [one.get("name") for one in account.get("properties", {}).get("capabilities") or []]
    if "EnableServerless" in names and any(options.get(key) for key in ("throughput", "autoscaleSettings")):
        raise _refused("Setting offer throughput or autopilot on container is not supported for serverless accounts.")


def _container(key: Body) -> None:
    """learn.microsoft.com/azure/cosmos-db/hierarchical-partition-keys: one path, or up to three in a MultiHash."""
    several = (key.get("kind") or "Hash").lower() == "multihash"
    if len(key["paths"]) > 1 and not several:
        raise _refused("A partition key of several paths must be of the kind MultiHash.")
    if several and key.get("version") != 2:
        raise _refused("A partition key of the kind MultiHash must have version 2.")
    for path in key["paths"]:
        if not path.startswith("/") or len(path) < 2:
            raise _refused(f"The partition key component definition path '{path}' could not be accepted.")


def _cosmos_role(state: State, rid: ResourceId, properties: Body) -> None:
    """learn.microsoft.com/azure/cosmos-db/how-to-connect-role-based-access-control"""
    account, role, scope = rid.parent, properties["roleDefinitionId"], properties["scope"]
    definitions = [f"{account}/sqlRoleDefinitions/{one}".lower() for one in COSMOS_ROLES]
    if role.lower() not in definitions:
        raise _refused(f"The role definition '{role}' does not exist in the account.", "NotFound", 404)
    if not f"{scope}/".lower().startswith(f"{account}/".lower()):
        raise _refused(f"The scope '{scope}' must be the account, or a database or container of it.")
    if properties["principalId"].lower() not in principals(state):
        raise _refused(f"The provided principal ID [{properties['principalId']}] was not found in the AAD tenant(s).")


def exists(state: State, reference: Any, resource_type: str) -> bool:
    """Whether `reference` is the id of an existing resource of the type."""
    found = state.get(str(reference))
    return found is not None and found["type"].lower() == resource_type.lower()
