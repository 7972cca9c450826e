"""The operations on what is soft-deleted: vaults listed, shown and purged; Log Analytics workspaces listed.

Azure ML has no operation of its own for them: they are purged by another DELETE.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from emulator.arm import soft_delete
from emulator.arm.ids import ResourceId
from emulator.arm.resources import Arm
from emulator.arm.schema import ArmError, Body


class SoftDeleted:
    def __init__(self, arm: Arm) -> None:
        self._state, self._operations = arm.state, arm.operations
        arm.on("GET", "Microsoft.KeyVault/deletedVaults", self.vaults)
        arm.on("GET", "Microsoft.KeyVault/locations/deletedVaults", self.vault)
        arm.on("POST", "Microsoft.KeyVault/locations/deletedVaults/purge", self.purge_vault)
        arm.on("GET", "Microsoft.OperationalInsights/deletedWorkspaces", self.log_workspaces)

    async def vaults(self, request: Request, rid: ResourceId) -> Response:
        return JSONResponse(
            {"value": [_deleted_vault(body) for body in soft_delete.of_kind(self._state, soft_delete.VAULT)]}
        )

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
        soft_delete.drop(self._state, at)
        headers = self._operations.start(found["location"], service="Microsoft.KeyVault/operation")
        return Response(status_code=202, headers=headers)

    async def log_workspaces(self, request: Request, rid: ResourceId) -> Response:
        return JSONResponse({"value": soft_delete.of_kind(self._state, soft_delete.LOGS)})

    def _found(self, name: str) -> Body:
        for body in soft_delete.of_kind(self._state, soft_delete.VAULT):
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
            "scheduledPurgeDate": soft_delete.purge_date(body).isoformat(),
            "purgeProtectionEnabled": bool(body["properties"].get("enablePurgeProtection")),
        },
    }
