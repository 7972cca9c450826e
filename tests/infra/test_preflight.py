"""The doctor: each thing that would fail later is found, and what cannot be asked is said."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra import preflight, preflight_azure
from infra.arm import Arm, NotSignedIn, Refused
from infra.cli import UserError
from infra.finding import Finding
from infra.settings import Compute, Deployer, Settings
from infra.stack_config import settings_of
from tests.support.local_azure import LocalAzure, last_json

BASE = "/subscriptions/s"
ML = f"{BASE}/providers/Microsoft.MachineLearningServices/locations/eastus2"
SIZE: dict[str, Any] = {
    "name": "Standard_NC24ads_A100_v4",
    "family": "standardNCADSA100v4Family",
    "vCPUs": 24,
    "gpus": 1,
}
OWNER = {"actions": ["*"], "notActions": [], "dataActions": [], "notDataActions": []}
CONTRIBUTOR = {**OWNER, "notActions": ["Microsoft.Authorization/*/Write", "Microsoft.Authorization/*/Delete"]}
GRANTER = {**OWNER, "actions": ["*/read", "Microsoft.Authorization/roleAssignments/*"]}
BLOBS = {**OWNER, "actions": [], "dataActions": [preflight_azure.BLOB_WRITE]}
SETTINGS = Settings(
    project="finetune-phi",
    stack="dev",
    location="eastus2",
    workload="phi",
    owner="me",
    cost_center="none",
    datastore_auth="Identity",
    deployer=None,
    compute=Compute("gpu-cluster", SIZE["name"], 2, 10, False),
)


class FakeArm(Arm):
    """Answers by path; a number is the status of a refusal, and anything unknown is 404."""

    def __init__(self, answers: dict[str, Any]) -> None:
        super().__init__("token", {"oid": "me", "tid": "t"})
        self.answers = answers

    def _get(self, url: str, query: dict[str, str]) -> dict[str, Any]:
        found = self.answers.get(url.removeprefix("https://management.azure.com"), 404)
        if isinstance(found, int):
            raise Refused(found, "no")
        return found if isinstance(found, dict) else {"value": found}


def usage(limit: int, used: int = 0, family: str = SIZE["family"], **more: Any) -> dict[str, Any]:
    return {"name": {"value": family, "localizedValue": family}, "limit": limit, "currentValue": used, **more}


def good() -> dict[str, Any]:
    namespaces = [{"namespace": one, "registrationState": "Registered"} for one in preflight_azure.NAMESPACES]
    return {
        BASE: {"subscriptionId": "s", "displayName": "Research", "state": "Enabled"},
        f"{BASE}/providers": namespaces,
        f"{BASE}/resourcegroups": [],
        f"{BASE}/providers/Microsoft.Authorization/permissions": [OWNER, BLOBS],
        f"{BASE}/providers/Microsoft.Authorization/roleAssignments": [{}],
        f"{ML}/vmSizes": [SIZE],
        f"{ML}/usages": [usage(0, id=f"{BASE}/workspaces/w/usages"), usage(48)],
        f"{BASE}/providers/Microsoft.KeyVault/deletedVaults": [],
    }


def asked(answers: dict[str, Any], settings: Settings | None = SETTINGS) -> dict[str, Finding]:
    """The last finding of each check below the subscription."""
    made = preflight_azure.checks(FakeArm(answers), BASE, "test", settings)
    found: dict[str, Finding] = {}
    for check, make in made.items():
        answer: Iterator[Finding] = iter(()) if make is None else preflight._guarded(check, make)
        found |= {one.check: one for one in answer}
    return found


def test_where_all_is_well_only_what_cannot_be_asked_is_left() -> None:
    levels = {check: one.level for check, one in asked(good()).items()}
    assert levels.pop("soft-deleted-workspaces") == "unknown"
    assert set(levels.values()) == {"ok"} and len(levels) == 7


@pytest.mark.parametrize(
    ("check", "level", "path", "answer"),
    [
        ("subscription", "blocking", BASE, {"subscriptionId": "s", "displayName": "R", "state": "Disabled"}),
        ("providers", "blocking", f"{BASE}/providers", []),
        ("rights", "blocking", f"{BASE}/providers/Microsoft.Authorization/permissions", [CONTRIBUTOR, BLOBS]),
        ("rights", "blocking", f"{BASE}/providers/Microsoft.Authorization/permissions", []),
        ("rights", "blocking", f"{BASE}/providers/Microsoft.Authorization/permissions", [GRANTER, BLOBS]),
        ("blob-role", "warning", f"{BASE}/providers/Microsoft.Authorization/permissions", [OWNER]),
        ("region-size", "blocking", f"{ML}/vmSizes", [{**SIZE, "name": "Standard_DS3_v2"}]),
        ("region-size", "unknown", f"{ML}/vmSizes", []),
        ("gpu-quota", "blocking", f"{ML}/usages", [usage(0)]),
        ("gpu-quota", "blocking", f"{ML}/usages", [usage(47)]),
        ("gpu-quota", "warning", f"{ML}/usages", [usage(48, 1)]),
        ("gpu-quota", "unknown", f"{ML}/usages", [usage(48, family="standardDSv2Family")]),
        ("gpu-quota", "unknown", f"{ML}/usages", [{**usage(48), "currentValue": None}]),
        (
            "soft-deleted-vaults",
            "warning",
            f"{BASE}/providers/Microsoft.KeyVault/deletedVaults",
            [{"name": "kv-phi-dev-12345678"}],
        ),
    ],
)
def test_what_would_fail_is_found(check: str, level: str, path: str, answer: Any) -> None:
    found = asked({**good(), path: answer})[check]
    assert found.level == level, found
    assert found.why and found.repair


@pytest.mark.parametrize("path", sorted(good()))
def test_a_refused_question_is_unknown_and_never_ok(path: str) -> None:
    found = asked({**good(), path: 403})
    assert "unknown" in {one.level for one in found.values() if one.check != "soft-deleted-workspaces"}
    assert all("403" in one.what for one in found.values() if one.what.startswith("not checked: Azure answered"))


def test_low_priority_has_its_own_quota() -> None:
    low = dataclasses.replace(SETTINGS, compute=dataclasses.replace(SETTINGS.compute, low_priority=True))
    assert asked(good(), low)["gpu-quota"].level == "unknown"
    rows = [usage(0), usage(100, family="Total Cluster Low-Priority Regional Cores")]
    assert asked({**good(), f"{ML}/usages": rows}, low)["gpu-quota"].level == "ok"


def test_rights_on_the_stacks_own_group_are_enough() -> None:
    group = f"{BASE}/resourceGroups/rg-phi-dev-12345678"
    answers = {
        **good(),
        f"{BASE}/providers/Microsoft.Authorization/permissions": [],
        f"{BASE}/resourcegroups": [{"id": group, "name": "rg-phi-dev-12345678"}],
        f"{group}/providers/Microsoft.Authorization/permissions": [OWNER, BLOBS],
        f"{group}/providers/Microsoft.Authorization/roleAssignments": [],
    }
    found = asked(answers)
    assert (found["rights"].level, found["blob-role"].level) == ("ok", "ok")


def test_the_deployer_is_compared_with_who_is_signed_in() -> None:
    answers = {**good(), f"{BASE}/providers/Microsoft.Authorization/permissions": [OWNER]}
    itself = dataclasses.replace(SETTINGS, deployer=Deployer("ME", "User"))
    other = dataclasses.replace(SETTINGS, deployer=Deployer("you", "User"))
    assert asked(answers, itself)["blob-role"].level == "ok"
    assert "me is signed in" in asked(answers, other)["blob-role"].what


def test_another_tenant_or_subscription_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ARM_CLIENT_ID", "AZURE_CLIENT_ID", "AZURE_TENANT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ARM_TENANT_ID", "other")
    monkeypatch.setenv("ARM_SUBSCRIPTION_ID", "a")
    monkeypatch.setenv("AZURE_SUBSCRIPTION_ID", "b")
    levels = [one.level for one in preflight_azure.same_azure(FakeArm({}))]
    assert levels == ["blocking", "blocking"]
    monkeypatch.setenv("ARM_TENANT_ID", "T")
    monkeypatch.delenv("ARM_SUBSCRIPTION_ID")
    monkeypatch.setenv("PATH", "/nowhere")
    assert [one.level for one in preflight_azure.same_azure(FakeArm({}))] == ["ok", "unknown"]


def test_nobody_signed_in_leaves_every_question_to_azure_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Arm:
        raise NotSignedIn("tried everything")

    monkeypatch.setattr(Arm, "sign_in", staticmethod(refuse))
    monkeypatch.setenv("PATH", "/nowhere")
    found = {one.check: one.level for one in preflight.examine("dev")}
    assert found["sign-in"] == found["pulumi"] == "blocking"
    assert {found[name] for name in preflight_azure.NAMES} == {"unknown"}


def test_settings_are_those_of_the_stacks_file(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    (tmp_path / "Pulumi.yaml").write_text((root / "Pulumi.yaml").read_text())
    (tmp_path / "Pulumi.dev.yaml").write_text("config:\n  finetune-phi:owner: dev-team\n")
    (tmp_path / "Pulumi.x.yaml").write_text("config:\n  finetune-phi:computeMaxNodes: 3\n")
    assert settings_of("new", project=tmp_path).owner == "dev-team"
    found = settings_of("x", project=tmp_path)
    assert (found.compute.max_nodes, found.stack, found.owner) == (3, "x", "unknown")


def test_a_wrong_setting_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import infra.stack_config

    def wrong(_: str) -> Settings:
        raise UserError("the configuration key `location` cannot be 'x y'", next_command="pulumi config set")

    monkeypatch.setattr(infra.stack_config, "settings_of", wrong)
    settings, found = preflight._settings("dev")
    assert settings is None and found[0].level == "blocking" and "location" in found[0].what


def test_the_doctor_finds_nothing_blocking_on_this_machine(azure: LocalAzure) -> None:
    done = azure.run("-m", "infra.preflight", "--stack", "doctor-test", "--json")
    assert done.returncode == 0, done.stderr
    found = {one["check"]: one["level"] for one in last_json(done.stdout)["findings"]}
    assert {check for check, level in found.items() if level != "ok"} == {"soft-deleted-workspaces"}


def test_a_size_that_the_region_lacks_ends_with_3(azure: LocalAzure, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "REQUESTS_CA_BUNDLE", "PATH", "PULUMI_BACKEND_URL", "EMULATOR_PYTHON"):
        monkeypatch.setenv(name, azure.env[name])
    for name in azure.env:
        if name.startswith(("AZURE_", "ARM_")):
            monkeypatch.setenv(name, azure.env[name])
    wrong = dataclasses.replace(SETTINGS, compute=dataclasses.replace(SETTINGS.compute, size="Standard_NC1"))
    monkeypatch.setattr("infra.stack_config.settings_of", lambda _: wrong)
    assert preflight.main(["--stack", "dev"]) == 3
