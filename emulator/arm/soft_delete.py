"""What stays after a delete: key vaults, Azure ML workspaces and Log Analytics workspaces, until they are purged.

learn.microsoft.com/azure/key-vault/general/soft-delete-overview,
learn.microsoft.com/azure/machine-learning/concept-soft-delete and
learn.microsoft.com/azure/azure-monitor/logs/delete-workspace.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from emulator.arm.ids import ResourceId
from emulator.arm.schema import ArmError, Body
from emulator.state import State

VAULT = "microsoft.keyvault/vaults"
ML_WORKSPACE = "microsoft.machinelearningservices/workspaces"
LOGS = "microsoft.operationalinsights/workspaces"
KINDS = (VAULT, ML_WORKSPACE, LOGS)
RETENTION_DAYS = 14  # of both kinds of workspaces
VAULT_RETENTION_DAYS = 90  # unless the vault says otherwise
KIND_OF_RECORD = "soft-deleted"


def keep(state: State, body: Body) -> None:
    """Remember a resource that is being deleted, if it is of a kind that Azure keeps."""
    rid = ResourceId.parse(body["id"])
    if rid is not None and rid.type.lower() in KINDS:
        deleted = {**body, "deletedAt": datetime.now(UTC).isoformat()}
        state.save_record(KIND_OF_RECORD, _key(rid), deleted)


def find(state: State, rid: ResourceId) -> Body | None:
    """The soft-deleted resource of this name; None if there is none, or its time is over."""
    found = state.record(KIND_OF_RECORD, _key(rid)) if rid.type.lower() in KINDS else None
    return found if found and datetime.now(UTC) < purge_date(found) else None


def drop(state: State, rid: ResourceId) -> None:
    state.drop_record(KIND_OF_RECORD, _key(rid))


def revived(state: State, rid: ResourceId, body: Body) -> Body | None:
    """The soft-deleted resource that a PUT brings back. Raises ArmError if there is one, and it is not asked for.

    A vault comes back with `createMode: recover`, an Azure ML workspace with `allowRecoverSoftDeletedWorkspace: True`
    (API version 2022-05-01), a Log Analytics workspace by itself (Azure/azure-cli#13456).
    """
    found = find(state, rid)
    if found is None:
        return None
    properties = body.get("properties") or {}
    if rid.type.lower() == VAULT and str(properties.pop("createMode", "")).lower() != "recover":
        message = (
            "A vault with the same name already exists in deleted state. You need to either recover or purge "
            "existing key vault. Follow this link https://go.microsoft.com/fwlink/?linkid=2149745 for more "
            "information on soft delete."
        )
        raise ArmError(409, "ConflictError", message)
    wanted = str(properties.pop("allowRecoverSoftDeletedWorkspace", "")).lower() == "true"
    if rid.type.lower() == ML_WORKSPACE and not wanted:  # words and code: Azure/ResourceModules#3596
        message = "Soft-deleted workspace exists. Please purge or recover it. https://aka.ms/wsoftdelete"
        raise ArmError(400, "BadRequest", message)
    return {key: value for key, value in found.items() if key != "deletedAt"}


def of_kind(state: State, kind: str) -> list[Body]:
    """The soft-deleted resources of one type, oldest first."""
    found = [body for _, body in state.records(KIND_OF_RECORD) if body["type"].lower() == kind]
    return [body for body in found if datetime.now(UTC) < purge_date(body)]


def purge_date(body: Body) -> datetime:
    days = body["properties"].get("softDeleteRetentionInDays", VAULT_RETENTION_DAYS)
    kept = timedelta(days=days if body["type"].lower() == VAULT else RETENTION_DAYS)
    return datetime.fromisoformat(body["deletedAt"]) + kept


def _key(rid: ResourceId) -> str:
    # A vault's name is taken everywhere, a workspace's in its resource group.
    return f"{rid.type}/{rid.name}" if rid.type.lower() == VAULT else str(rid)
