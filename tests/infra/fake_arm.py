"""A few lines of ARM, for tests that need the program's resources and not Azure's rules: it keeps what it is given."""

from __future__ import annotations

import base64
import json
import threading
import uuid
from typing import Any
from urllib.parse import urlparse

import requests

TENANT = "11111111-0000-4000-8000-000000000001"
SUBSCRIPTION = "22222222-0000-4000-8000-000000000002"
DEPLOYER = "33333333-0000-4000-8000-000000000003"

ENVIRONMENT = {
    "ARM_TENANT_ID": TENANT,
    "ARM_SUBSCRIPTION_ID": SUBSCRIPTION,
    "ARM_CLIENT_ID": "44444444-0000-4000-8000-000000000004",
    "ARM_CLIENT_SECRET": "not-a-secret",
}


class FakeArm:
    """Answers in place of `ArmClient.send`. `requests` holds (method, path) of every change, in order."""

    def __init__(self) -> None:
        self.resources: dict[str, dict[str, Any]] = {}
        self.requests: list[tuple[str, str]] = []
        self.refuse: dict[str, tuple[int, str, str]] = {}  # part of a path -> status, code, message
        self._lock = threading.Lock()

    def send(self, _client: Any, method: str, url: str, *, body: Any = None, **_: Any) -> requests.Response:
        path = urlparse(url).path
        if url.startswith("https://login.microsoftonline.com"):
            return _answer(200, {"access_token": _token(), "expires_in": 3600})
        with self._lock:
            return self._resource(method, path, body)

    def _resource(self, method: str, path: str, body: Any) -> requests.Response:
        if method != "GET":
            self.requests.append((method, path))
            for part, (status, code, message) in self.refuse.items():
                if part in path:
                    return _answer(status, {"error": {"code": code, "message": message}})
        if method == "PUT":
            self.resources[path] = {**body, **self._read_only(path, body), "id": path, "name": path.rsplit("/", 1)[-1]}
        if method == "DELETE":
            gone = [one for one in self.resources if one == path or one.startswith(path + "/")]
            for one in gone:
                del self.resources[one]
            return _answer(200 if gone else 204, None)
        found = self.resources.get(path)
        return _answer(200, found) if found else _answer(404, {"error": {"code": "NotFound", "message": path}})

    def _read_only(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """What ARM adds by itself; ids stay as they are when a resource is updated."""
        properties = {**body.get("properties", {}), "provisioningState": "Succeeded"}
        if "/userAssignedIdentities/" in path:
            held = self.resources.get(path, {}).get("properties", {})
            new = {"tenantId": TENANT, "clientId": str(uuid.uuid4()), "principalId": str(uuid.uuid4())}
            properties |= {**new, **held}
        identity = body.get("identity", {})
        if "userAssignedIdentities" in identity:
            assert isinstance(identity["userAssignedIdentities"], dict), "ARM takes a map of identities"
            filled = {one: {"clientId": "c", "principalId": "p"} for one in identity["userAssignedIdentities"]}
            return {"properties": properties, "identity": {**identity, "userAssignedIdentities": filled}}
        return {"properties": properties}

    def only(self, kind: str) -> dict[str, Any]:
        """The one resource of a kind, `storageAccounts` or `Microsoft.KeyVault/vaults`."""
        (found,) = [one for path, one in self.resources.items() if path.rsplit("/", 1)[0].endswith(f"/{kind}")]
        return found

    def changes(self, method: str) -> list[str]:
        return [path for name, path in self.requests if name == method]


def _answer(status: int, values: Any) -> requests.Response:
    made = requests.Response()
    made.status_code = status
    made._content = b"" if values is None else json.dumps(values).encode()
    return made


def _token() -> str:
    payload = base64.urlsafe_b64encode(json.dumps({"oid": DEPLOYER}).encode()).decode().rstrip("=")
    return f"header.{payload}.signature"
