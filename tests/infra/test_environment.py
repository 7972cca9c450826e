"""`infra.environment`: an environment's life through its verbs, on the emulator's own ARM, in process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from infra import environment
from infra.cli import WRONG_USE, UserError
from infra.stacks import reason
from tests.infra import environments
from tests.infra.environments import Environments
from tests.support.arm_in_process import ArmInProcess


@pytest.fixture
def env(arm: ArmInProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environments:
    return environments.made(arm, tmp_path, monkeypatch)


def test_two_branches_live_beside_each_other_and_one_goes_alone(env: Environments) -> None:
    first, second = env.up("feat/x"), env.up("feat-x")
    assert first["stack"] != second["stack"] and len(env.groups()) == 2
    gone = env.down("feat/x")
    assert f"resource group {first['resource_group']}" in gone["gone"]
    assert env.groups() == [second["resource_group"]] and env.soft_deleted() == []
    assert not env.file(first["stack"]).exists() and env.file(second["stack"]).exists()
