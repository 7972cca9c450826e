"""The policy rules: this program keeps them all, and each change for the worse breaks the one that is meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infra.policy.rules import PRINCIPAL_TYPES, RULES, TAGS, violations
from tests.infra.conftest import Cli

TAGGED = {"tags": dict.fromkeys(TAGS, "x")}
STORAGE = {
    **TAGGED,
    "sku": {"name": "Standard_LRS"},
    "allowSharedKeyAccess": False,
    "allowBlobPublicAccess": False,
}
EXPIRING = {"tags": {**TAGGED["tags"], "expires-on": "2027-01-01"}}


def compute(size: str = "Standard_NC24ads_A100_v4", least: float = 0) -> dict[str, Any]:
    scale = {"minNodeCount": least, "maxNodeCount": 1}
    return {**TAGGED, "properties": {"properties": {"vmSize": size, "scaleSettings": scale}}}


def test_this_program_keeps_every_rule(pulumi: Cli) -> None:
    code, out, err = pulumi("preview", "--json")
    assert code == 0, err
    steps = [step["newState"] for step in json.loads(out)["steps"]]
    assert len(steps) > 10
    assert [(one["urn"], *found) for one in steps for found in violations(one["type"], one["inputs"])] == []


def test_access_by_key_is_against_the_rules(pulumi: Cli) -> None:
    pulumi.configure(datastoreAuth="AccessKey")
    steps = [step["newState"] for step in json.loads(pulumi("preview", "--json")[1])["steps"]]
    found = [rule for one in steps for rule, _ in violations(one["type"], one["inputs"])]
    assert found == ["no-account-keys", "no-account-keys"]


@pytest.mark.parametrize(
    ("rule", "kind", "inputs"),
    [
        ("tags-present", "storage:StorageAccount", {**STORAGE, "tags": {"project": "x"}}),
        ("tags-present", "keyvault:Vault", {}),
        ("gpu-min-nodes-0", "machinelearningservices:Compute", compute(least=1)),
        ("gpu-min-nodes-0", "machinelearningservices:Compute", compute("standard_nc4as_T4_v3", least=1.0)),
        ("no-account-keys", "storage:StorageAccount", {**STORAGE, "allowSharedKeyAccess": True}),
        ("no-account-keys", "storage/v20240101:StorageAccount", {**STORAGE, "allowSharedKeyAccess": None}),
        ("no-account-keys", "documentdb:DatabaseAccount", TAGGED),
        ("no-account-keys", "machinelearningservices:Workspace", {**TAGGED, "systemDatastoresAuthMode": "identity"}),
        (
            "no-account-keys",
            "containerregistry:Registry",
            {**TAGGED, "sku": {"name": "Basic"}, "adminUserEnabled": True},
        ),
        ("principal-type-set", "authorization:RoleAssignment", {"principalId": "x"}),
        ("no-public-blobs", "storage:StorageAccount", {**STORAGE, "allowBlobPublicAccess": True}),
        ("no-public-blobs", "storage:BlobContainer", {"publicAccess": "Blob"}),
        (
            "no-purge-protection-with-expiry",
            "keyvault:Vault",
            {**EXPIRING, "properties": {"enablePurgeProtection": True}},
        ),
        ("allowed-skus", "machinelearningservices:Compute", compute("Standard_ND96isr_H100_v5")),
        ("allowed-skus", "storage:StorageAccount", {**STORAGE, "sku": {"name": "Premium_LRS"}}),
    ],
)
def test_a_change_for_the_worse_breaks_its_rule(rule: str, kind: str, inputs: dict[str, Any]) -> None:
    assert [name for name, _ in violations(f"azure-native:{kind}", inputs)] == [rule]


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        ("storage:StorageAccount", STORAGE),
        ("machinelearningservices:Compute", compute("Standard_DS3_v2", least=1)),
        ("keyvault:Vault", {**TAGGED, "properties": {"enablePurgeProtection": True}}),
        ("keyvault:Vault", EXPIRING),
        *[("authorization:RoleAssignment", {"principalType": one}) for one in PRINCIPAL_TYPES],
    ],
)
def test_what_is_allowed_breaks_nothing(kind: str, inputs: dict[str, Any]) -> None:
    assert violations(f"azure-native:{kind}", inputs) == []


def test_every_rule_says_what_it_asks_for() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES) == 7
    assert all(rule.description.endswith(".") for rule in RULES)


def test_the_pack_hands_over_every_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for pulumi-policy, whose own environment the tests do not have."""
    import runpy
    import sys
    from types import ModuleType, SimpleNamespace

    packs: list[tuple[str, list[Any]]] = []
    stand_in = ModuleType("pulumi_policy")
    vars(stand_in).update(
        EnforcementLevel=SimpleNamespace(MANDATORY="mandatory"),
        PolicyPack=lambda name, policies: packs.append((name, policies)),
        ResourceValidationPolicy=lambda **given: SimpleNamespace(**given),
    )
    monkeypatch.setitem(sys.modules, "pulumi_policy", stand_in)
    monkeypatch.delitem(sys.modules, "rules", raising=False)
    folder = Path(__file__).resolve().parents[2] / "infra" / "policy"
    runpy.run_path(str(folder), run_name="__main__")
    monkeypatch.delitem(sys.modules, "rules", raising=False)
    ((_, policies),) = packs
    reported: list[str] = []
    for one in policies:
        args = SimpleNamespace(resource_type="azure-native:keyvault:Vault", props={}, name="kv")
        one.validate(args, reported.append)
    assert [one.name for one in policies] == [rule.name for rule in RULES]
    assert reported == [
        "kv lacks the tags project, stack, owner, cost-center: nobody would know whose it is, or who pays"
    ]
