"""Resource groups: listed by tag, listed with what is in them, deleted with everything below them.

learn.microsoft.com/azure/azure-resource-manager/management/delete-resource-group
"""

from __future__ import annotations

import re

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from emulator.arm.ids import ResourceId
from emulator.arm.resources import Arm
from emulator.arm.schema import ArmError, Body

GROUP = "Microsoft.Resources/resourceGroups"
# What ARM keeps track of besides top-level resources; Azure ML's computes, jobs and assets it does not know:
# learn.microsoft.com/azure/azure-resource-manager/management/tag-support#microsoftmachinelearningservices
_ENDPOINTS = "microsoft.machinelearningservices/workspaces/onlineendpoints"
TRACKED_BELOW = (_ENDPOINTS, f"{_ENDPOINTS}/deployments")
EXTENSIONS = ("microsoft.authorization", "microsoft.consumption")


class Groups:
    def __init__(self, arm: Arm) -> None:
        self._arm, self._state = arm, arm.state
        arm.on("GET", GROUP, self.get)
        arm.on("GET", f"{GROUP}/resources", self.resources)
        arm.on("DELETE", GROUP, self.delete)

    async def get(self, request: Request, rid: ResourceId) -> Response:
        """One group, or all of them; `$filter=tagName eq 'a' and tagValue eq 'b'` chooses by one tag."""
        if not rid.is_collection:
            return JSONResponse(self._arm.existing(rid))
        found = self._arm.listed(rid)
        if match := re.match(
            r"tagName eq '(.*?)'(?: and tagValue eq '(.*)')?$", request.query_params.get("$filter", "")
        ):
            found = [one for one in found if _has_tag(one, match[1], match[2])]
        return JSONResponse({"value": found})

    async def resources(self, request: Request, rid: ResourceId) -> Response:
        """What is in a group, as far as ARM keeps track of it."""
        group = ResourceId.parse(rid.parent)
        assert group is not None
        self._arm.existing(group)
        keys = ("id", "name", "type", "location", "tags")
        found = [body for body in self._state.below(rid.parent) if is_tracked(body)]
        return JSONResponse({"value": [{key: body[key] for key in keys if key in body} for body in found]})

    async def delete(self, request: Request, rid: ResourceId) -> Response:
        """Accepted at once; the group is there, and takes nothing new, until what ran in it has ended."""
        found = self._state.get(str(rid))
        if found is None:
            raise ArmError(404, "ResourceGroupNotFound", f"Resource group '{rid.name}' could not be found.")
        found["properties"]["provisioningState"] = "Deleting"
        self._state.put(str(rid), found, parent=rid.parent)
        return Response(status_code=202, headers=self._arm.operations.start_of_subscription(self._empty(str(rid))))

    async def _empty(self, group: str) -> None:
        await self._arm.end(group)
        self._arm.forget(group)


def is_tracked(body: Body) -> bool:
    """Whether ARM itself knows of a resource, lists it with its group, and lets it block its parent's deletion."""
    kind = body["type"].lower()
    return (kind.count("/") == 1 and kind.split("/")[0] not in EXTENSIONS) or kind in TRACKED_BELOW


def _has_tag(body: Body, name: str, value: str | None) -> bool:
    tags = {key.lower(): text for key, text in (body.get("tags") or {}).items()}
    return name.lower() in tags and value in (None, tags[name.lower()])
