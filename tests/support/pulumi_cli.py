"""The in-process `pulumi` in a small project of the test's own, with the emulator's ARM behind it."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from emulator.pulumi_cli.__main__ import main
from emulator.pulumi_cli.project import Project
from emulator.pulumi_cli.state import Backend, Stack
from emulator.pulumi_provider.arm import ArmClient
from tests.support.arm_in_process import ArmInProcess

HEAD = """
import pulumi
from pulumi_azure_native import authorization, managedidentity, resources, storage
config = pulumi.Config()
opts = pulumi.ResourceOptions
def account(name, *, sku="Standard_LRS", location="eastus2", tags=None, opts=None, group=None):
    return storage.StorageAccount(name, resource_group_name=(group or globals()["group"]).name, location=location,
                                  kind="StorageV2", sku=storage.SkuArgs(name=sku), tags=tags, opts=opts)
def identity(name, *, location="eastus2", tags=None, opts=None):
    return managedidentity.UserAssignedIdentity(name, resource_group_name=group.name, location=location, tags=tags,
                                                opts=opts)
def reader(name, who, opts=None):
    return authorization.RoleAssignment(name, scope=group.id, principal_id=who.principal_id,
                                        principal_type="ServicePrincipal", role_definition_id=READER, opts=opts)
SUBSCRIPTION = authorization.get_client_config().subscription_id
READER = (f"/subscriptions/{SUBSCRIPTION}/providers/Microsoft.Authorization/roleDefinitions/"
          "acdd72a7-3385-48ef-bd42-f606fba81ae7")
"""
GROUP = 'group = resources.ResourceGroup("rg-", location="eastus2")\n'
PASSPHRASE = "correct horse battery staple"


@dataclass
class Command:
    """`pulumi` in a project; each call gives its exit code and what it printed."""

    project: Path
    arm: ArmInProcess
    capsys: pytest.CaptureFixture[str]

    def __call__(self, *words: str) -> tuple[int, str, str]:
        self.capsys.readouterr()
        try:
            code = main(["-C", str(self.project), *words])
        except SystemExit as left:
            code = int(left.code or 0)
        if code != 0:
            # A failed program leaves coroutines behind. Collected inside ast.parse, which pytest calls, they make
            # CPython 3.11 raise "SystemError: AST constructor recursion depth mismatch"; so they are collected here.
            gc.collect()
        printed = self.capsys.readouterr()
        return code, printed.out, printed.err

    def done(self, *words: str) -> str:
        """What a command printed that must succeed."""
        code, out, err = self(*words)
        assert code == 0, err
        return out

    def state(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.done("stack", "export"))["deployment"]["resources"]
        return found


@dataclass
class Pulumi(Command):
    """With a small program of the test's own."""

    def refused(self, *words: str, code: int = 1) -> str:
        """What a command says that must fail, without a traceback."""
        left, out, err = self(*words)
        assert left == code, f"{left}: {out}{err}"
        assert "Traceback" not in err
        return err

    def program(self, text: str, *, group: bool = True) -> None:
        """Replace the program; a resource group stands in it already."""
        (self.project / "program" / "__main__.py").write_text(HEAD + (GROUP if group else "") + text)

    def up(self, text: str | None = None) -> str:
        if text is not None:
            self.program(text)
        return self.done("up", "--yes")

    def changes(self, text: str | None = None, *words: str) -> dict[str, int]:
        """What a preview counts."""
        if text is not None:
            self.program(text)
        counts: dict[str, int] = json.loads(self.done("preview", "--json", *words))["changeSummary"]
        return counts

    def urn(self, name: str) -> str:
        (found,) = [one["urn"] for one in self.state() if one["name"] == name]
        return str(found)

    def stack(self) -> Stack:
        """The stack's files, for tests that put something into them."""
        return Backend(Project.find(self.project)).stack("test")

    def names(self, kind: str) -> list[str]:
        """The names of all resources of a kind, `storageAccounts`, in Azure."""
        return [path.rsplit("/", 1)[-1] for path in self.arm.resources if path.rsplit("/", 2)[-2] == kind]

    def sent(self, action: Callable[[], Any]) -> list[str]:
        """The methods of the changes that `action` asks Azure for, in order."""
        before = len(self.arm.requests)
        action()
        return [method for method, _ in self.arm.requests[before:]]


@pytest.fixture
def arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ArmInProcess]:
    with ArmInProcess(tmp_path / "azure") as made:
        monkeypatch.setattr(ArmClient, "send", lambda _, method, url, **more: made.send(method, url, **more))
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        yield made


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder, with a backend, a home and a passphrase of its own."""
    made = tmp_path / "small"
    (made / "program").mkdir(parents=True)
    (made / "Pulumi.yaml").write_text("name: small\nruntime: python\nmain: program\n")
    monkeypatch.setenv("PULUMI_BACKEND_URL", f"file://{tmp_path / 'state'}")
    monkeypatch.setenv("PULUMI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PULUMI_CONFIG_PASSPHRASE", PASSPHRASE)
    monkeypatch.chdir(made)
    return made


@pytest.fixture
def pulumi(arm: ArmInProcess, project: Path, capsys: pytest.CaptureFixture[str]) -> Pulumi:
    """With a stack `test` that is new and selected."""
    made = Pulumi(project, arm, capsys)
    made.done("stack", "init", "test")
    return made
