"""The emulator's own Azure Resource Manager inside the test's process: no network, no processes, a temporary home."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import httpx
import requests
from anyio.from_thread import BlockingPortal, start_blocking_portal

from emulator.home import DEPLOYER_CLIENT_ID, DEPLOYER_OBJECT_ID, SUBSCRIPTION_ID, TENANT_ID, Home
from emulator.server import Emulator

ARM = "https://management.azure.com"
TENANT, SUBSCRIPTION, DEPLOYER = TENANT_ID, SUBSCRIPTION_ID, DEPLOYER_OBJECT_ID


class ArmInProcess:
    """One emulator, in a folder of its own; a context manager, because its event loop runs in a thread.

    `send` answers in place of `ArmClient.send` and may be called from any thread. `requests` holds (method, path) of
    every change in order, `refuse` maps a part of a path to the (status, code, message) that a change of it gets.
    """

    def __init__(self, home: Path) -> None:
        self.home = Home(home)
        self.home.make()
        self.emulator = Emulator(self.home, proxy_port=0, admin_port=0)
        self.requests: list[tuple[str, str]] = []
        self.refuse: dict[str, tuple[int, str, str]] = {}
        self._lock = threading.Lock()
        self._loop = start_blocking_portal()

    def __enter__(self) -> ArmInProcess:
        self._portal: BlockingPortal = self._loop.__enter__()
        transport = httpx.ASGITransport(app=self.emulator.app)
        self._client = httpx.AsyncClient(transport=transport)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._portal.call(self._client.aclose)
        self._portal.call(self.emulator.stop)
        self._loop.__exit__(kind, error, trace)

    @property
    def environment(self) -> dict[str, str]:
        """The variables that Pulumi's provider reads, for this emulator."""
        return {
            "ARM_TENANT_ID": TENANT_ID,
            "ARM_SUBSCRIPTION_ID": SUBSCRIPTION_ID,
            "ARM_CLIENT_ID": DEPLOYER_CLIENT_ID,
            "ARM_CLIENT_SECRET": self.home.secrets()["client_secret"],
        }

    def send(
        self,
        method: str,
        url: str,
        *,
        body: Any = None,
        form: Mapping[str, str] | None = None,
        token: str | None = None,
    ) -> requests.Response:
        """One request; `url` may be a path below ARM, which is then asked as the deployer."""
        whole = url if url.startswith("https:") else f"{ARM}{url}"
        path = urlsplit(whole).path
        if method not in ("GET", "HEAD") and whole.startswith(ARM):
            with self._lock:
                self.requests.append((method, path))
            for part, (status, code, message) in self.refuse.items():
                if part in path:
                    return _answer(httpx.Response(status, json={"error": {"code": code, "message": message}}))
        if token is None and whole.startswith(ARM):
            token = self.emulator.entra.issue(ARM, client_id=DEPLOYER_CLIENT_ID, object_id=DEPLOYER_OBJECT_ID)
        headers = {"Authorization": f"Bearer {token}"} if token else {}

        async def ask() -> httpx.Response:
            return await self._client.request(method, whole, json=body, data=form, headers=headers)

        return _answer(self._portal.call(ask))

    def put(self, path: str, body: Any) -> dict[str, Any]:
        """PUT, which must succeed; the resource as it is afterwards."""
        answer = self.send("PUT", path, body=body)
        assert answer.status_code in (200, 201, 202), answer.text
        found: dict[str, Any] = self.send("GET", path).json()
        return found

    # -- what there is, as tests look at it ----------------------------------------------------------------------------

    @property
    def resources(self) -> dict[str, dict[str, Any]]:
        """What was asked for and is there, by id, oldest first; a workspace's own datastores are not in it."""
        asked = {path.lower() for method, path in self.requests if method == "PUT"}
        found = self.emulator.state.below("/subscriptions")
        return {one["id"]: one for one in found if one["id"].lower() in asked}

    def forget(self, path: str) -> None:
        """Remove a resource behind everybody's back."""
        self.emulator.state.delete(path)

    def only(self, kind: str) -> dict[str, Any]:
        """The one resource of a kind, `storageAccounts` or `Microsoft.KeyVault/vaults`."""
        (found,) = [one for path, one in self.resources.items() if path.rsplit("/", 1)[0].endswith(f"/{kind}")]
        return found

    def changes(self, method: str) -> list[str]:
        return [path for name, path in self.requests if name == method]


def _answer(answer: httpx.Response) -> requests.Response:
    made = requests.Response()
    made.status_code = answer.status_code
    made._content = answer.content
    made.headers.update(answer.headers)
    if "retry-after-ms" in answer.headers:
        made.headers["Retry-After"] = "0.01"  # whoever polls: a test has nothing to wait for
    return made
