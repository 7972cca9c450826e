"""The in-process `pulumi` as a command: stacks, configuration, secrets, output, and the Automation API on top of it."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from emulator.pulumi_cli.__main__ import _parser
from tests.support.local_azure import ROOT
from tests.support.pulumi_cli import Pulumi
from tests.support.pulumi_cli import arm as arm
from tests.support.pulumi_cli import project as project
from tests.support.pulumi_cli import pulumi as pulumi

BIN = ROOT / "emulator" / "pulumi_cli" / "bin"
SCHEMA = """
config:
  word: {type: string, default: hello}
  count: {type: integer, default: 2}
  flag: {type: boolean, default: false}
  ratio: {type: number, default: 0.5}
  emails: {type: array, items: {type: string}, default: []}
  needed: {type: string}
"""


def declare(project: Path, schema: str = SCHEMA) -> None:
    (project / "Pulumi.yaml").write_text("name: small\nruntime: python\nmain: program\n" + schema)


def stack_file(pulumi: Pulumi) -> str:
    return (pulumi.project / "Pulumi.test.yaml").read_text()


# --- configuration --------------------------------------------------------------------------------------------------


def test_the_program_gets_defaults_and_what_the_stack_sets(pulumi: Pulumi) -> None:
    declare(pulumi.project)
    pulumi.done("config", "set", "needed", "x")
    pulumi.done("config", "set", "--path", "emails[0]", "a@b.example")
    pulumi.done("config", "set", "--path", "emails[1]", "c@d.example")
    pulumi.up(
        "pulumi.export('all', [config.require('word'), config.require_int('count'), config.require_bool('flag'),"
        " config.require_object('emails'), config.require_float('ratio')])"
    )
    assert json.loads(pulumi.done("stack", "output", "all", "--json")) == [
        "hello",
        2,
        False,
        ["a@b.example", "c@d.example"],
        0.5,
    ]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("count", "many", "integer, not 'many'"),
        ("count", True, "integer"),
        ("flag", "yes", "boolean"),
        ("ratio", "much", "number"),
        ("emails", '["a@b.example"]', "--path 'emails[0]'"),
        ("emails", ["a@b.example", 1], "array<string>"),
        ("wrod", "x", "known keys: count, emails"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_what_would(pulumi: Pulumi, key: str, value: Any, said: str) -> None:
    declare(pulumi.project)
    pulumi.program("raise AssertionError('the program must not run')")
    held = {"small:needed": "x", f"small:{key}": value}
    (pulumi.project / "Pulumi.test.yaml").write_text(yaml.safe_dump({"config": held}))
    err = pulumi.refused("preview")
    assert repr(key) in err and said in err


def test_a_required_key_is_asked_for_by_name(pulumi: Pulumi) -> None:
    declare(pulumi.project)
    assert "lacks the required configuration key 'needed'" in pulumi.refused("preview")


def test_a_path_sets_gets_and_removes_a_part(pulumi: Pulumi) -> None:
    for path, value in (("a.b", "x"), ("a.c[0]", "12"), ("a.c[1]", "true"), ('a["d-e"]', "012")):
        pulumi.done("config", "set", "--path", path, value)
    assert yaml.safe_load(stack_file(pulumi))["config"] == {
        "small:a": {"b": "x", "c": [12, True], "d-e": "012"}  # as the real one: what looks like a number is one
    }
    assert pulumi.done("config", "get", "--path", "a.c[1]").strip() == "true"
    assert "leaves a gap" in pulumi.refused("config", "set", "--path", "a.c[7]", "x")
    pulumi.done("config", "rm", "--path", "a.c[0]")
    assert yaml.safe_load(stack_file(pulumi))["config"]["small:a"]["c"] == [True]
    pulumi.done("config", "rm", "a")
    assert "not found" in pulumi.refused("config", "get", "a")


def test_other_settings_of_the_stacks_file_stay(pulumi: Pulumi) -> None:
    (pulumi.project / "Pulumi.test.yaml").write_text("environment: [shared]\nconfig:\n  small:z: 1\n")
    pulumi.done("config", "set", "a", "2")
    assert yaml.safe_load(stack_file(pulumi)) == {"environment": ["shared"], "config": {"small:z": 1, "small:a": "2"}}


def test_config_on_the_command_line_is_kept(pulumi: Pulumi) -> None:
    pulumi.program("pulumi.export('word', config.require('word'))")
    pulumi.done("up", "--yes", "-c", "word=hi")
    assert pulumi.done("stack", "output", "word").strip() == pulumi.done("config", "get", "word").strip() == "hi"


def test_another_files_configuration_may_be_used(pulumi: Pulumi, tmp_path: Path) -> None:
    pulumi.program("pulumi.export('word', config.require('word'))")
    (tmp_path / "other.yaml").write_text("config: {word: other}")
    pulumi.done("up", "--yes", "--config-file", str(tmp_path / "other.yaml"))
    assert pulumi.done("stack", "output", "word").strip() == "other"


# --- secrets --------------------------------------------------------------------------------------------------------


def everything_written(pulumi: Pulumi, tmp_path: Path) -> str:
    files = [one for place in ("state", "home", "small") for one in (tmp_path / place).rglob("*") if one.is_file()]
    return "".join(one.read_text() for one in files if "program" not in one.parts)


def test_a_secret_in_the_configuration_is_encrypted_and_reaches_the_program(
    pulumi: Pulumi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("swordfish\n"))
    pulumi.done("config", "set", "--secret", "word")  # not on the command line, where others could read it
    pulumi.done("config", "set", "--secret", "--path", "deep.word", "trout")
    pulumi.up("pulumi.export('word', config.require_secret('word'))\npulumi.export('deep', config.require('deep'))")
    assert not {"swordfish", "trout"} & set(everything_written(pulumi, tmp_path).replace('"', " ").split())
    assert "swordfish" not in pulumi.done("config") + pulumi.done("config", "--json")
    assert "swordfish" in pulumi.done("config", "--show-secrets")
    assert pulumi.done("config", "get", "word").strip() == "swordfish"
    assert pulumi.done("stack", "output", "word").strip() == "[secret]"
    assert pulumi.done("stack", "output", "word", "--show-secrets").strip() == "swordfish"
    assert json.loads(pulumi.done("stack", "output", "deep", "--show-secrets")) == {"word": "trout"}


def test_a_secret_input_stays_one_in_outputs_state_diff_events_and_history(pulumi: Pulumi, tmp_path: Path) -> None:
    log = tmp_path / "home" / "events"
    pulumi.up("")
    text = "a = account('st', tags={{'word': pulumi.Output.secret('{0}')}})\npulumi.export('tags', a.tags)"
    pulumi.program(text.format("swordfish"))
    log.parent.mkdir(exist_ok=True)
    printed = pulumi.done("up", "--yes", "--event-log", str(log))
    assert pulumi.arm.only("storageAccounts")["tags"] == {"word": "swordfish"}
    pulumi.program(text.format("trout"))
    printed += pulumi.done("preview", "--diff") + pulumi.done("preview", "--json")
    printed += pulumi.done("stack", "export") + pulumi.done("stack", "output", "--json")
    assert "[secret] => [secret]" in printed
    for word in ("swordfish", "trout"):
        assert word not in printed and word not in everything_written(pulumi, tmp_path)
    pulumi.up()
    assert pulumi.changes() == {"same": 3}


def test_what_the_real_cli_encrypted_is_read(pulumi: Pulumi) -> None:
    """As Pulumi 3.260 wrote it, with this passphrase."""
    (pulumi.project / "Pulumi.test.yaml").write_text(
        "encryptionsalt: v1:+GKdLobQV+A=:v1:bWFSuRiSoJZD7oqm:tgj9PzKYA3wKUzFcW6UW6ujLSj1khA==\n"
        "config:\n  small:word:\n    secure: v1:WUoF7dXAqOLHVzNO:sFnEjm66u4Q7LYrlGQPHCwYklTyHzph0VA==\n"
    )
    assert pulumi.done("config", "get", "word").strip() == "swordfish"


def test_another_passphrase_is_told_as_such(pulumi: Pulumi, monkeypatch: pytest.MonkeyPatch) -> None:
    pulumi.done("config", "set", "--secret", "word", "swordfish")
    monkeypatch.setenv("PULUMI_CONFIG_PASSPHRASE", "another")
    assert "incorrect passphrase" in pulumi.refused("config", "get", "word")
    monkeypatch.delenv("PULUMI_CONFIG_PASSPHRASE")
    assert "PULUMI_CONFIG_PASSPHRASE" in pulumi.refused("config", "get", "word")


# --- stacks ---------------------------------------------------------------------------------------------------------


def test_stack_ls_has_the_fields_that_the_automation_api_reads(pulumi: Pulumi) -> None:
    pulumi.up("")
    pulumi.done("stack", "init", "other", "--no-select")
    other, test = json.loads(pulumi.done("stack", "ls", "--json"))
    assert (other["name"], other["current"], other["resourceCount"]) == ("other", False, 0)
    assert (test["name"], test["current"], test["resourceCount"]) == ("test", True, 2)
    assert test["updateInProgress"] is False and "lastUpdate" in test and "lastUpdate" not in other
    with pulumi.stack().update():
        assert json.loads(pulumi.done("stack", "ls", "--json"))[1]["updateInProgress"] is True


def test_a_stack_keeps_its_tags(pulumi: Pulumi) -> None:
    pulumi.done("stack", "tag", "set", "owner", "me")
    pulumi.up("")
    assert json.loads(pulumi.done("stack", "tag", "ls", "--json")) == {"owner": "me"}
    assert pulumi.done("stack", "tag", "get", "owner").strip() == "me"
    pulumi.done("stack", "tag", "rm", "owner")
    assert "not found" in pulumi.refused("stack", "tag", "get", "owner")


def test_a_renamed_stack_keeps_its_resources_its_configuration_and_its_history(pulumi: Pulumi) -> None:
    pulumi.done("config", "set", "word", "x")
    pulumi.up("a = account('st', opts=opts(deleted_with=group))")
    pulumi.done("stack", "rename", "other")
    assert pulumi.done("stack", "--show-name").strip() == "other"
    assert pulumi.changes() == {"same": 3}
    assert pulumi.done("config", "get", "word").strip() == "x"
    assert json.loads(pulumi.done("stack", "history", "--json"))[0]["kind"] == "update"
    assert pulumi.sent(lambda: pulumi.done("destroy", "--yes")) == ["DELETE"]


def test_a_state_that_was_exported_can_be_put_back(pulumi: Pulumi, tmp_path: Path) -> None:
    pulumi.up("account('st', tags={'word': pulumi.Output.secret('swordfish')})")
    for words in ([], ["--show-secrets"]):
        file = tmp_path / "exported.json"
        pulumi.done("stack", "export", "--file", str(file), *words)
        assert ("swordfish" in file.read_text()) == bool(words)
        with pulumi.stack().update(), pulumi.stack().changing() as snapshot:
            snapshot.resources.clear()
        assert pulumi.changes() == {"create": 3}
        pulumi.done("stack", "import", "--file", str(file))
        assert pulumi.changes() == {"same": 3}
    assert "swordfish" not in everything_written(pulumi, tmp_path)
    pulumi.done("stack", "init", "other")
    assert "another stack's" in pulumi.refused("stack", "import", "--file", str(file))


def test_a_stack_that_holds_resources_is_not_removed(pulumi: Pulumi) -> None:
    pulumi.up("")
    assert "still has 2 resources" in pulumi.refused("stack", "rm", "--yes", "test")


def test_a_stack_that_is_not_there_leaves_with_its_own_code(pulumi: Pulumi) -> None:
    assert "no stack named 'nope' found" in pulumi.refused("stack", "select", "nope", code=6)
    pulumi.done("stack", "unselect")
    assert "no stack selected" in pulumi.refused("preview")


# --- operations as commands -----------------------------------------------------------------------------------------


def test_without_anybody_to_ask_nothing_is_done(pulumi: Pulumi) -> None:
    pulumi.program("account('st')")
    assert "--yes" in pulumi.refused("up", code=2)
    assert pulumi.arm.requests == []


def test_at_a_terminal_the_preview_comes_first_and_then_the_question(
    pulumi: Pulumi, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    pulumi.program("account('st')")
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    code, out, err = pulumi("up")
    assert code == 1 and "3 to create" in out and "perform this update?" in err and pulumi.arm.requests == []
    monkeypatch.setattr(sys, "stdin", Terminal("yes\n"))
    assert "3 created" in pulumi.done("up")


def test_no_changes_expected_is_a_gate(pulumi: Pulumi) -> None:
    pulumi.up("account('st')")
    pulumi.done("preview", "--expect-no-changes")
    pulumi.program("account('st', tags={'a': 'b'})")
    assert "proposed" in pulumi.refused("preview", "--expect-no-changes", code=7)


def test_a_diff_shows_each_property_before_and_after(pulumi: Pulumi) -> None:
    pulumi.up("id = identity('id-')\nreader('ra', id)\naccount('st', tags={'a': 'b', 'c': 'd'})")
    pulumi.program(
        "id = identity('id-', location='westus')\nreader('ra', id)\naccount('st', tags={'a': 'x', 'e': 'f'})"
    )
    lines = [line.strip(" │") for line in pulumi.done("preview", "--diff").splitlines()]
    for line in ('~ tags.a: "b" => "x"', '- tags.c: "d"', '+ tags.e: "f"', '~ location: "eastus2" => "westus"'):
        assert line in lines
    assert any(line.startswith("~ principalId: ") and line.endswith("=> [unknown]") for line in lines)


def test_a_preview_shows_one_tree_of_what_changes(pulumi: Pulumi) -> None:
    pulumi.up("account('st')")
    pulumi.program(
        "class Thing(pulumi.ComponentResource):\n"
        "    def __init__(self):\n"
        "        super().__init__('a:b:Thing', 'thing')\n"
        "        identity('id-', opts=pulumi.ResourceOptions(parent=self))\n"
        "account('st')\nThing()"
    )
    assert pulumi.done("preview").splitlines()[:3] == [
        "   pulumi:pulumi:Stack  small-test",
        " + └─ a:b:Thing  thing                              to create",
        " +    └─ managedidentity:UserAssignedIdentity  id-  to create",
    ]


@pytest.mark.parametrize(
    "words",
    [
        ["up", "--yes", "--exclude", "x"],
        ["up", "--yes", "--plan", "x"],
        ["up", "--yes", "--client=127.0.0.1:1"],
        ["preview", "--save-plan", "x"],
        ["preview", "--expect"],  # half a name is none
        ["destroy", "--yes", "--run-program=true"],
        ["refresh", "--yes", "--clear-pending-creates"],
        ["import", "a", "b", "c"],
        ["stack", "graph", "x"],
        ["config", "env", "ls"],
    ],
)
def test_what_is_not_offered_is_refused_by_name(pulumi: Pulumi, words: list[str]) -> None:
    pulumi.program("account('st')")
    err = pulumi.refused(*words)
    assert any(word in err for word in words[1:] + words[:1]) and "--help" in err
    assert pulumi.arm.requests == []


def test_the_event_log_ends_with_a_summary(pulumi: Pulumi, tmp_path: Path) -> None:
    pulumi.program("pulumi.log.warn('careful')")
    pulumi.done("preview", "--event-log", str(tmp_path / "events"))
    events = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    assert [one["sequence"] for one in events] == list(range(len(events)))
    (summary,) = [one["summaryEvent"] for one in events if "summaryEvent" in one]
    assert summary["resourceChanges"] == {"create": 2}
    assert [one["diagnosticEvent"]["message"] for one in events if "diagnosticEvent" in one] == ["careful"]


def test_cancel_interrupts_the_update_that_holds_the_stack(pulumi: Pulumi, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: told.append((pid, number)))
    assert "no update" in pulumi.refused("cancel", "--yes")
    with pulumi.stack().update():
        pulumi.done("cancel", "--yes")
    assert told == [(os.getpid(), signal.SIGINT)]


# --- the Automation API ---------------------------------------------------------------------------------------------


def test_the_automation_api_works_on_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pulumi import automation

    (project / "program" / "__main__.py").write_text(
        "import pulumi\npulumi.ComponentResource('a:b:C', 'c')\nconfig = pulumi.Config()\n"
        "pulumi.export('greeting', config.require('word'))\npulumi.export('hidden', config.get_secret('hidden'))\n"
    )
    monkeypatch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("EMULATOR_PYTHON", sys.executable)
    workspace = automation.LocalWorkspace(work_dir=str(project))
    stack = automation.Stack.create("auto", workspace)
    stack.set_all_config({"word": automation.ConfigValue("hello"), "hidden": automation.ConfigValue("x", secret=True)})
    stack.set_config("list[0]", automation.ConfigValue("first"), path=True)
    assert stack.get_config("list[0]", path=True).value == "first"
    hidden = stack.get_all_config()["small:hidden"]
    assert (hidden.value, hidden.secret) == ("x", True)
    events: list[Any] = []
    assert stack.preview(on_event=events.append).change_summary == {"create": 2}
    assert events
    done = stack.up()
    assert (done.outputs["greeting"].value, done.outputs["hidden"].secret) == ("hello", True)
    assert done.summary.result == "succeeded"
    stack.set_tag("owner", "me")
    assert stack.list_tags() == {"owner": "me"} and stack.get_tag("owner") == "me"
    assert [one.name for one in workspace.list_stacks() if one.current] == ["auto"]
    assert stack.preview_refresh().change_summary == {"same": 2}
    stack.import_stack(stack.export_stack())
    assert stack.refresh().summary.kind == "refresh"
    assert stack.destroy().summary.kind == "destroy"
    assert [one.kind for one in stack.history()] == ["destroy", "refresh", "update"]
    workspace.remove_stack("auto")
    assert workspace.list_stacks() == []
    with pytest.raises(automation.StackNotFoundError):
        automation.Stack.select("auto", workspace)
    automation.Stack.create("auto", workspace)
    with pytest.raises(automation.StackAlreadyExistsError):
        automation.Stack.create("auto", workspace)


# --- which pulumi `emulator run` leads to ---------------------------------------------------------------------------


def found_inside(folder: Path, *path: Path) -> list[str]:
    """Where `pulumi` and the provider are found inside `emulator run`, with a PATH outside of it."""
    code = (
        "import shutil, sys; from pathlib import Path; from emulator.home import Home, client_environment\n"
        "path = client_environment(Home(Path(sys.argv[1])), 1)['PATH']\n"
        "print(shutil.which('pulumi', path=path), shutil.which('pulumi-resource-azure-native', path=path))"
    )
    (folder / "tls").mkdir(parents=True, exist_ok=True)
    outside = os.pathsep.join([*map(str, path), "/usr/bin", "/bin"])
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        env={**os.environ, "PATH": outside},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_ours_is_found_only_where_no_real_one_is(tmp_path: Path) -> None:
    provider = str(ROOT / "emulator" / "pulumi_provider" / "bin" / "pulumi-resource-azure-native")
    ours = str(BIN / "pulumi")
    real = tmp_path / "real"
    real.mkdir()
    assert found_inside(tmp_path) == [ours, provider]
    assert found_inside(tmp_path, BIN) == [ours, provider]  # inside of inside
    (real / "pulumi").write_text("#!/bin/sh\n")
    (real / "pulumi").chmod(0o755)
    assert found_inside(tmp_path, real) == [str(real / "pulumi"), provider]
    assert found_inside(tmp_path, BIN, real) == [str(real / "pulumi"), provider]


def test_the_program_names_no_provider(tmp_path: Path) -> None:
    """Named in Pulumi.yaml, the stand-in would be what real stacks get as well."""
    held = yaml.safe_load((ROOT / "Pulumi.yaml").read_text())
    assert "plugins" not in held and "packages" not in held


def test_the_document_names_every_command() -> None:
    said = (ROOT / "docs" / "emulator-pulumi.md").read_text()
    table = said[said.index("| command |") : said.index("Left out:")]
    for command in _commands(_parser()):
        assert re.search(rf"`[^`]*\b{command.split()[-1]}\b", table), command
    for left_out in ("import", "state", "plugin"):
        assert f"`{left_out}`" in said and left_out not in _commands(_parser())


def _commands(parser: argparse.ArgumentParser) -> set[str]:
    """`stack tag get` for each, without the aliases."""
    found = set()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in {id(child): (name, child) for name, child in [*action.choices.items()][::-1]}.values():
                found |= {name} | {f"{name} {below}" for below in _commands(child)}
    return found
