"""The in-process `pulumi`: what the engine does with small programs, and the Automation API on top of it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emulator.pulumi_cli.project import Project
from emulator.pulumi_cli.state import Backend
from tests.infra.conftest import ROOT, Cli
from tests.infra.conftest import arm as arm  # the fixture
from tests.support.arm_in_process import SUBSCRIPTION, ArmInProcess

BIN = ROOT / "emulator" / "pulumi_cli" / "bin"

Program = Callable[[str], None]

HEAD = """
import pulumi
from pulumi_azure_native import managedidentity, resources, storage
config = pulumi.Config()
group = resources.ResourceGroup("rg-", location="eastus2")
def account(name, *, sku="Standard_LRS", location="eastus2", tags=None, opts=None):
    return storage.StorageAccount(name, resource_group_name=group.name, location=location, kind="StorageV2",
                                  sku=storage.SkuArgs(name=sku), tags=tags, opts=opts)
"""


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder, with a backend and a home of its own."""
    project = tmp_path / "small"
    (project / "program").mkdir(parents=True)
    (project / "Pulumi.yaml").write_text("name: small\nruntime: python\nmain: program\n")
    monkeypatch.setenv("PULUMI_BACKEND_URL", f"file://{tmp_path / 'state'}")
    monkeypatch.setenv("PULUMI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PULUMI_CONFIG_PASSPHRASE", "not a secret")
    monkeypatch.chdir(project)
    return project


@pytest.fixture
def pulumi(arm: ArmInProcess, environment: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    cli = Cli(environment, arm, capsys)
    assert cli("stack", "init", "test")[0] == 0
    return cli


@pytest.fixture
def program(environment: Path) -> Program:
    """Writes the program's text, after a few imports."""

    def write(text: str) -> None:
        (environment / "program" / "__main__.py").write_text(HEAD + text)

    return write


def names(pulumi: Cli, kind: str) -> list[str]:
    return [path.rsplit("/", 1)[-1] for path in pulumi.arm.resources if path.rsplit("/", 2)[-2] == kind]


def test_a_top_level_resource_gets_eight_random_digits(pulumi: Cli, program: Program) -> None:
    program("account('st')")
    pulumi.up()
    (name,) = names(pulumi, "storageAccounts")
    assert len(name) == 10 and name.startswith("st")


def test_what_the_program_drops_is_deleted(pulumi: Cli, program: Program) -> None:
    program("account('st')")
    pulumi.up()
    program("")
    assert pulumi.preview() == {"same": 1, "delete": 1}
    pulumi.up()
    assert names(pulumi, "storageAccounts") == []


def test_a_replacement_is_made_before_the_old_one_goes(pulumi: Cli, program: Program) -> None:
    program("account('st')")
    pulumi.up()
    before = len(pulumi.arm.requests)
    program("account('st', location='westus')")
    assert pulumi.preview() == {"same": 1, "replace": 1}
    pulumi.up()
    assert [method for method, _ in pulumi.arm.requests[before:]] == ["PUT", "DELETE"]
    assert len(names(pulumi, "storageAccounts")) == 1


def test_delete_before_replace_turns_that_around(pulumi: Cli, program: Program) -> None:
    program("account('st', opts=pulumi.ResourceOptions(delete_before_replace=True))")
    pulumi.up()
    before = len(pulumi.arm.requests)
    program("account('st', location='westus', opts=pulumi.ResourceOptions(delete_before_replace=True))")
    pulumi.up()
    assert [method for method, _ in pulumi.arm.requests[before:]] == ["DELETE", "PUT"]


def test_ignored_changes_change_nothing(pulumi: Cli, program: Program) -> None:
    options = "opts=pulumi.ResourceOptions(ignore_changes=['tags.owner', 'sku'])"
    program(f"account('st', tags={{'owner': 'me'}}, {options})")
    pulumi.up()
    program(f"account('st', tags={{'owner': 'you'}}, sku='Standard_GRS', {options})")
    assert pulumi.preview() == {"same": 2}


def test_a_protected_resource_is_not_deleted(pulumi: Cli, program: Program) -> None:
    program("account('st', opts=pulumi.ResourceOptions(protect=True))")
    pulumi.up()
    code, _, err = pulumi("destroy", "--yes")
    assert code != 0 and "is protected" in err
    assert len(names(pulumi, "storageAccounts")) == 1


def test_a_retained_resource_leaves_the_state_only(pulumi: Cli, program: Program) -> None:
    program("account('st', opts=pulumi.ResourceOptions(retain_on_delete=True))")
    pulumi.up()
    program("")
    pulumi.up()
    assert len(names(pulumi, "storageAccounts")) == 1
    assert len(pulumi.state()) == 1


def test_what_goes_with_its_owner_is_not_deleted_by_itself(pulumi: Cli, program: Program) -> None:
    program("account('st', opts=pulumi.ResourceOptions(deleted_with=group))")
    pulumi.up()
    assert pulumi("destroy", "--yes")[0] == 0
    assert len(pulumi.arm.changes("DELETE")) == 1
    assert pulumi.arm.resources == {}


def test_a_failing_resource_stops_the_update_and_loses_nothing(pulumi: Cli, program: Program) -> None:
    program(
        "account('st')\nmanagedidentity.UserAssignedIdentity('id-', resource_group_name=group.name, location='eastus2')"
    )
    pulumi.arm.refuse["/storageAccounts/"] = (409, "StorageAccountAlreadyTaken", "the name is taken")
    code, _, err = pulumi("up", "--yes")
    assert code != 0
    assert "StorageAccountAlreadyTaken: the name is taken" in err and "Traceback" not in err
    assert {one["name"] for one in pulumi.state()} >= {"rg-"}
    pulumi.arm.refuse.clear()
    pulumi.up()
    assert len(names(pulumi, "storageAccounts")) == len(names(pulumi, "userAssignedIdentities")) == 1
    assert len(names(pulumi, "resourceGroups")) == 1


def test_a_creation_that_was_cut_off_is_taken_up_under_its_name(pulumi: Cli, program: Program) -> None:
    program("account('st')")
    pulumi.up()
    stack = Backend(Project.find(pulumi.project)).stack("test")
    with stack.update(), stack.changing() as snapshot:  # as a kill leaves it: begun, made by ARM, not recorded
        cut = snapshot.resources.pop()
        cut.outputs = {}
        snapshot.pending.append(cut)
    before = names(pulumi, "storageAccounts")
    pulumi.up()
    assert names(pulumi, "storageAccounts") == before
    assert [one["id"] for one in pulumi.state()][-1].endswith(before[0])


def test_a_creation_that_was_cut_off_is_destroyed_too(pulumi: Cli, program: Program) -> None:
    program("account('st')")
    pulumi.up()
    stack = Backend(Project.find(pulumi.project)).stack("test")
    with stack.update(), stack.changing() as snapshot:
        snapshot.pending.append(snapshot.resources.pop())
    assert pulumi("destroy", "--yes")[0] == 0
    assert pulumi.arm.resources == {}


def test_an_existing_resource_is_not_taken_over(pulumi: Cli, program: Program) -> None:
    group = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/g"
    pulumi.arm.put(group, {"location": "eastus2"})
    account = {"location": "eastus2", "kind": "StorageV2", "sku": {"name": "Standard_LRS"}}
    pulumi.arm.put(f"{group}/providers/Microsoft.Storage/storageAccounts/taken", account)
    program("storage.StorageAccount('st', account_name='taken', resource_group_name='g', kind='StorageV2',"
            " location='eastus2', sku=storage.SkuArgs(name='Standard_LRS'))")  # fmt: skip
    for _ in range(2):  # the second time too: nothing was begun that could be gone on with
        code, _, err = pulumi("up", "--yes")
        assert code != 0 and "cannot create the existing resource" in err


def test_a_second_update_of_the_same_stack_is_refused(pulumi: Cli, program: Program) -> None:
    program("")
    with Backend(Project.find(pulumi.project)).stack("test").update():
        code, _, err = pulumi("up", "--yes")
    assert code != 0
    assert "the stack is currently locked by" in err  # the words by which the Automation API knows it


def test_refresh_forgets_what_is_gone_and_up_makes_it_again(pulumi: Cli, program: Program) -> None:
    program("account('st')")
    pulumi.up()
    (gone,) = [path for path in pulumi.arm.resources if "/storageAccounts/" in path]
    pulumi.arm.forget(gone)
    assert pulumi("refresh", "--yes")[0] == 0
    assert pulumi.preview() == {"same": 1, "create": 1}


def test_refresh_sees_drift_and_up_mends_it(pulumi: Cli, program: Program) -> None:
    program("account('st', tags={'owner': 'me'})")
    pulumi.up()
    account = pulumi.arm.only("storageAccounts")
    pulumi.arm.put(account["id"], {**account, "tags": {"owner": "you"}})
    assert pulumi("refresh", "--yes")[0] == 0
    assert pulumi.preview() == {"same": 1, "update": 1}


def test_a_secret_output_is_masked(pulumi: Cli, program: Program) -> None:
    program("pulumi.export('word', pulumi.Output.secret('swordfish'))")
    assert "swordfish" not in pulumi.up()
    assert pulumi.outputs() == {"word": "[secret]"}
    assert "swordfish" in pulumi("stack", "output", "--json", "--show-secrets")[1]


def test_two_resources_of_one_name_are_refused(pulumi: Cli, program: Program) -> None:
    program("account('st')\naccount('st')")
    code, _, err = pulumi("up", "--yes")
    assert code != 0 and "same URN" in err


def test_a_program_that_fails_shows_its_traceback(pulumi: Cli, program: Program) -> None:
    program("raise ValueError('on purpose')")
    code, _, err = pulumi("up", "--yes")
    assert code != 0 and "unhandled exception" in err and "on purpose" in err


def test_an_unknown_resource_type_is_named(pulumi: Cli, program: Program) -> None:
    program("from pulumi_azure_native import dns\ndns.Zone('z', resource_group_name=group.name)")
    code, _, err = pulumi("up", "--yes")
    assert code != 0 and "azure-native:dns:Zone" in err and "Traceback" not in err


def test_a_stack_that_holds_resources_is_not_removed(pulumi: Cli, program: Program) -> None:
    program("")
    pulumi.up()
    code, _, err = pulumi("stack", "rm", "--yes", "test")
    assert code != 0 and "still has 1 resources" in err


def test_the_event_log_ends_with_a_summary(pulumi: Cli, program: Program, tmp_path: Path) -> None:
    program("")
    assert pulumi("preview", "--event-log", str(tmp_path / "events"))[0] == 0
    events = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    assert [one["sequence"] for one in events] == list(range(len(events)))
    (summary,) = [one["summaryEvent"] for one in events if "summaryEvent" in one]
    assert summary["resourceChanges"] == {"create": 1}


def test_the_automation_api_works_on_it(environment: Path, program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    from pulumi import automation

    (environment / "program" / "__main__.py").write_text(
        "import pulumi\npulumi.ComponentResource('a:b:C', 'c')\n"
        "pulumi.export('greeting', pulumi.Config().require('word'))\n"
    )
    monkeypatch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("EMULATOR_PYTHON", sys.executable)
    workspace = automation.LocalWorkspace(work_dir=str(environment))
    stack = automation.Stack.create("auto", workspace)
    stack.set_config("word", automation.ConfigValue("hello"))
    events: list[Any] = []
    assert stack.preview(on_event=events.append).change_summary == {"create": 1}
    assert events
    done = stack.up()
    assert done.outputs["greeting"].value == "hello"
    assert done.summary.result == "succeeded"
    assert [one.name for one in workspace.list_stacks() if one.current] == ["auto"]
    assert stack.destroy().summary.kind == "destroy"
    assert [one.kind for one in stack.history()] == ["destroy", "update"]
    workspace.remove_stack("auto")
    assert workspace.list_stacks() == []
    with pytest.raises(automation.StackNotFoundError):
        automation.Stack.select("auto", workspace)
    automation.Stack.create("auto", workspace)
    with pytest.raises(automation.StackAlreadyExistsError):
        automation.Stack.create("auto", workspace)
