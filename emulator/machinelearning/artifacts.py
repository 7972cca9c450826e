"""A run's artifacts as azureml-mlflow writes and reads them: names are announced, bytes go to a signed address."""

from __future__ import annotations

import posixpath

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from emulator.arm.resources import json_body
from emulator.arm.schema import ArmError, Body
from emulator.blobs import Blobs
from emulator.entra import Entra
from emulator.machinelearning.data_plane import DataPlane, workspace_of
from emulator.machinelearning.history import HISTORY
from emulator.runner import locations
from emulator.runner.locations import Location
from emulator.state import State


class Artifacts(DataPlane):
    """Any run has them, also one that was begun by MLflow and is no job."""

    def __init__(self, state: State, blobs: Blobs, entra: Entra) -> None:
        super().__init__(state, entra)
        self._blobs = blobs
        for base in ("/experiments/{experiment}/runs/{run}", "/experimentids/{id}/runs/{run}"):
            self.on("GET", HISTORY, f"{base}/artifacts", self.listed)
            self.on("GET", HISTORY, f"{base}/artifacts/path", self.listed)
            self.on("GET", HISTORY, f"{base}/artifacts/metadata", self.metadata)
            self.on("GET", HISTORY, f"{base}/artifacts/contentinfo", self.content)
            self.on("GET", HISTORY, f"{base}/artifacts/prefix/contentinfo", self.contents)
            self.on("POST", HISTORY, f"{base}/artifacts/batch/metadata", self.announce)

    def _place(self, request: Request, path: str) -> Location:
        """Where an artifact lies. Raises ArmError 400 for a path that leads out of the run."""
        normal = posixpath.normpath(path) if path else ""
        if normal.startswith(("/", "..")):
            raise ArmError(400, "UserError", f"The artifact path '{path}' is not valid.")
        where = f"ExperimentRun/dcid.{request.path_params['run']}/{'' if normal == '.' else normal}"
        return locations.of_datastore(self._state, workspace_of(request), "workspaceartifactstore", where)

    def _described(self, request: Request, path: str) -> Body:
        container = f"dcid.{request.path_params['run']}"
        return {
            "artifactId": f"ExperimentRun/{container}/{path}",
            "origin": "ExperimentRun",
            "container": container,
            "path": path,
        }

    def _with_address(self, request: Request, path: str, *, write: bool = False) -> Body:
        place = self._place(request, path)
        address = self._blobs.signed_uri(place.account, place.container, place.path, write=write)
        return {**self._described(request, path), "contentUri": address}

    def _paths(self, request: Request) -> list[str]:
        base, below = self._place(request, ""), self._place(request, request.query_params.get("path", ""))
        return [name[len(base.path) :] for name, _ in self._blobs.list(below.account, below.container, below.path)]

    async def listed(self, request: Request) -> Response:
        return JSONResponse({"value": [self._described(request, path) for path in self._paths(request)]})

    def _existing(self, request: Request) -> str:
        path = request.query_params.get("path", "")
        place = self._place(request, path)
        if not self._blobs.has(place.account, place.container, place.path):
            raise ArmError(404, "UserError", f"The artifact '{path}' was not found.")
        return path

    async def metadata(self, request: Request) -> Response:
        return JSONResponse(self._described(request, self._existing(request)))

    async def content(self, request: Request) -> Response:
        return JSONResponse(self._with_address(request, self._existing(request)))

    async def contents(self, request: Request) -> Response:
        return JSONResponse({"value": [self._with_address(request, path) for path in self._paths(request)]})

    async def announce(self, request: Request) -> Response:
        """Addresses to write to, keyed by the paths as they were asked for; the blobs have their normal names."""
        paths = [str(one["path"]) for one in (await json_body(request)).get("paths") or []]
        made = {path: self._with_address(request, path, write=True) for path in paths}
        artifacts = {path: self._described(request, path) for path in paths}
        return JSONResponse({"artifacts": artifacts, "artifactContentInformation": made, "errors": {}})
