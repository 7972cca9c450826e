"""Puts the registry `azureml` into an emulator's state. Its models' files are made when somebody first reads them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from emulator.arm.schema import Body
from emulator.blobs import Blobs
from emulator.home import PROJECT, Home
from emulator.state import State
from emulator.system_registry import catalogue

SUBSCRIPTION = "00000000-0000-0000-0000-0000a2de9151"  # Microsoft's own, not the user's
KIND = "Microsoft.MachineLearningServices/registries"
ID = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/azureml-system/providers/{KIND}/azureml"
ACCOUNT, LOCATION = "regazureml", "eastus"
WHEN = {"createdAt": "2024-05-01T17:02:34Z", "lastModifiedAt": "2025-02-15T09:00:00Z"}


class SystemRegistry:
    def __init__(self, home: Home, state: State, blobs: Blobs) -> None:
        self._folder, self._state, self._blobs = home.path / "system-registry", state, blobs

    def seed(self) -> None:
        """Write what is not there yet: the registry, its models, components, environment and the components' code."""
        if not (self._folder / "complete").exists():
            self._blobs.when_read(ACCOUNT, self._fill)
        if self._state.get(ID) is not None:
            return
        with self._state.transaction():
            self._registry()
            for name, facts in catalogue.models().items():
                properties = {"modelUri": _uri("models", f"{name}/{facts['version']}/mlflow_model_folder")}
                self._put("models", name, facts["version"], properties | catalogue.model_properties(facts))
            for name, spec in catalogue.components().items():
                self._put("components", name, spec["version"], {"componentSpec": spec})
            name, version = catalogue.environment()
            image = f"mcr.microsoft.com/azureml/curated/{name}:{version}"
            self._put("environments", name, version, {"image": image, "environmentType": "Curated"})
            self._put("codes", "chat_completion", "1", {"codeUri": _uri("codes", "chat_completion/1")})

    def _registry(self) -> None:
        host = f"https://{LOCATION}.api.azureml.ms"
        properties = {
            "publicNetworkAccess": "Enabled",
            "discoveryUrl": f"{host}/registrymanagement/v1.0/registries/azureml/discovery",
            "mlFlowRegistryUri": f"azureml://{LOCATION}.api.azureml.ms/mlflow/v1.0{ID}",
            "provisioningState": "Succeeded",
        }
        body = {"id": ID, "name": "azureml", "type": KIND, "location": LOCATION, "tags": {}, "systemData": WHEN}
        self._state.put(ID, {**body, "properties": properties}, parent=ID.rsplit("/providers/", 1)[0])
        for container in ("models", "codes"):
            self._blobs.make_container(ACCOUNT, container)
        for path in sorted((Path(__file__).parent / "code").glob("*.py")):
            self._blobs.add_file(ACCOUNT, "codes", f"chat_completion/1/{path.name}", path)

    def _put(self, kind: str, name: str, version: str, properties: Body) -> None:
        address, made = f"{catalogue.ADDRESS}/{kind}/{name}", {"isArchived": False, "isAnonymous": False}
        container = {"id": address, "name": name, "type": f"{KIND}/{kind}", "systemData": WHEN}
        self._state.put(f"{ID}/{kind}/{name}", {**container, "properties": {"isArchived": False}}, parent=ID)
        body = {"id": f"{address}/versions/{version}", "name": version, "type": f"{KIND}/{kind}/versions"}
        stored: Body = {**body, "systemData": WHEN, "properties": {"tags": {}, "properties": {}, **made, **properties}}
        self._state.put(f"{ID}/{kind}/{name}/versions/{version}", stored, parent=f"{ID}/{kind}/{name}")

    def _fill(self) -> None:
        command = [sys.executable, "-m", "emulator.system_registry.weights", str(self._folder)]
        subprocess.run(command, check=True, cwd=PROJECT)
        for name, facts in catalogue.models().items():
            for path in sorted(one for one in (self._folder / name).rglob("*") if one.is_file()):
                inside = f"{name}/{facts['version']}/mlflow_model_folder/{path.relative_to(self._folder / name)}"
                self._blobs.add_file(ACCOUNT, "models", inside, path)
        (self._folder / "complete").touch()


def _uri(container: str, path: str) -> str:
    return f"https://{ACCOUNT}.blob.core.windows.net/{container}/{path}"
