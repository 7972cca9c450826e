"""The server's image: which files go into its build context, and the Azure ML environment made of them."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from infra.cli import WRONG_USE, UserError

if TYPE_CHECKING:
    from azure.ai.ml.entities import Environment

PROJECT = Path(__file__).resolve().parent.parent
NAME = "phi-server"
PORT = 5001
"""The port in the Dockerfile. Azure ML's routes name it, so both have to say the same."""

SERVER = "deployment/server"
OF_ENGINE = {  # what its image has besides the code: path in the build context → place in the project
    "transformers": {"Dockerfile": f"{SERVER}/Dockerfile", "requirements.txt": f"{SERVER}/requirements.txt"},
    "openvino": {
        "Dockerfile": f"{SERVER}/openvino/Dockerfile",
        "openvino.txt": f"{SERVER}/openvino/requirements.txt",
    },
    "vllm": {"Dockerfile": f"{SERVER}/vllm/Dockerfile", f"{SERVER}/vllm/start.sh": f"{SERVER}/vllm/start.sh"},
}
BESIDE = ("deployment/__init__.py", "infra/__init__.py", "infra/cli.py", "training/__init__.py", "training/prompt.py")


def context_files(engine: str = "transformers") -> dict[str, Path]:
    """Every file of the build context: its path in there → where it lies in the project."""
    server = sorted((PROJECT / SERVER).glob("*.py"))
    names = [*BESIDE, *(str(path.relative_to(PROJECT)) for path in server)]
    own = {to: PROJECT / source for to, source in OF_ENGINE[engine].items()}
    return {**{name: PROJECT / name for name in names}, **own}


def version_of(files: Mapping[str, Path]) -> str:
    """12 hex digits over the names and contents of a build context: equal content is built once."""
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        content = path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:12]


@dataclass(frozen=True)
class Image:
    """An environment to be registered: its name and version, the files of its build context, its port and smoke test.

    `question` is None for the chat server, whose answers are chat completions.
    """

    name: str
    version: str
    files: Mapping[str, Path]
    port: int = PORT
    question: Path | None = None
    is_ours: bool = True

    def __str__(self) -> str:
        return f"{self.name}:{self.version}"


def of_server(engine: str = "transformers") -> Image:
    """The image of our chat server with one of its engines."""
    files = context_files(engine)
    return Image(NAME if engine == "transformers" else f"{NAME}-{engine}", version_of(files), files)


def of_folder(folder: Path) -> Image:
    """The image of any folder with a Dockerfile, which says the port by EXPOSE.

    It has to answer `/health`, `/ready` and `/score`; `smoke.json`, where there is one, is what the smoke test sends.

    Raises:
        UserError: exit code 2 if there is no folder, no Dockerfile, or no port in it.
    """
    dockerfile = folder / "Dockerfile"
    if not dockerfile.is_file():
        raise UserError(f"{folder} has no Dockerfile", next_command=f"write {dockerfile}", code=WRONG_USE)
    exposed = re.findall(r"^\s*EXPOSE\s+(\d+)", dockerfile.read_text(), re.MULTILINE | re.IGNORECASE)
    if len(set(exposed)) != 1:
        what = "names no port" if not exposed else f"names {len(set(exposed))} ports"
        raise UserError(f"{dockerfile} {what}: Azure ML has to know one", next_command="EXPOSE 5001", code=WRONG_USE)
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if _belongs(path, folder)}
    question = folder / "smoke.json"
    name = re.sub(r"[^A-Za-z0-9-]+", "-", folder.resolve().name).strip("-") or "app"
    return Image(
        f"{name}-app", version_of(files), files, int(exposed[0]), question if question.is_file() else None, False
    )


def _belongs(path: Path, folder: Path) -> bool:
    parts = path.relative_to(folder).parts
    return path.is_file() and not any(part == "__pycache__" or part.startswith(".") for part in parts)


def stage_context(folder: Path, files: Mapping[str, Path] | None = None) -> Path:
    """Write a build context (of our server, unless these files are given) into `folder`, which is made."""
    for name, source in (context_files() if files is None else files).items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    return folder


def environment(image: Image, context: Path) -> Environment:
    """The Azure ML environment of a staged build context, with the routes that Azure ML probes and scores by."""
    from azure.ai.ml.entities import BuildContext, Environment

    def route(path: str) -> dict[str, object]:
        return {"path": path, "port": image.port}

    return Environment(
        name=image.name,
        version=image.version,
        description="A server of finetune-phi",
        build=BuildContext(path=str(context), dockerfile_path="Dockerfile"),
        inference_config={
            "liveness_route": route("/health"),
            "readiness_route": route("/ready"),
            "scoring_route": route("/score"),
        },
    )
