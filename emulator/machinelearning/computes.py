"""Compute clusters, the sizes that exist, and quota.

Sizes and GPU counts: learn.microsoft.com/azure/virtual-machines/sizes (families NCadsA100v4, NCadsH100v5, NDasrA100v4,
NCasT4v3, DSv2, Esv3, Fsv2).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from emulator.arm.ids import ResourceId
from emulator.arm.operations import ML, Operations
from emulator.arm.resources import Arm, json_body
from emulator.arm.schema import ArmError, Body
from emulator.machinelearning import shapes

COMPUTE = f"{ML}/workspaces/computes"

# name: (family, vCPUs, GPUs, memory in GB)
SIZES = {
    "Standard_NC24ads_A100_v4": ("standardNCADSA100v4Family", 24, 1, 220.0),
    "Standard_NC48ads_A100_v4": ("standardNCADSA100v4Family", 48, 2, 440.0),
    "Standard_NC96ads_A100_v4": ("standardNCADSA100v4Family", 96, 4, 880.0),
    "Standard_NC40ads_H100_v5": ("standardNCadsH100v5Family", 40, 1, 320.0),
    "Standard_NC80adis_H100_v5": ("standardNCadsH100v5Family", 80, 2, 640.0),
    "Standard_ND96asr_v4": ("standardNDASv4Family", 96, 8, 900.0),
    "Standard_ND96amsr_A100_v4": ("standardNDAMSv4Family", 96, 8, 1900.0),
    "Standard_NC4as_T4_v3": ("standardNCAST4v3Family", 4, 1, 28.0),
    "Standard_NC16as_T4_v3": ("standardNCAST4v3Family", 16, 1, 110.0),
    "Standard_NC6s_v3": ("standardNCSv3Family", 6, 1, 112.0),
    "Standard_D4ds_v5": ("standardDDSv5Family", 4, 0, 16.0),
    "Standard_DS3_v2": ("standardDSv2Family", 4, 0, 14.0),
    "Standard_E4s_v3": ("standardESv3Family", 4, 0, 32.0),
    "Standard_E16s_v3": ("standardESv3Family", 16, 0, 128.0),
    "Standard_F4s_v2": ("standardFSv2Family", 4, 0, 8.0),
    "Standard_F8s_v2": ("standardFSv2Family", 8, 0, 16.0),
}
SERVICE = f"{ML}/computeOperation"
JOB = f"{ML}/workspaces/jobs"
NODES = ("currentNodeCount", "targetNodeCount", "nodeStateCounts")
STATES = ("preparing", "running", "idle", "unusable", "leaving", "preempted")
COUNTS = [f"{state}NodeCount" for state in STATES]
# What a job's nodes are doing, by its status.
BUSY = {
    "Preparing": "preparingNodeCount",
    **dict.fromkeys(("Running", "Finalizing", "CancelRequested"), "runningNodeCount"),
}
IGNORED = ("vmSize", "vmPriority", "subnet", "osType")  # when a cluster is changed
QUOTA = 200  # vCPUs per family
TOTALS = ("Total Cluster Dedicated Regional vCPUs", "Total Cluster Low Priority Regional vCPUs")
TOTAL_QUOTA = 1000  # vCPUs of all families together


class Computes:
    def __init__(self, arm: Arm, operations: Operations) -> None:
        self._arm, self._state, self._operations = arm, arm.state, operations
        arm.on("PUT", COMPUTE, self.put)
        arm.on("GET", COMPUTE, self.get)
        arm.on("DELETE", COMPUTE, self.delete)
        arm.on("GET", f"{ML}/locations/vmSizes", self.sizes)
        arm.on("GET", f"{ML}/locations/usages", self.usages)
        arm.on("GET", "Microsoft.Compute/skus", self.skus)

    async def put(self, request: Request, rid: ResourceId) -> Response:
        body, before = self._arm.check(rid, await json_body(request))
        self._check_cluster(body["properties"])
        inner = body["properties"]["properties"]
        if before is not None:
            self._keep(inner, before["properties"]["properties"], IGNORED)
        with self._state.transaction():
            stored, created = self._arm.save(rid, shapes.filled({"tags": {}}, body), before)
            stored["properties"] = _described(stored, before)
            self._state.put(str(rid), stored, parent=rid.parent)
        unknown = {**stored["properties"]["properties"], **dict.fromkeys((*NODES, "allocationState"))}
        going = {**stored, "properties": {**stored["properties"], "properties": unknown}}
        return self._arm.answer(rid, going, created, service=SERVICE)

    async def get(self, request: Request, rid: ResourceId) -> Response:
        """One, or all of the workspace, with the nodes that are busy at this moment."""
        if not rid.is_collection:
            return JSONResponse(self._with_nodes(self._arm.existing(rid)))
        self._arm.check_parent(rid)
        return JSONResponse({"value": [self._with_nodes(one) for one in self._arm.listed(rid)]})

    def _with_nodes(self, compute: Body) -> Body:
        """Azure brings nodes up for jobs that wait, and keeps them a while; here they come and go with the jobs."""
        inner = compute["properties"]["properties"]
        counts = dict.fromkeys(COUNTS, 0)
        for job in self._state.children(compute["id"].rsplit("/computes/", 1)[0], JOB):
            if str(job["properties"].get("computeId")).lower() == compute["id"].lower():
                nodes = int((job["properties"].get("resources") or {}).get("instanceCount") or 1)
                if state := BUSY.get(job["properties"]["status"]):
                    counts[state] += nodes
        busy = counts["preparingNodeCount"] + counts["runningNodeCount"]
        counts["idleNodeCount"] = max(0, int(inner["scaleSettings"].get("minNodeCount") or 0) - busy)
        present = busy + counts["idleNodeCount"]
        inner |= {"currentNodeCount": present, "targetNodeCount": present, "nodeStateCounts": counts}
        return compute

    @staticmethod
    def _keep(wanted: Body, held: Body, names: Iterable[str]) -> None:
        """Let what exists win: Azure accepts another size, priority, subnet or system, and ignores it."""
        for name in names:
            wanted.pop(name, None)
            if name in held:
                wanted[name] = held[name]

    @staticmethod
    def _check_cluster(properties: Body) -> None:
        if (kind := properties["computeType"]).lower() != "amlcompute":
            raise ArmError(400, "UserError", f"Computes of type '{kind}' are not emulated; 'AmlCompute' is.")
        inner = properties.get("properties") or {}
        size = inner.get("vmSize", "")
        if size.lower() not in [name.lower() for name in SIZES]:
            raise ArmError(400, "BadRequest", f"Specified VM size '{size}' is not supported in this region.")
        scale = inner.get("scaleSettings") or {}
        least, most = scale.get("minNodeCount") or 0, scale.get("maxNodeCount")
        if most is None or least > most:
            raise ArmError(
                400, "BadRequest", "scaleSettings.maxNodeCount is required and must not be below minNodeCount."
            )

    async def delete(self, request: Request, rid: ResourceId) -> Response:
        self._arm.check_parent(rid)
        found = self._state.get(str(rid))
        if found is None:
            return Response(status_code=204)
        ended = self._arm.remove(str(rid))
        return Response(status_code=202, headers=self._operations.start(found["location"], ended, service=SERVICE))

    async def sizes(self, request: Request, rid: ResourceId) -> Response:
        keys = ("name", "family", "vCPUs", "gpus", "memoryGB")
        value = [dict(zip(keys, (name, *rest), strict=True)) for name, rest in SIZES.items()]
        common = {"osVhdSizeMB": 1047552, "maxResourceVolumeMB": 0, "lowPriorityCapable": True, "premiumIO": True}
        return JSONResponse({"value": [{**size, **common} for size in value]})

    async def usages(self, request: Request, rid: ResourceId) -> Response:
        """Quota by family and in all. Nothing counts as used: the emulator's nodes are processes of this machine."""
        limits = {family: QUOTA for family, *_ in SIZES.values()} | {total: TOTAL_QUOTA for total in TOTALS}
        value = [
            {
                "id": f"{rid.scope}/providers/{ML}/locations/{rid.names[0]}/usages/{name.replace(' ', '')}",
                "type": f"{ML}/usages",
                "unit": "Count",
                "currentValue": 0,
                "limit": limit,
                "name": {"value": name, "localizedValue": name},
            }
            for name, limit in limits.items()
        ]
        return JSONResponse({"value": value})

    async def skus(self, request: Request, rid: ResourceId) -> Response:
        """The same sizes as virtual machines, none kept from anybody, in the location that `$filter` names."""
        named = re.search(r"location eq '(\w+)'", request.query_params.get("$filter", ""))
        common = {"resourceType": "virtualMachines", "locations": [named[1]] if named else [], "restrictions": []}
        value = [
            {
                "name": name,
                "family": family,
                "capabilities": [{"name": "vCPUs", "value": str(cores)}, {"name": "GPUs", "value": str(gpus)}],
                **common,
            }
            for name, (family, cores, gpus, _) in SIZES.items()
        ]
        return JSONResponse({"value": value})


def _described(compute: Body, before: Body | None) -> Body:
    """A compute's properties as Azure answers them; the password of its nodes' user is never among them."""
    now = datetime.now(UTC).isoformat()
    held = (before or {}).get("properties") or {}
    inner = shapes.filled(shapes.CLUSTER, compute["properties"]["properties"])
    scale = {"minNodeCount": 0, "nodeIdleTimeBeforeScaleDown": "PT120S"}
    inner["scaleSettings"] = shapes.filled(scale, inner["scaleSettings"])
    if user := inner.get("userAccountCredentials"):
        inner["userAccountCredentials"] = {**user, "adminUserPassword": None}
    since = (held.get("properties") or {}).get("allocationStateTransitionTime", now)
    inner |= {"allocationState": "Steady", "allocationStateTransitionTime": since}
    made = {"createdOn": held.get("createdOn", now), "modifiedOn": now, "computeLocation": compute["location"]}
    return {**shapes.filled(shapes.COMPUTE, compute["properties"]), **made, "properties": inner}
