"""A workspace's connections: addresses of other services, whose credentials are told by `listsecrets` alone."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from emulator.arm.ids import ResourceId
from emulator.arm.operations import ML
from emulator.arm.resources import Arm, json_body
from emulator.arm.schema import ArmError, Body
from emulator.machinelearning.assets import system_data

CONNECTION = f"{ML}/workspaces/connections"
REQUIRED = ("category", "target", "authType")


class Connections:
    def __init__(self, arm: Arm) -> None:
        self._arm, self._state = arm, arm.state
        arm.on("PUT", CONNECTION, self.put)
        arm.on("GET", CONNECTION, self.get)
        arm.on("DELETE", CONNECTION, self.delete)
        arm.on("POST", f"{CONNECTION}/listsecrets", self.secrets)

    async def put(self, request: Request, rid: ResourceId) -> Response:
        self._arm.check_parent(rid)
        properties = (await json_body(request)).get("properties") or {}
        if missing := [name for name in REQUIRED if not properties.get(name)]:
            raise ArmError(400, "ValidationError", f"The connection has no {missing[0]}.")
        before = self._state.get(str(rid))
        body = {"id": str(rid), "name": rid.name, "type": rid.type, "systemData": system_data(before)}
        self._state.put(str(rid), {**body, "properties": properties}, parent=rid.parent)
        return JSONResponse(_shown({**body, "properties": properties}))

    async def get(self, request: Request, rid: ResourceId) -> Response:
        if not rid.is_collection:
            return JSONResponse(_shown(self._arm.existing(rid)))
        self._arm.check_parent(rid)
        return JSONResponse({"value": [_shown(one) for one in self._state.children(rid.parent, CONNECTION)]})

    async def delete(self, request: Request, rid: ResourceId) -> Response:
        found = self._state.get(str(rid))
        self._state.delete(str(rid))
        return Response(status_code=200 if found else 204)

    async def secrets(self, request: Request, rid: ResourceId) -> Response:
        return JSONResponse(self._arm.existing(rid.action[0]))


def _shown(connection: Body) -> Body:
    hidden = {key: value for key, value in connection["properties"].items() if key != "credentials"}
    return {**connection, "properties": {**hidden, "credentials": None}}
