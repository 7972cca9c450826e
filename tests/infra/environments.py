"""`python -m infra.environment` inside the test's process: pulumi, Azure Resource Manager and the project's folder."""

from __future__ import annotations

import contextlib
import gc
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from azure.core.credentials import AccessToken
from azure.core.pipeline.transport import RequestsTransport
from pulumi.automation import LocalWorkspace, PulumiCommand
from pulumi.automation._cmd import CommandResult
from pulumi.automation.errors import create_command_error
from pulumi.runtime.settings import SETTINGS
from semver import VersionInfo

from emulator.pulumi_cli.__main__ import main as pulumi
from emulator.pulumi_provider.arm import ArmClient
from infra import branches, environment, preflight, stack_config, stacks, up
from infra.arm import Arm, pipeline
from infra.cli import UserError
from tests.support.arm_in_process import SUBSCRIPTION, ArmInProcess

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
            SETTINGS.outputs.clear()  # a failed program's, which the next one in this process would wait for
            gc.collect()  # see tests/infra/conftest.py
        for line in out.getvalue().splitlines() if on_output else []:
            on_output(line)
        result = CommandResult(stdout=out.getvalue(), stderr=err.getvalue(), code=code)
        if code != 0:
            raise create_command_error(result)
        return result


class Body(io.BytesIO):
    """Of a class of its own, so that the transport may note something on it."""


class Session(requests.Session):
    """What azure-core's transport sends by, answered by the emulator in this process."""

    def __init__(self, arm: ArmInProcess) -> None:
        super().__init__()
        self.arm = arm

    def request(self, method: Any, url: Any, *_: Any, **__: Any) -> requests.Response:
        answer = self.arm.send(str(method), str(url))
        answer.raw = Body(answer.content)
        answer.reason = ""
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

    def pulumi(self, *words: str) -> str:
        """What a `pulumi` that must succeed prints."""
        return self.command.run([*words], str(self.project), {}).stdout

    # -- what there is, as tests look at it --------------------------------------------------------------------------

    def file(self, stack: str) -> Path:
        return self.project / f"Pulumi.{stack}.yaml"

    def template(self, **config: Any) -> None:
        """Other settings for the template."""
        values = {f"finetune-phi:{key}": value for key, value in {"owner": "ml-platform", **config}.items()}
        self.file("dev").write_text(yaml.safe_dump({"config": values}))

    @property
    def subscription(self) -> str:
        return SUBSCRIPTION

    def groups(self) -> list[str]:
        return [one["name"] for one in self._of_type("Microsoft.Resources/resourceGroups")]

    def tags(self, group: str) -> dict[str, str]:
        found: dict[str, str] = self.arm.send("GET", f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{group}").json()[
            "tags"
        ]
        return found

    def _of_type(self, kind: str) -> list[dict[str, Any]]:
        return list(self.arm.emulator.state.of_type(kind))

    def assignments(self, scope: str) -> list[str]:
        below = f"{scope}/providers/Microsoft.Authorization/".lower()
        found = self._of_type("Microsoft.Authorization/roleAssignments")
        return [one["id"] for one in found if one["id"].lower().startswith(below)]

    def soft_deleted(self) -> list[str]:
        return [key for key, _ in self.arm.emulator.state.records("soft-deleted")]

    def stacks(self) -> list[str]:
        return [one["name"] for one in self._listed()]

    def selected(self) -> str | None:
        return next((one["name"] for one in self._listed() if one["current"]), None)

    def _listed(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.pulumi("stack", "ls", "--json"))
        return found


def lead_provider_to(arm: ArmInProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the fixture `arm` of tests/infra/conftest.py does for one test."""
    monkeypatch.setattr(ArmClient, "send", lambda _, method, url, **more: arm.send(method, url, **more))
    for name, value in arm.environment.items():
        monkeypatch.setenv(name, value)


def prepare(folder: Path, *names: str, ttl: int) -> list[dict[str, str]]:
    """Bring environments up once, in a folder that tests begin from with a copy; what each of them exports."""
    with pytest.MonkeyPatch.context() as patch, ArmInProcess(folder / "azure") as arm:
        lead_provider_to(arm, patch)
        first = made(arm, folder, patch)
        return [first.up(name, "--ttl", str(ttl)) for name in names]


def made(arm: ArmInProcess, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Environments:
    """Environments in a folder that is new, or the copy of a used one."""
    project, command = folder / "environments", PulumiInProcess()
    if not project.exists():
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
