"""Values on the wire (protobuf Structs) and in Python, where UNKNOWN stands for what is not known."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

from google.protobuf import struct_pb2  # type: ignore[import-untyped]

from emulator.pulumi_provider.values import SECRET, SIGNATURE, UNKNOWN

_RESOURCE = "5cf8f73096256a8f31e491e813e4eb8e"
UNKNOWN_TEXT = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"
HIDDEN = "[secret]"


def decode(struct: struct_pb2.Struct) -> tuple[dict[str, Any], set[str]]:
    """The values of a Struct, and the top-level keys that are or hold secrets."""
    secret: set[str] = set()
    values: dict[str, Any] = {}
    for key, value in struct.fields.items():
        if value.WhichOneof("kind") != "null_value":
            values[key] = _decode(value, functools.partial(secret.add, key))
    return values, secret


def _decode(value: struct_pb2.Value, found_secret: Callable[[], None]) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "string_value":
        return UNKNOWN if value.string_value == UNKNOWN_TEXT else value.string_value
    if kind == "number_value":
        return int(value.number_value) if value.number_value.is_integer() else value.number_value
    if kind == "bool_value":
        return value.bool_value
    if kind == "list_value":
        return [_decode(item, found_secret) for item in value.list_value.values]
    if kind == "struct_value":
        return _decode_struct(value.struct_value, found_secret)
    return None


def _decode_struct(struct: struct_pb2.Struct, found_secret: Callable[[], None]) -> Any:
    fields = struct.fields
    signature = fields[SIGNATURE].string_value if SIGNATURE in fields else None
    if signature == SECRET:
        found_secret()
        return _decode(fields["value"], found_secret)
    if signature == _RESOURCE:
        return fields["id"].string_value or fields["urn"].string_value
    items = {key: _decode(value, found_secret) for key, value in fields.items()}
    return {key: value for key, value in items.items() if value is not None}


def encode(values: Mapping[str, Any], secret: Collection[str] = ()) -> struct_pb2.Struct:
    """A Struct of plain values; those under a key in `secret` are marked as secret."""
    fields = {key: _encode(value) for key, value in values.items()}
    for key in set(secret) & set(fields):
        marked = {SIGNATURE: struct_pb2.Value(string_value=SECRET), "value": fields[key]}
        fields[key] = struct_pb2.Value(struct_value=struct_pb2.Struct(fields=marked))
    return struct_pb2.Struct(fields=fields)


def _encode(value: Any) -> struct_pb2.Value:
    if value is UNKNOWN:
        return struct_pb2.Value(string_value=UNKNOWN_TEXT)
    if value is None:
        return struct_pb2.Value(null_value=struct_pb2.NULL_VALUE)
    if isinstance(value, bool):
        return struct_pb2.Value(bool_value=value)
    if isinstance(value, (int, float)):
        return struct_pb2.Value(number_value=value)
    if isinstance(value, str):
        return struct_pb2.Value(string_value=value)
    if isinstance(value, list):
        return struct_pb2.Value(list_value=struct_pb2.ListValue(values=[_encode(item) for item in value]))
    return struct_pb2.Value(struct_value=encode(value))


def shown(values: Mapping[str, Any], secret: Collection[str], *, unknown: str = UNKNOWN_TEXT) -> dict[str, Any]:
    """Values for JSON that leaves this process: secrets masked, and a text for what is not known."""
    return {key: HIDDEN if key in secret else _known(value, unknown) for key, value in values.items()}


def _known(value: Any, unknown: str) -> Any:
    if value is UNKNOWN:
        return unknown
    if isinstance(value, Mapping):
        return {key: _known(item, unknown) for key, item in value.items()}
    return [_known(item, unknown) for item in value] if isinstance(value, list) else value
