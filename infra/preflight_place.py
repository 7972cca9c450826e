"""Where the doctor looks: the subscription and, once it is there, the stack's group."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from infra.arm import Arm

if TYPE_CHECKING:
    from infra.settings import Compute, Settings

DIGITS = r"[0-9a-f]{8}"  # what the provider puts at the end of a name


@dataclass(frozen=True)
class Place:
    """Where the stack goes: `base` is the subscription's path."""

    arm: Arm
    base: str
    settings: Settings

    @cached_property
    def group(self) -> str | None:
        """The stack's resource group, if it is there already."""
        from infra.naming import Names

        prefix = Names.of(self.settings.workload, self.settings.stack).resource_group
        groups = self.arm.list(f"{self.base}/resourcegroups", "2021-04-01")
        own = [str(one["id"]) for one in groups if re.fullmatch(re.escape(prefix) + DIGITS, one["name"])]
        return own[0] if len(own) == 1 else None

    @property
    def scope(self) -> str:
        """Whoever may do all in the stack's group need not own the subscription."""
        return self.group or self.base

    @property
    def clusters(self) -> dict[str, Compute]:
        """By the prefix of their configuration's keys."""
        both = {"compute": self.settings.compute, "cpu": self.settings.cpu}
        return {key: one for key, one in both.items() if one}
