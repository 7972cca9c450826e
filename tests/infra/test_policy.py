"""The policy rules: this program keeps them all, and each change for the worse breaks the one that is meant."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.policy.rules import ALLOWED, PRINCIPAL_TYPES, RULES, TAGS, plain_type, violations
from infra.policy.rules import TAGGED as TAKES_TAGS
from tests.infra.conftest import Cli

PACK = Path(__file__).resolve().parents[2] / "infra" / "policy"
TAGGED = {"tags": dict.fromkeys(TAGS, "x")}
STORAGE = {
    **TAGGED,
    "sku": {"name": "Standard_LRS"},
    "allowSharedKeyAccess": False,
    "allowBlobPublicAccess": False,
}
REGISTRY = {**TAGGED, "sku": {"name": "Basic"}}
EXPIRING = {"tags": {**TAGGED["tags"], "expires-on": "2027-01-01T00:00:00Z"}}
SHORT = {"tags": {**TAGGED["tags"], "ttl-hours": "8"}}
PROTECTED = {"properties": {"enablePurgeProtection": True}}
ALL_OPTIONS: dict[str, Any] = {
    "grants": "least",
    "cpuMaxNodes": 2,
    "chatStore": True,
    "budgetAmount": 100,
    "budgetEmails": ["ml-platform@contoso.com"],
    "budgetStart": "2026-11-01",
    "githubSubject": "repo:contoso/phi:environment:dev",
    "deployer": "33333333-0000-4000-8000-000000000003",
    "ttlHours": 8,
}


def compute(size: str = "Standard_NC24ads_A100_v4", least: float = 0) -> dict[str, Any]:
    scale = {"minNodeCount": least, "maxNodeCount": 1}
    return {**TAGGED, "properties": {"properties": {"vmSize": size, "scaleSettings": scale}}}


def declared(pulumi: Cli, **config: Any) -> list[dict[str, Any]]:
    """Every resource that the program declares, as the engine would hand it to the pack."""
    pulumi.configure(**config)
    code, out, err = pulumi("preview", "--json")
    assert code == 0, err
    return [step["newState"] for step in json.loads(out)["steps"]]


@pytest.mark.parametrize("config", [{}, ALL_OPTIONS, {"purgeProtection": True}])
def test_this_program_keeps_every_rule(pulumi: Cli, config: dict[str, Any]) -> None:
    found = declared(pulumi, **config)
    assert len(found) > 10
    assert [(one["urn"], *each) for one in found for each in violations(one["type"], one["inputs"])] == []


def test_whatever_takes_tags_is_asked_for_them(pulumi: Cli) -> None:
    found = declared(pulumi, **ALL_OPTIONS)
    assert {plain_type(one["type"]) for one in found if "tags" in one["inputs"]} == TAKES_TAGS


def test_access_by_key_is_told_and_stops_nothing(pulumi: Cli) -> None:
    found = declared(pulumi, datastoreAuth="AccessKey")
    broken = [rule for one in found for rule, _ in violations(one["type"], one["inputs"])]
    assert broken == ["no-datastore-keys", "no-datastore-keys"]
    assert [rule.name for rule in RULES if rule.level == "advisory"] == ["no-datastore-keys"]


@pytest.mark.parametrize(
    ("rule", "kind", "inputs"),
    [
        ("tags-present", "storage:StorageAccount", {**STORAGE, "tags": {"project": "x"}}),
        ("tags-present", "keyvault:Vault", {}),
        ("gpu-min-nodes-0", "machinelearningservices:Compute", compute(least=1)),
        ("gpu-min-nodes-0", "machinelearningservices:Compute", compute("standard_nc4as_T4_v3", least=1.0)),
        ("no-account-keys", "storage/v20240101:StorageAccount", {**STORAGE, "allowSharedKeyAccess": None}),
        ("no-account-keys", "cosmosdb:DatabaseAccount", TAGGED),
        ("no-account-keys", "containerregistry:Registry", {**REGISTRY, "adminUserEnabled": True}),
        ("no-datastore-keys", "storage:StorageAccount", {**STORAGE, "allowSharedKeyAccess": True}),
        ("no-datastore-keys", "machinelearningservices:Workspace", {**TAGGED, "systemDatastoresAuthMode": "identity"}),
        ("principal-type-set", "authorization:RoleAssignment", {"principalId": "x"}),
        ("no-public-blobs", "storage:StorageAccount", {**STORAGE, "allowBlobPublicAccess": True}),
        ("no-public-blobs", "storage:BlobContainer", {"publicAccess": "Blob"}),
        ("no-purge-protection-with-expiry", "keyvault:Vault", {**EXPIRING, **PROTECTED}),
        ("no-purge-protection-with-expiry", "keyvault:Vault", {**SHORT, **PROTECTED}),
        ("allowed-skus", "machinelearningservices:Compute", compute("Standard_ND96isr_H100_v5")),
        ("allowed-skus", "storage:StorageAccount", {**STORAGE, "sku": {"name": "Premium_LRS"}}),
    ],
)
def test_a_change_for_the_worse_breaks_its_rule(rule: str, kind: str, inputs: dict[str, Any]) -> None:
    assert [name for name, _ in violations(f"azure-native:{kind}", inputs)] == [rule]


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        ("resources:ResourceGroup", TAGGED),
        ("storage:StorageAccount", STORAGE),
        ("storage:BlobContainer", {"publicAccess": "None"}),
        ("machinelearningservices:Compute", compute("Standard_DS3_v2", least=1)),
        ("machinelearningservices:Compute", compute()),
        ("machinelearningservices:Workspace", {**TAGGED, "systemDatastoresAuthMode": "Identity"}),
        ("containerregistry:Registry", {**REGISTRY, "adminUserEnabled": False}),
        ("cosmosdb:DatabaseAccount", {**TAGGED, "disableLocalAuth": True}),
        ("keyvault:Vault", {**TAGGED, **PROTECTED}),
        ("keyvault:Vault", EXPIRING),
        *[("authorization:RoleAssignment", {"principalType": one}) for one in PRINCIPAL_TYPES],
    ],
)
def test_what_is_allowed_breaks_nothing(kind: str, inputs: dict[str, Any]) -> None:
    assert violations(f"azure-native:{kind}", inputs) == []


def test_a_platform_team_may_allow_other_sizes() -> None:
    (rule,) = [one for one in RULES if one.name == "allowed-skus"]
    token, big = "azure-native:machinelearningservices:Compute", compute("Standard_ND96isr_H100_v5")
    assert list(rule.violations(token, big, {"vmSizes": ["standard_nd96isr_h100_V5"]})) == []
    assert list(rule.violations(token, compute(), {"vmSizes": ["Standard_DS3_v2"]}))
    assert [text for one in RULES for text in one.violations(token, compute(), {"unheardOf": []})] == []


def test_every_rule_says_what_it_asks_for() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES) == 8
    assert all(rule.description.endswith(".") for rule in RULES)


def test_the_documents_list_every_rule() -> None:
    text = (PACK.parents[1] / "docs" / "verbs.md").read_text()
    assert [rule.name for rule in RULES if f"| `{rule.name}` |" not in text] == []


# --- the pack -------------------------------------------------------------------------------------------------------


@pytest.fixture
def analyzer() -> Iterator[Any]:
    """The pack as Pulumi starts it, in the environment that `pulumi install` made for it."""
    python = PACK / ".venv" / "bin" / "python"
    if not python.exists():
        pytest.skip("the pack has no environment of its own here: cd infra/policy && pulumi install")
    import grpc  # type: ignore[import-untyped]
    from pulumi.runtime.proto import analyzer_pb2_grpc

    with subprocess.Popen([python, "-u", "-m", "pulumi.policy", "127.0.0.1:1", PACK], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        try:
            with grpc.insecure_channel(f"127.0.0.1:{int(server.stdout.readline())}") as channel:
                yield analyzer_pb2_grpc.AnalyzerStub(channel)
        finally:
            server.kill()


def test_the_pack_answers_the_engine(analyzer: Any) -> None:
    from google.protobuf import empty_pb2, json_format  # type: ignore[import-untyped]
    from pulumi.runtime.proto import analyzer_pb2 as wire

    info = analyzer.GetAnalyzerInfo(empty_pb2.Empty(), timeout=30)
    assert {one.name: one.enforcementLevel for one in info.policies} == {
        rule.name: wire.MANDATORY if rule.level == "mandatory" else wire.ADVISORY for rule in RULES
    }
    (schema,) = [one.configSchema for one in info.policies if one.name == "allowed-skus"]
    assert json_format.MessageToDict(schema.properties)["vmSizes"]["default"] == list(ALLOWED["vmSizes"])

    request = wire.AnalyzeRequest(type="azure-native:machinelearningservices:Compute", name="gpu", urn="urn:x")
    json_format.ParseDict(compute("Standard_ND96isr_H100_v5", least=1), request.properties)
    told = {one.policyName: one.message for one in analyzer.Analyze(request, timeout=30).diagnostics}
    assert set(told) == {"gpu-min-nodes-0", "allowed-skus"}
    assert "gpu keeps 1 GPU nodes" in told["gpu-min-nodes-0"]

    setting = wire.PolicyConfig(enforcementLevel=wire.MANDATORY)
    json_format.ParseDict({"vmSizes": ["Standard_ND96isr_H100_v5"]}, setting.properties)
    analyzer.Configure(wire.ConfigureAnalyzerRequest(policyConfig={"allowed-skus": setting}), timeout=30)
    assert {one.policyName for one in analyzer.Analyze(request, timeout=30).diagnostics} == {"gpu-min-nodes-0"}


def test_the_pack_hands_over_every_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for pulumi-policy, whose own environment is not everywhere."""
    import runpy
    import sys
    from types import ModuleType, SimpleNamespace

    packs: list[tuple[str, list[Any]]] = []
    stand_in = ModuleType("pulumi_policy")
    vars(stand_in).update(
        EnforcementLevel=str,
        PolicyConfigSchema=lambda properties: properties,
        PolicyPack=lambda name, policies: packs.append((name, policies)),
        ResourceValidationPolicy=lambda **given: SimpleNamespace(**given),
    )
    monkeypatch.setitem(sys.modules, "pulumi_policy", stand_in)
    monkeypatch.delitem(sys.modules, "rules", raising=False)
    runpy.run_path(str(PACK), run_name="__main__")
    monkeypatch.delitem(sys.modules, "rules", raising=False)
    ((_, policies),) = packs
    assert [(one.name, one.enforcement_level) for one in policies] == [(rule.name, rule.level) for rule in RULES]
    reported: list[str] = []
    for one in policies:
        kind, size = "azure-native:machinelearningservices:Compute", compute("Standard_X")
        config = {"vmSizes": ["Standard_X"]} if one.config_schema else {}
        args = SimpleNamespace(resource_type=kind, props={**size, "tags": {}}, name="c", get_config=lambda c=config: c)
        one.validate(args, reported.append)
    assert reported == [
        "c lacks the tags project, stack, owner, cost-center: nobody would know whose it is, or who pays"
    ]
