"""The server's image: which files go into its build context, and the Azure ML environment made of them."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from azure.ai.ml.entities import Environment

PROJECT = Path(__file__).resolve().parent.parent
NAME = "phi-server"
PORT = 5001
"""The port in the Dockerfile. Azure ML's routes name it, so both have to say the same."""

AT_THE_TOP = {"deployment/server/Dockerfile": "Dockerfile", "deployment/server/requirements.txt": "requirements.txt"}
BESIDE = ("deployment/__init__.py", "infra/__init__.py", "infra/cli.py", "training/__init__.py", "training/prompt.py")


def context_files() -> dict[str, Path]:
    """Every file of the build context: its path in there → where it lies in the project."""
    server = sorted((PROJECT / "deployment/server").glob("*.py"))
    names = [*BESIDE, *(str(path.relative_to(PROJECT)) for path in server)]
    return {**{name: PROJECT / name for name in names}, **{to: PROJECT / source for source, to in AT_THE_TOP.items()}}


def context_version() -> str:
    """12 hex digits over the names and contents of the build context: equal content is built once."""
    digest = hashlib.sha256()
    for name, path in sorted(context_files().items()):
        content = path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:12]


def stage_context(folder: Path) -> Path:
    """Write the build context into `folder`, which is made."""
    for name, source in context_files().items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    return folder


def environment(context: Path) -> Environment:
    """The Azure ML environment of a staged build context, with the routes that Azure ML probes and scores by."""
    from azure.ai.ml.entities import BuildContext, Environment

    def route(path: str) -> dict[str, object]:
        return {"path": path, "port": PORT}

    return Environment(
        name=NAME,
        version=context_version(),
        description="The chat server of finetune-phi",
        build=BuildContext(path=str(context), dockerfile_path="Dockerfile"),
        inference_config={
            "liveness_route": route("/health"),
            "readiness_route": route("/ready"),
            "scoring_route": route("/score"),
        },
    )
