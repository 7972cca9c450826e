"""Values as a provider sees them: JSON values, and the one mark for what a preview cannot know yet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final


class Unknown:
    """The type of UNKNOWN; a singleton, so that `is` and `==` agree."""

    def __repr__(self) -> str:
        return "<unknown>"


UNKNOWN: Final = Unknown()


def has_unknown(value: Any) -> bool:
    """Whether `value` is, or holds anywhere inside, a value that is not known yet."""
    if value is UNKNOWN:
        return True
    if isinstance(value, Mapping):
        return any(has_unknown(item) for item in value.values())
    return isinstance(value, list) and any(has_unknown(item) for item in value)
