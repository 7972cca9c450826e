"""Resource ids, parsed once: learn.microsoft.com/azure/azure-resource-manager/management/resource-name-rules."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ResourceId:
    """A path below Azure Resource Manager that names a resource, a collection of them, or an action on one.

    `scope` is what lies before the last `/providers/`, or the subscription for a resource group.
    """

    scope: str
    namespace: str
    types: tuple[str, ...]
    names: tuple[str, ...]

    @classmethod
    def parse(cls, path: str) -> ResourceId | None:
        parts = [part for part in path.split("/") if part]
        lowered = [part.lower() for part in parts]
        if "providers" in lowered:
            at = len(lowered) - 1 - lowered[::-1].index("providers")
            if len(parts) < at + 3:
                return None
            rest = parts[at + 2 :]
            return cls(_join(parts[:at]), parts[at + 1], tuple(rest[0::2]), tuple(rest[1::2]))
        if (
            len(parts) in (3, 4, 5) and lowered[2] == "resourcegroups"
        ):  # …/resourceGroups/G/resources lists what is in it
            return cls(_join(parts[:2]), "Microsoft.Resources", ("resourceGroups", *parts[4:]), tuple(parts[3:4]))
        return None

    @property
    def is_collection(self) -> bool:
        """Whether the path ends in a type: a list of resources or, with POST, an action."""
        return len(self.types) > len(self.names)

    @property
    def type(self) -> str:
        return "/".join((self.namespace, *self.types))

    @property
    def name(self) -> str:
        return self.names[-1]

    def __str__(self) -> str:
        if self.namespace == "Microsoft.Resources" and self.types[0] == "resourceGroups":
            return "/".join((self.scope, "resourceGroups", *self.names, *self.types[1:]))
        pairs = [part for pair in zip(self.types, self.names, strict=False) for part in pair]
        tail = [self.types[-1]] if self.is_collection else []
        return "/".join((f"{self.scope}/providers/{self.namespace}", *pairs, *tail))

    @property
    def group(self) -> ResourceId | None:
        """The resource group that it lies in; None for a group itself and for what lies in no group."""
        parts = self.scope.split("/")
        return (
            ResourceId.parse("/".join(parts[:5])) if len(parts) > 4 and parts[3].lower() == "resourcegroups" else None
        )

    @property
    def parent(self) -> str:
        """The id of the resource or scope that lists this one."""
        if len(self.types) == 1:
            return self.scope
        return str(ResourceId(self.scope, self.namespace, self.types[:-1], self.names[: len(self.types) - 1]))

    @property
    def action(self) -> tuple[ResourceId, str]:
        """The resource and the action's name, for a POST path such as `…/workspaces/w/listKeys`."""
        return ResourceId(self.scope, self.namespace, self.types[:-1], self.names), self.types[-1]


def scope_of(extension: str) -> str:
    """What a role assignment, a lock or a budget is made on, by its id."""
    return extension[: extension.lower().rindex("/providers/")]


def _join(parts: list[str]) -> str:
    return "/" + "/".join(parts) if parts else ""
