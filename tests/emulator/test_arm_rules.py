"""ARM's rules beyond a body's shape: names, regions, references, what may not change, role assignments."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from emulator.arm.directory import ROLES
from infra.roles import Role
from tests.emulator.test_arm_bodies import (
    BODIES,
    BUDGET,
    CLUSTER,
    CONTAINER,
    COSMOS,
    COSMOS_ROLE,
    CREDENTIAL,
    DATABASE,
    GROUP,
    IDENTITY,
    INSIGHTS,
    LOCK,
    LOGS,
    REGISTRY,
    ROLE,
    STORAGE,
    VAULT,
    WORKSPACE,
    changed,
    path,
    refusal,
)
from tests.emulator.test_arm_bodies import ROLES as DEFINITIONS
from tests.support.arm_in_process import ArmInProcess

NOBODY = "99999999-0000-4000-8000-000000000009"


@pytest.fixture
def arm(tmp_path: Path) -> Iterator[ArmInProcess]:
    with ArmInProcess(tmp_path) as made:
        yield made


def make(arm: ArmInProcess, *wanted: str) -> None:
    """What is wanted, with all that stands before it in BODIES and that it needs."""
    needed = {one for at in wanted for one in BODIES if at.startswith(one + "/")} | {GROUP, *wanted}
    for one in [one for one in BODIES if one in needed]:
        arm.put(one, changed(one, {}))


def make_workspace(arm: ArmInProcess, *more: str) -> None:
    make(arm, STORAGE, VAULT, LOGS, INSIGHTS, REGISTRY, IDENTITY, WORKSPACE, *more)


# --- names and places -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("of", "good", "bad", "code"),
    [
        (STORAGE, ["st1", "0" * 24], ["st", "x" * 25, "st-1", "Storage"], "AccountNameInvalid"),
        (VAULT, ["kv1", "K-v" + "1" * 21], ["k1", "1kv", "kv-", "a--b", "k" * 25, "kv_1"], "VaultNameNotValid"),
        (LOGS, ["log1", "l" * 63], ["log", "-log", "log-", "l" * 64], "InvalidResourceName"),
        (REGISTRY, ["cr123", "c" * 50], ["cr12", "c" * 51, "cr-123"], "InvalidResourceName"),
        (IDENTITY, ["id1", "i" * 128], ["id", "-id", "i" * 129], "InvalidResourceName"),
        (CREDENTIAL, ["fed", "f" * 120], ["fe", "f" * 121, "-fed"], "InvalidResourceName"),
        (COSMOS, ["cos", "c" * 44], ["co", "c" * 45, "-cos", "cos-", "Cos", "c--s"], "BadRequest"),
        (BUDGET, ["b", "b" * 63], ["b.b", "b" * 64], "InvalidResourceName"),
        (ROLE, ["00000000-0000-4000-8000-00000000000a"], ["reader", "00000000"], "InvalidRoleAssignmentId"),
        (COSMOS_ROLE, ["00000000-0000-4000-8000-00000000000a"], ["reader"], "BadRequest"),
    ],
)
def test_names_are_checked_to_their_limits(
    arm: ArmInProcess, of: str, good: list[str], bad: list[str], code: str
) -> None:
    make(arm, of.rsplit("/", 2)[0]) if of in (CREDENTIAL, COSMOS_ROLE) else make(arm)
    collection = of.rsplit("/", 1)[0]
    body = budget(this_month()) if of == BUDGET else changed(of, {})
    for name in good:
        arm.put(f"{collection}/{name}", body)
        arm.send("DELETE", f"{collection}/{name}")
    for name in bad:
        assert refusal(arm, "PUT", f"{collection}/{name}", body)[:2] == (400, code), name


def test_a_clusters_name_does_not_end_in_a_hyphen_and_digits(arm: ArmInProcess) -> None:
    make_workspace(arm)
    for name in ("cpu", "gpu-cluster", "gpu-1a", "gpu1", "a" * 24):
        arm.put(f"{WORKSPACE}/computes/{name}", changed(CLUSTER, {}))
    for name in ("ab", "1gpu", "gpu-", "gpu-1", "g_u", "a" * 25):
        assert refusal(arm, "PUT", f"{WORKSPACE}/computes/{name}", changed(CLUSTER, {}))[1] == "InvalidResourceName"


def test_a_region_is_one_that_the_subscription_has(arm: ArmInProcess) -> None:
    _, code, said = refusal(arm, "PUT", GROUP, {"location": "mars"})
    assert code == "LocationNotAvailableForResourceGroup" and "eastus2" in said
    make(arm)
    _, code, said = refusal(arm, "PUT", STORAGE, changed(STORAGE, {"location": "eastus3"}))
    assert code == "LocationNotAvailableForResourceType" and "swedencentral" in said
    arm.put(STORAGE, changed(STORAGE, {"location": "East US 2"}))


def test_nothing_moves_to_another_region(arm: ArmInProcess) -> None:
    make(arm, STORAGE)
    assert refusal(arm, "PUT", GROUP, {"location": "westus"})[:2] == (409, "InvalidResourceGroupLocation")
    assert refusal(arm, "PUT", STORAGE, changed(STORAGE, {"location": "westus"}))[:2] == (
        409,
        "InvalidResourceLocation",
    )


@pytest.mark.parametrize(
    ("of", "status", "code"),
    [
        (STORAGE, 409, "StorageAccountInAnotherResourceGroup"),
        (VAULT, 409, "VaultAlreadyExists"),
        (REGISTRY, 409, "AlreadyInUse"),
        (COSMOS, 400, "BadRequest"),
    ],
)
def test_some_names_are_taken_everywhere(arm: ArmInProcess, of: str, status: int, code: str) -> None:
    make(arm, of)
    arm.put(GROUP + "2", {"location": "eastus2"})
    there = of.replace(GROUP, GROUP + "2")
    assert refusal(arm, "PUT", there, changed(of, {}))[:2] == (status, code)
    arm.put(there + "b", changed(of, {}))
    arm.put(of, changed(of, {}))


def test_other_names_are_free_in_another_group(arm: ArmInProcess) -> None:
    make(arm, IDENTITY, LOGS)
    arm.put(GROUP + "2", {"location": "eastus2"})
    for of in (IDENTITY, LOGS):
        arm.put(of.replace(GROUP, GROUP + "2"), changed(of, {}))


# --- parents and references -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [one for one in BODIES if one not in (GROUP, BUDGET)])
def test_without_its_group_nothing_can_be_made(arm: ArmInProcess, at: str) -> None:
    assert refusal(arm, "PUT", at, changed(at, {}))[:2] == (404, "ResourceGroupNotFound")


@pytest.mark.parametrize(
    "at", [CREDENTIAL, DATABASE, CONTAINER, COSMOS_ROLE, CLUSTER, f"{STORAGE}/blobServices/default"]
)
def test_without_its_parent_nothing_can_be_made(arm: ArmInProcess, at: str) -> None:
    make(arm)
    assert refusal(arm, "PUT", at, changed(at, {}))[:2] == (404, "ParentResourceNotFound")


@pytest.mark.parametrize("at", [ROLE, LOCK])
def test_what_is_made_on_a_resource_needs_the_resource(arm: ArmInProcess, at: str) -> None:
    make(arm)
    there = at.replace(GROUP, STORAGE)
    assert refusal(arm, "PUT", there, changed(at, {}))[:2] == (404, "ResourceNotFound")
    make(arm, STORAGE)
    arm.put(there, changed(at, {}))


@pytest.mark.parametrize("name", ["storageAccount", "keyVault", "applicationInsights", "containerRegistry"])
def test_what_a_workspace_stands_on_must_be_there_and_of_its_type(arm: ArmInProcess, name: str) -> None:
    make(arm, STORAGE, VAULT, LOGS, INSIGHTS, REGISTRY, IDENTITY)
    for wrong in (path("Microsoft.Storage/storageAccounts/none"), IDENTITY):
        status, code, said = refusal(arm, "PUT", WORKSPACE, changed(WORKSPACE, {f"properties/{name}": wrong}))
        assert (status, code) == (400, "ValidationError") and f"The {name} '{wrong}'" in said and "not exist" in said


def test_a_workspace_needs_three_resources_and_an_identity(arm: ArmInProcess) -> None:
    make(arm, STORAGE, VAULT, LOGS, INSIGHTS, REGISTRY)
    for name in ("storageAccount", "keyVault", "applicationInsights"):
        said = refusal(arm, "PUT", WORKSPACE, changed(WORKSPACE, {f"properties/{name}": ...}))[2]
        assert said == "Missing dependent resources in workspace json"
    assert "MSI" in refusal(arm, "PUT", WORKSPACE, changed(WORKSPACE, {"identity": ...}))[2]
    arm.put(WORKSPACE, changed(WORKSPACE, {"properties/containerRegistry": ...}))


@pytest.mark.parametrize(
    ("change", "why"),
    [({"properties/isHnsEnabled": True}, "hierarchical namespace"), ({"sku/name": "Premium_LRS"}, "premium")],
)
def test_some_storage_accounts_cannot_carry_a_workspace(arm: ArmInProcess, change: dict[str, Any], why: str) -> None:
    make(arm, VAULT, LOGS, INSIGHTS, REGISTRY)
    arm.put(STORAGE, changed(STORAGE, change))
    assert why in refusal(arm, "PUT", WORKSPACE, changed(WORKSPACE, {}))[2]


def test_insights_need_the_workspace_of_their_logs(arm: ArmInProcess) -> None:
    make(arm)
    assert "does not exist" in refusal(arm, "PUT", INSIGHTS, changed(INSIGHTS, {}))[2]


def test_a_cluster_needs_its_identity(arm: ArmInProcess) -> None:
    make_workspace(arm)
    arm.forget(IDENTITY)
    assert refusal(arm, "PUT", CLUSTER, changed(CLUSTER, {}))[:2] == (400, "FailedIdentityOperation")


# --- what may not change --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("of", "member", "value", "code"),
    [
        (STORAGE, "properties/isHnsEnabled", True, "AccountPropertyCannotBeUpdated"),
        (STORAGE, "kind", "BlockBlobStorage", "AccountPropertyCannotBeUpdated"),
        (VAULT, "properties/softDeleteRetentionInDays", 30, "BadRequest"),
        (COSMOS, "properties/capabilities", [], "BadRequest"),
        (CONTAINER, "properties/resource/partitionKey/paths", ["/conversation"], "BadRequest"),
        (WORKSPACE, "properties/storageAccount", STORAGE + "b", "BadRequest"),
        (WORKSPACE, "properties/keyVault", VAULT + "b", "BadRequest"),
        (WORKSPACE, "properties/hbiWorkspace", True, "BadRequest"),
    ],
)
def test_what_was_decided_at_the_creation_stays(arm: ArmInProcess, of: str, member: str, value: Any, code: str) -> None:
    make(arm, STORAGE, VAULT, LOGS, INSIGHTS, REGISTRY, IDENTITY)
    if of == WORKSPACE:
        arm.put(STORAGE + "b", changed(STORAGE, {}))
        arm.put(VAULT + "b", changed(VAULT, {}))
        arm.put(WORKSPACE, changed(WORKSPACE, {"properties/hbiWorkspace": False}))
    else:
        make(arm, of)
    status, said, message = refusal(arm, "PUT", of, changed(of, {member: value}))
    assert (status, said) == (400, code) and ("partition key" in message or member.split("/")[-1] in message)


def test_what_else_there_is_may_change(arm: ArmInProcess) -> None:
    make_workspace(arm)
    arm.put(STORAGE, changed(STORAGE, {"properties/allowSharedKeyAccess": True, "sku/name": "Standard_GRS"}))
    arm.put(WORKSPACE, changed(WORKSPACE, {"properties/friendlyName": "Phi", "properties/containerRegistry": ...}))
    assert (
        arm.put(VAULT, changed(VAULT, {"properties/softDeleteRetentionInDays": ...}))["properties"][
            "softDeleteRetentionInDays"
        ]
        == BODIES[VAULT]["properties"]["softDeleteRetentionInDays"]
    )


def test_a_clusters_other_size_is_accepted_and_ignored(arm: ArmInProcess) -> None:
    make_workspace(arm, CLUSTER)
    inner = "properties/properties"
    other = {f"{inner}/vmSize": "Standard_F4s_v2", f"{inner}/vmPriority": "LowPriority", f"{inner}/osType": "Windows"}
    answer = arm.send("PUT", CLUSTER, body=changed(CLUSTER, {**other, f"{inner}/scaleSettings/maxNodeCount": 4}))
    assert answer.status_code == 200
    held = arm.send("GET", CLUSTER).json()["properties"]["properties"]
    assert (held["vmSize"], held["vmPriority"], held["osType"]) == ("Standard_DS3_v2", "Dedicated", "Linux")
    assert held["scaleSettings"]["maxNodeCount"] == 4


def test_a_cluster_larger_than_the_quota_is_created(arm: ArmInProcess) -> None:
    make_workspace(arm)
    arm.put(CLUSTER, changed(CLUSTER, {"properties/properties/scaleSettings/maxNodeCount": 10_000}))


# --- single types ---------------------------------------------------------------------------------------------------


def test_purge_protection_is_switched_on_or_left_unsaid(arm: ArmInProcess) -> None:
    make(arm)
    status, code, said = refusal(arm, "PUT", VAULT, changed(VAULT, {"properties/enablePurgeProtection": False}))
    assert (status, code) == (400, "BadRequest")
    assert said.startswith('The property "enablePurgeProtection" cannot be set to false')
    arm.put(VAULT, changed(VAULT, {"properties/enablePurgeProtection": True}))
    assert arm.put(VAULT, changed(VAULT, {}))["properties"]["enablePurgeProtection"] is True


def test_soft_delete_cannot_be_switched_off(arm: ArmInProcess) -> None:
    make(arm)
    assert "enableSoftDelete" in refusal(arm, "PUT", VAULT, changed(VAULT, {"properties/enableSoftDelete": False}))[2]


@pytest.mark.parametrize(("sku", "days", "fits"), [
    ("PerGB2018", 30, True), ("PerGB2018", 730, True), ("PerGB2018", 29, False), ("PerGB2018", 731, False),
    ("Free", 7, True), ("Free", 30, False),
])  # fmt: skip
def test_logs_are_kept_within_the_limits_of_the_pricing_tier(
    arm: ArmInProcess, sku: str, days: int, fits: bool
) -> None:
    make(arm)
    body = changed(LOGS, {"properties/sku/name": sku, "properties/retentionInDays": days})
    if fits:
        arm.put(LOGS, body)
    else:
        assert refusal(arm, "PUT", LOGS, body)[1] == "InvalidParameter"


def this_month(later: int = 0) -> date:
    today = datetime.now(UTC).date()
    years, month = divmod(today.month - 1 + later, 12)
    return date(today.year + years, month + 1, 1)


def budget(start: date, **more: Any) -> dict[str, Any]:
    return changed(BUDGET, {"properties/timePeriod/startDate": f"{start}T00:00:00Z", **more})


@pytest.mark.parametrize(("later", "grain", "fits"), [
    (0, "Monthly", True), (12, "Monthly", True), (-1, "Monthly", False), (13, "Monthly", False),
    (-2, "Quarterly", True), (-3, "Quarterly", False), (-11, "Annually", True), (-12, "Annually", False),
])  # fmt: skip
def test_a_budget_starts_in_its_current_period_or_the_year_ahead(
    arm: ArmInProcess, later: int, grain: str, fits: bool
) -> None:
    make(arm)
    body = budget(this_month(later), **{"properties/timeGrain": grain})
    if fits:
        arm.put(BUDGET, body)
    else:
        assert "current period" in refusal(arm, "PUT", BUDGET, body)[2]


def test_a_budget_starts_on_the_first_of_a_month_and_ends_after_it(arm: ArmInProcess) -> None:
    make(arm)
    assert "first of a month" in refusal(arm, "PUT", BUDGET, budget(this_month().replace(day=2)))[2]
    ended = budget(this_month(), **{"properties/timePeriod/endDate": f"{this_month()}T00:00:00Z"})
    assert "must be after" in refusal(arm, "PUT", BUDGET, ended)[2]


def test_a_budget_keeps_its_start(arm: ArmInProcess) -> None:
    make(arm)
    arm.put(BUDGET, budget(this_month()))
    arm.put(BUDGET, budget(this_month(), **{"properties/amount": 200}))
    assert "startDate" in refusal(arm, "PUT", BUDGET, budget(this_month(1)))[2]


def test_a_serverless_account_takes_no_throughput(arm: ArmInProcess) -> None:
    make(arm, COSMOS)
    wanted = changed(DATABASE, {"properties/options": {"throughput": 400}})
    assert "serverless" in refusal(arm, "PUT", DATABASE, wanted)[2]


def test_a_database_is_called_by_its_id(arm: ArmInProcess) -> None:
    make(arm, COSMOS)
    assert "is not its name" in refusal(arm, "PUT", DATABASE, changed(DATABASE, {"properties/resource/id": "x"}))[2]


@pytest.mark.parametrize(("key", "fits"), [
    ({"paths": ["/user", "/conversation"], "kind": "MultiHash", "version": 2}, True),
    ({"paths": ["/user", "/conversation"], "kind": "MultiHash"}, False),
    ({"paths": ["/user", "/conversation"], "kind": "Hash"}, False),
    ({"paths": ["/a", "/b", "/c", "/d"], "kind": "MultiHash", "version": 2}, False),
    ({"paths": ["user"], "kind": "Hash"}, False),
    ({"paths": []}, False),
])  # fmt: skip
def test_a_partition_key_is_one_path_or_a_hierarchy(arm: ArmInProcess, key: dict[str, Any], fits: bool) -> None:
    make(arm, DATABASE)
    body = changed(CONTAINER, {"properties/resource/partitionKey": key})
    if fits:
        arm.put(CONTAINER, body)
    else:
        assert refusal(arm, "PUT", CONTAINER, body)[0] == 400


@pytest.mark.parametrize(
    ("member", "value", "words"),
    [
        ("roleDefinitionId", f"{COSMOS}/sqlRoleDefinitions/{NOBODY}", "role definition"),
        ("roleDefinitionId", f"{COSMOS}b/sqlRoleDefinitions/00000000-0000-0000-0000-000000000002", "role definition"),
        ("scope", GROUP, "scope"),
        ("scope", COSMOS + "b", "scope"),
        ("principalId", NOBODY, "principal"),
    ],
)
def test_a_role_on_cosmos_data_names_what_there_is(arm: ArmInProcess, member: str, value: str, words: str) -> None:
    make(arm, COSMOS)
    assert words in refusal(arm, "PUT", COSMOS_ROLE, changed(COSMOS_ROLE, {f"properties/{member}": value}))[2]


def test_one_identity_trusts_a_subject_once(arm: ArmInProcess) -> None:
    make(arm, CREDENTIAL)
    assert refusal(arm, "PUT", CREDENTIAL + "2", changed(CREDENTIAL, {}))[:2] == (409, "Conflict")
    arm.put(CREDENTIAL + "2", changed(CREDENTIAL, {"properties/subject": "repo:contoso/phi:pull_request"}))
    arm.put(CREDENTIAL, changed(CREDENTIAL, {}))


# --- role assignments -----------------------------------------------------------------------------------------------


def test_every_role_that_the_program_grants_is_known() -> None:
    assert {one.value for one in Role} <= set(ROLES)


def test_a_role_must_be_there(arm: ArmInProcess) -> None:
    make(arm)
    for wrong, code in (
        (f"{DEFINITIONS}/{NOBODY}", "RoleDefinitionDoesNotExist"),
        ("Reader", "InvalidRoleDefinitionId"),
    ):
        assert refusal(arm, "PUT", ROLE, changed(ROLE, {"properties/roleDefinitionId": wrong}))[:2] == (400, code)


def test_a_principal_must_be_there_and_of_its_type(arm: ArmInProcess) -> None:
    make(arm, IDENTITY)
    identity = arm.send("GET", IDENTITY).json()["properties"]["principalId"]

    def role(principal: str, kind: Any = ...) -> dict[str, Any]:
        return changed(ROLE, {"properties/principalId": principal, "properties/principalType": kind})

    assert refusal(arm, "PUT", ROLE, role(NOBODY, "ServicePrincipal"))[:2] == (400, "PrincipalNotFound")
    assert refusal(arm, "PUT", ROLE, role("me", "User"))[:2] == (400, "InvalidPrincipalId")
    for kind in ("User", "Group", ...):
        status, code, said = refusal(arm, "PUT", ROLE, role(identity, kind))
        assert (status, code) == (400, "UnmatchedPrincipalType") and "'ServicePrincipal'" in said
    arm.put(ROLE, role(NOBODY, "User"))  # people and groups are not in the emulator's directory
    arm.send("DELETE", ROLE)
    arm.put(ROLE, role(identity, "ServicePrincipal"))


def test_a_workspaces_own_identity_is_a_principal_too(arm: ArmInProcess) -> None:
    make_workspace(arm)
    principal = arm.send("GET", WORKSPACE).json()["identity"]["principalId"]
    arm.put(ROLE, changed(ROLE, {"properties/principalId": principal}))


def test_a_principal_has_a_role_on_a_scope_once(arm: ArmInProcess) -> None:
    make(arm, ROLE, STORAGE)
    second = ROLE[:-1] + "2"
    status, code, said = refusal(arm, "PUT", second, changed(ROLE, {}))
    assert (status, code) == (409, "RoleAssignmentExists") and ROLE.rsplit("/", 1)[-1] in said
    arm.put(second.replace(GROUP, STORAGE), changed(ROLE, {}))
    arm.put(ROLE, changed(ROLE, {"properties/description": "why"}))
    other = changed(ROLE, {"properties/roleDefinitionId": f"{DEFINITIONS}/{next(iter(ROLES))}"})
    assert refusal(arm, "PUT", ROLE, other)[:2] == (400, "RoleAssignmentUpdateNotPermitted")


# --- keys -----------------------------------------------------------------------------------------------------------


def test_an_account_without_keys_gives_none_to_its_datastores(arm: ArmInProcess) -> None:
    make(arm, STORAGE, VAULT, LOGS, INSIGHTS, REGISTRY)
    arm.put(WORKSPACE, changed(WORKSPACE, {"properties/systemDatastoresAuthMode": "AccessKey"}))
    secrets = f"{WORKSPACE}/datastores/workspaceblobstore/listSecrets"
    assert refusal(arm, "POST", secrets)[:2] == (403, "KeyBasedAuthenticationNotPermitted")
    arm.put(STORAGE, changed(STORAGE, {"properties/allowSharedKeyAccess": True}))
    assert arm.send("POST", secrets).json()["secretsType"] == "Sas"
