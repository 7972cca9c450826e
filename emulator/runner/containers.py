"""What a deployment's container would hold and start, laid out in a folder of this machine.

The environment's build context (Dockerfile), or the servers that Azure brings along: for a scoring script, and for an
MLflow model without code.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from emulator.arm.rights import PULL, READ_BLOBS, permits
from emulator.arm.schema import ArmError, Body
from emulator.blobs import Blobs
from emulator.runner import locations
from emulator.runner.dockerfile import Image, build
from emulator.state import State

MLFLOW_SERVER = Path(__file__).with_name("mlflow_server.py")
SCORING_SERVER = Path(__file__).with_name("scoring_server.py")
OWN_ROUTES = {"livenessRoute": {"path": "/"}, "readinessRoute": {"path": "/"}, "scoringRoute": {"path": "/score"}}


@dataclass(frozen=True)
class Container:
    """A command with its folder and variables, and what Azure's probes and its gateway ask of it.

    `port` is what the server listens on by its own image, None where nothing says so; a route to another port finds
    nothing there. `from_environment`: the server takes it from PORT. `packages`: the Azure ML environment whose Python
    packages it runs with, where they are not its image's own.
    """

    argv: list[str]
    cwd: Path
    env: dict[str, str]
    routes: Body
    port: int | None
    from_environment: bool = True
    packages: Body | None = None

    def within(self, venv: Path) -> Container:
        """The same with the interpreter of a virtual environment."""
        path = os.pathsep.join([str(venv / "bin"), self.env["PATH"]])
        argv = [str(venv / "bin" / "python"), *self.argv[1:]]
        return replace(self, argv=argv, env={**self.env, "PATH": path, "VIRTUAL_ENV": str(venv)})

    def command(self, port: int) -> list[str]:
        """What to start so that it listens on `port` of the loopback. Two containers of one image share a machine here,
        so a port that only the command names is replaced there.
        """
        if self.from_environment or self.port is None:
            return self.argv
        own = [re.sub(rf"\b{self.port}\b", str(port), word) for word in self.argv]
        return [word.replace("0.0.0.0", "127.0.0.1") for word in own]

    def path(self, route: str, default: str) -> str:
        return str((self.routes.get(f"{route}Route") or {}).get("path") or default)

    def reaches(self, route: str) -> bool:
        asked = (self.routes.get(f"{route}Route") or {}).get("port")
        return self.port is None or asked is None or int(asked) == self.port


@dataclass(frozen=True)
class Layout:
    """One deployment and where it is laid out. `say` writes a line into the storage initializer's log, `note` one into
    the server's.
    """

    state: State
    blobs: Blobs
    deployment: Body
    folder: Path
    say: Callable[[str], None]
    note: Callable[[str], None]

    @property
    def properties(self) -> Body:
        found: Body = self.deployment["properties"]
        return found

    @property
    def workspace(self) -> str:
        return "/".join(self.deployment["id"].split("/")[:9])

    @property
    def endpoint(self) -> Body:
        return self.state.get("/".join(self.deployment["id"].split("/")[:11])) or {}

    def identity(self) -> dict[str, str] | None:
        """The endpoint's user-assigned identity, which its deployments act as."""
        for ids in self.endpoint.get("identity", {}).get("userAssignedIdentities", {}).values():
            return {"client_id": ids["clientId"], "principal_id": ids["principalId"]}
        return None

    def container(self, base: Mapping[str, str]) -> Container:
        """Lay everything out. Raises ArmError with the cause that Azure would name."""
        self.folder.mkdir(parents=True)
        self._check_pull()
        model = self._model()
        environment = self.state.get(str(self.properties.get("environmentId") or ""))
        own = {**model, **(self.properties.get("environmentVariables") or {})}
        if environment is not None and environment["properties"].get("build"):
            return self._built(environment["properties"], base, own)
        if script := (self.properties.get("codeConfiguration") or {}).get("scoringScript"):
            return self._scored(str(script), environment, {**base, **own})
        if self._model_type() == "mlflow_model":
            packages = environment or _mlflow_packages(self.folder)
            argv = [sys.executable, str(MLFLOW_SERVER)]
            return Container(argv, self.folder, {**base, **own}, OWN_ROUTES, None, packages=packages)
        message = "A deployment needs a scoring script, or an environment with a build context, or an MLflow model."
        raise ArmError(400, "BadArgument", message)

    def _scored(self, script: str, environment: Body | None, env: dict[str, str]) -> Container:
        """Microsoft's server around the deployment's own `init` and `run`: the code's folder is the app's root."""
        if environment is None:
            raise ArmError(400, "BadArgument", "A deployment with a scoring script needs an environment.")
        code = self.folder / "code"
        place = locations.resolve(self.state, self.workspace, self.properties["codeConfiguration"]["codeId"])
        self.blobs.copy_tree(place.account, place.container, place.path, code)
        if not (code / script).is_file():
            raise ArmError(400, "BadArgument", f"The scoring script '{script}' is not in the code's folder.")
        own = {"AML_APP_ROOT": str(code), "AZUREML_ENTRY_SCRIPT": script}
        return Container(
            [sys.executable, str(SCORING_SERVER)], code, {**env, **own}, OWN_ROUTES, None, packages=environment
        )

    def _built(self, definition: Body, base: Mapping[str, str], own: Mapping[str, str]) -> Container:
        place = locations.resolve(self.state, self.workspace, definition["build"]["contextUri"])
        self.blobs.copy_tree(place.account, place.container, place.path, self.folder / "context")
        dockerfile = definition["build"].get("dockerfilePath") or "Dockerfile"
        image = build(self.folder / "context", dockerfile, self.folder / "root")
        for command in image.skipped:
            self.note(f"RUN {command} was skipped: the host's own packages stand in")
        variables = {
            key: _mapped(image, value) for key, value in image.env.items() if key not in ("PATH", "PYTHONPATH")
        }
        env = {**base, **variables, **own}
        routes, port = definition.get("inferenceConfig") or {}, env.get("PORT", "")
        if port.isdecimal():
            return Container(image.argv, image.cwd, env, routes, int(port))
        exposed = image.exposed[0] if len(image.exposed) == 1 else None
        return Container(image.argv, image.cwd, env, routes, exposed, from_environment=False)

    def _model_type(self) -> str:
        asset = self.state.get(str(self.properties.get("model") or "").removeprefix("azureml:"))
        kind: Any = (asset or {}).get("properties", {}).get("modelType") or ""
        return str(kind).lower()

    def _model(self) -> dict[str, str]:
        """The model below its leaf folder, as the storage initializer leaves it."""
        if not self.properties.get("model"):
            return {}
        asset = self.properties["model"].removeprefix("azureml:")
        self._check_blobs(asset)
        place = locations.resolve(self.state, self.workspace, asset)
        name, version = asset.split("/")[-3], asset.split("/")[-1]
        base = self.folder / "azureml-models" / name / version
        self.say(f"Downloading the model {name}:{version}")
        if (count := self.blobs.copy_tree(place.account, place.container, place.path, base / place.leaf)) == 0:
            self.say(f"The model {name}:{version} holds no files: ResourceNotFound")
            raise ArmError(400, "ResourceNotFound", f"The model '{name}:{version}' holds no files.")
        self.say(f"Downloaded {count} files")
        return {"AZUREML_MODEL_DIR": str(base)}

    def _check_blobs(self, asset: str) -> None:
        identity, workspace = self.identity(), self.state.get(self.workspace) or {}
        scope = str(workspace.get("properties", {}).get("storageAccount") or "")
        if identity is None or permits(self.state, identity["principal_id"], scope, READ_BLOBS, data=True):
            return  # a system-assigned identity gets its roles from the service
        self.say(
            f"Downloading {asset} failed: HttpResponseError: This request is not authorized to perform this operation "
            "using this permission. ErrorCode:AuthorizationPermissionMismatch"
        )
        message = "Unable to download the model: the endpoint's identity may not read the workspace's blobs (403)."
        raise ArmError(400, "BadArgument", f"{message} Authorization error: {READ_BLOBS}")

    def _check_pull(self) -> None:
        identity, workspace = self.identity(), self.state.get(self.workspace) or {}
        scope = str(workspace.get("properties", {}).get("containerRegistry") or "")
        if identity is None or not scope or permits(self.state, identity["principal_id"], scope, PULL):
            return
        message = "Unable to download user container image: the endpoint's identity may not pull from the registry"
        raise ArmError(400, "BadArgument", f"{message} {scope.split('/')[-1]}: unauthorized. Missing: AcrPull")


def _mlflow_packages(folder: Path) -> Body | None:
    """The environment that an MLflow model names for itself: the conda file beside its MLmodel."""
    found = sorted(folder.rglob("MLmodel"))
    conda = found[0].with_name("conda.yaml") if found else None
    if conda is None or not conda.is_file():
        return None
    return {"properties": {"condaFile": conda.read_text()}}


def _mapped(image: Image, value: str) -> str:
    """A path that the image holds becomes its place on the host; any other value stays."""
    return str(image.inside(value)) if value.startswith("/") and image.inside(value).exists() else value


def clear(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
