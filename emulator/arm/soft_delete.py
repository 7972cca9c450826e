"""What stays after a delete: key vaults, Azure ML workspaces and Log Analytics workspaces, until they are purged.

learn.microsoft.com/azure/key-vault/general/soft-delete-overview,
learn.microsoft.com/azure/machine-learning/concept-soft-delete and
learn.microsoft.com/azure/azure-monitor/logs/delete-workspace.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from emulator.arm.ids import ResourceId
from emulator.arm.schema import ArmError, Body
from emulator.state import State

if TYPE_CHECKING:
    from emulator.arm.resources import Arm

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


class SoftDeleted:
    """The operations on what is soft-deleted: vaults listed, shown and purged; Log Analytics workspaces listed.

    Azure ML has no operation of its own for them: they are purged by another DELETE.
    """

    def __init__(self, arm: Arm) -> None:
        self._state, self._operations = arm.state, arm.operations
        arm.on("GET", "Microsoft.KeyVault/deletedVaults", self.vaults)
        arm.on("GET", "Microsoft.KeyVault/locations/deletedVaults", self.vault)
        arm.on("POST", "Microsoft.KeyVault/locations/deletedVaults/purge", self.purge_vault)
        arm.on("GET", "Microsoft.OperationalInsights/deletedWorkspaces", self.log_workspaces)

    async def vaults(self, request: Request, rid: ResourceId) -> Response:
        return JSONResponse({"value": [_deleted_vault(body) for body in of_kind(self._state, VAULT)]})

    async def vault(self, request: Request, rid: ResourceId) -> Response:
        if rid.is_collection:
            return await self.vaults(request, rid)
        return JSONResponse(_deleted_vault(self._found(rid.name)))

    async def purge_vault(self, request: Request, rid: ResourceId) -> Response:
        vault, _ = rid.action
        found = self._found(vault.name)
        if found["properties"].get("enablePurgeProtection"):
            raise ArmError(405, "MethodNotAllowed", "Operation 'DeletedVaultPurge' is not allowed.")
        at = ResourceId.parse(found["id"])
        assert at is not None
        drop(self._state, at)
        headers = self._operations.start(found["location"], service="Microsoft.KeyVault/operation")
        return Response(status_code=202, headers=headers)

    async def log_workspaces(self, request: Request, rid: ResourceId) -> Response:
        return JSONResponse({"value": of_kind(self._state, LOGS)})

    def _found(self, name: str) -> Body:
        for body in of_kind(self._state, VAULT):
            if body["name"].lower() == name.lower():
                return body
        raise ArmError(404, "DeletedVaultNotFound", f"The vault '{name}' is not among the soft-deleted vaults.")


def _deleted_vault(body: Body) -> Body:
    location, name = body["location"], body["name"]
    subscription = "/".join(body["id"].split("/")[:3])
    return {
        "id": f"{subscription}/providers/Microsoft.KeyVault/locations/{location}/deletedVaults/{name}",
        "name": name,
        "type": "Microsoft.KeyVault/deletedVaults",
        "properties": {
            "vaultId": body["id"],
            "location": location,
            "tags": body.get("tags") or {},
            "deletionDate": body["deletedAt"],
            "scheduledPurgeDate": purge_date(body).isoformat(),
            "purgeProtectionEnabled": bool(body["properties"].get("enablePurgeProtection")),
        },
    }
