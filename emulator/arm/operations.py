"""Long-running operations as ARM answers them: 201 or 202 with an Azure-AsyncOperation, a Location, or both, to poll.

learn.microsoft.com/azure/azure-resource-manager/management/async-operations. Azure ML sends no Retry-After, which makes
its clients wait 5 to 30 s between polls; `retry-after-ms` shortens that, here for every service: Retry-After knows
whole seconds only.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from emulator.arm.ids import ResourceId
from emulator.arm.schema import TYPES, ArmError
from emulator.home import SUBSCRIPTION_ID
from emulator.state import State

ML = "Microsoft.MachineLearningServices"
Handler = Callable[[Request, ResourceId], Awaitable[Response]]
# Azure ML's parts have operations of their own: learn.microsoft.com/azure/azure-resource-manager/management/tag-support
ML_SERVICES = ("mfeOperation", "workspaceOperation", "computeOperation", "registryOperation")
POLL = {"retry-after-ms": "100"}
MANAGEMENT = f"https://management.azure.com/subscriptions/{SUBSCRIPTION_ID}"


class Operations:
    """Runs work in the background and answers how it stands: `handlers` are GETs, by the types of their paths."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._tasks: set[asyncio.Task[Any]] = set()
        self.handlers: dict[str, Handler] = {"operationresults": self._result}
        namespaces = {kind.name.split("/")[0] for kind in TYPES.values()}
        for service in (*(f"{ML}/{one}" for one in ML_SERVICES), *(f"{one}/operation" for one in namespaces)):
            namespace, name = service.split("/")
            self.handlers[f"{namespace}/locations/{name}sStatus"] = self._status
            self.handlers[f"{namespace}/locations/{name}Results"] = self._result
        for operation_id, record in self._state.records("operation"):
            if record["status"] == "InProgress":  # the process that worked on it is gone
                error = {"code": "InternalServerError", "message": "The service was restarted during the operation."}
                self._save(operation_id, status="Failed", error=error)

    def start(
        self, location: str, work: Awaitable[None] | None = None, *, service: str = f"{ML}/mfeOperation"
    ) -> dict[str, str]:
        """Begin an operation; returns the headers that lead to it. Without work it has succeeded already.

        Computes have no Location, and only endpoints and jobs a time limit, as Azure's own answers have them.
        """
        operation_id = self._begin(work)
        namespace, name = service.split("/")
        where = location.replace(" ", "").lower()
        base = f"{MANAGEMENT}/providers/{namespace}/locations/{where}/{name}"
        headers = {"Azure-AsyncOperation": f"{base}sStatus/{operation_id}?api-version=2024-10-01", **POLL}
        if name != "computeOperation":
            headers["Location"] = f"{base}Results/{operation_id}?api-version=2024-10-01"
        if name == "mfeOperation":
            headers["x-ms-async-operation-timeout"] = "PT30M"
        return headers

    def start_of_subscription(self, work: Awaitable[None]) -> dict[str, str]:
        """The same for ARM's own operations, such as a group's deletion, which have a Location alone."""
        return {"Location": f"{MANAGEMENT}/operationresults/{self._begin(work)}?api-version=2024-03-01", **POLL}

    def _begin(self, work: Awaitable[None] | None) -> str:
        operation_id = str(uuid.uuid4())
        self._save(operation_id, status="Succeeded" if work is None else "InProgress")
        if work is not None:
            task = asyncio.create_task(self._run(operation_id, work))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return operation_id

    async def _run(self, operation_id: str, work: Awaitable[None]) -> None:
        try:
            await work
        except ArmError as error:
            self._save(operation_id, status="Failed", error={"code": error.code, "message": error.message})
            return
        self._save(operation_id, status="Succeeded")

    def _save(self, operation_id: str, **changed: Any) -> None:
        begun = {"startTime": datetime.now(UTC).isoformat()}
        record = {**begun, **(self._state.record("operation", operation_id) or {}), **changed}
        self._state.save_record("operation", operation_id, record)

    def _found(self, rid: ResourceId) -> dict[str, Any]:
        found = self._state.record("operation", rid.name)
        if found is None:
            raise ArmError(404, "OperationNotFound", f"The operation '{rid.name}' could not be found.")
        return found

    async def _status(self, request: Request, rid: ResourceId) -> Response:
        found = self._found(rid)
        done = 0.0 if found["status"] == "InProgress" else 100.0
        if done == 0.0 and "mfeOperation" in rid.type:
            found["status"] = "Updating"  # what endpoints and jobs call it
        return JSONResponse({"id": str(rid), "name": rid.name, "percentComplete": done, **found}, headers=POLL)

    async def _result(self, request: Request, rid: ResourceId) -> Response:
        found = self._found(rid)
        if found["status"] == "InProgress":
            return Response(status_code=202, headers={**POLL, "Location": str(request.url)})
        if found["status"] == "Failed":
            return JSONResponse({"error": found["error"]}, 400)
        return Response(status_code=204)
