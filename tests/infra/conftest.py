"""A copy of the project in a temporary folder, a `pulumi` in process, and the emulator's ARM behind it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.arm_in_process import ArmInProcess
from tests.support.pulumi_cli import Command
from tests.support.pulumi_cli import arm as arm  # the fixture

ROOT = Path(__file__).resolve().parents[2]


class Cli(Command):
    """With the repository's program and its configuration."""

    def up(self, **config: Any) -> str:
        """`pulumi up`, which must succeed."""
        self.configure(**config)
        code, out, err = self("up", "--yes")
        assert code == 0, err
        return out

    def preview(self, **config: Any) -> dict[str, int]:
        """What `pulumi preview` says that would change."""
        self.configure(**config)
        code, out, err = self("preview", "--json")
        assert code == 0, err
        counts: dict[str, int] = json.loads(out)["changeSummary"]
        return counts

    def configure(self, **config: Any) -> None:
        file = self.project / "Pulumi.test.yaml"
        held = yaml.safe_load(file.read_text())["config"] if file.exists() else {}
        held |= {f"finetune-phi:{key}": value for key, value in config.items()}
        file.write_text(yaml.safe_dump({"config": held}))

    def outputs(self) -> dict[str, str]:
        values: dict[str, str] = json.loads(self("stack", "output", "--json")[1])
        return values


@pytest.fixture
def pulumi(
    arm: ArmInProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Cli:
    """The repository's program, with a stack `test` that is new."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "Pulumi.yaml").write_text((ROOT / "Pulumi.yaml").read_text())
    (project / "infra").symlink_to(ROOT / "infra")
    state = tmp_path / "state"
    monkeypatch.setenv("PULUMI_BACKEND_URL", f"file://{state}")
    monkeypatch.setenv("PULUMI_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(project)
    cli = Cli(project, arm, capsys)
    assert cli("stack", "init", "test")[0] == 0
    return cli
