"""What a recipe's text may hold: keys and values as YAML gives them, each looked at with its name and its source."""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from infra.cli import WRONG_USE, UserError

T = TypeVar("T")


def wrong(message: str, next_command: str | None = None) -> UserError:
    return UserError(message, next_command=next_command, code=WRONG_USE)


def unknown_key(key: str, source: str, known: Sequence[str]) -> UserError:
    return wrong(f"{source} has the unknown key `{key}`{nearest(key, known)}")


def nearest(word: str, known: Sequence[str]) -> str:
    """The end of a sentence about an unknown word; empty if none is like it."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.4)
    return f"; the nearest is `{close[0]}`" if close else ""


def parse_change(change: str) -> tuple[str, Any]:
    """Key and value of `--set KEY=VALUE`."""
    import yaml

    key, sign, text = change.partition("=")
    if not sign:
        raise wrong(f"--set {change!r} is not KEY=VALUE", f"--set {key}=VALUE")
    try:
        return key, yaml.safe_load(text)
    except yaml.YAMLError:
        raise wrong(f"--set {change!r}: the value is not YAML") from None


def meant(key: str, value: Any) -> Any:
    """Two traps of YAML: `1e-3` (without a point) is read as text, and the `no` of save_strategy as False."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    if key.endswith("_strategy") and value is False:
        return "no"
    return value


def section_of(kind: type[T], values: Mapping[str, Any], source: str) -> T:
    """The values as a dataclass; a missing or wrongly typed one raises UserError."""
    hints = typing.get_type_hints(kind)
    checked = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]  # every kind is a dataclass
        if field.name in values:
            value = meant(field.name, values[field.name])
            checked[field.name] = check_kind(field.name, value, kinds_of(hints[field.name]), (), source=source)
        elif field.default is dataclasses.MISSING:
            raise wrong(f"{source} lacks the key `{field.name}`")
    return kind(**checked)


def kinds_of(hint: Any) -> tuple[str, ...]:
    """A type annotation as the words that are used here: bool, int, float, str, list, dict, none."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return tuple(kind for part in typing.get_args(hint) for kind in kinds_of(part))
    hint = typing.get_origin(hint) or hint
    return ("none",) if hint is type(None) else ("list",) if hint is tuple else (getattr(hint, "__name__", "str"),)


def check_kind(key: str, value: Any, kinds: Sequence[str], values: Sequence[str], *, source: str) -> Any:
    """The value, a whole number as a float where that is meant. Raises UserError if the key does not take it."""
    kind = "none" if value is None else type(value).__name__
    if kind == "int" and "int" not in kinds and "float" in kinds:
        return float(value)
    if kind not in kinds:
        raise wrong(f"`{key}` in {source} is {value!r}, and takes {' or '.join(kinds)}")
    if values and value is not None and value not in values:
        hint = nearest(str(value), values) if len(values) > 5 else ""
        raise wrong(f"`{key}` in {source} is {value!r}{hint or '; it takes ' + ', '.join(values)}")
    return tuple(value) if isinstance(value, list) and key == "lora_target_modules" else value
