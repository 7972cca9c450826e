"""What a stack holds, by its checkpoint: also of one whose update was cut off, or was another version's.

The outputs say less: there are none before the first update has ended.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GROUP, VAULT = "azure-native:resources:ResourceGroup", "azure-native:keyvault:Vault"
WORKSPACE = "azure-native:machinelearningservices:Workspace"
COMPUTE = "azure-native:machinelearningservices:Compute"
LOGS = "azure-native:operationalinsights:Workspace"
ASSIGNMENT = "azure-native:authorization:RoleAssignment"
# Where in ARM a resource without an id is: Pulumi notes what it is about to make with its inputs, names included.
PLACES = {
    GROUP: "/subscriptions/{subscription}/resourceGroups/{resourceGroupName}",
    VAULT: "{group}/providers/Microsoft.KeyVault/vaults/{vaultName}",
    WORKSPACE: "{group}/providers/Microsoft.MachineLearningServices/workspaces/{workspaceName}",
    LOGS: "{group}/providers/Microsoft.OperationalInsights/workspaces/{workspaceName}",
    ASSIGNMENT: "{scope}/providers/Microsoft.Authorization/roleAssignments/{roleAssignmentName}",
}


@dataclass(frozen=True)
class Holdings:
    """Whole ARM ids, and `resources`: how many resources the checkpoint lists. `unfinished` were cut off."""

    resources: int
    groups: tuple[str, ...]
    workspaces: tuple[str, ...]
    vaults: tuple[str, ...]
    logs: tuple[str, ...]
    computes: tuple[str, ...]
    assignments: tuple[str, ...]
    unfinished: tuple[str, ...]

    @classmethod
    def of(cls, deployment: Mapping[str, Any], *, subscription: str | None) -> Holdings:
        """From what `pulumi stack export` gives below `deployment`; `subscription` is where unfinished groups are."""
        made = list(deployment.get("resources") or [])
        begun = [one["resource"] for one in deployment.get("pending_operations") or []]
        found = [(_plain(one["type"]), _id(one, subscription)) for one in [*made, *begun]]

        def of_type(kind: str) -> tuple[str, ...]:
            return tuple(dict.fromkeys(one for held, one in found if held == kind and one))

        return cls(
            resources=len(made),
            groups=of_type(GROUP),
            workspaces=of_type(WORKSPACE),
            vaults=of_type(VAULT),
            logs=of_type(LOGS),
            computes=of_type(COMPUTE),
            assignments=of_type(ASSIGNMENT),
            unfinished=tuple(str(one["urn"]).rsplit("::", 1)[-1] for one in begun),
        )

    @property
    def outside(self) -> tuple[str, ...]:
        """Role assignments that do not go with the stack's groups: on a shared registry, for one."""
        return tuple(one for one in self.assignments if not any(is_below(one, group) for group in self.groups))

    @property
    def is_empty(self) -> bool:
        """Whether nothing in Azure is known of."""
        return not (self.groups or self.workspaces or self.vaults or self.logs or self.assignments)


def is_below(one: str, group: str) -> bool:
    return one.lower().startswith(f"{group}/".lower())


def subscription_of(one: str) -> str:
    return one.split("/")[2]


def name_of(one: str) -> str:
    return one.rsplit("/", 1)[-1]


def group_of(one: str) -> str:
    """The resource group's name in an id below it."""
    return one.split("/")[4]


def _plain(kind: str) -> str:
    """A type without its API version: `azure-native:keyvault/v20230701:Vault`."""
    return re.sub(r"/v\d{8}\w*:", ":", kind)


def _id(resource: Mapping[str, Any], subscription: str | None) -> str | None:
    if held := resource.get("id"):
        return str(held)
    place = PLACES.get(_plain(resource["type"]))
    if place is None or subscription is None:
        return None
    names = {key: one for key, one in (resource.get("inputs") or {}).items() if isinstance(one, str)}
    names["subscription"] = subscription
    try:
        if "{group}" in place:
            names["group"] = PLACES[GROUP].format_map(names)
        return place.format_map(names)
    except KeyError:  # named by Azure and not by Pulumi: nothing that can be asked for
        return None
