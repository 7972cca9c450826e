"""Pulumi.yaml: where the program is, and the schema of its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from emulator.pulumi_cli.errors import CliError


@dataclass(frozen=True)
class Project:
    """A Pulumi project: the folder with Pulumi.yaml and what that file says."""

    root: Path
    name: str
    program: Path
    schema: Mapping[str, Any]

    @classmethod
    def find(cls, start: Path) -> Project:
        """The project of `start` or the nearest folder above that has one."""
        for folder in (start, *start.parents):
            if (file := folder / "Pulumi.yaml").is_file():
                return cls._load(file)
        raise CliError(f"no Pulumi.yaml in {start} or a folder above it")

    @classmethod
    def _load(cls, file: Path) -> Project:
        values = read_yaml(file)
        if not values.get("name"):
            raise CliError(f"{file} has no `name`")
        runtime = values.get("runtime")
        language = runtime.get("name") if isinstance(runtime, dict) else runtime
        if language != "python":
            raise CliError(f"{file}: this pulumi runs Python programs only, not {language!r}")
        program = (file.parent / values.get("main", ".")).resolve()
        return cls(file.parent, values["name"], program, values.get("config") or {})

    def stack_file(self, stack: str) -> Path:
        return self.root / f"Pulumi.{stack}.yaml"

    def qualify(self, key: str) -> str:
        """`key` with its namespace; a bare key belongs to the project."""
        return key if ":" in key else f"{self.name}:{key}"


def read_yaml(file: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping; an empty one is an empty mapping."""
    try:
        values = yaml.safe_load(file.read_text()) or {}
    except yaml.YAMLError as error:
        raise CliError(f"{file} is not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise CliError(f"{file} is not a mapping")
    return values
