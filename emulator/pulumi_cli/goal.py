"""What the program wants of a resource, and what the engine does about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from emulator.pulumi_cli.state import Resource
from emulator.pulumi_provider.changes import Kind

Values = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """One thing done to a resource, or in a preview one that would be done.

    op: same, create, update, replace, delete, delete-replaced, read, refresh: Pulumi's own words.
    paths: each property that differs, and how. `old` and `new` are the resource before and after.
    """

    op: str
    old: Resource | None
    new: Resource | None
    paths: Mapping[str, Kind] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def resource(self) -> Resource:
        found = self.new or self.old
        assert found is not None, "a step is about a resource"
        return found

    @property
    def changed(self) -> list[str]:
        """The arguments that differ."""
        return list(dict.fromkeys(path.split(".")[0].split("[")[0] for path in self.paths))


@dataclass
class Goal:
    """What the program wants of one resource. `aliases` are the URNs that it may have had before."""

    urn: str
    type: str
    name: str
    custom: bool
    parent: str
    inputs: Values
    dependencies: list[str]
    property_dependencies: dict[str, list[str]]
    secrets: set[str] = field(default_factory=set)
    protect: bool = False
    retain_on_delete: bool = False
    deleted_with: str = ""
    delete_before_replace: bool | None = None
    ignore_changes: list[str] = field(default_factory=list)
    replace_on_changes: list[str] = field(default_factory=list)
    aliases: list[str] = field(default_factory=list)

    def resource(self, inputs: Values, identifier: str = "", outputs: Values | None = None) -> Resource:
        """The resource that follows this goal."""
        return Resource(
            self.urn,
            self.type,
            self.name,
            self.custom,
            identifier,
            self.parent,
            inputs,
            outputs or {},
            self.dependencies,
            self.property_dependencies,
            self.protect,
            self.retain_on_delete,
            self.deleted_with,
            self.replace_on_changes,
            sorted(self.secrets),
        )
