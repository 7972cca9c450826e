"""Pulumi.yaml and Pulumi.<stack>.yaml: where the program is, and its configuration with defaults and types."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from emulator.pulumi_cli.errors import CliError

_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "array": list,
    "object": dict,
}


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
        values = _read_yaml(file)
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

    def stack_config(self, stack: str) -> dict[str, Any]:
        """The raw configuration in the stack's file, by qualified key."""
        file = self.stack_file(stack)
        values = _read_yaml(file).get("config") or {} if file.exists() else {}
        return {self.qualify(key): value for key, value in values.items()}

    def write_config(self, stack: str, config: Mapping[str, Any]) -> None:
        """Replace the stack's configuration; other settings in its file stay, comments are lost, as with Pulumi."""
        file = self.stack_file(stack)
        settings = _read_yaml(file) if file.exists() else {}
        settings["config"] = dict(sorted(config.items()))
        temporary = file.with_name(file.name + f".{os.getpid()}.tmp")
        temporary.write_text(yaml.safe_dump(settings, sort_keys=False))
        temporary.replace(file)

    def config(self, stack: str) -> dict[str, str]:
        """The configuration that the program gets: checked against the schema, defaults filled in, all as text."""
        config = self.stack_config(stack)
        for key, value in config.items():
            self._check(key, value, stack)
        for name, declared in self.schema.items():
            key = self.qualify(name)
            if key in config:
                continue
            default = _default(declared)
            if default is not None:
                config[key] = default
            elif isinstance(declared, dict) and "type" in declared:
                raise CliError(
                    f"the stack {stack!r} lacks the required configuration key {name!r} "
                    f"({declared['type']}); set it: pulumi config set {name} VALUE"
                )
        return {key: _text(value) for key, value in config.items()}

    def _check(self, key: str, value: Any, stack: str) -> None:
        namespace, _, name = key.partition(":")
        if namespace != self.name or not self.schema:
            return
        declared = self.schema.get(name, self.schema.get(key))
        if declared is None:
            known = ", ".join(sorted(self.schema))
            raise CliError(f"Pulumi.{stack}.yaml sets the unknown configuration key {name!r}; known keys: {known}")
        wanted = declared.get("type") if isinstance(declared, dict) else None
        if wanted and not _fits(value, wanted):
            raise CliError(
                f"Pulumi.{stack}.yaml: the configuration key {name!r} must be of type {wanted}, not {value!r}"
                + (f"; for example {json.dumps(_default(declared))}" if _default(declared) is not None else "")
            )


def _default(declared: Any) -> Any:
    """A schema entry's default: `{default: …}` or `{value: …}`; a bare value is its own default."""
    if not isinstance(declared, dict):
        return declared
    return declared.get("default", declared.get("value"))


def _fits(value: Any, wanted: str) -> bool:
    """`pulumi config set` writes everything as text, so text that reads as the type will do."""
    if isinstance(value, dict) and set(value) == {"secure"}:
        return True
    if isinstance(value, str) and wanted == "boolean":
        return value in ("true", "false")
    if isinstance(value, str) and wanted == "integer":
        return re.fullmatch(r"-?\d+", value) is not None
    if isinstance(value, bool):
        return wanted == "boolean"
    return isinstance(value, _TYPES.get(wanted, object))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text()) or {}
    except yaml.YAMLError as error:
        raise CliError(f"{file} is not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise CliError(f"{file} is not a mapping")
    return values
