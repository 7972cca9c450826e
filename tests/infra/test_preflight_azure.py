"""The doctor's questions to Azure: what would fail later is found, and a refusal is never taken for a yes."""

from __future__ import annotations

import dataclasses
from datetime import date
from typing import Any

import pytest

from infra import preflight, preflight_azure, preflight_rights
from infra.arm import Arm, Refused
from infra.cli import UserError
from infra.finding import Finding
from infra.settings import Budget, Compute, Deployer, Settings, SharedRegistry
from infra.stack_config import settings_of

BASE = "/subscriptions/s"
ML = f"{BASE}/providers/Microsoft.MachineLearningServices/locations/eastus2"
PERMISSIONS = f"{BASE}/providers/Microsoft.Authorization/permissions"
ASSIGNMENTS = f"{BASE}/providers/Microsoft.Authorization/roleAssignments"
SKUS = f"{BASE}/providers/Microsoft.Compute/skus"
VAULTS = f"{BASE}/providers/Microsoft.KeyVault/deletedVaults"
GROUP = f"{BASE}/resourceGroups/rg-phi-dev-12345678"
SIZE: dict[str, Any] = {
    "name": "Standard_NC24ads_A100_v4",
    "family": "standardNCADSA100v4Family",
    "vCPUs": 24,
    "gpus": 1,
}
CPU: dict[str, Any] = {"name": "Standard_D4ds_v5", "family": "standardDDSv5Family", "vCPUs": 4, "gpus": 0}
ALL, LOW = "Total Cluster Dedicated Regional vCPUs", "Total Cluster Low-Priority Regional vCPUs"
OWNER = {"actions": ["*"], "notActions": [], "dataActions": [], "notDataActions": []}
CONTRIBUTOR = {**OWNER, "notActions": ["Microsoft.Authorization/*/Write", "Microsoft.Authorization/*/Delete"]}
GRANTER = {**OWNER, "actions": ["*/read", "Microsoft.Authorization/roleAssignments/*"]}
BLOBS = {**OWNER, "actions": [], "dataActions": [preflight_rights.BLOB_WRITE]}
REGISTRY = SharedRegistry(
    f"{BASE}/resourceGroups/shared/providers/Microsoft.ContainerRegistry/registries/crshared", "s", "shared", "crshared"
)
THIS_MONTH = date.today().replace(day=1)


def settings(**changes: Any) -> Settings:
    gpus = Compute("gpu-cluster", SIZE["name"], 2, 10, False)
    return dataclasses.replace(settings_of("dev"), **{"compute": gpus, "deployer": None, **changes})


SETTINGS = settings()
CPU_CLUSTER = Compute("cpu-cluster", CPU["name"], 3, 10, False)
FULL = settings(
    cpu=CPU_CLUSTER,
    chat_store=True,
    registry=REGISTRY,
    budget=Budget(1000, ("a@b.c",), THIS_MONTH.isoformat()),
    github_subject="repo:a/b:ref:refs/heads/main",
)


class FakeArm(Arm):
    """Answers by path; a number is the status of a refusal, an exception is raised, and anything unknown is 404."""

    def __init__(self, answers: dict[str, Any]) -> None:
        super().__init__(None, {"oid": "me", "tid": "t"})
        self.answers = answers
        self.asked: list[tuple[str, dict[str, str]]] = []

    def _get(self, url: str, query: dict[str, str]) -> dict[str, Any]:
        path = url.removeprefix("https://management.azure.com")
        self.asked.append((path, query))
        found = self.answers.get(path, 404)
        if isinstance(found, Exception):
            raise found
        if isinstance(found, int):
            raise Refused(found, "no")
        return found if isinstance(found, dict) else {"value": found}


def usage(limit: int, used: int = 0, family: str = SIZE["family"], **more: Any) -> dict[str, Any]:
    return {"name": {"value": family, "localizedValue": family}, "limit": limit, "currentValue": used, **more}


def kept(name: str, kind: str = "Location", reason: str = "NotAvailableForSubscription") -> dict[str, Any]:
    return {"name": name, "restrictions": [{"type": kind, "values": ["eastus2"], "reasonCode": reason}]}


def good() -> dict[str, Any]:
    names = [*preflight_azure.NAMESPACES, "Microsoft.DocumentDB", "Microsoft.Consumption"]
    return {
        BASE: {"subscriptionId": "s", "displayName": "Research", "state": "Enabled"},
        f"{BASE}/providers": [{"namespace": one, "registrationState": "Registered"} for one in names],
        f"{BASE}/resourcegroups": [],
        PERMISSIONS: [OWNER, BLOBS],
        ASSIGNMENTS: [],
        f"{ML}/vmSizes": [SIZE, CPU],
        f"{ML}/usages": [
            usage(0, id=f"{BASE}/workspaces/w/usages"),
            usage(48),
            usage(12, family=CPU["family"]),
            usage(100, family=ALL),
        ],
        SKUS: [{"name": SIZE["name"], "restrictions": []}],
        VAULTS: [],
        REGISTRY.id: {"id": REGISTRY.id, "location": "eastus2"},
        f"{REGISTRY.id}/providers/Microsoft.Authorization/permissions": [OWNER],
    }


def all_of(answers: dict[str, Any], settings: Settings | None = SETTINGS) -> list[Finding]:
    return list(preflight.guarded(preflight_azure.checks(FakeArm(answers), BASE, settings)))


def asked(answers: dict[str, Any], settings: Settings | None = SETTINGS) -> dict[str, Finding]:
    """The worst finding of each check below the subscription."""
    found = sorted(all_of(answers, settings), key=lambda one: preflight.ORDER.index(one.level))
    return {one.check: one for one in found}


@pytest.mark.parametrize(("wish", "checks"), [(SETTINGS, 8), (FULL, 10)])
def test_where_all_is_well_only_what_cannot_be_asked_is_left(wish: Settings, checks: int) -> None:
    levels = {check: one.level for check, one in asked(good(), wish).items()}
    assert levels.pop("soft-deleted-workspaces") == "unknown"
    assert set(levels.values()) == {"ok"} and len(levels) == checks
    assert {"same-azure", *levels, "soft-deleted-workspaces"} == set(preflight_azure.names(wish))


@pytest.mark.parametrize(
    ("check", "level", "path", "answer"),
    [
        ("subscription", "blocking", BASE, {"subscriptionId": "s", "displayName": "R", "state": "Disabled"}),
        ("subscription", "warning", BASE, {"subscriptionId": "s", "displayName": "R", "state": "PastDue"}),
        ("subscription", "blocking", BASE, 404),
        ("providers", "blocking", f"{BASE}/providers", []),
        (
            "providers",
            "warning",
            f"{BASE}/providers",
            [{"namespace": one.upper(), "registrationState": "Registering"} for one in preflight_azure.NAMESPACES],
        ),
        ("rights", "blocking", PERMISSIONS, [CONTRIBUTOR, BLOBS]),
        ("rights", "blocking", PERMISSIONS, []),
        ("rights", "blocking", PERMISSIONS, [GRANTER, BLOBS]),
        ("blob-role", "warning", PERMISSIONS, [OWNER]),
        ("region-size", "blocking", f"{ML}/vmSizes", [{**SIZE, "name": "Standard_DS3_v2"}]),
        ("region-size", "unknown", f"{ML}/vmSizes", []),
        ("size-restrictions", "warning", SKUS, [kept(SIZE["name"])]),
        ("size-restrictions", "ok", SKUS, [kept(SIZE["name"], "Zone"), kept("Standard_X")]),
        ("quota", "blocking", f"{ML}/usages", [usage(0)]),
        ("quota", "blocking", f"{ML}/usages", [usage(47)]),
        ("quota", "blocking", f"{ML}/usages", [usage(48), usage(47, family=ALL)]),
        ("quota", "warning", f"{ML}/usages", [usage(48, 1)]),
        ("quota", "ok", f"{ML}/usages", [usage(48)]),
        ("quota", "unknown", f"{ML}/usages", [usage(48, family="standardDSv2Family")]),
        ("quota", "unknown", f"{ML}/usages", [{**usage(48), "currentValue": None}]),
        ("soft-deleted-vaults", "warning", VAULTS, [{"name": "kv-phi-dev-12345678"}]),
        ("soft-deleted-vaults", "ok", VAULTS, [{"name": "kv-phi-dev-other-12345678"}]),
    ],
)
def test_what_would_fail_is_found(check: str, level: str, path: str, answer: Any) -> None:
    found = asked({**good(), path: answer})[check]
    assert found.level == level, found
    assert level == "ok" or (found.why and found.repair)


@pytest.mark.parametrize("path", sorted(good()))
@pytest.mark.parametrize("status", [403, 500])
def test_a_refused_question_is_unknown_and_never_ok(path: str, status: int) -> None:
    found = asked({**good(), path: status}, FULL)
    silent = {one.level for one in found.values() if one.check != "soft-deleted-workspaces"} - {"ok"}
    assert silent == ({"blocking"} if (path, status) == (REGISTRY.id, 403) else {"unknown"})
    told = [one for one in found.values() if one.what.startswith("not checked: Azure answered")]
    assert all(str(status) in one.what and one.repair for one in told)


def test_a_token_that_azure_no_longer_takes_asks_for_a_login() -> None:
    found = asked(dict.fromkeys(good(), 401))
    assert {one.level for one in found.values()} == {"unknown"}
    assert "az login" in found["rights"].repair


def test_where_azure_cannot_be_reached_it_is_asked_once() -> None:
    arm = FakeArm(dict.fromkeys(good(), UserError("no route to Azure", next_command="check the proxy")))
    found = list(preflight.guarded(preflight_azure.checks(arm, BASE, SETTINGS)))
    assert len(arm.asked) == 1
    assert {one.level for one in found} == {"unknown"} and len(found) == 9
    assert {(one.what, one.repair) for one in found} == {("not checked: no route to Azure", "check the proxy")}


def test_an_answer_without_its_fields_is_unknown() -> None:
    assert asked({**good(), f"{BASE}/providers": [{"namespace": "Microsoft.Storage"}]})["providers"].level == "unknown"


def test_without_settings_the_subscription_is_looked_at_all_the_same() -> None:
    found = asked(good(), None)
    assert found["subscription"].level == "ok"
    assert {one.level for check, one in found.items() if check != "subscription"} == {"unknown"}


# --- what the settings ask for --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("namespace", "wish", "level"),
    [
        ("Microsoft.DocumentDB", SETTINGS, "ok"),
        ("Microsoft.DocumentDB", settings(chat_store=True), "blocking"),
        ("Microsoft.Consumption", SETTINGS, "ok"),
        ("Microsoft.Consumption", settings(budget=FULL.budget), "blocking"),
        ("Microsoft.ContainerRegistry", SETTINGS, "blocking"),
        ("Microsoft.ContainerRegistry", settings(registry=REGISTRY), "ok"),
    ],
)
def test_only_the_providers_of_what_is_declared_are_needed(namespace: str, wish: Settings, level: str) -> None:
    listed = [one for one in good()[f"{BASE}/providers"] if one["namespace"] != namespace]
    found = asked({**good(), f"{BASE}/providers": listed}, wish)["providers"]
    assert found.level == level and (level == "ok" or namespace in found.repair)


@pytest.mark.parametrize(
    ("action", "wish"),
    [
        ("Microsoft.DocumentDB/databaseAccounts/sqlRoleAssignments/write", settings(chat_store=True)),
        ("Microsoft.Consumption/budgets/write", settings(budget=FULL.budget)),
        (preflight_rights.CREDENTIAL_WRITE, settings(github_subject="repo:a/b:x")),
        (preflight_rights.REGISTRY_WRITE, SETTINGS),
    ],
)
def test_only_the_rights_to_what_is_declared_are_needed(action: str, wish: Settings) -> None:
    answers = {**good(), PERMISSIONS: [{**OWNER, "notActions": [action]}, BLOBS]}
    assert action in asked(answers, wish)["rights"].what
    other = settings(registry=REGISTRY) if wish is SETTINGS else settings()
    assert asked(answers, other)["rights"].level == "ok"


def test_rights_on_the_stacks_own_group_are_enough() -> None:
    answers = {
        **good(),
        PERMISSIONS: [],
        f"{BASE}/resourcegroups": [
            {"id": f"{BASE}/x", "name": "rg-phi-dev-two-12345678"},
            {"id": GROUP, "name": "rg-phi-dev-12345678"},
        ],
        f"{GROUP}/providers/Microsoft.Authorization/permissions": [OWNER, BLOBS],
        f"{GROUP}/providers/Microsoft.Authorization/roleAssignments": [],
    }
    found = asked(answers)
    assert (found["rights"].level, found["blob-role"].level) == ("ok", "ok")


def assignment(role: str, condition: str | None = None) -> dict[str, Any]:
    return {"properties": {"roleDefinitionId": f"/x/roleDefinitions/{role}", "condition": condition}}


LIMIT = "((!(ActionMatches{'Microsoft.Authorization/roleAssignments/write'})) OR (@Request[...] GuidEquals {x}))"
ADMINISTRATOR = preflight_rights.GRANTERS[2]


@pytest.mark.parametrize(
    ("held", "told"),
    [
        ([assignment(ADMINISTRATOR, LIMIT)], True),
        ([assignment(ADMINISTRATOR, LIMIT), assignment("reader")], True),
        ([assignment(ADMINISTRATOR, LIMIT), assignment(preflight_rights.GRANTERS[0])], False),
        ([assignment("blobs", "@Resource[Microsoft.Storage/storageAccounts:name] StringEquals 'x'")], False),
        ([assignment(ADMINISTRATOR)], False),
        ([], False),
    ],
)
def test_a_condition_on_the_right_to_assign_roles_is_said(held: list[dict[str, Any]], told: bool) -> None:
    found = asked({**good(), ASSIGNMENTS: held})["rights"]
    assert (found.level == "warning") == told
    assert not told or "Acr Pull, Storage Blob Data Contributor" in found.why.replace("Contributor, ", "", 1)


def test_a_groups_roles_count_as_ones_own() -> None:
    arm = FakeArm(good())
    list(preflight.guarded(preflight_azure.checks(arm, BASE, SETTINGS)))
    (query,) = [query for path, query in arm.asked if path == ASSIGNMENTS]
    assert query["$filter"] == "atScope() and assignedTo('me')"


def test_the_deployer_is_compared_with_who_is_signed_in() -> None:
    answers = {**good(), PERMISSIONS: [OWNER]}
    assert asked(answers, settings(deployer=Deployer("ME", "User")))["blob-role"].level == "ok"
    assert "me is signed in" in asked(answers, settings(deployer=Deployer("you", "User")))["blob-role"].what
    assert asked(answers, settings(datastore_auth="AccessKey"))["blob-role"].level == "ok"


# --- sizes and quota ------------------------------------------------------------------------------------------------


def with_usages(*rows: dict[str, Any]) -> dict[str, Any]:
    return {**good(), f"{ML}/usages": list(rows)}


def test_low_priority_has_its_own_quota() -> None:
    low = settings(compute=dataclasses.replace(SETTINGS.compute, low_priority=True))
    assert asked(good(), low)["quota"].level == "unknown"
    assert asked(with_usages(usage(0), usage(100, family=LOW)), low)["quota"].level == "ok"
    assert asked(with_usages(usage(100), usage(47, family=LOW)), low)["quota"].level == "blocking"


def test_a_cpu_cluster_has_its_own_family_and_shares_the_total() -> None:
    wish = settings(cpu=CPU_CLUSTER)
    enough = [usage(48), usage(12, family=CPU["family"])]
    assert asked(with_usages(*enough, usage(60, family=ALL)), wish)["quota"].level == "ok"
    short = asked(with_usages(*enough, usage(59, family=ALL)), wish)["quota"]
    assert short.level == "blocking"
    assert short.what.startswith("2 x Standard_NC24ads_A100_v4 and 3 x Standard_D4ds_v5 need 60 cores")
    family = asked(with_usages(usage(48), usage(11, family=CPU["family"])), wish)["quota"]
    assert family.what.startswith("3 x Standard_D4ds_v5 need 12 cores")


def test_two_clusters_of_one_family_add_up() -> None:
    wish = settings(cpu=dataclasses.replace(CPU_CLUSTER, size=SIZE["name"], max_nodes=1))
    assert asked(with_usages(usage(71)), wish)["quota"].level == "blocking"
    assert asked(with_usages(usage(72)), wish)["quota"].level == "ok"


def test_a_cpu_size_that_the_region_lacks_names_its_own_key() -> None:
    found = asked({**good(), f"{ML}/vmSizes": [SIZE, {**CPU, "name": "Standard_DS3_v2"}]}, settings(cpu=CPU_CLUSTER))
    assert found["region-size"].repair.startswith("pulumi config set cpuSize Standard_DS3_v2")


def test_a_size_without_low_priority_is_found() -> None:
    low = settings(compute=dataclasses.replace(SETTINGS.compute, low_priority=True))
    answers = {**good(), f"{ML}/vmSizes": [{**SIZE, "lowPriorityCapable": False}]}
    assert asked(answers, low)["region-size"].repair == "pulumi config set computeLowPriority false"


# --- registry, budget, twins ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "answer", "level", "what"),
    [
        (REGISTRY.id, 404, "blocking", "which is not there"),
        (REGISTRY.id, 403, "blocking", "may not be read"),
        (REGISTRY.id, {"location": "westeurope"}, "warning", "lies in westeurope"),
        (
            f"{REGISTRY.id}/providers/Microsoft.Authorization/permissions",
            [CONTRIBUTOR],
            "blocking",
            "may not be assigned",
        ),
    ],
)
def test_a_shared_registry_has_to_be_there_and_to_take_roles(path: str, answer: Any, level: str, what: str) -> None:
    found = asked({**good(), path: answer}, FULL)["shared-registry"]
    assert found.level == level and what in found.what and found.repair


@pytest.mark.parametrize(
    ("start", "level"),
    [
        ("2026-10-01", "blocking"),
        ("2026-11-01", "ok"),
        ("2027-11-01", "ok"),
        ("2027-12-01", "blocking"),
    ],
)
def test_a_new_budget_starts_this_month_or_within_a_year(start: str, level: str) -> None:
    wish = settings(budget=Budget(100, ("a@b.c",), start))
    place = preflight_azure.Place(FakeArm(good()), BASE, wish)
    (found,) = preflight_azure.budget_start(place, date(2026, 11, 21))
    assert found.level == level
    assert level == "ok" or found.repair == "pulumi config set budgetStart 2026-11-01"


def test_the_budget_of_a_stack_that_is_there_keeps_its_start() -> None:
    answers = {**good(), f"{BASE}/resourcegroups": [{"id": GROUP, "name": "rg-phi-dev-12345678"}]}
    wish = settings(budget=Budget(100, ("a@b.c",), "2020-01-01"))
    place = preflight_azure.Place(FakeArm(answers), BASE, wish)
    assert [one.level for one in preflight_azure.budget_start(place)] == ["ok"]


def test_a_protected_twin_is_said_to_wait() -> None:
    held = {"purgeProtectionEnabled": True, "scheduledPurgeDate": "2026-12-01"}
    found = asked({**good(), VAULTS: [{"name": "kv-phi-dev-12345678", "properties": held}]})["soft-deleted-vaults"]
    assert "2026-12-01" in found.repair and "az keyvault purge" not in found.repair
