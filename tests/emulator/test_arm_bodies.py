"""What ARM takes as a resource's body, and the first thing that it says of one that it does not take."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emulator.arm import body as bodies
from emulator.arm.schema import TYPES
from emulator.home import DEPLOYER_OBJECT_ID, TENANT_ID
from tests.support.arm_in_process import SUBSCRIPTION, ArmInProcess

GROUP = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/rg"
HERE: dict[str, Any] = {"location": "eastus2", "tags": {"owner": "me"}}


def path(kind: str, group: str = GROUP) -> str:
    return f"{group}/providers/{kind}"


STORAGE = path("Microsoft.Storage/storageAccounts/st1")
VAULT = path("Microsoft.KeyVault/vaults/kv1")
LOGS = path("Microsoft.OperationalInsights/workspaces/log1")
INSIGHTS = path("Microsoft.Insights/components/appi1")
REGISTRY = path("Microsoft.ContainerRegistry/registries/cr123")
IDENTITY = path("Microsoft.ManagedIdentity/userAssignedIdentities/id1")
CREDENTIAL = f"{IDENTITY}/federatedIdentityCredentials/github"
COSMOS = path("Microsoft.DocumentDB/databaseAccounts/cosmos1")
DATABASE = f"{COSMOS}/sqlDatabases/chat"
CONTAINER = f"{DATABASE}/containers/turns"
COSMOS_ROLE = f"{COSMOS}/sqlRoleAssignments/00000000-0000-4000-8000-0000000000c1"
WORKSPACE = path("Microsoft.MachineLearningServices/workspaces/mlw1")
CLUSTER = f"{WORKSPACE}/computes/gpu"
BUDGET = path("Microsoft.Consumption/budgets/monthly")
ROLE = path("Microsoft.Authorization/roleAssignments/00000000-0000-4000-8000-000000000001")
LOCK = path("Microsoft.Authorization/locks/keep")
ROLES = "/providers/Microsoft.Authorization/roleDefinitions"
MAIL = {"enabled": True, "operator": "GreaterThan", "threshold": 80, "contactEmails": ["me@contoso.example"]}

BODIES: dict[str, dict[str, Any]] = {
    GROUP: {**HERE},
    STORAGE: {
        **HERE,
        "sku": {"name": "Standard_LRS"},
        "kind": "StorageV2",
        "properties": {"isHnsEnabled": False, "minimumTlsVersion": "TLS1_2", "allowSharedKeyAccess": False},
    },
    f"{STORAGE}/blobServices/default": {"properties": {"isVersioningEnabled": False}},
    VAULT: {
        **HERE,
        "properties": {
            "tenantId": TENANT_ID,
            "sku": {"family": "A", "name": "standard"},
            "enableRbacAuthorization": True,
            "softDeleteRetentionInDays": 7,
        },
    },
    LOGS: {**HERE, "properties": {"sku": {"name": "PerGB2018"}, "retentionInDays": 30}},
    INSIGHTS: {
        **HERE,
        "kind": "web",
        "properties": {"Application_Type": "web", "IngestionMode": "LogAnalytics", "WorkspaceResourceId": LOGS},
    },
    REGISTRY: {**HERE, "sku": {"name": "Standard"}, "properties": {"adminUserEnabled": False}},
    IDENTITY: {**HERE},
    CREDENTIAL: {
        "properties": {
            "issuer": "https://token.actions.githubusercontent.com",
            "subject": "repo:contoso/phi:ref:refs/heads/main",
            "audiences": ["api://AzureADTokenExchange"],
        }
    },
    COSMOS: {
        **HERE,
        "kind": "GlobalDocumentDB",
        "properties": {
            "databaseAccountOfferType": "Standard",
            "locations": [{"locationName": "eastus2", "failoverPriority": 0}],
            "capabilities": [{"name": "EnableServerless"}],
            "disableLocalAuth": True,
        },
    },
    DATABASE: {"properties": {"resource": {"id": "chat"}}},
    CONTAINER: {"properties": {"resource": {"id": "turns", "partitionKey": {"paths": ["/user"], "kind": "Hash"}}}},
    COSMOS_ROLE: {
        "properties": {
            "roleDefinitionId": f"{COSMOS}/sqlRoleDefinitions/00000000-0000-0000-0000-000000000002",
            "principalId": DEPLOYER_OBJECT_ID,
            "scope": COSMOS,
        }
    },
    WORKSPACE: {
        **HERE,
        "identity": {"type": "SystemAssigned"},
        "properties": {
            "storageAccount": STORAGE,
            "keyVault": VAULT,
            "applicationInsights": INSIGHTS,
            "containerRegistry": REGISTRY,
            "systemDatastoresAuthMode": "Identity",
        },
    },
    CLUSTER: {
        **HERE,
        "identity": {"type": "UserAssigned", "userAssignedIdentities": {IDENTITY: {}}},
        "properties": {
            "computeType": "AmlCompute",
            "properties": {
                "vmSize": "Standard_DS3_v2",
                "vmPriority": "Dedicated",
                "scaleSettings": {"minNodeCount": 0, "maxNodeCount": 1, "nodeIdleTimeBeforeScaleDown": "PT10M"},
            },
        },
    },
    BUDGET: {
        "properties": {
            "category": "Cost",
            "amount": 100,
            "timeGrain": "Monthly",
            "timePeriod": {"startDate": "2099-01-01T00:00:00Z"},  # the tests of its rules set it by the clock
            "notifications": {"spent": MAIL},
        }
    },
    ROLE: {
        "properties": {
            "roleDefinitionId": f"{ROLES}/acdd72a7-3385-48ef-bd42-f606fba81ae7",  # Reader
            "principalId": DEPLOYER_OBJECT_ID,
            "principalType": "ServicePrincipal",
        }
    },
    LOCK: {"properties": {"level": "CanNotDelete", "notes": "not by accident"}},
}


def changed(of: str, changes: dict[str, Any]) -> dict[str, Any]:
    """A good body with other values at some dotted paths; `...` takes one out."""
    body = copy.deepcopy(BODIES[of])
    for dotted, value in changes.items():
        *above, last = dotted.split("/")
        inner = body
        for key in above:
            inner = inner[key]
        if value is ...:
            del inner[last]
        else:
            inner[last] = value
    return body


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArmInProcess]:
    """Everything that BODIES describes, except for what depends on the clock or forbids the rest."""
    with ArmInProcess(tmp_path_factory.mktemp("arm")) as made:
        for one, body in BODIES.items():
            if one not in (BUDGET, LOCK):
                made.put(one, copy.deepcopy(body))
        yield made


def refusal(arm: ArmInProcess, method: str, at: str, body: Any = None) -> tuple[int, str, str]:
    """Status, code and message of a request that must be refused."""
    answer = arm.send(method, at, body=body)
    assert answer.status_code >= 400, answer.text
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["message"]


def test_every_type_has_a_schema_and_a_good_body(arm: ArmInProcess) -> None:
    found = {f"{file.stem}" for file in Path(bodies.SCHEMAS).glob("*.yaml")}
    assert found == {kind.replace("/", ".") for kind in TYPES}
    assert {one["type"].lower() for one in arm.resources.values()} == set(TYPES) - {
        "microsoft.consumption/budgets",
        "microsoft.authorization/locks",
    }


@pytest.mark.parametrize("at", [one for one in BODIES if one not in (BUDGET, LOCK)])
def test_what_arm_answered_may_be_sent_back(arm: ArmInProcess, at: str) -> None:
    """As clients do that read, change a tag, and write: what only Azure writes is ignored."""
    held = arm.send("GET", at).json()
    assert _untimed(arm.put(at, held)) == _untimed(held)


def _untimed(resource: dict[str, Any]) -> dict[str, Any]:
    """Without when it was changed last."""
    by = {key: value for key, value in resource.get("systemData", {}).items() if key != "lastModifiedAt"}
    return {**resource, "systemData": by, "properties": {**resource["properties"], "modifiedOn": None}}


UNKNOWN = "Could not find member 'colour' on object of type"


@pytest.mark.parametrize("at", BODIES)
def test_an_unknown_member_is_named_with_its_object(arm: ArmInProcess, at: str) -> None:
    assert UNKNOWN in refusal(arm, "PUT", at, changed(at, {"colour": "red"}))[2]


@pytest.mark.parametrize(
    ("at", "member", "kind"),
    [
        (STORAGE, "properties/colour", "StorageAccountPropertiesCreateParameters"),
        (STORAGE, "sku/colour", "Sku"),
        (VAULT, "properties/colour", "VaultProperties"),
        (CLUSTER, "properties/properties/scaleSettings/colour", "ScaleSettings"),
        (CONTAINER, "properties/resource/partitionKey/colour", "ContainerPartitionKey"),
        (BUDGET, "properties/notifications/spent/colour", "Notification"),
    ],
)
def test_an_unknown_member_is_found_at_any_depth(arm: ArmInProcess, at: str, member: str, kind: str) -> None:
    said = refusal(arm, "PUT", at, changed(at, {member: "red"}))[2]
    assert f"{UNKNOWN} '{kind}'. Path '{member.replace('/', '.')}'." in said


@pytest.mark.parametrize(
    ("at", "member"),
    [
        (GROUP, "location"),
        (STORAGE, "location"),
        (STORAGE, "sku"),
        (STORAGE, "kind"),
        (VAULT, "properties"),
        (VAULT, "properties/tenantId"),
        (VAULT, "properties/sku"),
        (INSIGHTS, "kind"),
        (INSIGHTS, "properties/Application_Type"),
        (REGISTRY, "sku/name"),
        (CREDENTIAL, "properties/subject"),
        (COSMOS, "properties/locations"),
        (COSMOS, "properties/databaseAccountOfferType"),
        (DATABASE, "properties/resource"),
        (CONTAINER, "properties/resource/partitionKey"),
        (COSMOS_ROLE, "properties/scope"),
        (CLUSTER, "properties/computeType"),
        (CLUSTER, "properties/properties/vmSize"),
        (CLUSTER, "properties/properties/scaleSettings/maxNodeCount"),
        (BUDGET, "properties/amount"),
        (BUDGET, "properties/timePeriod/startDate"),
        (ROLE, "properties/principalId"),
        (LOCK, "properties/level"),
    ],
)
@pytest.mark.parametrize("how", [..., None])
def test_a_missing_member_is_named(arm: ArmInProcess, at: str, member: str, how: Any) -> None:
    status, code, said = refusal(arm, "PUT", at, changed(at, {member: how}))
    assert status == 400
    if member == "location":
        assert (code, said) == ("LocationRequired", "The location property is required for this definition.")
    else:
        assert f"Required property '{member.split('/')[-1]}' not found in JSON" in said


@pytest.mark.parametrize(
    ("at", "member", "value", "words"),
    [
        (STORAGE, "kind", "StorageV3", "Storage, StorageV2, BlobStorage"),
        (STORAGE, "sku/name", "Standard", "Standard_LRS"),
        (STORAGE, "properties/minimumTlsVersion", "1.2", "TLS1_0, TLS1_1, TLS1_2"),
        (VAULT, "properties/sku/name", "basic", "standard, premium"),
        (REGISTRY, "sku/name", "Tiny", "Basic, Standard, Premium"),
        (WORKSPACE, "properties/systemDatastoresAuthMode", "identity", "AccessKey, Identity, UserDelegationSAS"),
        (WORKSPACE, "properties/publicNetworkAccess", "yes", "Enabled, Disabled"),
        (CLUSTER, "properties/properties/vmPriority", "Spot", "Dedicated, LowPriority"),
        (CLUSTER, "identity/type", "Mine", "SystemAssigned, UserAssigned"),
        (COSMOS, "kind", "Sql", "GlobalDocumentDB, MongoDB"),
        (BUDGET, "properties/timeGrain", "Weekly", "Monthly, Quarterly, Annually"),
        (ROLE, "properties/principalType", "Robot", "User, Group, ServicePrincipal"),
    ],
)
def test_a_word_that_is_not_allowed_is_refused_with_those_that_are(
    arm: ArmInProcess, at: str, member: str, value: str, words: str
) -> None:
    status, _, said = refusal(arm, "PUT", at, changed(at, {member: value}))
    assert status == 400
    assert f'"{value}"' in said and words in said and member.replace("/", ".") in said


@pytest.mark.parametrize(
    ("at", "member", "value"),
    [
        (STORAGE, "kind", "storagev2"),
        (REGISTRY, "sku/name", "STANDARD"),
        (CLUSTER, "properties/properties/vmPriority", "dedicated"),
        (WORKSPACE, "identity/type", "systemassigned"),
    ],
)
def test_most_words_are_taken_in_any_case(arm: ArmInProcess, at: str, member: str, value: str) -> None:
    arm.put(at, changed(at, {member: value}))


@pytest.mark.parametrize(
    ("at", "member", "value", "kind"),
    [
        (STORAGE, "properties/isHnsEnabled", "false", "System.Boolean"),
        (STORAGE, "properties/isHnsEnabled", 0, "System.Boolean"),
        (STORAGE, "sku", "Standard_LRS", "Sku"),
        (STORAGE, "tags/owner", 7, "System.String"),
        (VAULT, "properties/softDeleteRetentionInDays", "7", "System.Int32"),
        (VAULT, "properties/softDeleteRetentionInDays", True, "System.Int32"),
        (VAULT, "properties/tenantId", "contoso", "System.Guid"),
        (COSMOS, "properties/locations", {}, "System.Collections.Generic.IList"),
        (CLUSTER, "properties/properties/scaleSettings/nodeIdleTimeBeforeScaleDown", "10 min", "System.TimeSpan"),
        (CLUSTER, "properties/properties/scaleSettings/nodeIdleTimeBeforeScaleDown", "P", "System.TimeSpan"),
        (CLUSTER, "properties/properties/scaleSettings/nodeIdleTimeBeforeScaleDown", "PT", "System.TimeSpan"),
        (BUDGET, "properties/timePeriod/startDate", "01.01.2099", "System.DateTime"),
        (BUDGET, "properties/amount", "100", "System.Decimal"),
    ],
)
def test_a_value_of_another_type_is_refused(arm: ArmInProcess, at: str, member: str, value: Any, kind: str) -> None:
    status, _, said = refusal(arm, "PUT", at, changed(at, {member: value}))
    assert status == 400
    assert "Error converting value" in said and f"'{kind}'. Path '{member.replace('/', '.')}'." in said


def test_the_entries_of_a_list_are_looked_at(arm: ArmInProcess) -> None:
    wrong = [BODIES[COSMOS]["properties"]["locations"][0], {"colour": "red"}]
    said = refusal(arm, "PUT", COSMOS, changed(COSMOS, {"properties/locations": wrong}))[2]
    assert said == f"{UNKNOWN} 'Location'. Path 'properties.locations[1].colour'."


@pytest.mark.parametrize("duration", ["PT5M", "PT1H30M", "P1D", "P1DT1H", "PT90S", "PT0.5S"])
def test_durations_are_iso_8601(arm: ArmInProcess, duration: str) -> None:
    member = "properties/properties/scaleSettings/nodeIdleTimeBeforeScaleDown"
    arm.put(CLUSTER, changed(CLUSTER, {member: duration}))


@pytest.mark.parametrize(
    ("at", "member", "value", "words"),
    [
        (VAULT, "properties/softDeleteRetentionInDays", 6, "between 7 and 90"),
        (VAULT, "properties/softDeleteRetentionInDays", 91, "between 7 and 90"),
        (BUDGET, "properties/amount", 0, "greater than 0"),
        (BUDGET, "properties/notifications", {str(one): MAIL for one in range(6)}, "0 to 5"),
        (BUDGET, "properties/notifications/spent/contactEmails", [], "1 to 50"),
        (BUDGET, "properties/notifications/spent/contactEmails", ["a@b.example"] * 51, "1 to 50"),
        (BUDGET, "properties/notifications/spent/threshold", 1001, "between 0 and 1000"),
        (INSIGHTS, "properties/SamplingPercentage", 101, "between 0 and 100"),
        (STORAGE, "tags", {str(one): "" for one in range(51)}, "0 to 50"),
        (STORAGE, "tags", {"owner": "x" * 257}, "'owner' is too long"),
        (STORAGE, "tags", {"x" * 513: "me"}, "is too long"),
        (CLUSTER, "properties/properties/scaleSettings/minNodeCount", -1, "at least 0"),
    ],
)
def test_a_number_out_of_its_limits_is_refused_with_them(
    arm: ArmInProcess, at: str, member: str, value: Any, words: str
) -> None:
    status, _, said = refusal(arm, "PUT", at, changed(at, {member: value}))
    assert status == 400 and words in said


@pytest.mark.parametrize(
    ("at", "code"),
    [
        (GROUP, "InvalidRequestContent"),
        (STORAGE, "InvalidRequestContent"),
        (ROLE, "InvalidRequestContent"),
        (VAULT, "BadRequest"),
        (COSMOS, "BadRequest"),
        (LOGS, "InvalidParameter"),
        (WORKSPACE, "ValidationError"),
        (CLUSTER, "ValidationError"),
    ],
)
def test_each_provider_has_its_own_code_for_a_body_it_cannot_read(arm: ArmInProcess, at: str, code: str) -> None:
    assert refusal(arm, "PUT", at, changed(at, {"colour": "red"}))[:2] == (400, code)


def test_a_patch_need_not_be_whole_but_what_it_holds_is_checked(arm: ArmInProcess) -> None:
    assert arm.send("PATCH", STORAGE, body={"tags": {"owner": "you"}}).json()["tags"] == {"owner": "you"}
    assert UNKNOWN in refusal(arm, "PATCH", STORAGE, {"colour": "red"})[2]
    assert refusal(arm, "PATCH", STORAGE, {"properties": {"isHnsEnabled": True}})[1] == "AccountPropertyCannotBeUpdated"


@pytest.mark.parametrize("body", [[], "text", 7])
def test_a_body_is_an_object(arm: ArmInProcess, body: Any) -> None:
    assert refusal(arm, "PUT", STORAGE, body)[:2] == (400, "InvalidRequestContent")
