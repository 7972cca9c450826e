"""A stand-in for an Azure ML registry of models, in the place of Azure's own hosts, for azure-ai-ml in this process.

The rest of Azure is the emulator's. Shapes as azure-ai-ml reads them (api-version 2021-10-01-dataplanepreview).
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from requests.adapters import HTTPAdapter
from urllib3.response import HTTPResponse

HOST = "eastus.api.azureml.ms"
SUBSCRIPTION, GROUP = "11111111-2222-3333-4444-555555555555", "rg-registry"
BASE = "/mferp/managementfrontend/subscriptions/{}/resourceGroups/{}/providers/Microsoft.MachineLearningServices/{}"
Answer = tuple[int, Any]


@dataclass
class Registry:
    """One registry. `models`: the properties of a version by (name, version); `imports`: the bodies that asked for one.

    `tags_of` answers the tags of a workspace's model by (name, version), which are copied along. `fault` is the answer
    to an import while it is set.
    """

    name: str
    tags_of: Callable[[str, str], dict[str, str]]
    models: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    imports: list[dict[str, Any]] = field(default_factory=list)
    fault: Answer | None = None

    def answer(self, method: str, path: str, body: dict[str, Any]) -> Answer:
        if path.startswith("/registrymanagement/v1.0/registries/"):
            return self._discovery(path.split("/")[4])
        below = path.removeprefix(BASE.format(SUBSCRIPTION, GROUP, f"registries/{self.name}"))
        if method == "POST" and below == "/import":
            return self._import(body["properties"])
        if found := re.fullmatch(r"/models/([^/]+)/versions(?:/([^/]+))?", below):
            return self._versions(found[1], found[2])
        return 404, _error("NotFound", f"no route {method} {path}")

    def _discovery(self, name: str) -> Answer:
        if name != self.name:
            return 404, _error("RegistryNotFound", f"Registry {name} not found")
        place = {"subscriptionId": SUBSCRIPTION, "resourceGroup": GROUP}
        return 200, {"registryName": name, **place, "primaryRegionResourceProviderUri": f"https://{HOST}/"}

    def _import(self, asked: dict[str, Any]) -> Answer:
        if self.fault:
            return self.fault
        self.imports.append(asked)
        source = re.fullmatch(r"azureml://.*/models/([^/]+)/versions/([^/]+)", asked["sourceAssetId"])
        assert source, asked
        tags = self.tags_of(source[1], source[2])
        self.add(asked["destinationName"], asked["destinationVersion"], tags)
        return 200, None

    def add(self, name: str, version: str, tags: dict[str, str]) -> None:
        properties = {"modelType": "custom_model", "modelUri": "https://x/y", "flavors": {}}
        self.models[name, version] = {**properties, "tags": tags}

    def _versions(self, name: str, version: str | None) -> Answer:
        found = [self._resource(*key) for key in self.models if key[0] == name and version in (None, key[1])]
        if not found:
            return 404, _error("NotFound", f"Model container {name} not found")
        return 200, found[0] if version else {"value": found}

    def _resource(self, name: str, version: str) -> dict[str, Any]:
        address = f"azureml://registries/{self.name}/models/{name}/versions/{version}"
        system = {"createdAt": "2026-01-01T00:00:00Z"}
        return {"id": address, "name": version, "properties": self.models[name, version], "systemData": system}


def _error(code: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}


@contextlib.contextmanager
def serving(registry: Registry) -> Iterator[Registry]:
    """Requests to the registry's hosts go to it; all others where they would."""
    real = HTTPAdapter.send

    def send(self: HTTPAdapter, request: requests.PreparedRequest, *words: Any, **more: Any) -> requests.Response:
        parts = urlsplit(str(request.url))
        if parts.hostname != HOST:
            return real(self, request, *words, **more)
        body = json.loads(request.body or b"{}")
        status, values = registry.answer(str(request.method), parts.path, body)
        text = b"" if values is None else json.dumps(values).encode()
        raw = HTTPResponse(io.BytesIO(text), {"Content-Type": "application/json"}, status, preload_content=False)
        return self.build_response(request, raw)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(HTTPAdapter, "send", send)
        yield registry
