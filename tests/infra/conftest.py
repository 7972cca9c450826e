"""A copy of the project in a temporary folder, a `pulumi` in process, and the emulator's ARM behind it."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from emulator.pulumi_cli.__main__ import main
from emulator.pulumi_provider.arm import ArmClient
from tests.support.arm_in_process import ArmInProcess

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Cli:
    """`pulumi` in a project; each call gives its exit code and what it printed."""

    project: Path
    arm: ArmInProcess
    capsys: pytest.CaptureFixture[str]

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        self.capsys.readouterr()
        code = main(["-C", str(self.project), *arguments])
        if code != 0:
            # A failed program leaves coroutines behind. Collected inside ast.parse, which pytest calls, they make
            # CPython 3.11 raise "SystemError: AST constructor recursion depth mismatch"; so they are collected here.
            gc.collect()
        printed = self.capsys.readouterr()
        return code, printed.out, printed.err

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

    def state(self) -> list[dict[str, Any]]:
        resources: list[dict[str, Any]] = json.loads(self("stack", "export")[1])["deployment"]["resources"]
        return resources


@pytest.fixture
def arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ArmInProcess]:
    with ArmInProcess(tmp_path / "azure") as made:
        monkeypatch.setattr(ArmClient, "send", lambda _, method, url, **more: made.send(method, url, **more))
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        yield made


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
