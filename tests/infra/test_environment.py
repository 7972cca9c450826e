"""`infra.environment`: wrong use, and the proof at the end of `down`. The whole way is run by `make demo`."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import requests

from infra import environment, removal
from infra.cli import WRONG_USE, UserError
from infra.outputs import StackOutputs
from tests.infra.conftest import Cli
from tests.infra.test_outputs import VALUES

OUTPUTS = StackOutputs.parse({**VALUES, "workspace_id": "/the/workspace", "key_vault": "kv"}, source="test")
GROUP = "/subscriptions/a-subscription_id/resourceGroups/a-resource_group"


@pytest.fixture
def azure(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What ARM answers, by path; anything else is 404."""
    answers: dict[str, Any] = {}

    def get(path: str, _api_version: str) -> requests.Response:
        made = requests.Response()
        made.status_code = 200 if path in answers else 404
        made._content = json.dumps(answers.get(path, {})).encode()
        return made

    monkeypatch.setattr(removal, "_get", get)
    return answers


def test_what_is_gone_is_listed(azure: dict[str, Any]) -> None:
    assert removal.verify_gone(OUTPUTS) == ["resource group a-resource_group", "workspace a-workspace"]


def test_a_group_that_is_left_fails_with_what_is_in_it(azure: dict[str, Any]) -> None:
    azure[GROUP] = {}
    azure[f"{GROUP}/resources"] = {"value": [{"id": f"{GROUP}/providers/Microsoft.Web/sites/stray"}]}
    with pytest.raises(UserError, match=r"is left, with Microsoft\.Web/sites/stray"):
        removal.verify_gone(OUTPUTS)


def test_a_soft_deleted_vault_is_said(azure: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    azure["/subscriptions/a-subscription_id/providers/Microsoft.KeyVault/deletedVaults"] = {"value": [{"name": "kv"}]}
    removal.verify_gone(OUTPUTS)
    assert "kv is soft-deleted" in capsys.readouterr().err


def test_a_workspace_that_is_gone_needs_no_emptying(
    azure: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removal, "_delete_endpoints", lambda _: pytest.fail("nothing to delete endpoints from"))
    removal.empty_workspace(OUTPUTS)
    assert "gone already" in capsys.readouterr().err


def test_endpoints_that_stay_stop_the_removal(azure: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    azure["/the/workspace"] = {}
    commands: list[list[str]] = []

    def fail(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(UserError, match="block the rest"):
        removal.empty_workspace(OUTPUTS)
    assert commands[0][1:] == ["-m", "deployment.teardown", "--stack", "test", "--yes"]


def test_without_pulumi_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="pulumi command is not on PATH") as error:
        environment.main(["up", "--stack", "x"])
    assert error.value.code == WRONG_USE


@pytest.mark.parametrize("arguments", [[], ["sideways"], ["up", "--nonsense"]])
def test_wrong_use_leaves_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        environment.main(arguments)
    assert error.value.code == WRONG_USE


def test_help_comes_at_once() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "infra.environment", "--help"], capture_output=True
    )
    assert done.returncode == 0
    loaded = done.stderr.decode()
    assert not any(f" {name}\n" in loaded for name in ("pulumi", "azure.ai.ml", "requests", "yaml"))


def test_a_failed_pulumi_gives_its_own_reason() -> None:
    text = "\n code: 255\n stdout: a tree\n stderr: info: this\nerror: the name is taken\n"
    assert environment._reason(text) == "the name is taken"


def test_the_template_and_its_copy_configure_the_program(pulumi: Cli) -> None:
    (pulumi.project / "Pulumi.test.yaml").write_text(environment.TEMPLATE.read_text())
    pulumi.up()
    assert pulumi.outputs()["location"] == "eastus2"
