"""Who may do what: roles are evaluated by Azure Resource Manager, by storage and by an endpoint's token."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from emulator.arm import rights
from emulator.home import TENANT_ID
from tests.support.arm_in_process import ARM, DEPLOYER, SUBSCRIPTION, ArmInProcess

GROUP = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/rg"
ML = f"{GROUP}/providers/Microsoft.MachineLearningServices/workspaces"
WORKSPACE, ENDPOINT = f"{ML}/mlw", f"{ML}/mlw/onlineEndpoints/ep-rights"
STORAGE = f"{GROUP}/providers/Microsoft.Storage/storageAccounts/strights"
IDENTITY = f"{GROUP}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/id-other"
ENVIRONMENT = f"{WORKSPACE}/environments/env/versions/1"
READER, CONTRIBUTOR = "acdd72a7-3385-48ef-bd42-f606fba81ae7", "b24988ac-6180-42a0-ab88-20f7382dd24c"
ACCESS_ADMIN = "f58310d9-a9f6-439a-9e8d-f62e7b41a168"
BLOBS = "https://strights.blob.core.windows.net"
WHERE = {"location": "eastus2"}
NEW_ENDPOINT = {**WHERE, "identity": {"type": "SystemAssigned"}, "properties": {"authMode": "Key"}}
JOB = {"jobType": "Command", "command": "true", "environmentId": ENVIRONMENT, "computeId": f"{WORKSPACE}/computes/cpu"}


class Other:
    """A second principal, which holds what a test gives it."""

    def __init__(self, arm: ArmInProcess, object_id: str) -> None:
        self.arm, self.object_id = arm, object_id
        self.token = arm.emulator.entra.issue(ARM, client_id="the-other-app", object_id=object_id)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        return self.arm.send(method, path, body=body, token=self.token)

    def hold(self, role: str, scope: str) -> None:
        path = f"{scope}/providers/Microsoft.Authorization/roleAssignments/{uuid.uuid4()}"
        assert self.arm.send("PUT", path, body=self.assignment(role)).status_code == 201

    def assignment(self, role: str) -> dict[str, Any]:
        definition = f"/subscriptions/{SUBSCRIPTION}/providers/Microsoft.Authorization/roleDefinitions/{role}"
        who = {"principalId": self.object_id, "principalType": "ServicePrincipal"}
        return {"properties": {"roleDefinitionId": definition, **who}}


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArmInProcess]:
    with ArmInProcess(tmp_path_factory.mktemp("rights")) as made:
        made.put(GROUP, WHERE)
        made.put(STORAGE, {**WHERE, "sku": {"name": "Standard_LRS"}, "kind": "StorageV2"})
        kinds = {"keyVault": "Microsoft.KeyVault/vaults/kv-r", "applicationInsights": "Microsoft.Insights/components/a"}
        bodies = {
            "keyVault": {**WHERE, "properties": {"sku": {"name": "standard", "family": "A"}, "tenantId": TENANT_ID}},
            "applicationInsights": {**WHERE, "kind": "web"},
        }
        needs = {name: made.put(f"{GROUP}/providers/{kinds[name]}", bodies[name])["id"] for name in kinds}
        properties = {**needs, "storageAccount": STORAGE}
        made.put(WORKSPACE, {**WHERE, "identity": {"type": "SystemAssigned"}, "properties": properties})
        cluster = {"vmSize": "Standard_DS3_v2", "scaleSettings": {"maxNodeCount": 1}}
        compute = {**WHERE, "properties": {"computeType": "AmlCompute", "properties": cluster}}
        made.put(f"{WORKSPACE}/computes/cpu", compute)
        made.put(ENVIRONMENT, {"properties": {"image": "ubuntu"}})
        made.put(ENDPOINT, NEW_ENDPOINT)
        yield made


@pytest.fixture
def other(arm: ArmInProcess) -> Other:
    return Other(arm, str(arm.put(f"{IDENTITY}-{uuid.uuid4().hex[:8]}", WHERE)["properties"]["principalId"]))


ASKED = {
    "read": ("GET", WORKSPACE, None, "workspaces/read"),
    "list": ("GET", f"{WORKSPACE}/jobs", None, "workspaces/jobs/read"),
    "job": ("PUT", f"{WORKSPACE}/jobs/mine", {"properties": JOB}, "workspaces/jobs/write"),
    "asset": ("PUT", f"{WORKSPACE}/environments/e/versions/1", {"properties": {"image": "x"}}, "versions/write"),
    "endpoint": ("PUT", f"{WORKSPACE}/onlineEndpoints/ep-new", NEW_ENDPOINT, "onlineEndpoints/write"),
    "endpoint keys": ("POST", f"{ENDPOINT}/listKeys", None, "onlineEndpoints/listKeys/action"),
    "endpoint token": ("POST", f"{ENDPOINT}/token", None, "onlineEndpoints/token/action"),
    "delete": ("DELETE", ENDPOINT, None, "onlineEndpoints/delete"),
    "account keys": ("POST", f"{STORAGE}/listKeys", None, "Microsoft.Storage/storageAccounts/listKeys/action"),
    "group": ("PUT", GROUP, WHERE, "Microsoft.Resources/subscriptions/resourceGroups/write"),
}


@pytest.mark.parametrize("what", ASKED)
def test_one_without_roles_is_refused_as_azure_refuses(other: Other, what: str) -> None:
    method, path, body, action = ASKED[what]
    answer = other.ask(method, path, body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (403, "AuthorizationFailed")
    assert f"The client 'the-other-app' with object id '{other.object_id}' does not have" in error["message"]
    assert f"{action}' over scope '{GROUP}" in error["message"]


@pytest.mark.parametrize("what", ["job", "asset", "endpoint", "endpoint keys"])
def test_a_data_scientist_of_the_workspace_works_in_it(other: Other, what: str) -> None:
    other.hold(rights.DATA_SCIENTIST, WORKSPACE)
    method, path, body, _ = ASKED[what]
    assert other.ask(method, path, body).status_code in (200, 201)
    assert other.ask("GET", WORKSPACE).status_code == 200


def test_a_data_scientist_changes_neither_workspace_nor_computes(other: Other) -> None:
    other.hold(rights.DATA_SCIENTIST, WORKSPACE)
    assert other.ask("DELETE", WORKSPACE).status_code == 403
    assert other.ask("PUT", f"{WORKSPACE}/computes/more", {}).status_code == 403
    assert other.ask("DELETE", f"{WORKSPACE}/computes/cpu").status_code == 403
    assert other.ask("GET", STORAGE).status_code == 403


def test_a_reader_reads_and_changes_nothing(other: Other) -> None:
    other.hold(READER, GROUP)
    assert other.ask("GET", WORKSPACE).status_code == other.ask("GET", f"{WORKSPACE}/jobs").status_code == 200
    assert other.ask("POST", f"{ENDPOINT}/listKeys").status_code == 403
    assert other.ask("PUT", f"{WORKSPACE}/jobs/mine", {"properties": JOB}).status_code == 403


def test_a_contributor_gives_nobody_a_role_and_an_access_administrator_does_only_that(other: Other) -> None:
    path = f"{GROUP}/providers/Microsoft.Authorization/roleAssignments/{uuid.uuid4()}"
    other.hold(CONTRIBUTOR, GROUP)
    refused = other.ask("PUT", path, other.assignment(READER))
    assert refused.status_code == 403 and "roleAssignments/write" in refused.json()["error"]["message"]
    assert other.ask("PUT", f"{WORKSPACE}/jobs/a-contributors", {"properties": JOB}).status_code == 201
    other.hold(ACCESS_ADMIN, GROUP)
    assert other.ask("PUT", path, other.assignment(READER)).status_code == 201


def test_a_role_that_is_taken_away_holds_no_more(arm: ArmInProcess, other: Other) -> None:
    other.hold(READER, GROUP)
    assert other.ask("GET", WORKSPACE).status_code == 200
    held = arm.send("GET", f"{GROUP}/providers/Microsoft.Authorization/roleAssignments").json()["value"]
    (own,) = [one["id"] for one in held if one["properties"]["principalId"] == other.object_id]
    assert arm.send("DELETE", own).status_code == 200
    assert other.ask("GET", WORKSPACE).status_code == 403


def test_a_role_elsewhere_does_not_hold_here(other: Other, arm: ArmInProcess) -> None:
    arm.put(f"{GROUP}-too", WHERE)
    other.hold(CONTRIBUTOR, f"{GROUP}-too")
    assert other.ask("GET", WORKSPACE).status_code == 403


def test_whoever_asks_hears_how_an_operation_stands_and_what_one_may_do(arm: ArmInProcess, other: Other) -> None:
    made = arm.send("PUT", f"{WORKSPACE}/onlineEndpoints/ep-poll", body=NEW_ENDPOINT)
    assert other.ask("GET", made.headers["Azure-AsyncOperation"]).status_code == 200
    other.hold(READER, GROUP)
    said = other.ask("GET", f"{GROUP}/providers/Microsoft.Authorization/permissions").json()["value"]
    assert [one["actions"] for one in said] == [["*/read"]]


def test_a_custom_role_permits_what_it_names(arm: ArmInProcess, other: Other) -> None:
    role = str(uuid.uuid4())
    path = f"/subscriptions/{SUBSCRIPTION}/providers/Microsoft.Authorization/roleDefinitions/{role}"
    permissions = [{"actions": ["Microsoft.MachineLearningServices/workspaces/onlineEndpoints/listKeys/action"]}]
    arm.send(
        "PUT", path, body={"properties": {"roleName": "k", "permissions": permissions, "assignableScopes": [GROUP]}}
    )
    other.hold(role, ENDPOINT)
    assert other.ask("POST", f"{ENDPOINT}/listKeys").status_code == 200
    assert other.ask("GET", ENDPOINT).status_code == 403


def test_the_one_who_uses_the_emulator_owns_the_subscription(arm: ArmInProcess) -> None:
    for method, path, body, _ in ASKED.values():
        if path != f"{ENDPOINT}/token":
            assert arm.send(method, path, body=body).status_code < 300, path
    arm.put(ENDPOINT, NEW_ENDPOINT)
    assert rights.permits(arm.emulator.state, DEPLOYER, GROUP, "Anything/at/all/action")


@pytest.mark.parametrize("pattern", ["Microsoft.X/a/*/write", "Microsoft.X/*", "*/write", "microsoft.x/A/b/write"])
def test_a_star_is_anything_also_nothing(pattern: str) -> None:
    assert rights._among([pattern], "Microsoft.X/a/b/write")
    assert rights._among([pattern], "Microsoft.X/a/write") == ("b" not in pattern)
    assert not rights._among([pattern], "Microsoft.Xa/read")


# --- a storage account's keys -----------------------------------------------------------------------------------------


def _client(arm: ArmInProcess) -> str:
    keys = arm.send("POST", f"{STORAGE}/listKeys").json()["keys"]
    assert [one["keyName"] for one in keys] == ["key1", "key2"]
    return str(keys[0]["value"])


def _account_signature(key: str) -> str:
    from datetime import UTC, datetime, timedelta

    from azure.storage.blob import generate_account_sas

    return generate_account_sas("strights", key, "co", "rl", datetime.now(UTC) + timedelta(hours=1))


def _take_keys(arm: ArmInProcess, takes: bool) -> None:
    body = {**WHERE, "sku": {"name": "Standard_LRS"}, "kind": "StorageV2"}
    arm.put(STORAGE, {**body, "properties": {"allowSharedKeyAccess": takes}})


def test_an_accounts_key_signs_until_the_account_takes_none(arm: ArmInProcess) -> None:
    _take_keys(arm, True)
    listing = f"{BLOBS}/azureml?restype=container&comp=list&{_account_signature(_client(arm))}"
    assert arm.send("GET", listing).status_code == 200
    _take_keys(arm, False)
    refused = arm.send("GET", listing)
    assert (refused.status_code, refused.headers["x-ms-error-code"]) == (403, "KeyBasedAuthenticationNotPermitted")


def test_what_azure_ml_itself_signs_holds_without_the_accounts_key(arm: ArmInProcess) -> None:
    _take_keys(arm, False)
    blobs = arm.emulator.blobs
    (arm.home.path / "x").write_text("x")
    blobs.add_file("strights", "azureml", "x", arm.home.path / "x")
    address = blobs.signed_uri("strights", "azureml", "x")
    assert arm.send("GET", address).text == "x"
    forged = f"{BLOBS}/azureml/x?{_account_signature(_client(arm))}&skoid=me"
    _take_keys(arm, True)
    assert arm.send("GET", forged).status_code == 403
