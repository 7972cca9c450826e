"""The configuration's schema in Pulumi.yaml: types, defaults, and what to say of a value that does not fit."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from emulator.pulumi_cli.errors import CliError
from emulator.pulumi_cli.project import Project


def check(project: Project, stack: str, values: Mapping[str, Any]) -> None:
    """Raise CliError for a key that the schema does not know, a value of another type, and one that is missing."""
    for key, value in values.items():
        namespace, _, name = key.partition(":")
        if namespace == project.name and project.schema:
            _check(project.schema, name, value, stack)
    for name, declared in project.schema.items():
        if isinstance(declared, dict) and default_of(declared) is None and project.qualify(name) not in values:
            raise CliError(
                f"the stack {stack!r} lacks the required configuration key {name!r} ({_type(declared)}); "
                f"set it: pulumi config set {name} VALUE"
            )


def _check(schema: Mapping[str, Any], name: str, value: Any, stack: str) -> None:
    if name not in schema:
        known = ", ".join(sorted(schema))
        raise CliError(f"Pulumi.{stack}.yaml sets the unknown configuration key {name!r}; known keys: {known}")
    declared = schema[name]
    if isinstance(declared, dict) and not fits(value, declared):
        raise CliError(
            f"Pulumi.{stack}.yaml: the configuration key {name!r} must be of type {_type(declared)}, not {value!r}; "
            f"{_hint(name, declared)}"
        )


def _hint(name: str, declared: Mapping[str, Any]) -> str:
    if declared.get("type") == "array":
        return f"set its items one by one: pulumi config set --path '{name}[0]' VALUE"
    default = default_of(declared)
    return f"for example {json.dumps(default)}" if default is not None else f"pulumi config set {name} VALUE"


def _type(declared: Mapping[str, Any]) -> str:
    """`array<string>` for a list of texts."""
    items = declared.get("items")
    return f"{declared['type']}<{_type(items)}>" if isinstance(items, dict) else str(declared.get("type", "string"))


def default_of(declared: Any) -> Any:
    """A schema entry's default: `{default: …}` or `{value: …}`; a bare value is its own default."""
    if not isinstance(declared, dict):
        return declared
    return declared.get("default", declared.get("value"))


def fits(value: Any, declared: Mapping[str, Any]) -> bool:
    """Whether the value is of the type; `pulumi config set` writes texts, so one that reads as the type will do."""
    if isinstance(value, dict) and set(value) == {"secure"}:
        return True
    match declared.get("type", "string"):
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool) or value in ("true", "false")
        case "integer":
            return _is_integer(value)
        case "number":
            return isinstance(value, (int, float)) and not isinstance(value, bool)
        case "object":
            return isinstance(value, dict)
        case "array":
            items = declared.get("items") or {"type": "string"}
            return isinstance(value, list) and all(fits(item, items) for item in value)
    raise CliError(f"Pulumi.yaml declares the unknown type {declared['type']!r}")


def _is_integer(value: Any) -> bool:
    if isinstance(value, str):
        return re.fullmatch(r"[+-]?\d+", value) is not None
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == int(value)


def text(value: Any) -> str:
    """As a program reads it: texts as they are, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
