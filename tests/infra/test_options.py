"""The parts of the program that a configuration asks for: least privilege, chat store, budget, shared registry, …"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import pytest

from infra.roles import Role
from tests.infra.conftest import Cli
from tests.infra.test_program import ROLES
from tests.support.arm_in_process import DEPLOYER as SERVICE
from tests.support.arm_in_process import SUBSCRIPTION

SHARED = (
    f"/subscriptions/{SUBSCRIPTION}/resourceGroups/rg-shared/providers/Microsoft.ContainerRegistry/registries/crshared"
)
DEPLOYER = "33333333-0000-4000-8000-000000000003"  # a person
MONTH = datetime.now(UTC).strftime("%Y-%m-01")  # Azure takes no budget that begins in an earlier month
BUDGET = {"budgetAmount": 500, "budgetEmails": ["ml@contoso.example"], "budgetStart": MONTH}


def granted(pulumi: Cli, principal: str) -> set[tuple[str, str]]:
    """(The scope's kind, role id) of each assignment of one principal."""
    found = set()
    for path, one in pulumi.arm.resources.items():
        if ROLES in path and one["properties"]["principalId"] == principal:
            assert one["properties"]["principalType"] == "ServicePrincipal"
            found.add((path.split(ROLES)[0].split("/")[-2], one["properties"]["roleDefinitionId"].rsplit("/", 1)[-1]))
    return found


def share_a_registry(pulumi: Cli) -> None:
    pulumi.arm.put(SHARED.split("/providers/")[0] + "?api-version=2024-03-01", {"location": "eastus2"})
    pulumi.arm.put(f"{SHARED}?api-version=2023-07-01", {"location": "eastus2", "sku": {"name": "Premium"}})


# --- grants ---------------------------------------------------------------------------------------------------------


def test_in_the_guides_way_jobs_and_endpoints_are_one_identity(pulumi: Cli) -> None:
    pulumi.up()
    outputs = pulumi.outputs()
    assert outputs["training_identity_id"] == outputs["serving_identity_id"]


def test_with_least_privilege_neither_identity_can_do_the_others_work(pulumi: Cli) -> None:
    pulumi.up(grants="least")
    outputs = pulumi.outputs()
    assert granted(pulumi, outputs["training_identity_principal_id"]) == {
        ("storageAccounts", Role.STORAGE_BLOB_DATA_CONTRIBUTOR.value),
        ("registries", Role.ACR_PULL.value),
    }
    assert granted(pulumi, outputs["serving_identity_principal_id"]) == {
        ("storageAccounts", Role.STORAGE_BLOB_DATA_READER.value),
        ("registries", Role.ACR_PULL.value),
        ("workspaces", Role.AZUREML_METRICS_WRITER.value),
    }
    cluster = pulumi.arm.only("computes")
    assert list(cluster["identity"]["userAssignedIdentities"]) == [outputs["training_identity_id"]]


def test_nobody_is_contributor_with_least_privilege(pulumi: Cli) -> None:
    pulumi.up(grants="least", githubSubject="repo:contoso/phi:environment:dev", deployer=DEPLOYER)
    ids = [one["properties"]["roleDefinitionId"] for path, one in pulumi.arm.resources.items() if ROLES in path]
    assert len(ids) == 9
    assert not any(one.endswith(Role.CONTRIBUTOR.value) for one in ids)


def test_why_writing_is_granted_is_said_in_the_guides_way(pulumi: Cli) -> None:
    code, out, err = pulumi("preview")
    assert code == 0
    assert "Storage Blob Data Contributor is granted too: the datastores are identity-based" in out + err


# --- clusters -------------------------------------------------------------------------------------------------------


def test_a_second_cluster_without_gpus_waits_for_the_roles_too(pulumi: Cli) -> None:
    pulumi.up(cpuMaxNodes=2, cpuSize="Standard_D4ds_v5", computeIdleMinutes=7, computeLowPriority=True)
    path = next(one for one in pulumi.arm.resources if one.endswith("/computes/cpu-cluster"))
    properties = pulumi.arm.resources[path]["properties"]["properties"]
    assert (properties["vmSize"], properties["vmPriority"]) == ("Standard_D4ds_v5", "Dedicated")
    assert properties["scaleSettings"]["nodeIdleTimeBeforeScaleDown"] == "PT7M"
    assert (properties["scaleSettings"]["minNodeCount"], properties["scaleSettings"]["maxNodeCount"]) == (0, 2)
    assert pulumi.outputs()["cpu_compute"] == "cpu-cluster"
    clusters = [one for one in pulumi.state() if one["type"].endswith(":Compute")]
    grants = {one["urn"] for one in pulumi.state() if one["type"].endswith(":RoleAssignment")}
    assert len(clusters) == 2
    assert all(grants <= set(one["dependencies"]) for one in clusters)


# --- chat store -----------------------------------------------------------------------------------------------------


def test_the_chat_store_is_serverless_and_has_no_keys(pulumi: Cli) -> None:
    pulumi.up(chatStore=True)
    account = pulumi.arm.only("databaseAccounts")["properties"]
    assert account["disableLocalAuth"] is True
    assert account["capabilities"] == [{"name": "EnableServerless"}]
    assert account["databaseAccountOfferType"] == "Standard"
    container = pulumi.arm.only("containers")["properties"]["resource"]
    assert container["id"] == "turns"
    assert container["partitionKey"] == {"kind": "MultiHash", "paths": ["/user", "/conversation"], "version": 2}
    assert container["defaultTtl"] == -1


def test_endpoints_and_the_deployer_may_write_chats_and_nobody_else(pulumi: Cli) -> None:
    pulumi.up(chatStore=True, deployer=SERVICE, deployerType="ServicePrincipal", grants="least")
    rows = {path: one["properties"] for path, one in pulumi.arm.resources.items() if "/sqlRoleAssignments/" in path}
    assert {one["principalId"] for one in rows.values()} == {
        pulumi.outputs()["serving_identity_principal_id"],
        SERVICE,
    }
    for path, one in rows.items():
        assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", path.rsplit("/", 1)[-1])
        account = path.split("/sqlRoleAssignments/")[0]
        assert one["roleDefinitionId"] == f"{account}/sqlRoleDefinitions/00000000-0000-0000-0000-000000000002"
        assert one["scope"] == account


def test_a_chat_store_that_is_no_longer_wanted_goes_alone_container_first(pulumi: Cli) -> None:
    pulumi.up(chatStore=True)
    before = len(pulumi.arm.resources)
    pulumi.up(chatStore=False)
    assert len(pulumi.arm.resources) == before - 4
    kinds = [path.rsplit("/", 2)[-2] for path in pulumi.arm.changes("DELETE")]
    assert kinds.index("containers") < kinds.index("sqlDatabases") < kinds.index("databaseAccounts")


# --- budget ---------------------------------------------------------------------------------------------------------


def test_the_budget_watches_the_group_and_tells_people_before_and_when_it_is_spent(pulumi: Cli) -> None:
    pulumi.up(**BUDGET)
    path = next(one for one in pulumi.arm.resources if "/Microsoft.Consumption/budgets/" in one)
    assert path.split("/providers/")[0].endswith(pulumi.outputs()["resource_group"])
    budget = pulumi.arm.resources[path]["properties"]
    assert (budget["amount"], budget["category"], budget["timeGrain"]) == (500, "Cost", "Monthly")
    assert budget["timePeriod"]["startDate"] == f"{MONTH}T00:00:00Z"
    mails = budget["notifications"].values()
    assert {(one["threshold"], one["thresholdType"]) for one in mails} == {(80, "Actual"), (100, "Forecasted")}
    assert all(one["enabled"] and one["contactEmails"] == ["ml@contoso.example"] for one in mails)


def test_a_budgets_start_is_not_moved_once_it_exists(pulumi: Cli) -> None:
    pulumi.up(**BUDGET)
    assert pulumi.preview(budgetStart="2026-12-01") == {"same": len(pulumi.state())}
    assert pulumi.preview(budgetAmount=600)["update"] == 1


# --- shared registry ------------------------------------------------------------------------------------------------


def test_a_shared_registry_is_used_and_survives_the_stack(pulumi: Cli) -> None:
    share_a_registry(pulumi)
    before = set(pulumi.arm.resources)
    pulumi.up(containerRegistry=SHARED)
    workspace = pulumi.arm.only("Microsoft.MachineLearningServices/workspaces")
    assert workspace["properties"]["containerRegistry"] == SHARED
    assert [one for one in pulumi.arm.resources if "/registries/" in one and ROLES not in one] == [SHARED]
    assert pulumi.outputs()["container_registry"] == "crshared"
    assert pulumi("destroy", "--yes")[0] == 0
    assert set(pulumi.arm.resources) == before  # its role assignment went, though not with the group


def test_a_shared_registry_that_does_not_exist_is_refused_before_anything_is_created(pulumi: Cli) -> None:
    pulumi.configure(containerRegistry=SHARED)
    code, _, err = pulumi("up", "--yes")
    assert code != 0
    assert "`containerRegistry`" in err and SHARED in err and "az acr list" in err
    assert "Traceback" not in err
    assert pulumi.arm.requests == []


# --- GitHub ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "subject", ["repo:contoso/phi:environment:dev", "repo:contoso@123/phi@456:ref:refs/heads/main"]
)
def test_github_signs_in_without_a_secret_as_an_identity_of_its_own(pulumi: Cli, subject: str) -> None:
    pulumi.up(githubSubject=subject)
    credential = pulumi.arm.only("federatedIdentityCredentials")["properties"]
    assert credential["subject"] == subject
    assert credential["issuer"] == "https://token.actions.githubusercontent.com"
    assert credential["audiences"] == ["api://AzureADTokenExchange"]
    path = next(one for one in pulumi.arm.resources if "/federatedIdentityCredentials/" in one)
    identity = pulumi.arm.resources[path.split("/federatedIdentityCredentials/")[0]]["properties"]
    assert pulumi.outputs()["github_client_id"] == identity["clientId"]
    assert granted(pulumi, identity["principalId"]) == {
        ("workspaces", Role.AZUREML_DATA_SCIENTIST.value),
        ("storageAccounts", Role.STORAGE_BLOB_DATA_CONTRIBUTOR.value),
        ("resourceGroups", Role.MANAGED_IDENTITY_OPERATOR.value),
    }


# --- lifetime and protection ----------------------------------------------------------------------------------------


def test_what_an_environment_is_for_and_how_long_stands_in_its_tags(pulumi: Cli) -> None:
    pulumi.up(branch="feat/long-context", ttlHours=48, expiresOn="2026-11-30T12:00:00Z")
    for path, one in pulumi.arm.resources.items():
        if ROLES not in path:
            assert one["tags"]["branch"] == "feat/long-context", path
            assert one["tags"]["ttl-hours"] == "48"
            assert one["tags"]["expires-on"] == "2026-11-30T12:00:00Z"
    assert pulumi.outputs()["expires_on"] == "2026-11-30T12:00:00Z"


@pytest.mark.parametrize("config", [{}, {"purgeProtection": False}])
def test_purge_protection_is_true_or_left_unsaid(pulumi: Cli, config: dict[str, Any]) -> None:
    pulumi.up(**config)
    assert "enablePurgeProtection" not in pulumi.arm.only("vaults")["properties"]
    pulumi.up(purgeProtection=True)
    assert pulumi.arm.only("vaults")["properties"]["enablePurgeProtection"] is True
