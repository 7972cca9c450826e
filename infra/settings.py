"""The only reader of Pulumi's configuration: from text to checked, frozen values.

Types and defaults are declared in Pulumi.yaml and enforced by the engine before the program starts. What is left to
check here is what one key's type cannot say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, cast

import pulumi

from infra.cli import UserError
from infra.naming import compute_name_problem

DatastoreAuth = Literal["Identity", "AccessKey"]
DeployerType = Literal["User", "Group", "ServicePrincipal"]


@dataclass(frozen=True)
class Compute:
    """The GPU cluster."""

    name: str
    size: str
    max_nodes: int
    idle_minutes: int
    low_priority: bool


@dataclass(frozen=True)
class Deployer:
    """Who uploads data from outside Azure."""

    principal_id: str
    principal_type: DeployerType


@dataclass(frozen=True)
class Settings:
    """Everything that a stack's configuration decides."""

    project: str
    stack: str
    location: str
    workload: str
    owner: str
    cost_center: str
    datastore_auth: DatastoreAuth
    deployer: Deployer | None
    compute: Compute

    @property
    def tags(self) -> dict[str, str]:
        """The tags of every resource."""
        return {"project": self.project, "stack": self.stack, "owner": self.owner, "cost-center": self.cost_center}


def load() -> Settings:
    """The selected stack's settings. Raises UserError naming the key and an allowed value."""
    config = pulumi.Config()
    location = _matching(config, "location", r"[a-z][a-z0-9]+", "a region's name such as eastus2")
    workload = _matching(config, "workload", r"[a-z][a-z0-9]{1,7}", "2-8 lower-case letters and digits, such as phi")
    return Settings(
        project=pulumi.get_project(),
        stack=pulumi.get_stack(),
        location=location,
        workload=workload,
        owner=config.require("owner"),
        cost_center=config.require("costCenter"),
        datastore_auth=cast(DatastoreAuth, _one_of(config, "datastoreAuth", ["Identity", "AccessKey"])),
        deployer=_deployer(config),
        compute=_compute(config),
    )


def _compute(config: pulumi.Config) -> Compute:
    name = config.require("computeName")
    if problem := compute_name_problem(name):
        raise _refused("computeName", name, f"{problem}, such as gpu-cluster")
    return Compute(
        name=name,
        size=_matching(config, "computeSize", r"Standard_\w+", "a VM size such as Standard_NC24ads_A100_v4"),
        max_nodes=_between(config, "computeMaxNodes", 1, 100),
        idle_minutes=_between(config, "computeIdleMinutes", 1, 1440),
        low_priority=config.require_bool("computeLowPriority"),
    )


def _deployer(config: pulumi.Config) -> Deployer | None:
    kind = _one_of(config, "deployerType", ["User", "Group", "ServicePrincipal"])
    principal = config.get("deployer") or ""
    if not principal:
        return None
    if not re.fullmatch(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", principal):
        raise _refused("deployer", principal, "an object id: az ad signed-in-user show --query id -o tsv")
    return Deployer(principal, cast(DeployerType, kind))


def _matching(config: pulumi.Config, key: str, pattern: str, allowed: str) -> str:
    value = config.require(key)
    if not re.fullmatch(pattern, value):
        raise _refused(key, value, allowed)
    return value


def _one_of(config: pulumi.Config, key: str, allowed: Iterable[str]) -> str:
    value = config.require(key)
    if value not in allowed:
        raise _refused(key, value, " or ".join(allowed))
    return value


def _between(config: pulumi.Config, key: str, least: int, most: int) -> int:
    value = config.require_int(key)
    if not least <= value <= most:
        raise _refused(key, str(value), f"a number from {least} to {most}")
    return value


def _refused(key: str, value: str, allowed: str) -> UserError:
    return UserError(
        f"the configuration key `{key}` cannot be {value!r}: allowed is {allowed}",
        next_command=f"pulumi config set {key} VALUE",
    )
