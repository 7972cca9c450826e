"""The contract between the stages: what is read, from where, and how it is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from infra.cli import WRONG_USE, UserError
from infra.outputs import StackOutputs, load_outputs

VALUES = {field.name: f"a-{field.name}" for field in dataclasses.fields(StackOutputs)} | {"stack": "test"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "outputs.json"
    path.write_text(json.dumps(VALUES))
    return path


def test_a_file_gives_the_outputs(file: Path) -> None:
    assert load_outputs(file=file).as_dict() == VALUES


def test_the_variable_names_a_file_for_ci(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STACK_OUTPUTS", str(file))
    assert load_outputs().stack == "test"


@pytest.mark.parametrize("name", sorted(VALUES))
def test_a_missing_field_is_named_with_its_repair(name: str) -> None:
    values = {key: value for key, value in VALUES.items() if key != name}
    with pytest.raises(UserError, match=f"lack the field `{name}`") as error:
        StackOutputs.parse(values, source="a file")
    assert "make up STACK=" in str(error.value)


def test_an_extra_field_is_named() -> None:
    with pytest.raises(UserError, match="unknown field `surprise`"):
        StackOutputs.parse({**VALUES, "surprise": "x"}, source="a file")


def test_a_field_of_another_type_is_named() -> None:
    with pytest.raises(UserError, match=r"`workspace` .* is not a string"):
        StackOutputs.parse({**VALUES, "workspace": 1}, source="a file")


def test_a_file_of_another_stack_is_wrong_use(file: Path) -> None:
    with pytest.raises(UserError, match="'test', not of 'prod'") as error:
        load_outputs(stack="prod", file=file)
    assert error.value.code == WRONG_USE


def test_without_a_file_and_without_pulumi_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("STACK_OUTPUTS", raising=False)
    with pytest.raises(UserError, match="not on PATH") as error:
        load_outputs()
    assert error.value.code == WRONG_USE


def test_config_json_is_what_mlclient_reads(tmp_path: Path) -> None:
    written = StackOutputs.parse(VALUES, source="a file").write_config(tmp_path)
    assert json.loads(written.read_text()) == {
        "subscription_id": "a-subscription_id",
        "resource_group": "a-resource_group",
        "workspace_name": "a-workspace",
    }
