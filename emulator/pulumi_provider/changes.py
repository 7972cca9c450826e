"""What differs between two sets of inputs, down to the single property, under Pulumi's names for paths and kinds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from emulator.pulumi_provider.values import UNKNOWN

Kind = Literal["add", "delete", "update"]


def between(olds: Mapping[str, Any], news: Mapping[str, Any]) -> dict[str, Kind]:
    """The paths at which `news` differs from `olds`, such as `sku.name` or `tags["cost-center"]`.

    What is not known yet counts as changed.
    """
    return dict(_of_maps("", olds, news))


def _of_maps(path: str, olds: Mapping[str, Any], news: Mapping[str, Any]) -> list[tuple[str, Kind]]:
    found: list[tuple[str, Kind]] = []
    for key in sorted({*olds, *news}):
        below = _step(path, key)
        if key not in news:
            found.append((below, "delete"))
        elif key not in olds:
            found.append((below, "add"))
        else:
            found += _of_values(below, olds[key], news[key])
    return found


def _of_values(path: str, old: Any, new: Any) -> list[tuple[str, Kind]]:
    if new is UNKNOWN:
        return [(path, "update")]
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return _of_maps(path, old, new)
    if isinstance(old, list) and isinstance(new, list):
        return _of_lists(path, old, new)
    return [] if _normal(path, old) == _normal(path, new) else [(path, "update")]


def _of_lists(path: str, olds: list[Any], news: list[Any]) -> list[tuple[str, Kind]]:
    found: list[tuple[str, Kind]] = []
    for index in range(max(len(olds), len(news))):
        below = f"{path}[{index}]"
        if index >= len(news):
            found.append((below, "delete"))
        elif index >= len(olds):
            found.append((below, "add"))
        else:
            found += _of_values(below, olds[index], news[index])
    return found


def _step(path: str, key: str) -> str:
    if not re.fullmatch(r"[A-Za-z_$][\w$]*", key):
        return f'{path}["{key}"]'
    return f"{path}.{key}" if path else key


def _normal(path: str, value: Any) -> Any:
    """Values as ARM compares them: `West Europe` is `westeurope`."""
    if path == "location" and isinstance(value, str):
        return value.replace(" ", "").lower()
    return value


def followed(inputs: Any, before: Any, now: Any) -> Any:
    """`inputs` with what somebody changed in Azure: `before` and `now` are the outputs then and today.

    What a program never said, and what Azure never tells, stays as it is.
    """
    if before == now:
        return inputs
    if isinstance(inputs, Mapping) and isinstance(now, Mapping):
        known = before if isinstance(before, Mapping) else {}
        return {
            key: followed(value, known.get(key), now.get(key))
            for key, value in inputs.items()
            if key in now or key not in known
        }
    if isinstance(inputs, list) and isinstance(now, Mapping):  # user-assigned identities: a list in, a map out
        lower = {name.lower() for name in now}
        kept = [name for name in inputs if str(name).lower() in lower]
        return kept + [name for name in now if name.lower() not in {str(one).lower() for one in inputs}]
    return now
