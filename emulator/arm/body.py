"""A request's body against what its type takes, refused as Azure's own deserialisers refuse it: the first thing wrong.

What a type takes stands in `schemas/`, one file for each, as YAML:

    sku!: {title: Sku, properties: {name!: [A, B]}}    an object of exactly these members; `!` marks those it must have
    kind: [A, B]                 one of these words, in any case: Azure's enums are read without it
    mode: {exactly: [A, B]}      one of these words as they are written
    values: string               a map, whose names are free and whose values are strings
    items: string                a list of strings; minItems, maxItems
    {type: integer, minimum: 7, maximum: 90}
    readOnly                     what Azure answers by itself; a client may send it back, and it is ignored
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from emulator.arm.ids import ResourceId

SCHEMAS = Path(__file__).resolve().parent / "schemas"
# What every resource may carry: its own name, sent back by clients that read it before.
COMMON = dict.fromkeys(("id", "name", "type", "systemData", "etag", "eTag"), "readOnly")
# A tag's limits: learn.microsoft.com/azure/azure-resource-manager/management/tag-resources
MOST_TAGS, LONGEST_TAG_NAME, LONGEST_TAG_VALUE = 50, 512, 256

TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {  # in .NET's words, which is what Azure's messages use
    "string": ("System.String", lambda value: isinstance(value, str)),
    "boolean": ("System.Boolean", lambda value: isinstance(value, bool)),
    "integer": ("System.Int32", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    "number": ("System.Decimal", lambda value: isinstance(value, int | float) and not isinstance(value, bool)),
}
PATTERNS = {
    "uuid": ("System.Guid", r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"),
    # ISO 8601, as learn.microsoft.com/rest/api/azureml writes durations
    "duration": ("System.TimeSpan", r"P(?=\d|T\d)(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+(\.\d+)?S)?)?"),
    "date-time": ("System.DateTime", r"\d{4}-\d\d-\d\d(T\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:\d\d)?)?"),
}


class BodyError(Exception):
    """What is wrong with a body."""


class Missing(BodyError):
    """A member that must be there is not; `path` names it."""

    def __init__(self, name: str, path: str) -> None:
        super().__init__(f"Required property '{name}' not found in JSON. Path '{path}'.")
        self.path = _below(path, name)


@cache
def schema(resource_type: str) -> dict[str, Any]:
    """What a type takes, by its name in any case."""
    text = (SCHEMAS / f"{resource_type.lower().replace('/', '.')}.yaml").read_text()
    found: dict[str, Any] = yaml.load(text, yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader)
    found["properties"] = {**COMMON, **found["properties"]}
    return found


def check(rid: ResourceId, body: dict[str, Any], *, partial: bool = False) -> None:
    """Raise BodyError for the first thing in `body` that the type does not take; `partial` is a PATCH."""
    _Check(partial).value(body, schema(rid.type), "")


def writable(rid: ResourceId, body: dict[str, Any]) -> dict[str, Any]:
    """The body without what only Azure itself writes."""
    members = schema(rid.type)["properties"]
    kept = {key: value for key, value in body.items() if members.get(key) != "readOnly"}
    if isinstance(kept.get("properties"), dict):
        known = _inner(rid)
        kept["properties"] = {key: value for key, value in kept["properties"].items() if known.get(key) != "readOnly"}
    return kept


def has_state(rid: ResourceId) -> bool:
    """Whether resources of the type have a provisioningState."""
    return "provisioningState" in _inner(rid)


def _inner(rid: ResourceId) -> dict[str, Any]:
    """What the type's `properties` take."""
    members = schema(rid.type)["properties"]
    spec = members.get("properties!", members.get("properties"))
    return dict(spec["properties"]) if isinstance(spec, dict) else {}


class _Check:
    def __init__(self, partial: bool) -> None:
        self._partial = partial

    def value(self, value: Any, spec: Any, path: str) -> None:
        if value is None or spec in ("any", "readOnly"):  # null is how clients write "not said"
            return
        if spec == "tags":
            self._tags(value, path)
        elif isinstance(spec, str):
            _scalar(value, spec, path)
        elif isinstance(spec, list):
            _one_of(value, spec, path, str.lower)
        elif "exactly" in spec:
            _one_of(value, spec["exactly"], path, str)
        elif "properties" in spec:
            self._object(value, spec, path)
        elif "values" in spec:
            self._map(value, spec, path)
        elif "items" in spec:
            self._list(value, spec, path)
        else:
            _scalar(value, spec["type"], path)
            _limits(value, spec, path)

    def _object(self, value: Any, spec: dict[str, Any], path: str) -> None:
        _is(dict, value, spec["title"], path)
        members = {name.rstrip("!"): inner for name, inner in spec["properties"].items()}
        for name, inner in value.items():
            if name not in members:
                where = _below(path, name)
                raise BodyError(f"Could not find member '{name}' on object of type '{spec['title']}'. Path '{where}'.")
            self.value(inner, members[name], _below(path, name))
        for name in [] if self._partial else spec["properties"]:
            if name.endswith("!") and value.get(name.rstrip("!")) in (None, ""):
                raise Missing(name.rstrip("!"), path)

    def _map(self, value: Any, spec: dict[str, Any], path: str) -> None:
        _is(dict, value, "System.Collections.Generic.IDictionary", path)
        _count(len(value), 0, spec.get("maxProperties"), path)
        for name, inner in value.items():
            self.value(inner, spec["values"], _below(path, name))

    def _list(self, value: Any, spec: dict[str, Any], path: str) -> None:
        _is(list, value, "System.Collections.Generic.IList", path)
        _count(len(value), spec.get("minItems", 0), spec.get("maxItems"), path)
        for number, inner in enumerate(value):
            self.value(inner, spec["items"], f"{path}[{number}]")

    def _tags(self, value: Any, path: str) -> None:
        self._map(value, {"values": "string", "maxProperties": MOST_TAGS}, path)
        for name, text in value.items():
            if len(name) > LONGEST_TAG_NAME or len(text or "") > LONGEST_TAG_VALUE:
                limits = f"{LONGEST_TAG_NAME} characters and its value more than {LONGEST_TAG_VALUE}"
                raise BodyError(f"The tag '{name[:40]}' is too long: its name may not have more than {limits}.")


def _is(kind: type, value: Any, name: str, path: str) -> None:
    if not isinstance(value, kind):
        raise BodyError(f"Error converting value {json.dumps(value)} to type '{name}'. Path '{path}'.")


def _scalar(value: Any, kind: str, path: str) -> None:
    name, pattern = PATTERNS.get(kind, ("", None))
    name, matches = TYPES.get(kind, (name, lambda found: isinstance(found, str)))
    if not matches(value) or (pattern and not re.fullmatch(pattern, value)):
        raise BodyError(f"Error converting value {json.dumps(value)} to type '{name}'. Path '{path}'.")


def _one_of(value: Any, allowed: list[str], path: str, spelt: Callable[[str], str]) -> None:
    if not isinstance(value, str) or spelt(value.replace(" ", "")) not in [
        spelt(one.replace(" ", "")) for one in allowed
    ]:
        values = ", ".join(allowed)
        raise BodyError(f"The value {json.dumps(value)} of '{path}' is not allowed. Allowed values are: {values}.")


def _limits(value: float, spec: dict[str, Any], path: str) -> None:
    least, most, above = (spec.get(key) for key in ("minimum", "maximum", "exclusiveMinimum"))
    if (least is not None and value < least) or (most is not None and value > most):
        allowed = f"at least {least}" if most is None else f"between {least} and {most}"
        raise BodyError(f"The value {value} of '{path}' is out of range: it must be {allowed}.")
    if above is not None and value <= above:
        raise BodyError(f"The value {value} of '{path}' is out of range: it must be greater than {above}.")


def _count(count: int, least: int, most: int | None, path: str) -> None:
    if count < least or (most is not None and count > most):
        allowed = f"at least {least}" if most is None else f"{least} to {most}"
        raise BodyError(f"'{path}' has {count} entries; it takes {allowed}.")


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
