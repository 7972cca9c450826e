"""Property paths of `ignore_changes` and `replace_on_changes`: `tags.owner`, `properties.vmSize`, `a[0].b`, `*`."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from typing import Any

_MISSING = object()


def keep(olds: Mapping[str, Any], news: Mapping[str, Any], paths: Iterable[str]) -> dict[str, Any]:
    """`news` with the values at `paths` taken from `olds`: what `ignore_changes` means."""
    kept: dict[str, Any] = copy.deepcopy(dict(news))
    for path in paths:
        parts = split(path)
        if parts == ["*"]:
            return copy.deepcopy(dict(olds))
        _put(kept, parts, value(olds, parts))
    return kept


def differ(olds: Mapping[str, Any], news: Mapping[str, Any], paths: Iterable[str]) -> list[str]:
    """The paths at which the two differ: what `replace_on_changes` asks."""
    return [path for path in paths if _differs(olds, news, split(path))]


def _differs(olds: Mapping[str, Any], news: Mapping[str, Any], parts: list[str]) -> bool:
    if "*" in parts:
        parts = parts[: parts.index("*")]
    return bool(value(olds, parts) != value(news, parts))


def split(path: str) -> list[str]:
    """`a.b[0]["c"]` as its parts."""
    return [part.strip('"') for part in re.findall(r'[^.\[\]"]+|"[^"]*"', path)]


def value(of: Any, parts: list[str]) -> Any:
    """The value at a path, or a mark that equals nothing else if there is none."""
    for part in parts:
        if isinstance(of, Mapping) and part in of:
            of = of[part]
        elif isinstance(of, list) and part.isdigit() and int(part) < len(of):
            of = of[int(part)]
        else:
            return _MISSING
    return of


def _put(into: Any, parts: list[str], new: Any) -> None:
    *way, last = parts
    for part in way:
        if isinstance(into, dict):
            into = into.setdefault(part, {}) if new is not _MISSING else into.get(part)
        elif isinstance(into, list) and part.isdigit() and int(part) < len(into):
            into = into[int(part)]
        else:
            return
    if not isinstance(into, dict):
        return
    if new is _MISSING:
        into.pop(last, None)
    else:
        into[last] = copy.deepcopy(new)
