"""A stack on an emulator of its own, brought up by the real program."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.local_azure import ROOT, LocalAzure, last_json


@dataclass
class Stack:
    """`outputs` is the file of its outputs, `folder` where a test may put its own."""

    azure: LocalAzure
    name: str
    workspace: str
    outputs: Path
    folder: Path

    def verb(self, module: str, *words: str, timeout: float = 300, **env: str) -> subprocess.CompletedProcess[str]:
        return self.azure.run("-m", module, *words, "--outputs", str(self.outputs), timeout=timeout, **env)

    def json(self, module: str, *words: str) -> dict[str, object]:
        done = self.verb(module, *words, "--json")
        assert done.returncode == 0, done.stderr[-3000:]
        return last_json(done.stdout)


@contextmanager
def stack(folder: Path, name: str) -> Iterator[Stack]:
    azure = LocalAzure.start(folder / "emulator")
    done = azure.run("-m", "infra.environment", "up", "--stack", name, "--yes", "--json", "--config", str(folder))
    assert done.returncode == 0, done.stderr
    (folder / "outputs.json").write_text(done.stdout)
    yield Stack(azure, name, str(last_json(done.stdout)["workspace_id"]), folder / "outputs.json", folder)
    azure.stop()
    (ROOT / f"Pulumi.{name}.yaml").unlink(missing_ok=True)
