"""Values as a provider sees them: JSON values, and the one mark for what a preview cannot know yet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final


class Unknown:
    """The type of UNKNOWN; a singleton, so that `is` and `==` agree."""

    def __repr__(self) -> str:
        return "<unknown>"

    def __deepcopy__(self, _: object) -> Unknown:
        return self


UNKNOWN: Final = Unknown()

# How Pulumi marks a value that is more than it looks like, here one that is secret:
# https://github.com/pulumi/pulumi/blob/master/sdk/go/common/resource/properties.go
SIGNATURE: Final = "4dabf18193072939515e22adb298388d"
SECRET: Final = "1b47061264138c4ac30d75fd1eb44270"


def has_unknown(value: Any) -> bool:
    """Whether `value` is, or holds anywhere inside, a value that is not known yet."""
    if value is UNKNOWN:
        return True
    if isinstance(value, Mapping):
        return any(has_unknown(item) for item in value.values())
    return isinstance(value, list) and any(has_unknown(item) for item in value)
