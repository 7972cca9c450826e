"""What a job's image would hold: `host` (default) runs on the emulator's own interpreter and says what it leaves out;
`EMULATOR_ENVIRONMENTS=build` makes the conda file's Python packages a virtual environment of their own, with uv.

An environment is built once for each content, below the emulator's folder, and its log is the job's
`azureml-logs/20_image_build_log.txt`, as that of Azure's image build.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from emulator.arm.schema import ArmError, Body
from emulator.faults import image_build_fails
from emulator.home import Home
from emulator.runner.process import ManagedProcess
from emulator.state import State

BUILD_LOG = "azureml-logs/20_image_build_log.txt"
WITHHELD = ("AZURE_", "ARM_", "PULUMI_", "EMULATOR_", "VIRTUAL_ENV", "PYTHONPATH")
TOOLS = ["pip", "setuptools", "wheel"]  # what every conda environment has, and old packages count on


class Environments:
    def __init__(self, home: Home, state: State, inherited: Mapping[str, str]) -> None:
        self._folder, self._state = home.path / "environments", state
        self._inherited = {key: value for key, value in inherited.items() if not key.startswith(WITHHELD)}
        self._build = inherited.get("EMULATOR_ENVIRONMENTS", "host").lower() == "build"
        self._locks: dict[str, asyncio.Lock] = {}

    async def ready(self, environment: Body, log: Path) -> Path | None:
        """The virtual environment for an Azure ML environment; None where the host's interpreter stands in.

        Raises ArmError 400 (ImageBuildFailure) with the end of the log if it cannot be built.
        """
        if image_build_fails(self._state):
            _say(log, "A fault that was asked for: this image cannot be built.")
            raise ArmError(400, "ImageBuildFailure", "The image of the environment could not be built.")
        wanted = requirements(environment["properties"])
        if wanted is None or not self._build:
            _say(log, _stand_in(environment["properties"], wanted))
            return None
        key = hashlib.sha256(json.dumps([wanted, sys.version]).encode()).hexdigest()[:16]
        async with self._locks.setdefault(key, asyncio.Lock()):
            venv = self._folder / key
            if (venv / "complete").exists():
                _say(log, f"The environment was built before: {venv}")
            else:
                await self._make(venv, wanted, log)
        return venv

    async def _make(self, venv: Path, wanted: list[str], log: Path) -> None:
        self._folder.mkdir(exist_ok=True)
        listed = venv.with_suffix(".txt")
        listed.write_text("\n".join(wanted) + "\n")
        _say(log, f"Python {platform.python_version()} of the host stands in for the one that is named.")
        uv = [sys.executable, "-m", "uv"]
        python = str(venv / "bin" / "python")
        for words in (
            ["venv", "--clear", "--python", sys.executable, str(venv)],
            ["pip", "install", "--python", python, "--requirement", str(listed)],
        ):
            if await self._run([*uv, *words], log) != 0:
                tail = log.read_text(errors="replace")[-2000:]
                raise ArmError(400, "ImageBuildFailure", f"The environment could not be built. Log:\n{tail}")
        (venv / "complete").touch()

    async def _run(self, argv: list[str], log: Path) -> int:
        process = await ManagedProcess.start(self._state, argv, cwd=self._folder, env=self._inherited, log=log)
        try:
            return await process.wait()
        finally:
            await process.stop(grace=1)


def requirements(properties: Body) -> list[str] | None:
    """What pip would install of an environment's conda file; None where it has none.

    Conda's own packages of the same names on the index are taken too; `python` stays the host's.
    Raises ArmError 400 for a conda file that cannot be read.
    """
    text = properties.get("condaFile")
    if not text:
        return None
    try:
        parsed: Any = yaml.safe_load(text)
        listed = list((parsed or {}).get("dependencies") or [])
    except (yaml.YAMLError, AttributeError, TypeError):
        raise ArmError(400, "ImageBuildFailure", "The conda file is not one: it has no list of dependencies.") from None
    found = list(TOOLS)
    for one in listed:
        if isinstance(one, dict):
            found += [str(line) for line in one.get("pip") or []]
        elif (name := re.split(r"[=<>! \[]", str(one))[0]) not in ("python", *TOOLS):
            found.append(_as_pip(name, str(one)))
    return found


def _as_pip(name: str, conda: str) -> str:
    """`numpy=1.26` is any 1.26 to conda; other comparisons are spelled alike."""
    match = re.fullmatch(r"[\w.-]+=([\w.]+)(?:=.*)?", conda)
    return f"{name}=={match[1]}.*" if match else conda.replace(" ", "")


def _stand_in(properties: Body, wanted: list[str] | None) -> str:
    image = properties.get("image") or (properties.get("build") or {}).get("dockerfilePath") or "none"
    said = f"The host's Python {platform.python_version()} and its packages stand in for the image ({image})."
    if wanted is not None:
        said += f" Not installed: {', '.join(wanted)}. EMULATOR_ENVIRONMENTS=build would install them."
    return said


def _say(log: Path, sentence: str) -> None:
    with log.open("a") as file:
        file.write(sentence + "\n")
