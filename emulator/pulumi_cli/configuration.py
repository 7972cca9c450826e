"""Pulumi.<stack>.yaml: a stack's configuration, read, checked against the project's schema, and changed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from emulator.pulumi_cli import paths
from emulator.pulumi_cli.errors import CliError
from emulator.pulumi_cli.project import Project, read_yaml
from emulator.pulumi_cli.schema import check, default_of, text
from emulator.pulumi_cli.secrets import Crypter
from emulator.pulumi_provider.wire import HIDDEN


@dataclass(frozen=True)
class Entry:
    """One value as text, JSON where it is none, and whether a part of it is secret."""

    text: str
    secret: bool


class Configuration:
    """One stack's configuration. Secrets stay encrypted until somebody asks for them."""

    def __init__(self, project: Project, stack: str, file: Path | None = None) -> None:
        self.project, self.stack = project, stack
        self.file = file or project.stack_file(stack)
        self._settings = read_yaml(self.file) if self.file.exists() else {}
        values = self._settings.get("config") or {}
        self.values: dict[str, Any] = {project.qualify(key): value for key, value in values.items()}

    def save(self) -> None:
        """Write the file anew; its other settings stay, comments are lost."""
        self._settings["config"] = self.values
        temporary = self.file.with_name(f"{self.file.name}.{os.getpid()}.tmp")
        temporary.write_text(yaml.safe_dump(self._settings, sort_keys=False))
        temporary.replace(self.file)

    # --- reading --------------------------------------------------------------------------------------------------

    def entries(self, *, show_secrets: bool) -> dict[str, Entry]:
        """Every value, the schema's defaults included, unchecked."""
        held = dict(self.values)
        for name, declared in self.project.schema.items():
            if (default := default_of(declared)) is not None:
                held.setdefault(self.project.qualify(name), default)
        return {key: self._entry(value, show_secrets=show_secrets) for key, value in sorted(held.items())}

    def get(self, key: str, *, path: bool) -> Entry:
        """One value, in clear. Raises CliError if there is none."""
        first, *below = paths.split(key) if path else [key]
        held = self.values.get(self.project.qualify(first), default_of(self.project.schema.get(first)))
        held = paths.value(held, below)
        if held is None or held is paths.MISSING:
            raise CliError(f"configuration key '{key}' not found for stack '{self.stack}'")
        return self._entry(held, show_secrets=True)

    def for_program(self) -> dict[str, Entry]:
        """What the program gets: checked, and with the defaults. Raises CliError naming the key that is wrong."""
        check(self.project, self.stack, self.values)
        return self.entries(show_secrets=True)

    def _entry(self, value: Any, *, show_secrets: bool) -> Entry:
        shown = _replaced(value, lambda secure: self._crypter().decrypt(secure) if show_secrets else HIDDEN)
        return Entry(text(shown), secret=_has_secret(value))

    # --- changing -------------------------------------------------------------------------------------------------

    def set(self, key: str, value: str, *, path: bool, secret: bool) -> None:
        """Set one value; with `path`, inside a list or a map, where numbers and booleans become what they look like."""
        first, *below = paths.split(key) if path else [key]
        new: Any = {"secure": self._crypter().encrypt(value)} if secret else _typed(value) if below else value
        name = self.project.qualify(first)
        self.values[name] = _put(self.values.get(name), below, new, key)

    def remove(self, key: str, *, path: bool) -> None:
        """Remove one value; one that is not there is fine."""
        first, *below = paths.split(key) if path else [key]
        name = self.project.qualify(first)
        if not below:
            self.values.pop(name, None)
        elif name in self.values:
            self.values[name] = paths.removed(self.values[name], below)

    def _crypter(self) -> Crypter:
        if state := self._settings.get("encryptionsalt"):
            return Crypter(state)
        made = Crypter.new()
        self._settings = {"encryptionsalt": made.state, **self._settings}
        return made


def _replaced(value: Any, open_secret: Callable[[str], str]) -> Any:
    """`value` with what `open_secret` makes of each secret in it."""
    if isinstance(value, dict):
        if set(value) == {"secure"}:
            return open_secret(value["secure"])
        return {key: _replaced(item, open_secret) for key, item in value.items()}
    return [_replaced(item, open_secret) for item in value] if isinstance(value, list) else value


def _has_secret(value: Any) -> bool:
    if isinstance(value, Mapping):
        return set(value) == {"secure"} or any(_has_secret(item) for item in value.values())
    return isinstance(value, list) and any(_has_secret(item) for item in value)


def _typed(value: str) -> Any:
    """As the real CLI reads a value at a path: `true` and `12` are no texts, `012` is one."""
    if value in ("true", "false"):
        return value == "true"
    plain = value.removeprefix("-")
    return int(value) if plain.isdecimal() and (plain == "0" or plain[0] != "0") else value


def _put(into: Any, below: list[str], new: Any, key: str) -> Any:
    """`into` with `new` at the path `below`; lists grow at their end."""
    if not below:
        return new
    head, *rest = below
    if head.isdecimal() and not isinstance(into, dict):
        items = list(into or [])
        if int(head) > len(items):
            raise CliError(f"the path {key!r} leaves a gap: the list has {len(items)} items")
        items[int(head) : int(head) + 1] = [_put(items[int(head)] if int(head) < len(items) else None, rest, new, key)]
        return items
    if into is not None and not isinstance(into, dict):
        raise CliError(f"the path {key!r} leads into {json.dumps(into)}, which has no parts")
    held = dict(into or {})
    held[head] = _put(held.get(head), rest, new, key)
    return held
