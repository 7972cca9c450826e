"""Pulumi.<stack>.yaml of a new stack: a copy of a template's, edited as text so that comments stay where they are."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from infra.cli import WRONG_USE, UserError
from infra.stack_config import by_whole_key, config_in, read

Scalar = str | int
MADE = "# Made by `python -m infra.environment up`"
# One environment's alone, so a copy starts without them.
LIFETIME = ("branch", "ttlHours", "expiresOn")
# With what a file's secrets are encrypted: pulumi.com/docs/iac/concepts/secrets
ENCRYPTION = ("encryptionsalt", "encryptedkey", "secretsprovider")


def copy_of(template: Path, *, namespace: str) -> str:
    """The text of a new stack's file: the template's, without what is the template's alone.

    The template's secrets stay readable where their key comes along, so passphrase or key vault are then the
    template's; without secrets the new stack gets a key of its own.

    Raises:
        UserError: the template is not there, or holds secrets that only its own stack can read.
    """
    if not template.exists():
        raise UserError(
            f"there is no {template.name}, which a new stack's settings are copied from",
            next_command="--template STACK, one that has a file Pulumi.STACK.yaml",
            code=WRONG_USE,
        )
    found = read(template)
    secrets = [key for key, value in config_in(template, namespace).items() if _is_secret(value)]
    if secrets and not set(ENCRYPTION) & set(found):
        raise UserError(
            f"{template.name} holds the secret {secrets[0]}, which Pulumi Cloud encrypted for its own stack alone",
            next_command=f"remove it there, and set it in the new stack: pulumi config set --secret {secrets[0]}",
        )
    text = _without_preamble(template.read_text())
    if not secrets:
        text = _without_top_level(text, ENCRYPTION)
    return _made(template.name) + with_values(
        text, {f"{namespace}:{key}": None for key in LIFETIME}, namespace=namespace
    )


def restored(config: Mapping[str, str], schema: Mapping[str, Mapping[str, Any]], *, namespace: str) -> str:
    """The text of a file that is not here, from the stack's last update; what is the default is left out."""
    import yaml

    values: dict[str, Any] = {}
    for key, text in config.items():
        rule = schema.get(key.removeprefix(f"{namespace}:"), {})
        value = text if rule.get("type", "string") == "string" else yaml.safe_load(text)
        if value != rule.get("default"):
            values[key] = value
    return _made("the stack's last update") + yaml.safe_dump({"config": values}, allow_unicode=True)


def encryption_of(text: str) -> str:
    """The lines that say with what a file's secrets are encrypted."""
    return "".join(line for line in text.splitlines(keepends=True) if line.partition(":")[0] in ENCRYPTION)


def _made(source: str) -> str:
    return f"{MADE} from {source}; `down` removes it with the stack.\n"


def _is_secret(value: object) -> bool:
    if isinstance(value, dict):
        return set(value) == {"secure"} or any(_is_secret(one) for one in value.values())
    return isinstance(value, list) and any(_is_secret(one) for one in value)


def _without_preamble(text: str) -> str:
    """Comments before the first setting speak of the template itself."""
    lines = text.splitlines(keepends=True)
    while lines and (lines[0].startswith("#") or not lines[0].strip()):
        lines.pop(0)
    return "".join(lines)


def _without_top_level(text: str, keys: Iterable[str]) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if line.partition(":")[0] not in keys)


def with_values(text: str, values: Mapping[str, Scalar | None], *, namespace: str) -> str:
    """The text with these whole keys of `config:` set, or with None removed; all other lines stay as they are."""
    wanted = {key: one for key, one in {**(_config(text, namespace) or {}), **values}.items() if one is not None}
    made = text
    for key, value in values.items():
        made = _with_value(made, key, value, namespace)
    if _config(made, namespace) != wanted:
        raise UserError(
            "the stack's file is not written as Pulumi writes it, one key a line below `config:`, so it was left alone",
            next_command="write it so, or set the keys yourself: " + ", ".join(values),
        )
    return made


def _config(text: str, namespace: str) -> dict[str, Any] | None:
    """The text's `config:`; None if it is no YAML."""
    import yaml

    try:
        return by_whole_key((yaml.safe_load(text) or {}).get("config"), namespace)
    except yaml.YAMLError:
        return None


def _with_value(text: str, key: str, value: Scalar | None, namespace: str) -> str:
    lines = text.splitlines()
    start = next((number for number, line in enumerate(lines) if re.match(r"config:\s*(#.*)?$", line)), None)
    if start is None:
        if value is None:
            return text
        lines.append("config:")
        start = len(lines) - 1
    end = next((n for n in range(start + 1, len(lines)) if re.match(r"[^\s#]", lines[n])), len(lines))
    named = re.compile(rf"""(\s+)["']?({re.escape(namespace)}:)?{re.escape(key.removeprefix(namespace + ":"))}["']?:""")
    held = next((n for n in range(start + 1, end) if named.match(lines[n])), None)
    setting = [] if value is None else [f"{_indent(lines[start + 1 : end])}{key}: {_dumped(value)}"]
    if held is not None:
        lines[held : held + 1] = setting
    else:
        last = max((n for n in range(start, end) if lines[n].strip()), default=start)
        lines[last + 1 : last + 1] = setting
    return "\n".join(lines) + "\n"


def _indent(block: list[str]) -> str:
    return next((line[: len(line) - len(line.lstrip())] for line in block if line.strip()[:1] not in ("", "#")), "  ")


def _dumped(value: Scalar) -> str:
    """A value in YAML; text in quotes, else `2026-11-30` would be a date and `no` false."""
    import yaml

    if isinstance(value, int):
        return str(value)
    return yaml.safe_dump(value, default_style='"', allow_unicode=True, width=2**20).strip()


def write(path: Path, text: str) -> None:
    """Replace the file at once, so that one that is there is whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


def is_made(path: Path, namespace: str) -> bool:
    """Whether `up` made this file, or Pulumi itself for its encryption's salt alone; no user's work is in it."""
    if not path.exists():
        return False
    config = config_in(path, namespace)
    return not config or path.read_text().startswith(MADE) or bool(config.get(f"{namespace}:branch"))
