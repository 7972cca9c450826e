"""What goes with what, what blocks it, what stays for a while, and how long deletions and creations are followed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import requests

from emulator.arm.resources import Arm
from emulator.arm.schema import TYPES
from tests.emulator.test_arm_bodies import (
    BODIES,
    BUDGET,
    CLUSTER,
    CONTAINER,
    COSMOS,
    COSMOS_ROLE,
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
    refusal,
)
from tests.support.arm_in_process import ArmInProcess

SUBSCRIPTION = GROUP.rsplit("/resourceGroups", 1)[0]
ML_WORKSPACES = f"{SUBSCRIPTION}/providers/Microsoft.MachineLearningServices/workspaces"
VAULTS = f"{SUBSCRIPTION}/providers/Microsoft.KeyVault"
PURGE = f"{VAULTS}/locations/eastus2/deletedVaults/kv1/purge"
ENDPOINT = f"{WORKSPACE}/onlineEndpoints/ep1"
EMPTY = (GROUP, STORAGE, VAULT, LOGS, INSIGHTS, REGISTRY, IDENTITY, WORKSPACE)


@pytest.fixture
def arm(tmp_path: Path) -> Iterator[ArmInProcess]:
    """A workspace with all that it stands on, and a cluster."""
    with ArmInProcess(tmp_path) as made:
        for one in (*EMPTY, CLUSTER):
            made.put(one, changed(one, {}))
        yield made


def follow(arm: ArmInProcess, answer: requests.Response) -> requests.Response:
    """Poll an operation to its end, as the protocol has it; the last answer."""
    assert answer.status_code in (200, 201, 202), answer.text
    assert "retry-after-ms" in answer.headers
    if url := answer.headers.get("Azure-AsyncOperation"):
        while (answer := arm.send("GET", url)).json()["status"] == "InProgress":
            pass
        return answer
    url = answer.headers["Location"]
    while (answer := arm.send("GET", url)).status_code == 202:
        assert answer.headers["Location"] == url
    return answer


def delete(arm: ArmInProcess, at: str) -> None:
    answer = arm.send("DELETE", at)
    if answer.status_code == 202:
        follow(arm, answer)
    assert arm.send("GET", at).status_code == 404


def names(arm: ArmInProcess, at: str) -> list[str]:
    return [one["name"] for one in arm.send("GET", at).json()["value"]]


# --- a group --------------------------------------------------------------------------------------------------------


def test_a_group_is_deleted_by_an_operation_with_a_location(arm: ArmInProcess) -> None:
    arm.put(ROLE.replace(GROUP, STORAGE), changed(ROLE, {}))
    answer = arm.send("DELETE", GROUP)
    assert answer.status_code == 202 and answer.content == b""
    assert "/operationresults/" in answer.headers["Location"] and "Azure-AsyncOperation" not in answer.headers
    assert follow(arm, answer).status_code == 204
    assert arm.emulator.state.below(SUBSCRIPTION) == []
    assert refusal(arm, "DELETE", GROUP)[:2] == (404, "ResourceGroupNotFound")
    assert refusal(arm, "DELETE", STORAGE)[:2] == (404, "ResourceGroupNotFound")


def test_while_a_group_is_being_deleted_it_is_there_and_takes_nothing(
    arm: ArmInProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()

    async def end(_arm: Arm, _group: str) -> None:
        while not ended.is_set():
            await asyncio.sleep(0.005)

    monkeypatch.setattr(Arm, "end", end)  # what runs in the group, and takes its time to end
    answer = arm.send("DELETE", GROUP)
    assert arm.send("GET", answer.headers["Location"]).status_code == 202
    assert arm.send("GET", GROUP).json()["properties"]["provisioningState"] == "Deleting"
    assert refusal(arm, "PUT", REGISTRY + "b", changed(REGISTRY, {}))[:2] == (409, "ResourceGroupBeingDeleted")
    assert refusal(arm, "PUT", GROUP, BODIES[GROUP])[:2] == (409, "ResourceGroupBeingDeleted")
    ended.set()
    assert follow(arm, answer).status_code == 204
    assert arm.send("GET", GROUP).status_code == 404


def test_an_emulator_that_was_killed_says_so_of_its_operations(arm: ArmInProcess) -> None:
    arm.emulator.state.save_record("operation", "cut-off", {"status": "InProgress"})
    with ArmInProcess(arm.home.path) as again:
        answer = again.send("GET", f"{SUBSCRIPTION}/operationresults/cut-off")
        assert answer.status_code == 400 and "restarted" in answer.text


def test_groups_are_found_by_a_tag(arm: ArmInProcess) -> None:
    arm.put(GROUP + "2", {"location": "eastus2", "tags": {"Owner": "you"}})
    arm.put(GROUP + "3", {"location": "eastus2"})
    groups = f"{SUBSCRIPTION}/resourcegroups"
    assert names(arm, groups) == ["rg", "rg2", "rg3"]
    assert names(arm, f"{groups}?$filter=tagName eq 'owner'") == ["rg", "rg2"]
    assert names(arm, f"{groups}?$filter=tagName eq 'owner' and tagValue eq 'you'") == ["rg2"]


def test_a_group_lists_what_arm_keeps_track_of(arm: ArmInProcess) -> None:
    arm.put(ROLE, changed(ROLE, {}))
    endpoint = {"location": "eastus2", "identity": {"type": "SystemAssigned"}, "properties": {"authMode": "Key"}}
    follow(arm, arm.send("PUT", ENDPOINT, body=endpoint))
    assert names(arm, f"{GROUP}/resources") == ["st1", "kv1", "log1", "appi1", "cr123", "id1", "mlw1", "ep1"]
    assert refusal(arm, "GET", f"{GROUP}x/resources")[:2] == (404, "ResourceGroupNotFound")


# --- locks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", [GROUP, STORAGE, WORKSPACE])
def test_a_lock_on_a_group_or_in_it_blocks_its_deletion(arm: ArmInProcess, scope: str) -> None:
    lock = LOCK.replace(GROUP, scope)
    arm.put(lock, changed(LOCK, {}))
    status, code, said = refusal(arm, "DELETE", GROUP)
    assert (status, code) == (409, "ScopeLocked")
    assert f"'{GROUP}' cannot perform delete operation" in said and f"'{scope}'" in said
    assert arm.send("GET", GROUP).json()["properties"]["provisioningState"] == "Succeeded"
    delete(arm, lock)
    delete(arm, GROUP)


def test_a_lock_holds_for_what_is_below_it_and_for_nothing_else(arm: ArmInProcess) -> None:
    arm.put(GROUP + "2", {"location": "eastus2"})
    arm.put(LOCK.replace(GROUP, WORKSPACE), changed(LOCK, {}))
    for at in (WORKSPACE, CLUSTER):
        assert refusal(arm, "DELETE", at)[1] == "ScopeLocked"
    arm.put(WORKSPACE, changed(WORKSPACE, {"properties/friendlyName": "Phi"}))
    delete(arm, INSIGHTS)
    delete(arm, GROUP + "2")


def test_a_read_only_lock_blocks_writes_and_actions_too(arm: ArmInProcess) -> None:
    arm.put(LOCK, changed(LOCK, {"properties/level": "ReadOnly"}))
    for method, at in (("PUT", STORAGE), ("PATCH", GROUP), ("DELETE", STORAGE), ("POST", f"{WORKSPACE}/jobs/j/cancel")):
        assert refusal(arm, method, at, {})[:2] == (409, "ScopeLocked")
    assert arm.send("GET", STORAGE).status_code == 200


# --- a workspace ----------------------------------------------------------------------------------------------------


def test_a_workspace_goes_with_its_computes(arm: ArmInProcess) -> None:
    answer = arm.send("DELETE", WORKSPACE)
    assert "/workspaceOperationsStatus/" in answer.headers["Azure-AsyncOperation"]
    assert follow(arm, answer).json()["status"] == "Succeeded"
    for at in (WORKSPACE, CLUSTER):
        assert arm.send("GET", at).status_code == 404


@pytest.mark.parametrize("query", ["", "?forceToPurge=true"])
def test_an_endpoint_blocks_its_workspaces_deletion_and_not_its_groups(arm: ArmInProcess, query: str) -> None:
    endpoint = {"location": "eastus2", "identity": {"type": "SystemAssigned"}, "properties": {"authMode": "Key"}}
    follow(arm, arm.send("PUT", ENDPOINT, body=endpoint))
    status, code, said = refusal(arm, "DELETE", WORKSPACE + query)
    assert (status, code) == (409, "CannotDeleteResource")
    assert "'Microsoft.MachineLearningServices/workspaces/mlw1/onlineEndpoints/ep1'" in said
    assert arm.send("GET", CLUSTER).status_code == 200
    delete(arm, GROUP)


def test_an_identity_that_is_in_use_can_be_deleted(arm: ArmInProcess) -> None:
    delete(arm, IDENTITY)
    assert arm.send("GET", CLUSTER).status_code == 200


def test_a_soft_deleted_workspace_keeps_its_name_until_it_is_purged(arm: ArmInProcess) -> None:
    delete(arm, WORKSPACE)
    status, code, said = refusal(arm, "PUT", WORKSPACE, changed(WORKSPACE, {}))
    assert (status, code) == (400, "BadRequest")
    assert said == "Soft-deleted workspace exists. Please purge or recover it. https://aka.ms/wsoftdelete"
    answer = arm.send("DELETE", f"{WORKSPACE}?forceToPurge=true")
    assert answer.status_code == 202 and follow(arm, answer).json()["status"] == "Succeeded"
    assert arm.send("DELETE", f"{WORKSPACE}?forceToPurge=true").status_code == 204
    arm.put(WORKSPACE, changed(WORKSPACE, {}))


def test_a_workspace_that_is_purged_at_once_leaves_nothing(arm: ArmInProcess) -> None:
    follow(arm, arm.send("DELETE", f"{WORKSPACE}?forceToPurge=true"))
    arm.put(WORKSPACE, changed(WORKSPACE, {}))


def test_without_its_group_a_soft_deleted_workspace_cannot_be_purged(arm: ArmInProcess) -> None:
    delete(arm, GROUP)
    assert refusal(arm, "DELETE", f"{WORKSPACE}?forceToPurge=true")[:2] == (404, "ResourceGroupNotFound")
    arm.put(GROUP, BODIES[GROUP])
    follow(arm, arm.send("DELETE", f"{WORKSPACE}?forceToPurge=true"))
    assert names(arm, ML_WORKSPACES) == []


def test_another_name_or_another_group_is_free(arm: ArmInProcess) -> None:
    delete(arm, WORKSPACE)
    arm.put(WORKSPACE + "b", changed(WORKSPACE, {}))
    arm.put(GROUP + "2", BODIES[GROUP])
    arm.put(WORKSPACE.replace(GROUP, GROUP + "2"), changed(WORKSPACE, {}))


def test_a_subscription_lists_its_soft_deleted_workspaces_and_a_group_does_not(arm: ArmInProcess) -> None:
    arm.put(WORKSPACE + "b", changed(WORKSPACE, {}))
    delete(arm, WORKSPACE)
    listed = {one["name"]: one["properties"] for one in arm.send("GET", ML_WORKSPACES).json()["value"]}
    assert {name: one["provisioningState"] for name, one in listed.items()} == {
        "mlw1b": "Succeeded",
        "mlw1": "SoftDeleted",
    }
    assert names(arm, ML_WORKSPACES.replace(SUBSCRIPTION, GROUP)) == ["mlw1b"]


def test_a_soft_deleted_workspace_is_recovered_as_it_was(arm: ArmInProcess) -> None:
    before = arm.send("GET", WORKSPACE).json()
    delete(arm, WORKSPACE)
    wanted = {"location": "eastus2", "properties": {"allowRecoverSoftDeletedWorkspace": "True"}}
    answer = arm.send("PUT", WORKSPACE, body=wanted)
    assert answer.status_code == 201
    follow(arm, answer)
    after = arm.send("GET", WORKSPACE).json()
    assert {**after, "systemData": None} == {**before, "systemData": None}
    assert after["systemData"]["createdAt"] == before["systemData"]["createdAt"]
    assert names(arm, f"{WORKSPACE}/datastores") == ["workspaceblobstore", "workspaceartifactstore"]
    assert names(arm, f"{WORKSPACE}/computes") == []  # clusters are deleted for good
    assert arm.send("DELETE", WORKSPACE).status_code == 202


def test_a_workspace_is_not_recovered_without_what_it_stands_on(arm: ArmInProcess) -> None:
    delete(arm, WORKSPACE)
    delete(arm, STORAGE)
    wanted = {"location": "eastus2", "properties": {"allowRecoverSoftDeletedWorkspace": "True"}}
    assert "storageAccount" in refusal(arm, "PUT", WORKSPACE, wanted)[2]


# --- vaults and logs ------------------------------------------------------------------------------------------------


def test_a_soft_deleted_vault_is_listed_shown_and_purged(arm: ArmInProcess) -> None:
    delete(arm, VAULT)
    assert refusal(arm, "PUT", VAULT, changed(VAULT, {}))[:2] == (409, "ConflictError")
    arm.put(GROUP + "2", BODIES[GROUP])
    assert refusal(arm, "PUT", VAULT.replace(GROUP, GROUP + "2"), changed(VAULT, {}))[:2] == (409, "ConflictError")
    assert names(arm, f"{VAULTS}/deletedVaults") == ["kv1"]
    shown = arm.send("GET", PURGE.removesuffix("/purge")).json()["properties"]
    kept = datetime.fromisoformat(shown["scheduledPurgeDate"]) - datetime.fromisoformat(shown["deletionDate"])
    assert shown["vaultId"] == VAULT and kept == timedelta(days=7)
    answer = arm.send("POST", PURGE)
    assert answer.status_code == 202 and follow(arm, answer).json()["status"] == "Succeeded"
    assert refusal(arm, "POST", PURGE)[:2] == (404, "DeletedVaultNotFound")
    arm.put(VAULT, changed(VAULT, {}))


def test_a_soft_deleted_vault_is_recovered_as_it_was(arm: ArmInProcess) -> None:
    before = arm.send("GET", VAULT).json()
    delete(arm, VAULT)
    arm.put(VAULT, {"location": "eastus2", "properties": {"createMode": "recover"}})
    assert arm.send("GET", VAULT).json() == before
    assert names(arm, f"{VAULTS}/deletedVaults") == []


def test_a_vault_with_purge_protection_is_not_purged(arm: ArmInProcess) -> None:
    arm.put(VAULT, changed(VAULT, {"properties/enablePurgeProtection": True}))
    delete(arm, VAULT)
    assert refusal(arm, "POST", PURGE)[:2] == (405, "MethodNotAllowed")


def test_deleted_logs_come_back_by_themselves(arm: ArmInProcess) -> None:
    before = arm.put(LOGS, changed(LOGS, {"properties/retentionInDays": 90}))
    delete(arm, LOGS)
    deleted = f"{SUBSCRIPTION}/providers/Microsoft.OperationalInsights/deletedWorkspaces"
    assert names(arm, deleted) == ["log1"]
    assert arm.put(LOGS, {"location": "eastus2"}) == {**before, "tags": before["tags"]}
    assert names(arm, deleted) == []


def test_logs_that_were_deleted_with_force_do_not_come_back(arm: ArmInProcess) -> None:
    before = arm.send("GET", LOGS).json()["properties"]["customerId"]
    follow(arm, arm.send("DELETE", f"{LOGS}?force=true"))
    assert arm.put(LOGS, changed(LOGS, {}))["properties"]["customerId"] != before


@pytest.mark.parametrize(
    ("at", "days", "listing"),
    [
        (VAULT, 7, f"{VAULTS}/deletedVaults"),
        (WORKSPACE, 14, ML_WORKSPACES),
        (LOGS, 14, f"{SUBSCRIPTION}/providers/Microsoft.OperationalInsights/deletedWorkspaces"),
    ],
)
def test_when_its_time_is_over_the_name_is_free(arm: ArmInProcess, at: str, days: int, listing: str) -> None:
    delete(arm, at)
    state = arm.emulator.state
    ((key, kept),) = state.records("soft-deleted")
    for age, listed in ((timedelta(days=days, minutes=-1), [kept["name"]]), (timedelta(days=days), [])):
        state.save_record("soft-deleted", key, {**kept, "deletedAt": (datetime.now(UTC) - age).isoformat()})
        assert names(arm, listing) == listed
    made = arm.put(at, changed(at, {}))
    assert made["properties"].get("customerId", "new") != kept["properties"].get("customerId")


# --- long-running operations ----------------------------------------------------------------------------------------

LONG = [LOGS, REGISTRY, COSMOS, WORKSPACE, CLUSTER]
ALONE = [DATABASE, CONTAINER, COSMOS_ROLE]


def prepare(arm: ArmInProcess, at: str) -> None:
    for one in (COSMOS, DATABASE):
        if at.startswith(one + "/"):
            arm.put(one, changed(one, {}))


@pytest.mark.parametrize("at", LONG)
def test_some_puts_answer_a_resource_that_is_not_done_and_an_operation(arm: ArmInProcess, at: str) -> None:
    prepare(arm, at)
    for status, state in ((201, "Creating"), (200, "Updating")):
        new = at if at == COSMOS else at + "b"
        answer = arm.send("PUT", new, body=changed(at, {}))
        assert (answer.status_code, answer.json()["properties"]["provisioningState"]) == (status, state)
        assert follow(arm, answer).json()["status"] == "Succeeded"
        assert arm.send("GET", new).json()["properties"]["provisioningState"] == "Succeeded"
    arm.send("DELETE", new)


@pytest.mark.parametrize("at", ALONE)
def test_some_puts_answer_an_operation_alone(arm: ArmInProcess, at: str) -> None:
    prepare(arm, at)
    answer = arm.send("PUT", at, body=changed(at, {}))
    assert (answer.status_code, answer.content) == (202, b"")
    location = arm.send("GET", answer.headers["Location"])
    assert location.status_code == 204 and follow(arm, answer).json()["status"] == "Succeeded"
    assert arm.send("GET", at).status_code == 200


@pytest.mark.parametrize("at", [*LONG, *ALONE, STORAGE, VAULT, INSIGHTS, IDENTITY, ROLE])
def test_deletions_are_followed_the_same_way_and_repeated_without_harm(arm: ArmInProcess, at: str) -> None:
    prepare(arm, at)
    arm.put(at, changed(at, {}))
    is_long = bool(TYPES[arm.send("GET", at).json()["type"].lower()].long)
    assert arm.send("DELETE", at).status_code == (202 if is_long else 200)
    assert arm.send("DELETE", at).status_code == 204


def test_an_operation_that_is_not_there_is_404(arm: ArmInProcess) -> None:
    for where in ("operationresults", "providers/Microsoft.DocumentDB/locations/eastus2/operationsStatus"):
        assert refusal(arm, "GET", f"{SUBSCRIPTION}/{where}/none")[:2] == (404, "OperationNotFound")


def test_a_budget_goes_with_its_group(arm: ArmInProcess) -> None:
    first = datetime.now(UTC).strftime("%Y-%m-01T00:00:00Z")
    arm.put(BUDGET, changed(BUDGET, {"properties/timePeriod/startDate": first}))
    delete(arm, GROUP)
    arm.put(GROUP, BODIES[GROUP])
    assert arm.send("GET", BUDGET).status_code == 404
