"""A Dockerfile without Docker: COPY, WORKDIR, ENV and CMD honoured in a scratch folder, RUN skipped and said so.

Instructions: docs.docker.com/reference/dockerfile. What RUN would install is the host's own environment here.
"""

from __future__ import annotations

import glob
import json
import re
import shlex
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from emulator.arm.schema import ArmError


@dataclass
class Image:
    """What a container of the image would start with; `root` stands for `/`."""

    root: Path
    workdir: str = "/"
    env: dict[str, str] = field(default_factory=dict)
    entrypoint: list[str] = field(default_factory=list)
    cmd: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    exposed: list[int] = field(default_factory=list)

    @property
    def cwd(self) -> Path:
        return self.inside(self.workdir)

    @property
    def argv(self) -> list[str]:
        return [*self.entrypoint, *self.cmd]

    def inside(self, path: str) -> Path:
        """Where a container path lies on the host. Raises ArmError for one that leads out of the image."""
        found = (self.root / (Path(self.workdir) / path).as_posix().lstrip("/")).resolve()
        if not found.is_relative_to(self.root.resolve()):
            raise ArmError(400, "ImageBuildFailure", f"The path '{path}' leads out of the image.")
        return found


def build(context: Path, dockerfile: str, root: Path) -> Image:
    """Follow the Dockerfile of a build context. Raises ArmError 400 (ImageBuildFailure) where a build would fail."""
    path = context / dockerfile
    if not path.is_file():
        raise ArmError(400, "ImageBuildFailure", f"The build context has no file '{dockerfile}'.")
    root.mkdir(parents=True, exist_ok=True)
    image = Image(root)
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE)
    for line in re.sub(r"\\\s*\n", " ", text).splitlines():
        if line.strip():
            _follow(image, context, line.strip())
    image.cwd.mkdir(parents=True, exist_ok=True)
    if not image.argv:
        raise ArmError(400, "ImageBuildFailure", "The Dockerfile has no CMD or ENTRYPOINT to start.")
    return image


def _follow(image: Image, context: Path, line: str) -> None:
    instruction, _, rest = line.partition(" ")
    rest = rest.strip()
    match instruction.upper():
        case "WORKDIR":
            image.workdir = (Path(image.workdir) / rest).as_posix()
            image.cwd.mkdir(parents=True, exist_ok=True)
        case "ENV":
            pairs = shlex.split(rest) if "=" in rest else ["=".join(rest.split(None, 1))]
            image.env |= dict(pair.split("=", 1) for pair in pairs)
        case "COPY" | "ADD":
            _copy(image, context, rest)
        case "CMD":
            image.cmd = _command(rest)
        case "ENTRYPOINT":
            image.entrypoint = _command(rest)
        case "RUN":
            image.skipped.append(rest)
        case "EXPOSE":
            image.exposed += [int(word.split("/")[0]) for word in rest.split() if word.split("/")[0].isdecimal()]


def _command(rest: str) -> list[str]:
    if not rest.startswith("["):
        return ["/bin/sh", "-c", rest]
    parsed = json.loads(rest)
    return [str(word) for word in parsed]


def _copy(image: Image, context: Path, rest: str) -> None:
    words = [word for word in shlex.split(rest) if not word.startswith("--")]
    *sources, to = words
    target = image.inside(to)
    for source in sources:
        found = glob.glob(str(context / source.lstrip("/")))
        if not found:
            raise ArmError(400, "ImageBuildFailure", f"COPY failed: '{source}' is not in the build context.")
        for path in map(Path, found):
            if path.is_dir():
                shutil.copytree(path, target, dirs_exist_ok=True)
            elif to.endswith("/") or to in (".", "./") or len(found) + len(sources) > 2 or target.is_dir():
                target.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target / path.name)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
