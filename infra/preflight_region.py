"""The doctor's questions about the region: which sizes it has, and how many cores Azure ML may use of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from infra.finding import Finding
from infra.preflight_rights import ML

if TYPE_CHECKING:
    from infra.preflight_place import Place
    from infra.settings import Compute

ALL, LOW_TOTAL = "Total Cluster Dedicated Regional", "Total Cluster Low Priority Regional"
WHY_QUOTA = (
    "quota of Azure ML is not that of VMs and starts at 0; the cluster is created, and its first job never starts"
)
ASK_QUOTA = "ask for more: https://ml.azure.com/quota, or another size"


def _sizes(place: Place) -> dict[str, dict[str, Any]]:
    path = f"{place.base}/providers/{ML}/locations/{place.settings.location}/vmSizes"
    answer = place.arm.get(path, "2024-04-01")
    # The reference documents `value`; older API versions answered `amlCompute`.
    listed = answer.get("value") or answer.get("amlCompute") or []
    return {one["name"].lower(): one for one in listed}


def region_size(place: Place) -> Iterator[Finding]:
    offered, location = _sizes(place), place.settings.location
    if not offered:
        what = f"not checked: Azure lists no sizes for {location}"
        repair = "az account list-locations --query [].name"
        yield Finding("region-size", "unknown", what, "the cluster could not be created", repair)
        return
    for key, cluster in place.clusters.items():
        yield _offered(key, cluster, offered, location)


def _offered(key: str, cluster: Compute, offered: Mapping[str, dict[str, Any]], location: str) -> Finding:
    size, why = cluster.size, "the cluster could not be created"
    if size.lower() not in offered:
        gpus = sorted(one["name"] for one in offered.values() if bool(one.get("gpus")) == (key == "compute"))
        repair = f"pulumi config set {key}Size {gpus[0] if gpus else 'SIZE'}, or another location"
        return Finding("region-size", "blocking", f"{size} is not offered in {location}", why, repair)
    if cluster.low_priority and offered[size.lower()].get("lowPriorityCapable") is False:
        repair = "pulumi config set computeLowPriority false"
        return Finding("region-size", "blocking", f"{size} is not offered at low priority", why, repair)
    return Finding("region-size", "ok", f"{size} is offered in {location}")


def size_restrictions(place: Place) -> Iterator[Finding]:
    """What Azure keeps from this subscription although the region has it.

    https://learn.microsoft.com/azure/azure-resource-manager/troubleshooting/error-sku-not-available
    """
    location = place.settings.location
    query = {"$filter": f"location eq '{location}'"}
    listed = place.arm.list(f"{place.base}/providers/Microsoft.Compute/skus", "2021-07-01", **query)
    kept = {one["name"].lower() for one in listed if any(_is_kept(held) for held in one.get("restrictions") or [])}
    limited = [cluster.size for cluster in place.clusters.values() if cluster.size.lower() in kept]
    for size in limited:
        why = "nodes may never come, although Azure ML lists the size: the region keeps it for others"
        repair = "https://aka.ms/azureskunotavailable, or another size or location"
        yield Finding("size-restrictions", "warning", f"{size} in {location} is not for this subscription", why, repair)
    if not limited:
        yield Finding("size-restrictions", "ok", f"nothing is kept from this subscription in {location}")


def _is_kept(restriction: Mapping[str, Any]) -> bool:
    """A zone alone is no loss: clusters choose none."""
    return (restriction["reasonCode"], restriction["type"]) == ("NotAvailableForSubscription", "Location")


def quota(place: Place) -> Iterator[Finding]:
    """Azure ML's own quota, which starts at 0: of each family, of all families together, and of low priority."""
    sizes = _sizes(place)
    needs: dict[str, dict[str, int]] = {}  # a quota's name: the nodes that draw on it, and their cores
    for cluster in place.clusters.values():
        size, nodes = sizes.get(cluster.size.lower()), f"{cluster.max_nodes} x {cluster.size}"
        if size is None:
            yield Finding("quota", "unknown", f"not checked: {cluster.size} is not offered", WHY_QUOTA, ASK_QUOTA)
            continue
        for name in (LOW_TOTAL,) if cluster.low_priority else (str(size["family"]), ALL):
            needs.setdefault(name, {})[nodes] = int(size["vCPUs"]) * cluster.max_nodes
    rows = place.arm.list(f"{place.base}/providers/{ML}/locations/{place.settings.location}/usages", "2024-04-01")
    for name, cores in needs.items():
        if (row := _row(rows, name)) is not None:
            yield _enough(name, cores, row)
        elif name != ALL:  # an older answer has the families alone
            yield Finding("quota", "unknown", f"not checked: Azure lists no quota of {name}", WHY_QUOTA, ASK_QUOTA)


def _row(rows: list[dict[str, Any]], wanted: str) -> dict[str, Any] | None:
    """The subscription's row; rows of single workspaces stand beside it."""
    for row in rows:
        shown = [_plain(row["name"].get(key) or "") for key in ("value", "localizedValue")]
        own = "/workspaces/" not in str(row.get("id", "")).lower()
        if own and any(one.startswith(_plain(wanted)) for one in shown):
            return row
    return None


def _enough(name: str, cores: Mapping[str, int], row: Mapping[str, Any]) -> Finding:
    needed, limit, used = sum(cores.values()), int(row["limit"]), int(row["currentValue"])
    what = f"{' and '.join(cores)} need {needed} cores of {name}; {limit} are granted, {used} in use"
    if limit < needed:
        return Finding("quota", "blocking", what, WHY_QUOTA, f"{ASK_QUOTA}, or fewer nodes")
    if limit - used < needed:
        return Finding("quota", "warning", what, "jobs wait until others give cores back", ASK_QUOTA)
    return Finding("quota", "ok", what)


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())
