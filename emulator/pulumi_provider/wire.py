"""Values between the program (protobuf Structs) and the engine (plain Python, UNKNOWN for what is not known).

The signatures are Pulumi's own: https://github.com/pulumi/pulumi/blob/master/sdk/go/common/resource/properties.go
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import struct_pb2  # type: ignore[import-untyped]

from emulator.pulumi_provider.values import UNKNOWN

_SIGNATURE = "4dabf18193072939515e22adb298388d"
_SECRET = "1b47061264138c4ac30d75fd1eb44270"
_RESOURCE = "5cf8f73096256a8f31e491e813e4eb8e"
_UNKNOWN_TEXT = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"


def decode(struct: struct_pb2.Struct) -> tuple[dict[str, Any], set[str]]:
    """The values of a Struct, and the top-level keys that are or hold secrets."""
    secret: set[str] = set()
    values: dict[str, Any] = {}
    for key, value in struct.fields.items():
        if value.WhichOneof("kind") != "null_value":
            values[key] = _decode(value, lambda key=key: secret.add(key))
    return values, secret


def _decode(value: struct_pb2.Value, found_secret: Any) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "string_value":
        return UNKNOWN if value.string_value == _UNKNOWN_TEXT else value.string_value
    if kind == "number_value":
        return int(value.number_value) if value.number_value.is_integer() else value.number_value
    if kind == "bool_value":
        return value.bool_value
    if kind == "list_value":
        return [_decode(item, found_secret) for item in value.list_value.values]
    if kind == "struct_value":
        return _decode_struct(value.struct_value, found_secret)
    return None


def _decode_struct(struct: struct_pb2.Struct, found_secret: Any) -> Any:
    fields = struct.fields
    signature = fields[_SIGNATURE].string_value if _SIGNATURE in fields else None
    if signature == _SECRET:
        found_secret()
        return _decode(fields["value"], found_secret)
    if signature == _RESOURCE:
        return fields["id"].string_value or fields["urn"].string_value
    items = {key: _decode(value, found_secret) for key, value in fields.items()}
    return {key: value for key, value in items.items() if value is not None}


def encode(values: Mapping[str, Any]) -> struct_pb2.Struct:
    """A Struct of plain values."""
    return struct_pb2.Struct(fields={key: _encode(value) for key, value in values.items()})


def _encode(value: Any) -> struct_pb2.Value:
    if value is UNKNOWN:
        return struct_pb2.Value(string_value=_UNKNOWN_TEXT)
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


def shown(value: Any) -> Any:
    """`value` for JSON that a person reads: what is not known yet as the text that Pulumi prints."""
    if value is UNKNOWN:
        return "output<string>"
    if isinstance(value, Mapping):
        return {key: shown(item) for key, item in value.items()}
    return [shown(item) for item in value] if isinstance(value, list) else value
