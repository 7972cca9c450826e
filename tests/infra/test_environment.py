"""`infra.environment`: an environment's life through its verbs, on the emulator's own ARM, in process."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from infra import branches, environment, preflight, up
from infra.branches import moment, stack_of
from infra.cli import INTERRUPTED, REFUSED, WRONG_USE, UserError
from infra.finding import Finding
from tests.infra import environments
from tests.infra.environments import Environments
from tests.support.arm_in_process import ArmInProcess

LIMIT = "feature/ÄÖÜ-日本語-" + "long" * 12
REGISTRY = "rg-shared/providers/Microsoft.ContainerRegistry/registries/crshared"


@pytest.fixture
def env(arm: ArmInProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environments:
    return environments.made(arm, tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def brought_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an Azure and a backend in which feat/x was brought up once for all tests that begin so."""
    folder = tmp_path_factory.mktemp("brought-up")
    (made,) = environments.prepare(folder, "feat/x", ttl=30)
    (folder / "outputs.json").write_text(json.dumps(made))
    return folder


@pytest.fixture
def copied(brought_up: Path, tmp_path: Path) -> dict[str, str]:
    """What feat/x exports, in a copy that a test may change."""
    shutil.copytree(brought_up, tmp_path, dirs_exist_ok=True, symlinks=True)
    found: dict[str, str] = json.loads((tmp_path / "outputs.json").read_text())
    return found


@pytest.fixture
def feat_x(
    copied: dict[str, str], arm: ArmInProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Environments, dict[str, str]]:
    """The environments with feat/x among them, and its outputs."""
    return environments.made(arm, tmp_path, monkeypatch), copied


# --- up and down ----------------------------------------------------------------------------------------------------


def test_two_branches_live_beside_each_other_and_one_goes_alone(feat_x: tuple[Environments, dict[str, str]]) -> None:
    env, first = feat_x
    second = env.up("feat-x")
    assert first["stack"] != second["stack"] and len(env.groups()) == 2
    gone = env.down("feat/x")["gone"]
    assert f"resource group {first['resource_group']}" in gone and f"stack {first['stack']}" in gone
    assert env.groups() == [second["resource_group"]] and env.soft_deleted() == []
    assert not env.file(first["stack"]).exists() and env.file(second["stack"]).exists()


def test_up_again_changes_nothing_and_only_a_ttl_moves_the_expiry(feat_x: tuple[Environments, dict[str, str]]) -> None:
    env, first = feat_x
    assert env.up("feat/x") == first and "16 unchanged" in env.err
    later = moment(env.up("feat/x", "--ttl", "48")["expires_on"])
    assert later is not None and later - datetime.now(UTC) > timedelta(hours=47)


def test_a_branch_comes_up_again_after_a_plain_destroy_under_new_names(env: Environments) -> None:
    first = env.up(LIMIT)
    assert all(len(first[key]) <= 24 for key in ("storage_account", "key_vault"))
    env.pulumi("destroy", "--yes", "--stack", first["stack"])
    assert env.groups() == []
    second = env.up(LIMIT)
    assert second["stack"] == first["stack"] and second["workspace"] != first["workspace"]
    env.down(LIMIT)
    assert env.groups() == []


def test_down_after_a_plain_destroy_removes_the_stack_and_says_so(feat_x: tuple[Environments, dict[str, str]]) -> None:
    env, made = feat_x
    env.pulumi("destroy", "--yes", "--stack", made["stack"])
    assert env.groups() == []
    assert env.down("feat/x")["gone"] == [f"stack {made['stack']}", f"Pulumi.{made['stack']}.yaml"]
    assert "nothing in Azure is on the stack's record" in env.err
    assert env.down("feat/x")["gone"] == [] and "nothing to remove" in env.err


def test_an_update_that_failed_half_way_is_removed_without_its_outputs(env: Environments) -> None:
    env.arm.refuse["/computes/"] = (409, "Conflict", "no quota today")
    assert env.verb("up", "--branch", "feat/x", "--yes") == 1
    assert "no quota today" in env.err and "Traceback" not in env.err
    assert len(env.groups()) == 1
    gone = env.down("feat/x")["gone"]
    assert [one.split("-")[0] for one in gone[:3]] == ["resource group rg", "workspace mlw", "key vault kv"]
    assert env.groups() == [] and env.soft_deleted() == []


def test_a_group_that_azure_does_not_let_go_fails_and_a_second_down_ends_it(
    feat_x: tuple[Environments, dict[str, str]],
) -> None:
    env, made = feat_x
    env.arm.refuse[f"resourceGroups/{made['resource_group']}"] = (409, "ScopeLocked", "there is a lock")
    assert env.verb("down", "--branch", "feat/x", "--yes") == 1
    assert "there is a lock" in env.err and "next:" in env.err
    env.arm.refuse.clear()
    env.down("feat/x")
    assert env.groups() == [] and env.soft_deleted() == []


class Interruption:
    """Ctrl-C in place of the request that changes something for the `at`th time from now, for us and for pulumi."""

    def __init__(self, env: Environments, at: int) -> None:
        self.env, self.at, self.send = env, at, env.arm.send
        env.arm.send = self  # type: ignore[method-assign]

    def __call__(self, method: str, url: str, **more: Any) -> Any:
        if method in ("DELETE", "POST"):
            self.at -= 1
            if self.at == 0:
                signal.raise_signal(signal.SIGINT)
                raise KeyboardInterrupt
        return self.send(method, url, **more)

    def over(self) -> bool:
        self.env.arm.send = self.send  # type: ignore[method-assign]
        return self.at > 0


def test_down_may_be_interrupted_at_every_request_and_goes_on(feat_x: tuple[Environments, dict[str, str]]) -> None:
    env, _ = feat_x
    for at in range(1, 12):
        interruption = Interruption(env, at)
        code = env.verb("down", "--branch", "feat/x", "--yes")
        if interruption.over():
            break
        assert code == INTERRUPTED and "next:" in env.err
        if at % 4 == 0:
            env.up("feat/x")  # which heals what the interrupted one took away
    assert code == 0 and at > 5
    assert env.groups() == [] and env.soft_deleted() == [] and env.stacks() == []
    assert [path.name for path in env.project.glob("Pulumi.*")] == ["Pulumi.dev.yaml", "Pulumi.yaml"]


def test_up_after_an_interrupted_down_makes_again_what_is_gone(feat_x: tuple[Environments, dict[str, str]]) -> None:
    env, made = feat_x
    interruption = Interruption(env, 4)
    assert env.verb("down", "--branch", "feat/x", "--yes") == INTERRUPTED and not interruption.over()
    again = env.up("feat/x")
    assert f"gone in Azure since the last update: {made['workspace']}" in env.err
    assert again["resource_group"] == made["resource_group"] and again["workspace"] != made["workspace"]
    env.down("feat/x")
    assert env.soft_deleted() == []


def test_a_role_on_a_shared_registry_goes_too(env: Environments) -> None:
    shared = f"/subscriptions/{env.subscription}/resourceGroups/{REGISTRY}"
    env.arm.put(f"/subscriptions/{env.subscription}/resourceGroups/rg-shared", {"location": "eastus2"})
    env.arm.put(shared, {"location": "eastus2", "sku": {"name": "Basic"}})
    env.template(containerRegistry=shared)
    env.up("feat/x")
    assert len(env.assignments(shared)) == 1
    assert "role assignment on crshared" in env.down("feat/x")["gone"]
    assert env.assignments(shared) == [] and env.groups() == ["rg-shared"]


def test_a_vault_with_purge_protection_is_told_with_the_end_of_its_reservation(env: Environments) -> None:
    env.template(purgeProtection=True)
    vault = env.up("feat/x")["key_vault"]
    (reserved,) = env.down("feat/x")["reserved"]
    until = moment(reserved["until"])
    assert reserved["name"] == vault and until is not None and until > datetime.now(UTC)
    assert f"{vault} has purge protection" in env.err and env.stacks() == []


def test_the_checked_in_template_stays_when_its_own_stack_goes(env: Environments) -> None:
    before = env.file("dev").read_text()
    env.done("up", "--stack", "dev", "--yes", "--config", str(env.project))
    gone = env.done("down", "--stack", "dev", "--yes", "--config", str(env.project))["gone"]
    assert env.file("dev").read_text() == before and "Pulumi.dev.yaml" not in gone


def test_config_json_leads_to_the_workspace_while_there_is_one(env: Environments) -> None:
    made = env.up("feat/x")
    assert json.loads((env.project / "config.json").read_text())["workspace_name"] == made["workspace"]
    env.down("feat/x")
    assert not (env.project / "config.json").exists()


# --- the stack's settings -------------------------------------------------------------------------------------------


def test_a_new_stack_starts_from_its_template_with_branch_expiry_and_budget(env: Environments) -> None:
    (env.project / "Pulumi.team.yaml").write_text(
        "config:\n  finetune-phi:owner: us\n  finetune-phi:ttlHours: 8\n  finetune-phi:budgetAmount: 50\n"
        '  finetune-phi:budgetEmails: ["a@b.io"]\n'
    )
    stack = env.up("feat/x", "--template", "team")["stack"]
    (group,) = env.groups()
    expected = {"project": "finetune-phi", "stack": stack, "owner": "us", "branch": "feat/x", "ttl-hours": "8"}
    assert expected.items() <= env.tags(group).items() and moment(env.tags(group)["expires-on"])
    assert f'budgetStart: "{datetime.now(UTC):%Y-%m}-01"' in env.file(stack).read_text()


def test_a_file_that_is_there_is_not_replaced(env: Environments) -> None:
    file = env.file(stack_of("feat/x"))
    file.write_text("config:\n  finetune-phi:owner: me # mine\n")
    env.up("feat/x")
    assert file.read_text() == 'config:\n  finetune-phi:owner: me # mine\n  finetune-phi:branch: "feat/x"\n'


def test_a_file_that_is_not_here_comes_back_from_the_last_update(env: Environments) -> None:
    env.template(owner="somebody")
    made = env.up("feat/x", "--ttl", "5")
    env.file(made["stack"]).unlink()
    env.template(owner="somebody else", location="westus2")
    assert env.up("feat/x") == made
    assert "from the stack's last update" in env.file(made["stack"]).read_text()


def test_a_stack_of_another_branch_is_not_touched(
    feat_x: tuple[Environments, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    env, stack = feat_x[0], feat_x[1]["stack"]
    monkeypatch.setattr(branches, "stack_of", lambda _: stack)
    for verb in ("up", "down"):
        assert env.verb(verb, "--branch", "other", "--yes") == WRONG_USE
        assert f"{stack} belongs to the branch feat/x, not to other" in env.err
    env.file(stack).unlink()
    assert env.verb("down", "--branch", "other", "--yes") == WRONG_USE


@pytest.mark.parametrize("words", [("--ttl", "3"), ("--branch", "x")])
def test_the_template_gets_neither_branch_nor_expiry(env: Environments, words: tuple[str, str]) -> None:
    assert env.verb("up", "--stack", "dev", "--yes", *words) == WRONG_USE
    assert "is the template of new stacks" in env.err


def test_the_selected_stack_stays_selected(feat_x: tuple[Environments, dict[str, str]]) -> None:
    env, _ = feat_x
    env.pulumi("stack", "init", "mine")
    env.up("feat/x")
    assert env.selected() == "mine"
    env.down("feat/x")
    assert env.selected() == "mine"


# --- before anything is created -------------------------------------------------------------------------------------


def nothing_is_left(env: Environments, stack: str) -> None:
    assert env.groups() == [] and env.stacks() == [] and not env.file(stack).exists()


def test_a_dry_run_prices_and_leaves_no_trace(env: Environments) -> None:
    found = env.done("up", "--branch", "feat/x", "--dry-run", "--ttl", "3")
    assert set(found["changes"]) == {"create"} and "worst case until expiry" in env.err
    nothing_is_left(env, found["stack"])


def test_what_the_doctor_finds_blocking_stops_up_even_with_yes(
    env: Environments, monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = Finding("gpu-quota", "blocking", "24 cores needed, 0 granted", "the job waits", "ask for quota")
    monkeypatch.setattr(preflight, "examine", lambda _: iter([finding]))
    assert env.verb("up", "--branch", "feat/x", "--yes") == REFUSED
    assert "24 cores needed" in env.err and "ask for quota" in env.err
    nothing_is_left(env, stack_of("feat/x"))


def test_a_no_leaves_no_trace(env: Environments, monkeypatch: pytest.MonkeyPatch) -> None:
    def no(_: str) -> None:
        raise UserError("nothing was done: the answer was not yes", code=REFUSED)

    monkeypatch.setattr(up, "ask", no)
    assert env.verb("up", "--branch", "feat/x") == REFUSED
    assert "to create" in env.err and "per busy GPU hour" in env.err
    nothing_is_left(env, stack_of("feat/x"))


def test_without_anybody_to_ask_down_says_what_would_go_and_does_nothing(
    feat_x: tuple[Environments, dict[str, str]],
) -> None:
    env, made = feat_x
    assert env.verb("down", "--branch", "feat/x") == WRONG_USE
    assert f"delete the resource group {made['resource_group']}" in env.err and "add --yes" in env.err
    assert env.done("down", "--branch", "feat/x", "--dry-run")["gone"] == []
    assert env.groups() == [made["resource_group"]]


def test_a_wrong_setting_is_one_sentence_and_leaves_no_trace(env: Environments) -> None:
    env.template(computeName="ends-in-1")
    assert env.verb("up", "--branch", "feat/x", "--dry-run") == 1
    assert "computeName" in env.err and "Traceback" not in env.err
    nothing_is_left(env, stack_of("feat/x"))


# --- list -----------------------------------------------------------------------------------------------------------


def test_list_says_what_azure_says(feat_x: tuple[Environments, dict[str, str]]) -> None:
    env, made = feat_x
    env.file(made["stack"]).unlink()
    (row,) = env.done("list")["environments"]
    assert (row["stack"], row["branch"], row["expired"]) == (made["stack"], "feat/x", False)
    assert row["resource_group"] == made["resource_group"] and row["tags"]["owner"] == "ml-platform"
    assert env.verb("list") == 0
    assert "feat/x" in env.out and "in 30 h" in env.out


def test_list_of_nothing_says_how_to_begin(env: Environments) -> None:
    assert env.verb("list") == 0 and "make env-up BRANCH=NAME" in env.out


# --- wrong use ------------------------------------------------------------------------------------------------------


def test_without_pulumi_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="pulumi command is not on PATH") as error:
        environment.main(["up", "--stack", "x"])
    assert error.value.code == WRONG_USE


def test_without_a_stack_it_says_how_to_name_one(env: Environments) -> None:
    assert env.verb("down") == WRONG_USE and "--branch NAME" in env.err


@pytest.mark.parametrize("words", [[], ["sideways"], ["up", "--nonsense"], ["up", "--ttl", "0"], ["up", "--ttl", "x"]])
def test_wrong_use_leaves_with_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        environment.main(words)
    assert error.value.code == WRONG_USE


@pytest.mark.parametrize("words", [["--help"], ["name", "--branch", "feat/x", "--prefix", "local"]])
def test_help_and_names_come_at_once(words: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "infra.environment", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0
    assert not any(f" {name}\n" in done.stderr for name in ("pulumi", "azure.ai.ml", "requests", "azure.core"))
    assert words == ["--help"] or done.stdout == f"local-{stack_of('feat/x')}\n"
