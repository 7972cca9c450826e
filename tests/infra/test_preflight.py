"""The doctor itself: what it asks this machine, which Azure it is, and how it tells."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from infra import preflight, preflight_azure, preflight_local
from infra.arm import Arm, NotSignedIn
from infra.cli import UserError
from infra.finding import Finding
from infra.prices import Price, Prices
from infra.settings import Budget, Lifetime, Settings
from infra.stack_config import settings_of
from tests.infra.test_preflight_azure import FULL, REGISTRY, SIZE, FakeArm, settings
from tests.support.local_azure import LocalAzure, last_json

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
VARIABLES = ("ARM_TENANT_ID", "ARM_SUBSCRIPTION_ID", "ARM_CLIENT_ID", "ARM_USE_OIDC", "ARM_USE_MSI")


@pytest.fixture
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No variables and no az; Pulumi.dev.yaml configures no provider."""
    for name in (*VARIABLES, "AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_SUBSCRIPTION_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    return monkeypatch


# --- which Azure ----------------------------------------------------------------------------------------------------


def same(claims: dict[str, str] | None = None) -> list[Finding]:
    arm = FakeArm({})
    arm.claims = {"tid": "t", "oid": "me"} if claims is None else claims
    return list(preflight_azure.same_azure(arm, preflight_azure.Provider.of("dev")))


def test_another_tenant_or_subscription_blocks(nothing_said: pytest.MonkeyPatch) -> None:
    for name, value in {"ARM_TENANT_ID": "other", "ARM_SUBSCRIPTION_ID": "a", "AZURE_SUBSCRIPTION_ID": "b"}.items():
        nothing_said.setenv(name, value)
    nothing_said.setenv("ARM_CLIENT_ID", "c")
    nothing_said.setenv("AZURE_CLIENT_ID", "c")
    found = same()
    assert [one.level for one in found] == ["blocking", "blocking"]
    assert "ARM_TENANT_ID=t" in found[0].repair and "ARM_SUBSCRIPTION_ID=b" in found[1].repair


def test_what_nothing_says_is_unknown(nothing_said: pytest.MonkeyPatch) -> None:
    nothing_said.setenv("ARM_TENANT_ID", "T")
    nothing_said.setenv("ARM_CLIENT_ID", "c")
    nothing_said.setenv("AZURE_CLIENT_ID", "c")
    assert [one.level for one in same()] == ["ok", "unknown"]
    assert same(claims={})[0].level == "unknown", "a tenant that the SDK does not tell is not the same one"


def test_the_providers_own_configuration_goes_before_variables(nothing_said: pytest.MonkeyPatch) -> None:
    held = {"azure-native:subscriptionId": "configured", "azure-native:tenantId": "t", "azure-native:clientId": "c"}
    nothing_said.setattr("infra.stack_config.values_of", lambda _: held)
    nothing_said.setenv("ARM_SUBSCRIPTION_ID", "variable")
    nothing_said.setenv("AZURE_SUBSCRIPTION_ID", "variable")
    nothing_said.setenv("AZURE_CLIENT_ID", "c")
    assert [(one.level, "configured" in one.what) for one in same()] == [("ok", False), ("blocking", True)]
    assert preflight_azure.subscription_id("dev")[0] == "configured"


def test_a_provider_that_nobody_signed_in_blocks(nothing_said: pytest.MonkeyPatch) -> None:
    nothing_said.setenv("ARM_TENANT_ID", "t")
    nothing_said.setenv("ARM_SUBSCRIPTION_ID", "s")
    assert [one.level for one in same()] == ["ok", "ok", "blocking"]
    nothing_said.setenv("ARM_USE_OIDC", "true")
    assert [one.level for one in same()] == ["ok", "ok"]


def test_two_clients_are_a_warning(nothing_said: pytest.MonkeyPatch) -> None:
    for name, value in {"ARM_TENANT_ID": "t", "ARM_SUBSCRIPTION_ID": "s", "ARM_CLIENT_ID": "one"}.items():
        nothing_said.setenv(name, value)
    nothing_said.setenv("AZURE_CLIENT_ID", "two")
    assert [one.level for one in same()] == ["ok", "ok", "warning"]


def test_az_says_what_variables_do_not(nothing_said: pytest.MonkeyPatch, tmp_path: Path) -> None:
    az = tmp_path / "az"
    az.write_text("""#!/bin/sh\necho '{"id": "s", "tenantId": "t"}'\n""")
    az.chmod(0o755)
    nothing_said.setenv("PATH", f"{tmp_path}:/bin")
    assert [one.level for one in same()] == ["ok", "ok"]
    az.write_text("#!/bin/sh\necho 'Please run az login' >&2; exit 1\n")
    assert [one.level for one in same()] == ["unknown", "unknown", "blocking"]


# --- this machine ---------------------------------------------------------------------------------------------------


def test_nobody_signed_in_leaves_every_question_to_azure_open(nothing_said: pytest.MonkeyPatch) -> None:
    def refuse() -> Arm:
        raise NotSignedIn("tried everything")

    nothing_said.setattr(Arm, "sign_in", staticmethod(refuse))
    found = {one.check: one for one in preflight.examine("dev")}
    assert found["sign-in"].level == found["pulumi"].level == "blocking"
    assert found["sign-in"].what == "nobody is signed in to Azure: tried everything"
    assert {found[name].level for name in preflight_azure.names(settings_of("dev"))} == {"unknown"}


def test_a_sign_in_that_failed_is_told_and_not_all_that_was_never_set_up() -> None:
    text = (
        "DefaultAzureCredential failed to retrieve a token from the included credentials.\nAttempted credentials:\n"
        "\tEnvironmentCredential: EnvironmentCredential authentication unavailable. Variables are not configured.\n"
        "\tAzureCliCredential: AADSTS700082: The refresh token has expired due to inactivity.\n"
        "\tAzurePowerShellCredential: PowerShell is not installed"
    )
    assert (
        preflight._reason(text) == "AzureCliCredential: AADSTS700082: The refresh token has expired due to inactivity."
    )
    assert preflight._reason(text.replace("AADSTS700082: The", "Azure CLI not found on path")).startswith("Default")


@pytest.mark.parametrize(
    ("named", "stack", "level"),
    [
        ("dev", "dev", "ok"),
        ("contoso/finetune-phi/dev", "dev", "ok"),
        ("pr-17", "pr-17", "ok"),
        (None, "dev", "warning"),
        ("a b", "dev", "blocking"),
        ("ü", "dev", "blocking"),
        ("x" * 101, "dev", "blocking"),
    ],
)
def test_a_stacks_name_is_one_that_pulumi_takes(
    nothing_said: pytest.MonkeyPatch, named: str | None, stack: str, level: str
) -> None:
    name, (found,) = preflight_local.stack(named)
    assert (name, found.level) == (stack, level)


def test_settings_are_those_of_the_stacks_file(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    (tmp_path / "Pulumi.yaml").write_text((root / "Pulumi.yaml").read_text())
    (tmp_path / "Pulumi.dev.yaml").write_text("config:\n  finetune-phi:owner: dev-team\n")
    (tmp_path / "Pulumi.x.yaml").write_text("config:\n  finetune-phi:computeMaxNodes: 3\n")
    assert settings_of("new", project=tmp_path).owner == "dev-team"
    found = settings_of("x", project=tmp_path)
    assert (found.compute.max_nodes, found.stack, found.owner) == (3, "x", "unknown")


def test_a_stack_that_is_new_is_said_to_start_from_the_shared_one() -> None:
    (found, *_) = preflight_local.settings("unheard-of")[1]
    assert found.what.startswith("Pulumi.dev.yaml, which a new stack copies:")


def test_a_wrong_setting_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(_: str) -> Settings:
        raise UserError("the configuration key `location` cannot be 'x y'", next_command="pulumi config set")

    monkeypatch.setattr("infra.stack_config.settings_of", wrong)
    held, found = preflight_local.settings("dev")
    assert held is None and found[0].level == "blocking" and "location" in found[0].what


def test_long_names_are_cut_and_said_to_stay_unique() -> None:
    (short,) = preflight_local.names(settings(stack="dev"))
    (long,) = preflight_local.names(settings(stack="feature-a-name-of-forty-characters-12345"))
    assert (short.level, long.level) == ("ok", "ok")
    assert "cut" not in short.what and "random digits keep apart" in long.what


@pytest.mark.parametrize(
    ("expires", "levels"),
    [
        ("", []),
        ("2026-11-21T12:00:01Z", []),
        ("2026-11-21T12:00:00Z", ["blocking"]),
        ("2020-01-01T00:00:00Z", ["blocking"]),
    ],
)
def test_a_stack_that_has_expired_is_not_brought_up(expires: str, levels: list[str]) -> None:
    wish = settings(lifetime=Lifetime("", 0, expires))
    assert [one.level for one in preflight_local.expiry(wish, NOW)] == levels


@pytest.mark.parametrize(
    ("amount", "priced", "registry", "level"),
    [
        (100, True, None, "warning"),
        (734, True, None, "ok"),
        (733, True, None, "warning"),
        (3, True, REGISTRY, "warning"),
        (4, True, REGISTRY, "ok"),
        (100, False, None, "unknown"),
    ],
)
def test_a_budget_holds_the_idle_stack_and_an_hour_of_work(
    amount: int, priced: bool, registry: Any, level: str
) -> None:
    amounts = {"container-registry/Standard": 24.0, f"vm/{SIZE['name']}": 4.0} if priced else {}
    prices = Prices("USD", {}, {"eastus2": {name: Price(one, "x", "2026-11-01") for name, one in amounts.items()}})
    wish = settings(registry=registry)
    (found,) = preflight_local.budget_amount(wish, Budget(amount, ("a@b.c",), "2026-11-01"), prices)
    assert found.level == level and (level == "ok" or found.repair)


# --- what is told ---------------------------------------------------------------------------------------------------


def test_what_matters_most_stands_last() -> None:
    levels = ["warning", "ok", "blocking", "unknown"]
    told = list(preflight.lines([Finding(level, level, "what", "why", "repair") for level in levels]))  # type: ignore[arg-type]
    assert [line.split()[0] for line in told if line[:8].strip()][:4] == ["ok", "unknown", "warning", "blocking"]
    assert told[-1] == "1 ok, 1 unknown, 1 warning, 1 blocking: repair what blocks, and run the doctor again"


def test_checks_with_one_answer_are_told_at_once() -> None:
    told = list(preflight.lines([Finding("a", "ok", "x"), Finding("b", "ok", "y"), Finding("c", "ok", "x")]))
    assert told == ["      ok  a, c: x", "      ok  b: y", "3 ok: nothing blocks"]


@pytest.mark.parametrize(("level", "code"), [("ok", 0), ("unknown", 0), ("warning", 0), ("blocking", 3)])
def test_only_what_blocks_ends_with_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], level: Any, code: int
) -> None:
    monkeypatch.setattr(preflight, "examine", lambda _: iter([Finding("a", level, "what", "why", "repair")]))
    assert preflight.main(["--json"]) == code
    keys = {"check": "a", "level": level, "what": "what", "why": "why", "repair": "repair"}
    assert json.loads(capsys.readouterr().out) == {"findings": [keys], "blocking": int(code == 3)}


def test_the_documents_list_every_check() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "verbs.md").read_text()
    local = ["pulumi", "stack", "settings", "names", "expiry", "sign-in", "budget-amount"]
    assert [one for one in (*local, *preflight_azure.names(FULL)) if f"`{one}`" not in text] == []


def test_the_doctor_finds_nothing_blocking_on_this_machine(azure: LocalAzure) -> None:
    done = azure.run("-m", "infra.preflight", "--stack", "doctor-test", "--json")
    assert done.returncode == 0, done.stderr
    found = {one["check"]: one["level"] for one in last_json(done.stdout)["findings"]}
    assert {check for check, level in found.items() if level != "ok"} <= {
        "soft-deleted-workspaces",
        "size-restrictions",
    }


def test_a_size_that_the_region_lacks_ends_with_3(azure: LocalAzure, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "REQUESTS_CA_BUNDLE", "PATH", "PULUMI_BACKEND_URL", "EMULATOR_PYTHON"):
        monkeypatch.setenv(name, azure.env[name])
    for name in azure.env:
        if name.startswith(("AZURE_", "ARM_")):
            monkeypatch.setenv(name, azure.env[name])
    held = settings()
    wrong = dataclasses.replace(held, compute=dataclasses.replace(held.compute, size="Standard_NC1"))
    monkeypatch.setattr("infra.stack_config.settings_of", lambda _: wrong)
    assert preflight.main(["--stack", "dev"]) == 3
