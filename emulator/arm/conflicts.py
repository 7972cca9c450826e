"""What a PUT may not change, and names that the whole of Azure shares.

Each code and sentence is the resource provider's own where a source is named beside it.
"""

from __future__ import annotations

from typing import Any

from emulator.arm.ids import ResourceId
from emulator.arm.schema import ArmError, Body
from emulator.state import State

STORAGE = "microsoft.storage/storageaccounts"
VAULT = "microsoft.keyvault/vaults"
REGISTRY = "microsoft.containerregistry/registries"
COSMOS = "microsoft.documentdb/databaseaccounts"
ML_WORKSPACE = "microsoft.machinelearningservices/workspaces"

# Paths into the body whose value is decided when the resource is created.
IMMUTABLE = {
    STORAGE: ("kind", "properties.isHnsEnabled", "properties.isNfsV3Enabled", "properties.dnsEndpointType"),
    VAULT: ("properties.softDeleteRetentionInDays",),
    REGISTRY: ("properties.zoneRedundancy",),
    COSMOS: ("kind", "properties.capabilities"),
    f"{COSMOS}/sqldatabases/containers": ("properties.resource.partitionKey",),
    f"{COSMOS}/sqlroleassignments": ("properties.principalId", "properties.scope"),
    ML_WORKSPACE: ("properties.storageAccount", "properties.keyVault", "properties.hbiWorkspace"),
    "microsoft.consumption/budgets": ("properties.timePeriod.startDate",),
}
# Code and sentence for a changed {name}, where it is known.
CHANGED = {
    # learn.microsoft.com/rest/api/storagerp/srp_error_codes_common
    STORAGE: (
        "AccountPropertyCannotBeUpdated",
        "The property '{name}' was specified in the input, but it cannot be updated as it is read-only. "
        "For more information, see - https://aka.ms/storageaccountupdate",
    ),
    VAULT: ("BadRequest", "The property '{name}' has been set already and it can't be modified."),
    f"{COSMOS}/sqldatabases/containers": ("BadRequest", "Document collection partition key cannot be changed."),
}
CHANGED_ELSEWHERE = ("BadRequest", "The property '{name}' cannot be changed once the resource exists.")

TAKEN = {
    # learn.microsoft.com/azure/azure-resource-manager/troubleshooting/error-storage-account-name
    STORAGE: (
        409,
        "StorageAccountInAnotherResourceGroup",
        "The account {name} is already in another resource group in this subscription.",
    ),
    VAULT: (
        409,
        "VaultAlreadyExists",
        "The vault name '{name}' is already in use. Vault names are globally unique so it is possible that the name "
        "is already taken. If you are sure that the vault name was not taken then it is possible that a vault with "
        "the same name was recently deleted but not purged after being placed in a recoverable state.",
    ),
    REGISTRY: (409, "AlreadyInUse", "The registry DNS name {name}.azurecr.io is already in use."),
    COSMOS: (400, "BadRequest", "Dns record for {name} under zone Document is already taken."),
}


def check(state: State, rid: ResourceId, body: Body, before: Body | None) -> None:
    """Raise ArmError if the name is another resource's, or if the body changes what stays as it was created."""
    kind = rid.type.lower()
    if kind in TAKEN and before is None:
        for other in state.of_type(kind):
            if other["name"].lower() == rid.name.lower():
                status, code, message = TAKEN[kind]
                raise ArmError(status, code, message.format(name=rid.name))
    for path in IMMUTABLE.get(kind, ()) if before is not None else ():
        wanted, held = _at(body, path), _at(before, path)
        if wanted is not None and held is not None and not _same(wanted, held) and not _upgrade(path, held, wanted):
            code, message = CHANGED.get(kind, CHANGED_ELSEWHERE)
            raise ArmError(400, code, message.format(name=path.split(".")[-1]))


def _at(body: Body | None, path: str) -> Any:
    value: Any = body
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _same(one: Any, other: Any) -> bool:
    """Ids and enums are compared without case."""
    if isinstance(one, str) and isinstance(other, str):
        return one.lower() == other.lower()
    return bool(one == other)


def _upgrade(path: str, held: Any, wanted: Any) -> bool:
    """The one change of an account's kind that there is: learn.microsoft.com/azure/storage/common/…-account-upgrade."""
    return path == "kind" and str(held).lower() in ("storage", "blobstorage") and str(wanted).lower() == "storagev2"
