"""The program's resources, seen from ARM: what it asks for, in which order, and what a change of configuration does."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Any

import pytest

from infra.outputs import StackOutputs
from infra.roles import Role
from tests.infra.conftest import Cli
from tests.support.arm_in_process import SUBSCRIPTION

DEPLOYER = "33333333-0000-4000-8000-000000000003"  # a person
ROLES = "/providers/Microsoft.Authorization/roleAssignments/"


def assignments(pulumi: Cli) -> dict[tuple[str, str], dict[str, Any]]:
    """Role assignments by (the scope's kind, role id)."""
    found = {}
    for path, one in pulumi.arm.resources.items():
        if ROLES in path:
            scope = path.split(ROLES)[0].split("/")[-2]
            found[scope, one["properties"]["roleDefinitionId"].rsplit("/", 1)[-1]] = one["properties"]
    return found


def test_exported_keys_are_the_fields_of_stack_outputs(pulumi: Cli) -> None:
    pulumi.up()
    assert set(pulumi.outputs()) == {field.name for field in dataclasses.fields(StackOutputs)}
    outputs = StackOutputs.parse(pulumi.outputs(), source="test")
    assert outputs.stack == "test"
    assert outputs.workspace_id.endswith(f"/workspaces/{outputs.workspace}")


def test_outputs_hold_no_secret(pulumi: Cli) -> None:
    pulumi.up()
    text = str(pulumi.outputs()).lower()
    assert not any(word in text for word in ("key=", "connectionstring", "password", "sig=", "secret"))


def test_the_guides_roles_are_granted_and_with_identity_datastores_writing_too(pulumi: Cli) -> None:
    pulumi.up()
    assert set(assignments(pulumi)) == {
        ("resourceGroups", Role.CONTRIBUTOR.value),
        ("storageAccounts", Role.STORAGE_BLOB_DATA_READER.value),
        ("storageAccounts", Role.STORAGE_BLOB_DATA_CONTRIBUTOR.value),
        ("registries", Role.ACR_PULL.value),
    }


def test_with_account_keys_jobs_need_no_more_than_the_guides_roles(pulumi: Cli) -> None:
    pulumi.up(datastoreAuth="AccessKey")
    assert len(assignments(pulumi)) == 3
    assert pulumi.arm.only("storageAccounts")["properties"]["allowSharedKeyAccess"] is True


def test_every_assignment_names_the_identity_as_a_service_principal(pulumi: Cli) -> None:
    pulumi.up()
    principal = pulumi.arm.only("userAssignedIdentities")["properties"]["principalId"]
    for properties in assignments(pulumi).values():
        assert properties["principalType"] == "ServicePrincipal"
        assert properties["principalId"] == principal
        assert properties["roleDefinitionId"].startswith(f"/subscriptions/{SUBSCRIPTION}/providers/")


def test_the_deployer_may_write_blobs_when_it_is_configured(pulumi: Cli) -> None:
    pulumi.up(deployer=DEPLOYER, deployerType="User")
    granted = [one for path, one in pulumi.arm.resources.items() if ROLES in path]
    (properties,) = [one["properties"] for one in granted if one["properties"]["principalId"] == DEPLOYER]
    assert properties["principalType"] == "User"
    assert properties["roleDefinitionId"].endswith(Role.STORAGE_BLOB_DATA_CONTRIBUTOR.value)


def test_the_cluster_comes_after_every_role_assignment(pulumi: Cli) -> None:
    pulumi.up()
    puts = pulumi.arm.changes("PUT")
    assert "/computes/" in puts[-1]
    cluster = next(one for one in pulumi.state() if one["type"].endswith(":Compute"))
    granted = {one["urn"] for one in pulumi.state() if one["type"].endswith(":RoleAssignment")}
    assert granted <= set(cluster["dependencies"])


def test_the_cluster_costs_nothing_while_idle_and_runs_as_the_identity(pulumi: Cli) -> None:
    pulumi.up(computeIdleMinutes=5, computeLowPriority=True)
    cluster = pulumi.arm.only("computes")
    properties = cluster["properties"]["properties"]
    assert properties["scaleSettings"] == {"minNodeCount": 0, "maxNodeCount": 1, "nodeIdleTimeBeforeScaleDown": "PT5M"}
    assert properties["vmPriority"] == "LowPriority"
    assert list(cluster["identity"]["userAssignedIdentities"]) == [pulumi.outputs()["training_identity_id"]]


def test_storage_registry_and_vault_are_closed(pulumi: Cli) -> None:
    pulumi.up()
    storage = pulumi.arm.only("storageAccounts")["properties"]
    assert storage["allowBlobPublicAccess"] is False
    assert storage["allowSharedKeyAccess"] is False
    assert storage["minimumTlsVersion"] == "TLS1_2"
    assert storage["supportsHttpsTrafficOnly"] is True
    assert storage["isHnsEnabled"] is False
    registry = pulumi.arm.only("registries")
    assert registry["properties"]["adminUserEnabled"] is False
    vault = pulumi.arm.only("vaults")["properties"]
    assert vault["enableRbacAuthorization"] is True
    assert "enablePurgeProtection" not in vault


def test_the_workspace_uses_the_sdks_spelling_of_identity(pulumi: Cli) -> None:
    pulumi.up()
    workspace = pulumi.arm.only("Microsoft.MachineLearningServices/workspaces")
    assert workspace["properties"]["systemDatastoresAuthMode"] == "Identity"


def test_everything_that_takes_tags_has_them(pulumi: Cli) -> None:
    pulumi.up(owner="me")
    for path, one in pulumi.arm.resources.items():
        if ROLES not in path:
            wanted = {"project": "finetune-phi", "stack": "test", "owner": "me", "cost-center": "none"}
            assert one["tags"] == wanted, path


def test_a_second_up_changes_nothing(pulumi: Cli) -> None:
    pulumi.up()
    before = list(pulumi.arm.requests)
    pulumi.up()
    assert pulumi.arm.requests == before


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({}, {"same": 16}),
        ({"computeMaxNodes": 3}, {"same": 15, "update": 1}),
        ({"computeSize": "Standard_NC40ads_H100_v5"}, {"same": 15, "replace": 1}),
        ({"computeLowPriority": True}, {"same": 15, "replace": 1}),
        ({"computeName": "other"}, {"same": 15, "create": 1, "delete": 1}),
        ({"owner": "me"}, {"same": 7, "update": 9}),
        ({"datastoreAuth": "AccessKey"}, {"same": 13, "update": 2, "delete": 1}),
    ],
)
def test_preview_predicts_what_up_does(pulumi: Cli, change: dict[str, Any], wanted: dict[str, int]) -> None:
    pulumi.up()
    assert pulumi.preview(**change) == wanted
    before = len(pulumi.arm.requests)
    pulumi.up()
    made = pulumi.arm.requests[before:]
    assert len([one for one in made if one[0] == "PUT"]) == sum(
        wanted.get(op, 0) for op in ("create", "update", "replace")
    )
    assert pulumi.preview()["same"] == len(pulumi.state())


def test_a_cluster_of_another_size_is_deleted_before_it_is_made_again(pulumi: Cli) -> None:
    pulumi.up()
    before = len(pulumi.arm.requests)
    pulumi.up(computeSize="Standard_NC40ads_H100_v5")
    assert [method for method, _ in pulumi.arm.requests[before:]] == ["DELETE", "PUT"]


def test_an_assignment_that_changes_goes_before_its_successor_comes(pulumi: Cli) -> None:
    """Azure holds one assignment for a principal, a role and a scope; of another type it would still be that one."""
    pulumi.up(deployer=DEPLOYER, deployerType="User")
    before = len(pulumi.arm.requests)
    pulumi.up(deployerType="Group")
    made = pulumi.arm.requests[before:]
    assert [method for method, path in made if ROLES in path] == ["DELETE", "PUT"]


def test_a_preview_of_a_new_stack_asks_arm_for_no_change(pulumi: Cli) -> None:
    assert pulumi.preview() == {"create": 16}
    assert pulumi.arm.requests == []


def test_destroy_deletes_the_group_and_azure_the_rest(pulumi: Cli) -> None:
    pulumi.up()
    group = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{pulumi.outputs()['resource_group']}"
    assert pulumi("destroy", "--yes")[0] == 0
    assert pulumi.arm.changes("DELETE") == [group]
    assert pulumi.arm.resources == {}
    assert pulumi.state() == []


def test_everything_is_deleted_with_the_group(pulumi: Cli) -> None:
    month = datetime.now(UTC).strftime("%Y-%m-01")
    pulumi.up(chatStore=True, grants="least", budgetAmount=100, budgetEmails=["a@b.example"], budgetStart=month)
    (group,) = [one["urn"] for one in pulumi.state() if one["type"].endswith(":ResourceGroup")]
    for one in pulumi.state():
        if one["custom"] and one["urn"] != group and one["type"].startswith("azure-native:"):
            assert one["deleted_with"] == group, one["urn"]


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("computeName", "gpu-1", "gpu-cluster"),
        ("computeSize", "A100", "Standard_NC24ads_A100_v4"),
        ("computeMaxNodes", 0, "from 1 to 100"),
        ("computeMaxNodes", "many", "integer"),
        ("computeLowPriority", "yes", "boolean"),
        ("datastoreAuth", "identity", "Identity or AccessKey"),
        ("workload", "Far-Too-Long", "2-8 lower-case letters"),
        ("deployer", "me@example.org", "object id"),
        ("computeSizes", "x", "computeSize,"),
        ("grants", "all", "guide or least"),
        ("cpuName", "cpu-2", "cpu-cluster"),
        ("cpuMaxNodes", -1, "from 0 to 100"),
        ("containerRegistry", "crshared", "whole ARM id"),
        ("githubSubject", "contoso/finetune-phi", "repo:OWNER/NAME"),
        ("ttlHours", -1, "from 0 to"),
        ("expiresOn", "tomorrow", "2026-11-30T12:00:00Z"),
        ("expiresOn", "2026-02-30T12:00:00Z", "2026-11-30T12:00:00Z"),
        ("budgetEmails", "someone", "array"),
        ("budgetEmails", ["someone"], "addresses"),
        ("budgetStart", "2026-11-02", "first day of a month"),
        ("owner", "x" * 257, "256 characters"),
    ],
)
def test_bad_configuration_is_one_sentence_before_anything_is_created(
    pulumi: Cli, key: str, value: Any, allowed: str
) -> None:
    pulumi.configure(**{key: value})
    code, _, err = pulumi("up", "--yes")
    assert code != 0
    assert key in err and allowed in err
    assert "Traceback" not in err
    assert pulumi.arm.requests == []


@pytest.mark.parametrize(
    ("key", "config", "allowed"),
    [
        ("budgetEmails", {"budgetAmount": 100, "budgetStart": "2026-11-01"}, "1 to 50 addresses"),
        ("budgetStart", {"budgetAmount": 100, "budgetEmails": ["a@b.example"]}, "this month's first day"),
        ("purgeProtection", {"purgeProtection": True, "ttlHours": 48}, "false while `ttlHours`"),
        ("purgeProtection", {"purgeProtection": True, "expiresOn": "2026-11-30T12:00:00Z"}, "false while"),
        ("datastoreAuth", {"grants": "least", "datastoreAuth": "AccessKey"}, "Identity while `grants` is least"),
        ("cpuName", {"cpuMaxNodes": 1, "cpuName": "GPU-cluster"}, "another name"),
    ],
)
def test_keys_that_contradict_one_another_are_refused_before_anything_is_created(
    pulumi: Cli, key: str, config: dict[str, Any], allowed: str
) -> None:
    pulumi.configure(**config)
    code, _, err = pulumi("up", "--yes")
    assert code != 0
    assert f"`{key}`" in err and allowed in err
    assert "Traceback" not in err
    assert pulumi.arm.requests == []
