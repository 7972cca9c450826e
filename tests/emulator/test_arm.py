"""Azure Resource Manager's answers, above all its refusals."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import requests

from emulator.arm.ids import ResourceId
from emulator.home import SUBSCRIPTION_ID
from tests.support.local_azure import LocalAzure, is_gone

BASE = f"/subscriptions/{SUBSCRIPTION_ID}/resourceGroups"
HERE = {"location": "eastus2"}


@pytest.fixture(scope="module")
def group(azure: LocalAzure) -> str:
    azure.put(f"{BASE}/rg-arm", HERE)
    return f"{BASE}/rg-arm"


def refusal(azure: LocalAzure, method: str, path: str, body: Any = None) -> tuple[int, str]:
    answer = azure.request(method, path, json=body)
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "details", "additionalInfo"}
    return answer.status_code, error["code"]


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("Microsoft.Storage/storageAccounts/Has-Capitals", {"sku": {"name": "x"}, "kind": "y"}, "AccountNameInvalid"),
        ("Microsoft.Storage/storageAccounts/stphi", {"kind": "StorageV2"}, "InvalidRequestContent"),
        ("Microsoft.KeyVault/vaults/ends-with-", {"properties": {}}, "VaultNameNotValid"),
        ("Microsoft.ContainerRegistry/registries/no-dashes", {"sku": {"name": "Basic"}}, "InvalidResourceName"),
        ("Microsoft.Insights/components/appi", {}, "BadRequest"),
    ],
)
def test_a_bad_name_or_a_missing_field_is_400(
    azure: LocalAzure, group: str, path: str, body: dict[str, Any], expected: str
) -> None:
    assert refusal(azure, "PUT", f"{group}/providers/{path}", {**HERE, **body}) == (400, expected)


def test_a_missing_group_a_missing_parent_and_a_missing_resource_are_told_apart(azure: LocalAzure, group: str) -> None:
    storage = "providers/Microsoft.Storage/storageAccounts/missing"
    assert refusal(azure, "GET", f"{BASE}/nowhere") == (404, "ResourceGroupNotFound")
    assert refusal(azure, "GET", f"{BASE}/nowhere/{storage}") == (404, "ResourceGroupNotFound")
    assert refusal(azure, "GET", f"{group}/{storage}") == (404, "ResourceNotFound")
    assert refusal(azure, "PUT", f"{group}/{storage}/blobServices/default", {}) == (404, "ParentResourceNotFound")


def test_a_missing_or_foreign_token_is_401(azure: LocalAzure, group: str) -> None:
    assert azure.request("GET", group, audience=None).status_code == 401
    assert azure.request("GET", group, audience="https://storage.azure.com").status_code == 401


def test_an_unknown_operation_is_404_and_noted(azure: LocalAzure, group: str) -> None:
    assert refusal(azure, "GET", f"{group}/providers/Microsoft.Quantum/workspaces/q")[0] == 404
    assert refusal(azure, "GET", "https://eastus2.api.azureml.ms/sweep/v1.0/x")[0] == 404
    status = azure.run("-m", "emulator", "status").stdout
    assert "not emulated: GET management.azure.com" in status and "Microsoft.Quantum" in status
    assert "not emulated: GET eastus2.api.azureml.ms/sweep/v1.0/x" in status


def test_ids_are_compared_without_case(azure: LocalAzure, group: str) -> None:
    assert azure.request("GET", group.upper().replace("/SUBSCRIPTIONS", "/subscriptions")).status_code == 200


def follow(azure: LocalAzure, answer: requests.Response, patience: float = 30) -> int:
    """Poll a deletion's Location until it is done; the last status."""
    assert answer.status_code == 202, answer.text
    url, deadline = answer.headers["Location"], time.monotonic() + patience
    while (status := azure.request("GET", url).status_code) == 202:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return status


def test_deleting_a_group_takes_all_with_it_and_keeps_vault_and_workspace_softly(azure: LocalAzure) -> None:
    workspace = azure.make_workspace("rg-soft")
    assert follow(azure, azure.request("DELETE", f"{BASE}/rg-soft")) == 204
    assert azure.request("GET", workspace).status_code == 404
    azure.put(f"{BASE}/rg-soft", HERE)
    with pytest.raises(AssertionError, match="already exists in deleted state"):
        azure.make_workspace("rg-soft")
    vaults = f"/subscriptions/{SUBSCRIPTION_ID}/providers/Microsoft.KeyVault"
    assert "kv-rg-soft" in [found["name"] for found in azure.request("GET", f"{vaults}/deletedVaults").json()["value"]]
    assert azure.request("POST", f"{vaults}/locations/eastus2/deletedVaults/kv-rg-soft/purge").status_code == 202
    with pytest.raises(AssertionError, match="Soft-deleted workspace exists"):
        azure.make_workspace("rg-soft")
    assert follow(azure, azure.request("DELETE", f"{workspace}?forceToPurge=true")) == 204
    azure.make_workspace("rg-soft")


def test_deleting_a_group_ends_its_jobs_and_all_their_processes(azure: LocalAzure, tmp_path: Path) -> None:
    workspace = azure.make_workspace("rg-busy")
    marker = tmp_path / "pid"
    environment = azure.put(f"{workspace}/environments/base/versions/1", {"properties": {"image": "ubuntu:22.04"}})
    command = f"(sleep 300 & echo $! > {marker}; wait)"
    body = {"jobType": "Command", "command": command, "environmentId": environment["id"]}
    azure.put(f"{workspace}/jobs/endless", {"properties": {**body, "computeId": f"{workspace}/computes/cpu"}})
    deadline = time.monotonic() + 30
    while not (marker.exists() and marker.read_text().strip()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert follow(azure, azure.request("DELETE", f"{BASE}/rg-busy")) == 204
    assert azure.request("GET", f"{workspace}/jobs/endless").status_code == 404
    while not is_gone(int(marker.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("properties", "word"),
    [
        ({"vmSize": "Standard_Imaginary", "scaleSettings": {"maxNodeCount": 1}}, "VM size"),
        ({"vmSize": "Standard_DS3_v2", "scaleSettings": {"minNodeCount": 2, "maxNodeCount": 1}}, "maxNodeCount"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused(
    azure: LocalAzure, workspace: str, properties: dict[str, Any], word: str
) -> None:
    body = {**HERE, "properties": {"computeType": "AmlCompute", "properties": properties}}
    answer = azure.request("PUT", f"{workspace}/computes/bad-cluster", json=body)
    assert answer.status_code == 400 and word in answer.json()["error"]["message"]


def test_a_cluster_name_must_not_end_in_dash_and_digits(azure: LocalAzure, workspace: str) -> None:
    inner = {"vmSize": "Standard_DS3_v2", "scaleSettings": {"maxNodeCount": 1}}
    body = {**HERE, "properties": {"computeType": "AmlCompute", "properties": inner}}
    assert refusal(azure, "PUT", f"{workspace}/computes/gpu-1", body) == (400, "InvalidResourceName")


@pytest.mark.parametrize(
    ("path", "kind", "collection"),
    [
        ("/subscriptions/s/resourceGroups/g", "Microsoft.Resources/resourceGroups", False),
        ("/subscriptions/s/resourceGroups/g/providers/N/t/a/u/b", "N/t/u", False),
        ("/subscriptions/s/resourceGroups/g/providers/N/t/a/u", "N/t/u", True),
        ("/subscriptions/s/resourceGroups/g/providers/N/t/a/providers/M/v/c", "M/v", False),
    ],
)
def test_ids_are_parsed_and_written_alike(path: str, kind: str, collection: bool) -> None:
    parsed = ResourceId.parse(path)
    assert parsed is not None
    assert (parsed.type, parsed.is_collection, str(parsed)) == (kind, collection, path)
