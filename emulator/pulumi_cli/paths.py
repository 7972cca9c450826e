"""Property paths, of `ignore_changes` and `replace_on_changes`: `tags.owner`, `a[0].b`, `a[*]`, `*`."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

MISSING: Final = object()


def split(path: str) -> list[str]:
    """`a.b[0]["c"]` as its parts."""
    return [part.strip('"') for part in re.findall(r'"[^"]*"|[^.\[\]"]+', path)]


def value(of: Any, parts: list[str]) -> Any:
    """The value at a path, or MISSING if there is none."""
    for part in parts:
        if isinstance(of, Mapping) and part in of:
            of = of[part]
        elif isinstance(of, list) and part.isdecimal() and int(part) < len(of):
            of = of[int(part)]
        else:
            return MISSING
    return of


def contains(pattern: str, path: str) -> bool:
    """Whether the property at `path` is the one that `pattern` names, or a part of it."""
    wanted, found = split(pattern), split(path)
    return len(wanted) <= len(found) and all(one in ("*", two) for one, two in zip(wanted, found, strict=False))


def keep(olds: Mapping[str, Any], news: Mapping[str, Any], patterns: Iterable[str]) -> dict[str, Any]:
    """`news` with the values at `patterns` taken from `olds`: what `ignore_changes` means."""
    kept: Any = copy.deepcopy(dict(news))
    for pattern in patterns:
        kept = _kept(copy.deepcopy(dict(olds)), kept, split(pattern))
    return dict(kept)


def removed(of: Any, parts: list[str]) -> Any:
    """`of` without the value at a path."""
    return _kept(MISSING, of, parts)


def _kept(old: Any, new: Any, parts: list[str]) -> Any:
    if not parts:
        return old
    head, *rest = parts
    if new is MISSING and isinstance(old, dict):
        new = {}
    if isinstance(new, dict):
        return _kept_in_map(old if isinstance(old, dict) else {}, new, head, rest)
    if isinstance(new, list):
        return _kept_in_list(old if isinstance(old, list) else [], new, head, rest)
    return new


def _kept_in_map(old: dict[str, Any], new: dict[str, Any], head: str, rest: list[str]) -> dict[str, Any]:
    made = dict(new)
    for key in {*old, *new} if head == "*" else {head}:
        one = _kept(old.get(key, MISSING), new.get(key, MISSING), rest)
        if one is MISSING:
            made.pop(key, None)
        else:
            made[key] = one
    return made


def _kept_in_list(old: list[Any], new: list[Any], head: str, rest: list[str]) -> list[Any]:
    made = [
        _kept(old[index] if index < len(old) else MISSING, item, rest) if head in ("*", str(index)) else item
        for index, item in enumerate(new)
    ]
    return [item for item in made if item is not MISSING]
