"""What the services beside ARM share: a workspace's routes, the caller's token, errors in Azure's shape."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from emulator.arm.resources import ARM_AUDIENCES, error_response
from emulator.arm.schema import ArmError, Body
from emulator.entra import Entra
from emulator.state import State

Handler = Callable[[Request], Awaitable[Response]]
WORKSPACE = "/subscriptions/{s}/resourceGroups/{g}/providers/{p}/workspaces/{w}"


class DataPlane:
    """Routes of one service, such as `history/v1.0`, below each workspace."""

    def __init__(self, state: State, entra: Entra) -> None:
        self._state, self._entra = state, entra
        self.routes: list[Route] = []

    def on(self, method: str, service: str, path: str, handler: Handler) -> None:
        async def answer(request: Request) -> Response:
            try:
                self._check(request)
                return await handler(request)
            except ArmError as error:
                return error_response(error)

        self.routes.append(Route(f"/{service}{WORKSPACE}{path}", answer, methods=[method]))

    def _check(self, request: Request) -> None:
        if self._entra.check(request.headers.get("authorization", ""), ARM_AUDIENCES) is None:
            raise ArmError(401, "AuthenticationFailed", "The access token is missing or invalid.")
        if self._state.get(workspace_of(request)) is None:
            name = request.path_params["w"]
            raise ArmError(404, "WorkspaceNotFound", f"The workspace '{name}' could not be found.")

    def job(self, request: Request, run: str) -> Body:
        """The job that a run belongs to. Raises ArmError 404 if there is none."""
        found = self._state.get(f"{workspace_of(request)}/jobs/{run}")
        if found is None:
            raise ArmError(404, "UserError", f"Run {run} was not found.")
        return found


def workspace_of(request: Request) -> str:
    """The ARM id of the workspace that a request is about."""
    p = request.path_params
    return f"/subscriptions/{p['s']}/resourceGroups/{p['g']}/providers/{p['p']}/workspaces/{p['w']}"
