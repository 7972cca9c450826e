"""The repository's program under the real Pulumi CLI, against the local Azure ML; and our own engine beside it.

Whoever has the CLI sees with `pytest -m slow tests/infra/test_real_cli.py` whether both still do the same.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from emulator.home import SUBSCRIPTION_ID
from tests.support.local_azure import ROOT, LocalAzure, last_json

OURS = ROOT / "emulator" / "pulumi_cli" / "bin" / "pulumi"
_PATH = [folder for folder in os.environ.get("PATH", "").split(os.pathsep) if folder != str(OURS.parent)]
REAL = shutil.which("pulumi", path=os.pathsep.join(_PATH))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(REAL is None, reason="no Pulumi CLI on PATH (the emulator's own does not count)"),
]


@dataclass
class Project:
    """The repository's program in a folder of its own, with one stack; `pulumi` is the command that runs it."""

    folder: Path
    azure: LocalAzure
    pulumi: str
    stack: str

    @classmethod
    def make(cls, folder: Path, azure: LocalAzure, pulumi: str, stack: str) -> Project:
        folder.mkdir()
        (folder / "Pulumi.yaml").write_text((ROOT / "Pulumi.yaml").read_text())
        (folder / "infra").symlink_to(ROOT / "infra")
        (folder / ".venv").symlink_to(sys.prefix)  # where Pulumi.yaml says that the interpreter is
        made = cls(folder, azure, pulumi, stack)
        made("stack", "init", stack)
        return made

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """One command, inside `python -m emulator run`."""
        return subprocess.run(
            [sys.executable, "-m", "emulator", "run", "--", self.pulumi, "-C", str(self.folder), *words],
            env={**os.environ, "EMULATOR_HOME": str(self.azure.home.path)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
            stdin=subprocess.DEVNULL,
        )

    def __call__(self, *words: str) -> str:
        done = self.run(*words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def configure(self, **config: Any) -> None:
        file = self.folder / f"Pulumi.{self.stack}.yaml"
        held = yaml.safe_load(file.read_text()) if file.exists() else {}
        held.setdefault("config", {}).update({f"finetune-phi:{key}": value for key, value in config.items()})
        file.write_text(yaml.safe_dump(held))

    def preview(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self("preview", "--json"))
        return found

    def changed(self, *words: str) -> dict[str, int]:
        """What an operation says that it did."""
        self(*words, "--yes", "--skip-preview")
        found: dict[str, int] = json.loads(self("stack", "history", "--json"))[0]["resourceChanges"]
        return {op: count for op, count in found.items() if count}

    def outputs(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self("stack", "output", "--json"))
        return found


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAzure]:
    made = LocalAzure.start(tmp_path_factory.mktemp("real-cli") / "azure")
    yield made
    made.stop()


@pytest.fixture
def real(azure: LocalAzure, tmp_path: Path) -> Project:
    return Project.make(tmp_path / "real", azure, "pulumi", f"r{tmp_path.name[-6:].strip('_')}")


def groups(azure: LocalAzure) -> list[str]:
    answer = azure.request("GET", f"/subscriptions/{SUBSCRIPTION_ID}/resourcegroups?api-version=2024-03-01")
    return [one["name"] for one in answer.json()["value"]]


def deletions(azure: LocalAzure) -> list[str]:
    """The paths that Azure was asked to delete, in order."""
    lines = azure.run("-m", "emulator", "requests", "--match", "DELETE").stdout.splitlines()
    return [line.split("management.azure.com")[1].split("?")[0].strip() for line in lines]


def test_inside_the_emulator_the_real_cli_finds_our_provider(real: Project) -> None:
    assert real.run("version").stdout != subprocess.run([OURS, "version"], capture_output=True, text=True).stdout
    err = real.run("preview").stdout
    assert "using pulumi-resource-azure-native from $PATH at" in err and str(ROOT) in err


def test_a_preview_is_one_tree_with_few_roots(real: Project) -> None:
    steps = [step["newState"] for step in real.preview()["steps"]]
    (stack,) = [one["urn"] for one in steps if not one.get("parent")]
    assert sum(one.get("parent") == stack for one in steps) <= 6 < len(steps) - 6


def test_the_whole_life_of_a_stack(real: Project, azure: LocalAzure) -> None:
    planned = real.preview()["changeSummary"]
    assert groups(azure) == []
    assert real.changed("up") == planned
    count = planned["create"]
    assert real.changed("up", "--expect-no-changes") == {"same": count}
    outputs = real.outputs()
    assert outputs["resource_group"] in groups(azure)
    real.configure(computeMaxNodes=3)
    assert real.changed("up") == {"same": count - 1, "update": 1}
    real.configure(computeSize="Standard_NC40ads_H100_v5")
    assert real.preview()["changeSummary"] == {"same": count - 1, "replace": 1}
    assert real.changed("up") == {"same": count - 1, "replace": 1}
    assert real.changed("refresh") == {"same": count}
    stray = {"location": "eastus2", "kind": "StorageV2", "sku": {"name": "Standard_LRS"}}
    group = f"/subscriptions/{SUBSCRIPTION_ID}/resourceGroups/{outputs['resource_group']}"
    azure.put(f"{group}/providers/Microsoft.Storage/storageAccounts/stray{real.stack[-4:].lower()}", stray)
    before = len(deletions(azure))
    assert real.changed("destroy") == {"delete": count}
    assert [path.lower() for path in deletions(azure)[before:]] == [group.lower()]  # Azure deletes what is in it
    assert groups(azure) == []
    real("stack", "rm", "--yes")
    assert real.stack not in [one["name"] for one in json.loads(real("stack", "ls", "--json"))]


def test_what_somebody_changed_in_azure_is_found_by_refresh_and_mended(real: Project, azure: LocalAzure) -> None:
    real.changed("up")
    group = f"/subscriptions/{SUBSCRIPTION_ID}/resourceGroups/{real.outputs()['resource_group']}"
    held = azure.request("GET", f"{group}?api-version=2024-03-01").json()
    azure.put(f"{group}?api-version=2024-03-01", {"location": held["location"], "tags": {"owner": "somebody"}})
    assert real.changed("refresh")["update"] == 1
    assert real.preview()["changeSummary"]["update"] == 1
    real.changed("up")
    assert azure.request("GET", f"{group}?api-version=2024-03-01").json()["tags"] == held["tags"]
    real.changed("destroy")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"computeMaxNodes": 3}),
        ({}, {"computeSize": "Standard_NC40ads_H100_v5", "owner": "me"}),
        ({}, {"computeName": "other", "datastoreAuth": "AccessKey"}),
        ({"chatStore": True, "cpuMaxNodes": 1}, {"chatStore": False, "grants": "least"}),
        ({}, {"location": "westus2"}),
    ],
)
def test_our_engine_counts_as_the_real_one_does(
    azure: LocalAzure, tmp_path: Path, before: dict[str, Any], after: dict[str, Any]
) -> None:
    """A new stack, a change of it, what is left to do after that, and its end."""
    counted: list[list[dict[str, int]]] = []
    for name, pulumi in (("real", "pulumi"), ("ours", str(OURS))):
        one = Project.make(tmp_path / name, azure, pulumi, name)
        one.configure(**before)
        counts = [one.preview()["changeSummary"], one.changed("up")]
        one.configure(**after)
        counts += [one.preview()["changeSummary"], one.changed("up"), one.preview()["changeSummary"]]
        counted.append([*counts, one.changed("destroy")])
        one("stack", "rm", "--yes")
    assert counted[0] == counted[1]


def test_a_secret_that_one_encrypted_the_other_reads(azure: LocalAzure, tmp_path: Path) -> None:
    real = Project.make(tmp_path / "real", azure, "pulumi", "shared")
    real("config", "set", "--secret", "owner", "swordfish")
    ours = Project(real.folder, azure, str(OURS), "shared")
    ours("stack", "init", "shared")
    assert ours("config", "get", "owner").strip() == "swordfish"
    ours("config", "set", "--secret", "costCenter", "trout")
    assert real("config", "get", "costCenter").strip() == "trout"
    assert "trout" not in (real.folder / "Pulumi.shared.yaml").read_text()


def test_the_policy_pack_refuses_and_lets_pass(real: Project, tmp_path: Path) -> None:
    pack = shutil.copytree(ROOT / "infra" / "policy", tmp_path / "policy", ignore=shutil.ignore_patterns(".venv"))
    installed = subprocess.run([str(REAL), "install"], cwd=pack, capture_output=True, text=True)
    assert installed.returncode == 0, installed.stderr
    assert "finetune-phi@v" in real("preview", "--policy-pack", str(pack))
    real.configure(computeSize="Standard_ND96amsr_A100_v4")
    done = real.run("up", "--yes", "--policy-pack", str(pack))
    assert done.returncode != 0 and "allowed-skus" in done.stdout
    assert "Standard_ND96amsr_A100_v4" in done.stdout


def test_the_environments_verbs_work_through_it(azure: LocalAzure, tmp_path: Path) -> None:
    words = ["-m", "infra.environment"]
    options = ["--branch", "real-cli-test", "--config", str(tmp_path), "--yes", "--json"]
    try:
        up = azure.run(*words, "up", *options)
        assert up.returncode == 0, up.stderr
        assert last_json(up.stdout)["resource_group"] in groups(azure)
    finally:
        down = azure.run(*words, "down", *options)
    assert down.returncode == 0, down.stderr
    assert groups(azure) == []
