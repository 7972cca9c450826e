"""The cluster that a job is to run on: nodes, GPUs, quota and price, asked before anything is uploaded.

    computes/NAME      the VM size, the most nodes, whether their capacity is spare (low priority)
    vmSizes, usages    GPUs and cores of that size; how many cores the subscription may use, and does

Read through azure-ai-ml. In its version 1.35 the objects keep Azure's own spelling (`currentValue`, `vCPUs`) and answer
None under the documented name, on which a check of the quota would pass without a word: both are looked for here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra import prices
from infra.cli import WRONG_USE, UserError, say
from infra.outputs import StackOutputs
from training.azure_faults import is_workspace_gone
from training.recipe import AnyRecipe

if TYPE_CHECKING:
    from azure.ai.ml import MLClient

MORE_QUOTA = "ask for more at https://ml.azure.com/quota"


@dataclass(frozen=True)
class Cluster:
    """A cluster's name and what its nodes are. `gpus` and `cores` are of one node."""

    name: str
    size: str
    gpus: int
    cores: int
    family: str
    max_nodes: int
    low_priority: bool
    location: str

    @property
    def price(self) -> tuple[float, str] | None:
        """Of a node for an hour, and the currency; None if it is not known."""
        known = prices.read()
        found = known.price(f"vm/{self.size}{prices.LOW_PRIORITY if self.low_priority else ''}", self.location)
        return (found.amount, known.currency) if found else None

    def processes(self, recipe: AnyRecipe) -> int:
        """Of the job on one node: what the recipe says, else one for each GPU that it trains on."""
        return recipe.job.process_count_per_instance or (max(1, self.gpus) if recipe.job.compute == "gpu" else 1)


def chosen_name(recipe: AnyRecipe, outputs: StackOutputs) -> str:
    """The cluster's name. Raises UserError, exit code 2, if the stack has none of the kind that the recipe needs."""
    if recipe.job.compute == "gpu":
        return outputs.compute
    if not outputs.cpu_compute and recipe.job.compute == "cpu":
        raise UserError(
            f"the recipe {recipe.name} runs on a CPU cluster, and the stack {outputs.stack} has none",
            next_command=f"pulumi config set cpuMaxNodes 1 --stack {outputs.stack} && make up STACK={outputs.stack}",
            code=WRONG_USE,
        )
    return outputs.cpu_compute or outputs.compute


def find(client: MLClient, recipe: AnyRecipe, outputs: StackOutputs) -> Cluster:
    """The cluster for a recipe, fit for it, with its quota checked.

    Raises:
        UserError: the stack has no such cluster, its nodes have no GPU or too few, or no quota lets them start.
    """
    from azure.core.exceptions import ResourceNotFoundError

    name = chosen_name(recipe, outputs)
    try:
        found = client.compute.get(name)
    except ResourceNotFoundError as error:
        if is_workspace_gone(error, outputs):
            raise
        raise UserError(
            f"the workspace {outputs.workspace} has no cluster {name!r}, which the stack {outputs.stack} made",
            next_command=f"make up STACK={outputs.stack}",
        ) from None
    size = str(_field(found, "size") or "")
    nodes = {str(one.name).lower(): one for one in client.compute.list_sizes(location=outputs.location)}.get(
        size.lower()
    )
    cluster = Cluster(
        name=name,
        size=size,
        gpus=int(_field(nodes, "gpus") or 0),
        cores=int(_field(nodes, "v_cp_us", "vCPUs") or 0),
        family=str(_field(nodes, "family") or ""),
        max_nodes=int(_field(found, "max_instances") or 0),
        low_priority="low" in str(_field(found, "tier") or "").lower(),
        location=outputs.location,
    )
    if nodes is None:
        say(f"note: Azure lists no size {size} in {outputs.location}: GPUs and quota are not checked")
        return cluster
    _check_nodes(cluster, recipe, outputs)
    _check_quota(client, cluster, recipe)
    return cluster


def _field(of: Any, *names: str) -> Any:
    """The first of these that is there and not None; see the module's text."""
    return next((value for name in names if (value := getattr(of, name, None)) is not None), None)


def _check_nodes(cluster: Cluster, recipe: AnyRecipe, outputs: StackOutputs) -> None:
    change = f"pulumi config set {{}} --stack {outputs.stack} && make up STACK={outputs.stack}"
    if recipe.job.instance_count > cluster.max_nodes:
        raise UserError(
            f"the recipe {recipe.name} wants {recipe.job.instance_count} nodes (instance_count), and {cluster.name} "
            f"grows to {cluster.max_nodes}",
            next_command=change.format(f"computeMaxNodes {recipe.job.instance_count}"),
        )
    if recipe.job.compute != "gpu":
        return
    if cluster.gpus == 0:
        raise UserError(
            f"the recipe {recipe.name} needs a GPU, and the nodes of {cluster.name} ({cluster.size}) have none",
            next_command=change.format("computeSize Standard_NC24ads_A100_v4") + ", or --recipe cpu-minimal",
        )
    if recipe.job.process_count_per_instance > cluster.gpus:
        raise UserError(
            f"the recipe {recipe.name} starts {recipe.job.process_count_per_instance} processes on a node "
            f"(process_count_per_instance), and {cluster.size} has {cluster.gpus} GPUs: each process needs its own",
            next_command="--set process_count_per_instance=0   (as many as there are GPUs)",
            code=WRONG_USE,
        )


def _check_quota(client: MLClient, cluster: Cluster, recipe: AnyRecipe) -> None:
    """Azure ML's own quota, which starts at 0 for GPUs: a cluster is created without it, and its jobs wait for ever."""
    usage = _usage(client, cluster)
    what = "low-priority cores" if cluster.low_priority else f"cores of {cluster.family}"
    used, limit = (_field(usage, "current_value", "currentValue"), _field(usage, "limit")) if usage else (None, None)
    if used is None or limit is None:
        say(f"note: Azure lists no quota for {what} in {cluster.location}: it is not checked")
        return
    nodes = recipe.job.instance_count
    needed = cluster.cores * nodes
    sum_ = f"{nodes} x {cluster.size} need {needed} {what} in {cluster.location}; the quota is {limit}, {used} in use"
    if int(limit) < needed:
        raise UserError(f"the job could never start: {sum_}", next_command=MORE_QUOTA + ", or --recipe cpu-minimal")
    if int(limit) - int(used) < needed:
        say(f"note: the job waits until cores are given back: {sum_}")


def _usage(client: MLClient, cluster: Cluster) -> Any:
    """The subscription's row for the cluster's VM family; rows of single workspaces stand beside it."""
    wanted = "lowpriority" if cluster.low_priority else _plain(cluster.family)
    for row in client.compute.list_usage(location=cluster.location):
        if "/workspaces/" in str(row.id or "").lower():
            continue
        name = row.name if isinstance(row.name, dict) else vars(row.name)
        shown = [_plain(str(text)) for text in name.values() if text]
        if any(wanted in one if cluster.low_priority else one.startswith(wanted) for one in shown):
            return row
    return None


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())
