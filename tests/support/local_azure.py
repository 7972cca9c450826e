"""An emulator for tests: its own folder, its own ports, and helpers that speak to it as any client does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import requests

from emulator.__main__ import ensure_started, stop
from emulator.home import SUBSCRIPTION_ID, TENANT_ID, Home, client_environment

ROOT = Path(__file__).resolve().parents[2]
ARM = "https://management.azure.com"


@dataclass
class LocalAzure:
    """A running emulator."""

    home: Home
    env: dict[str, str]

    @classmethod
    def start(cls, path: Path, *, hub: bool = False) -> LocalAzure:
        home = Home(path.resolve())
        record = ensure_started(home, hub=hub)
        outside = {key: value for key, value in os.environ.items() if not key.startswith(("AZURE_", "ARM_", "PULUMI_"))}
        return cls(home, {**outside, **client_environment(home, record["port"])})

    @property
    def record(self) -> dict[str, Any]:
        found = self.home.running()
        assert found is not None, "the emulator is not running"
        return found

    def stop(self) -> None:
        if record := self.home.running():
            stop(self.home, record)

    def run(
        self, *words: str, timeout: float = 300, python: str = sys.executable, cwd: str | Path = ROOT, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `python WORDS…` inside, as `emulator run` would."""
        return subprocess.run(
            [python, *words],
            env={**self.env, **env},
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )

    def token(self, audience: str) -> str:
        answer = self._session().post(
            f"https://login.microsoftonline.com/{TENANT_ID}/oauth2/v2.0/token",
            data={
                "grant_type": "client_credentials",
                "client_id": self.env["AZURE_CLIENT_ID"],
                "client_secret": self.env["AZURE_CLIENT_SECRET"],
                "scope": f"{audience}/.default",
            },
        )
        token: str = answer.json()["access_token"]
        return token

    def _session(self) -> requests.Session:
        session = requests.Session()
        session.trust_env = False
        session.proxies = {"https": self.env["HTTPS_PROXY"]}
        session.verify = self.env["REQUESTS_CA_BUNDLE"]
        return session

    def request(self, method: str, url: str, *, audience: str | None = ARM, **more: Any) -> requests.Response:
        """One request through the proxy; `url` may be a path below Azure Resource Manager."""
        headers: dict[str, str] = dict(more.pop("headers", {}))
        if audience is not None:
            headers["Authorization"] = f"Bearer {self.token(audience)}"
        whole = url if url.startswith("https:") else f"{ARM}{url}"
        return self._session().request(method, whole, headers=headers, timeout=60, **more)

    def put(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        answer = self.request("PUT", path, json=body)
        if answer.status_code == 202:  # answered by an operation alone, which is done here at once
            answer = self.request("GET", path)
        assert answer.status_code in (200, 201), answer.text
        made: dict[str, Any] = answer.json()
        return made

    def make_workspace(self, group: str = "rg-test") -> str:
        """A workspace with all that it needs and a cluster `cpu`; returns its ARM id."""
        base = f"/subscriptions/{SUBSCRIPTION_ID}/resourceGroups/{group}"
        self.put(base, {"location": "eastus2"})
        where = {"location": "eastus2"}
        account = {**where, "sku": {"name": "Standard_LRS"}, "kind": "StorageV2"}
        storage = self.put(f"{base}/providers/Microsoft.Storage/storageAccounts/st{_letters(group)}", account)
        secret = {**where, "properties": {"sku": {"name": "standard"}, "tenantId": TENANT_ID}}
        vault = self.put(f"{base}/providers/Microsoft.KeyVault/vaults/kv-{group}", secret)
        insights = self.put(f"{base}/providers/Microsoft.Insights/components/appi-{group}", {**where, "kind": "web"})
        identities = f"{base}/providers/Microsoft.ManagedIdentity/userAssignedIdentities"
        identity = self.put(f"{identities}/id-{group}", where)
        needs = {"storageAccount": storage["id"], "keyVault": vault["id"], "applicationInsights": insights["id"]}
        properties = {**needs, "systemDatastoresAuthMode": "Identity"}
        workspaces = f"{base}/providers/Microsoft.MachineLearningServices/workspaces"
        made = {**where, "identity": {"type": "SystemAssigned"}, "properties": properties}
        workspace = self.put(f"{workspaces}/mlw-{group}", made)["id"]
        cluster = {"vmSize": "Standard_DS3_v2", "scaleSettings": {"minNodeCount": 0, "maxNodeCount": 1}}
        used = {"type": "UserAssigned", "userAssignedIdentities": {identity["id"]: {}}}
        compute = {**where, "identity": used, "properties": {"computeType": "AmlCompute", "properties": cluster}}
        self.put(f"{workspace}/computes/cpu", compute)
        return str(workspace)


def is_gone(pid: int) -> bool:
    """Whether a process has ended; one that its parent did not wait for counts as ended."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _letters(text: str) -> str:
    return "".join(letter for letter in text if letter.isalnum())


def last_json(text: str) -> dict[str, Any]:
    """The JSON object that a verb printed with --json."""
    found: dict[str, Any] = json.loads(text.strip().splitlines()[-1])
    return found
