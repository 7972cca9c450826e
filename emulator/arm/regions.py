"""The regions of the subscription, and where a resource may lie.

learn.microsoft.com/azure/reliability/regions-list; the codes are those of
learn.microsoft.com/azure/azure-resource-manager/troubleshooting/common-deployment-errors.
"""

from __future__ import annotations

from emulator.arm.ids import ResourceId
from emulator.arm.schema import ArmError, Body

REGIONS = (
    "australiaeast", "australiasoutheast", "brazilsouth", "canadacentral", "canadaeast", "centralindia", "centralus",
    "eastasia", "eastus", "eastus2", "francecentral", "germanywestcentral", "italynorth", "japaneast", "japanwest",
    "koreacentral", "northcentralus", "northeurope", "norwayeast", "polandcentral", "qatarcentral",
    "southafricanorth", "southcentralus", "southeastasia", "southindia", "spaincentral", "swedencentral",
    "switzerlandnorth", "uaenorth", "uksouth", "ukwest", "westcentralus", "westeurope", "westus", "westus2", "westus3",
)  # fmt: skip


def plain(location: object) -> str:
    """`East US 2` and `eastus2` are one region."""
    return str(location or "").replace(" ", "").lower()


def check(rid: ResourceId, body: Body, before: Body | None) -> None:
    """Raise ArmError for a region that is not there, or that is not the one where the resource lies already."""
    wanted = plain(body.get("location"))
    if not wanted:
        return
    is_group = rid.types == ("resourceGroups",)
    if wanted not in REGIONS:
        what, listed = ("Group", "") if is_group else ("Type", " for the resource type")
        kind = "resource group" if is_group else f"resource type '{rid.type}'"
        message = (
            f"The provided location '{body['location']}' is not available for {kind}. "
            f"List of available regions{listed} is '{','.join(REGIONS)}'."
        )
        raise ArmError(400, f"LocationNotAvailableForResource{what}", message)
    held = plain((before or {}).get("location"))
    if not held or held == wanted:
        return
    if is_group:
        message = f"Invalid resource group location '{wanted}'. The Resource group already exists in location '{held}'."
        raise ArmError(409, "InvalidResourceGroupLocation", message)
    message = (
        f"The resource '{rid.name}' already exists in location '{held}'. "
        f"A resource with the same name cannot be created in location '{wanted}'. Please select a new resource name."
    )
    raise ArmError(409, "InvalidResourceLocation", message)
