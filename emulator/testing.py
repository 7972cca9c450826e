"""A local Azure ML for one's own tests. In conftest.py: `pytest_plugins = ["emulator.testing"]`; then

    def test_it_trains(azure_ml):
        job = azure_ml.client().jobs.create_or_update(my_job())
        assert azure_ml.wait(job.name) == "Completed"

The fixture `azure_ml` is one emulator for the test session, in a folder of its own and stopped at the end; in a test
that takes it, azure-ai-ml, azure-identity and azure-storage-blob reach it and not Azure.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from emulator.__main__ import ensure_started, stop
from emulator.home import SUBSCRIPTION_ID, TENANT_ID, Home, client_environment

if TYPE_CHECKING:
    from azure.ai.ml import MLClient

ARM = "https://management.azure.com"
TERMINAL = ("Completed", "Failed", "Canceled")
PROVIDERS = "providers/Microsoft"


class AzureMl:
    """A running emulator with a workspace `mlw-test`, made on first use, that has a cluster `cpu` of two nodes."""

    def __init__(self, home: Home, record: dict[str, Any]) -> None:
        self.home, self.environment = home, client_environment(home, record["port"])
        self._admin = f"http://127.0.0.1:{record['admin_port']}"
        self._client: MLClient | None = None

    def client(self) -> MLClient:
        """An MLClient of the workspace, signed in as the emulator's owner."""
        from azure.ai.ml import MLClient
        from azure.identity import DefaultAzureCredential

        if self._client is None:
            self._make_workspace()
            ids = (SUBSCRIPTION_ID, "rg-test", "mlw-test")
            self._client = MLClient(DefaultAzureCredential(), *ids, enable_telemetry=False)
        return self._client

    def wait(self, job: str, seconds: float = 600) -> str:
        """The status in which a job ended. Raises TimeoutError if it does not end."""
        client, deadline = self.client(), time.monotonic() + seconds
        while time.monotonic() < deadline:
            if (status := str(client.jobs.get(job).status)) in TERMINAL:
                return status
            time.sleep(0.2)
        raise TimeoutError(f"the job {job} has not ended after {seconds:.0f} s")

    def fault(self, kind: str, **values: Any) -> None:
        """As `python -m emulator fault KIND` (match, after, times, seconds, status, code); ends with the test."""
        self._ask("POST", "faults", {"kind": kind, **values})

    def clear_faults(self) -> None:
        self._ask("DELETE", "faults", {})

    def preempt(self, job: str) -> None:
        """Take a running job's nodes away: SIGTERM, SIGKILL, back to the queue."""
        self._ask("POST", "preempt", {"job": job})

    def _ask(self, method: str, path: str, values: dict[str, Any]) -> None:
        import requests

        answer = requests.request(method, f"{self._admin}/{path}", json=values, timeout=60)
        assert answer.status_code == 200, answer.text

    def _make_workspace(self) -> None:
        base, where = f"/subscriptions/{SUBSCRIPTION_ID}/resourceGroups/rg-test", {"location": "eastus2"}
        self._put(base, where)
        storage = f"{base}/{PROVIDERS}.Storage/storageAccounts/sttest"
        self._put(storage, {**where, "sku": {"name": "Standard_LRS"}, "kind": "StorageV2"})
        vault = f"{base}/{PROVIDERS}.KeyVault/vaults/kv-test-local"
        self._put(vault, {**where, "properties": {"sku": {"name": "standard"}, "tenantId": TENANT_ID}})
        insights = f"{base}/{PROVIDERS}.Insights/components/appi-test"
        self._put(insights, {**where, "kind": "web"})
        needs = {"storageAccount": storage, "keyVault": vault, "applicationInsights": insights}
        workspace = f"{base}/{PROVIDERS}.MachineLearningServices/workspaces/mlw-test"
        self._put(workspace, {**where, "identity": {"type": "SystemAssigned"}, "properties": needs})
        scale = {"vmSize": "Standard_DS3_v2", "scaleSettings": {"minNodeCount": 0, "maxNodeCount": 2}}
        cluster = {"computeType": "AmlCompute", "properties": scale}
        self._put(f"{workspace}/computes/cpu", {**where, "properties": cluster})

    def _put(self, path: str, body: dict[str, Any]) -> None:
        import requests
        from azure.identity import DefaultAzureCredential

        token = DefaultAzureCredential().get_token(f"{ARM}/.default").token
        headers = {"Authorization": f"Bearer {token}"}
        answer = requests.put(f"{ARM}{path}?api-version=2024-10-01", json=body, headers=headers, timeout=60)
        assert answer.status_code in (200, 201), answer.text


@pytest.fixture(scope="session")
def azure_ml_of_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureMl]:
    home = Home(tmp_path_factory.mktemp("azure-ml").resolve())
    yield AzureMl(home, ensure_started(home))
    if record := home.running():
        stop(home, record)


@pytest.fixture
def azure_ml(azure_ml_of_session: AzureMl, monkeypatch: pytest.MonkeyPatch) -> Iterator[AzureMl]:
    """The session's emulator; this test's process is inside it, and its faults end with it."""
    for key, value in azure_ml_of_session.environment.items():
        monkeypatch.setenv(key, value)
    yield azure_ml_of_session
    azure_ml_of_session.clear_faults()
