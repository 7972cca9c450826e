"""What stays after a delete: soft-deleted key vaults and workspaces, listed and purged by their own operations.

learn.microsoft.com/azure/key-vault/general/soft-delete-overview and
learn.microsoft.com/azure/machine-learning/concept-soft-delete.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from emulator.arm.ids import ResourceId
from emulator.arm.resources import Arm
from emulator.arm.schema import ArmError, Body

VAULT = "microsoft.keyvault/vaults"


class SoftDeleted:
    def __init__(self, arm: Arm) -> None:
        self._arm, self._state = arm, arm.state
        arm.on("GET", "Microsoft.KeyVault/deletedVaults", self.vaults)
        arm.on("GET", "Microsoft.KeyVault/locations/deletedVaults", self.vault)
        arm.on("POST", "Microsoft.KeyVault/locations/deletedVaults/purge", self.purge_vault)

    def _vaults(self) -> list[Body]:
        return [body for key, body in self._state.records("soft-deleted") if key.startswith(VAULT)]

    @staticmethod
    def _shown(body: Body) -> Body:
        location, name = body["location"], body["name"]
        subscription = "/".join(body["id"].split("/")[:3])
        return {
            "id": f"{subscription}/providers/Microsoft.KeyVault/locations/{location}/deletedVaults/{name}",
            "name": name,
            "type": "Microsoft.KeyVault/deletedVaults",
            "properties": {"vaultId": body["id"], "location": location, "deletionDate": body["deletedAt"]},
        }

    async def vaults(self, request: Request, rid: ResourceId) -> Response:
        return JSONResponse({"value": [self._shown(body) for body in self._vaults()]})

    def _found(self, name: str) -> Body:
        for body in self._vaults():
            if body["name"].lower() == name.lower():
                return body
        raise ArmError(404, "DeletedVaultNotFound", f"The vault '{name}' is not among the soft-deleted vaults.")

    async def vault(self, request: Request, rid: ResourceId) -> Response:
        if rid.is_collection:
            return await self.vaults(request, rid)
        return JSONResponse(self._shown(self._found(rid.name)))

    async def purge_vault(self, request: Request, rid: ResourceId) -> Response:
        vault, _ = rid.action
        self._state.drop_record("soft-deleted", f"Microsoft.KeyVault/vaults/{self._found(vault.name)['name']}")
        return Response(status_code=202)
