"""`python -m infra.environment` inside the test's process: pulumi, Azure Resource Manager and the project's folder."""

from __future__ import annotations

import contextlib
import gc
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from azure.core.credentials import AccessToken
from azure.core.pipeline.transport import RequestsTransport
from pulumi.automation import LocalWorkspace, PulumiCommand
from pulumi.automation._cmd import CommandResult
from pulumi.automation.errors import create_command_error
from semver import VersionInfo

from emulator.pulumi_cli.__main__ import main as pulumi
from infra import branches, environment, preflight, stack_config, stacks, up
from infra.arm import Arm, pipeline
from infra.cli import UserError
from tests.support.arm_in_process import ArmInProcess

ROOT = Path(__file__).resolve().parents[2]


class PulumiInProcess(PulumiCommand):
    """The Automation API's way to `pulumi`, without a process. `commands` is what it was asked, in order."""

    def __init__(self) -> None:
        self.command, self.version, self.commands = "pulumi", VersionInfo(3, 272, 0), list[list[str]]()

    def run(
        self,
        args: list[str],
        cwd: str,
        additional_env: Mapping[str, str],
        on_output: Any = None,
        on_error: Any = None,
    ) -> CommandResult:
        self.commands.append(args)
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = pulumi(["-C", cwd, *args])
            except SystemExit as left:
                code = int(left.code or 0)
        if code != 0:
            gc.collect()  # see tests/infra/conftest.py
        for line in out.getvalue().splitlines() if on_output else []:
            on_output(line)
        result = CommandResult(stdout=out.getvalue(), stderr=err.getvalue(), code=code)
        if code != 0:
            raise create_command_error(result)
        return result


class Session(requests.Session):
    """What azure-core's transport sends by, answered by the emulator in this process."""

    def __init__(self, arm: ArmInProcess) -> None:
        super().__init__()
        self.arm = arm

    def request(self, method: Any, url: Any, *_: Any, **__: Any) -> requests.Response:
        answer = self.arm.send(str(method), str(url))
        answer.raw = SimpleNamespace()
        answer.reason, answer._content_consumed = "", True
        return answer


class Credential:
    def get_token(self, *_: str, **__: Any) -> AccessToken:
        return AccessToken("token", 2**40)


@dataclass
class Environments:
    """The project in a folder of its own; `verb` is `python -m infra.environment …` there."""

    project: Path
    arm: ArmInProcess
    command: PulumiInProcess
    out: str = ""
    err: str = ""

    def verb(self, *words: str) -> int:
        """Its exit code; what it printed is in `out` and `err`."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = environment.main([*words])
            except UserError as error:
                print(f"error: {error}", file=err)
                code = error.code
        self.out, self.err = out.getvalue(), err.getvalue()
        return code

    def done(self, *words: str) -> dict[str, Any]:
        """The JSON result of a verb that must succeed."""
        assert self.verb(*words, "--json") == 0, self.err
        found: dict[str, Any] = json.loads(self.out)
        return found

    def up(self, branch: str, *words: str) -> dict[str, Any]:
        return self.done("up", "--branch", branch, "--config", str(self.project), "--yes", *words)

    def down(self, branch: str, *words: str) -> dict[str, Any]:
        return self.done("down", "--branch", branch, "--config", str(self.project), "--yes", *words)

    def file(self, stack: str) -> Path:
        return self.project / f"Pulumi.{stack}.yaml"

    def groups(self) -> list[str]:
        return [one["name"] for path, one in self.arm.resources.items() if path.count("/") == 4]

    def soft_deleted(self) -> list[str]:
        return [key for key, _ in self.arm.emulator.state.records("soft-deleted")]


def made(arm: ArmInProcess, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Environments:
    project, command = folder / "environments", PulumiInProcess()
    project.mkdir()
    for name in ("Pulumi.yaml", "Pulumi.dev.yaml"):
        (project / name).write_text((ROOT / name).read_text())
    (project / "infra").symlink_to(ROOT / "infra")
    transport = RequestsTransport(session=Session(arm), session_owner=False)
    signed_in = Arm(pipeline(Credential(), transport), {"oid": "me"})
    workspace = LocalWorkspace(work_dir=str(project), pulumi_command=command)
    monkeypatch.setenv("PULUMI_BACKEND_URL", f"file://{folder / 'backend'}")
    monkeypatch.setenv("PULUMI_HOME", str(folder / "pulumi-home"))
    monkeypatch.setattr(stacks, "open_workspace", lambda: workspace)
    monkeypatch.setattr(Arm, "sign_in", classmethod(lambda _: signed_in))
    monkeypatch.setattr(preflight, "examine", lambda _: iter(()))
    monkeypatch.setattr(branches, "heads_of_origin", lambda: None)
    for module in (stack_config, branches, environment):
        monkeypatch.setattr(module, "PROJECT", project)
    monkeypatch.chdir(project)
    assert up  # imported before its names are replaced
    return Environments(project, arm, command)
