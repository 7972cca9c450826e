"""Azure Resource Manager's answers, above all its refusals."""

from __future__ import annotations

from typing import Any

import pytest

from emulator.arm.ids import ResourceId
from emulator.home import SUBSCRIPTION_ID
from tests.support.local_azure import LocalAzure

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
        ("Microsoft.KeyVault/vaults/ends-with-", {"properties": {}}, "InvalidResourceName"),
        ("Microsoft.ContainerRegistry/registries/no-dashes", {"sku": {"name": "Basic"}}, "InvalidResourceName"),
        ("Microsoft.Insights/components/appi", {}, "InvalidRequestContent"),
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


def test_a_role_for_a_managed_identity_needs_its_principal_type(azure: LocalAzure, group: str) -> None:
    identity = azure.put(f"{group}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/id-arm", HERE)
    role = {"roleDefinitionId": "/subscriptions/x/roles/y", "principalId": identity["properties"]["principalId"]}
    path = f"{group}/providers/Microsoft.Authorization/roleAssignments"
    one, two = (f"{path}/00000000-0000-4000-8000-00000000000{number}" for number in (1, 2))
    assert refusal(azure, "PUT", one, {"properties": role}) == (400, "UnmatchedPrincipalType")
    right = {"properties": {**role, "principalType": "ServicePrincipal"}}
    azure.put(one, right)
    assert refusal(azure, "PUT", two, right) == (409, "RoleAssignmentExists")
    other = {"properties": {**right["properties"], "roleDefinitionId": "/subscriptions/x/roles/z"}}
    assert refusal(azure, "PUT", one, other) == (400, "RoleAssignmentUpdateNotPermitted")


def test_deleting_a_group_takes_all_with_it_and_keeps_vault_and_workspace_softly(azure: LocalAzure) -> None:
    workspace = azure.make_workspace("rg-soft")
    assert azure.request("DELETE", f"{BASE}/rg-soft").status_code == 200
    assert azure.request("GET", workspace).status_code == 404
    azure.put(f"{BASE}/rg-soft", HERE)
    with pytest.raises(AssertionError, match="soft-deleted"):
        azure.make_workspace("rg-soft")
    vaults = f"/subscriptions/{SUBSCRIPTION_ID}/providers/Microsoft.KeyVault"
    assert "kv-rg-soft" in [found["name"] for found in azure.request("GET", f"{vaults}/deletedVaults").json()["value"]]
    assert azure.request("POST", f"{vaults}/locations/eastus2/deletedVaults/kv-rg-soft/purge").status_code == 202
    assert azure.request("DELETE", f"{workspace}?forceToPurge=true").status_code == 200
    azure.make_workspace("rg-soft")


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
