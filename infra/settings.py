"""The only reader of Pulumi's configuration: from text to checked, frozen values.

Types and defaults are declared in Pulumi.yaml and enforced by the engine before the program starts. What is left to
check here is what one key's type cannot say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, cast

import pulumi

from infra.cli import UserError
from infra.naming import compute_name_problem

DatastoreAuth = Literal["Identity", "AccessKey"]
GrantsName = Literal["guide", "least"]
DeployerType = Literal["User", "Group", "ServicePrincipal"]

GUID = r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
REGISTRY_ID = (
    rf"/subscriptions/(?P<subscription>{GUID})/resourceGroups/(?P<group>[-\w.()]{{1,90}})"
    r"/providers/Microsoft\.ContainerRegistry/registries/(?P<name>[a-zA-Z0-9]{5,50})"
)


@dataclass(frozen=True)
class Compute:
    """A cluster."""

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
class SharedRegistry:
    """A container registry that is not this stack's own."""

    id: str
    subscription_id: str
    resource_group: str
    name: str


@dataclass(frozen=True)
class Budget:
    """Amount per month in the billing currency, who is told, and the first day of its first month."""

    amount: int
    emails: tuple[str, ...]
    start: str


@dataclass(frozen=True)
class Lifetime:
    """For which branch and how long an environment is meant; empty and 0 where nothing is said."""

    branch: str
    ttl_hours: int
    expires_on: str


@dataclass(frozen=True)
class Settings:
    """Everything that a stack's configuration decides."""

    project: str
    stack: str
    location: str
    workload: str
    owner: str
    cost_center: str
    grants: GrantsName
    datastore_auth: DatastoreAuth
    deployer: Deployer | None
    compute: Compute
    cpu: Compute | None
    chat_store: bool
    registry: SharedRegistry | None
    github_subject: str
    purge_protection: bool
    budget: Budget | None
    lifetime: Lifetime

    @property
    def tags(self) -> dict[str, str]:
        """The tags of every resource; Azure takes a tag without a value, but it would say nothing."""
        life = self.lifetime
        tags = {
            "project": self.project,
            "stack": self.stack,
            "owner": self.owner,
            "cost-center": self.cost_center,
            "branch": life.branch,
            "ttl-hours": str(life.ttl_hours) if life.ttl_hours else "",
            "expires-on": life.expires_on,
        }
        return {name: value for name, value in tags.items() if value}


def load() -> Settings:
    """The selected stack's settings. Raises UserError naming the key and an allowed value."""
    config = pulumi.Config()
    settings = Settings(
        project=pulumi.get_project(),
        stack=pulumi.get_stack(),
        location=_matching(config, "location", r"[a-z][a-z0-9]+", "a region's name such as eastus2"),
        workload=_matching(config, "workload", r"[a-z][a-z0-9]{1,7}", "2-8 lower-case letters and digits, such as phi"),
        owner=_tag(config, "owner"),
        cost_center=_tag(config, "costCenter"),
        grants=cast(GrantsName, _one_of(config, "grants", ["guide", "least"])),
        datastore_auth=cast(DatastoreAuth, _one_of(config, "datastoreAuth", ["Identity", "AccessKey"])),
        deployer=_deployer(config),
        compute=_gpu_cluster(config),
        cpu=_cpu_cluster(config),
        chat_store=config.require_bool("chatStore"),
        registry=_shared_registry(config),
        github_subject=_optional(
            config, "githubSubject", r"repo:[\w.-]+(@\d+)?/[\w.-]+(@\d+)?:\S+", "repo:OWNER/NAME:environment:dev"
        ),
        purge_protection=config.require_bool("purgeProtection"),
        budget=_budget(config),
        lifetime=_lifetime(config),
    )
    _check_together(settings)
    return settings


def _check_together(settings: Settings) -> None:
    """What each key may say alone, but not beside another."""
    if settings.purge_protection and (settings.lifetime.ttl_hours or settings.lifetime.expires_on):
        raise _refused(
            "purgeProtection", "true", "false while `ttlHours` or `expiresOn` is set: the vault would outlive its stack"
        )
    if settings.grants == "least" and settings.datastore_auth == "AccessKey":
        raise _refused(
            "datastoreAuth", "AccessKey", "Identity while `grants` is least: a key opens more than any role would"
        )
    if settings.cpu and settings.cpu.name.lower() == settings.compute.name.lower():
        raise _refused("cpuName", settings.cpu.name, "another name than `computeName` has, such as cpu-cluster")


def _gpu_cluster(config: pulumi.Config) -> Compute:
    return Compute(
        name=_compute_name(config, "computeName", "gpu-cluster"),
        size=_vm_size(config, "computeSize"),
        max_nodes=_between(config, "computeMaxNodes", 1, 100),
        idle_minutes=_between(config, "computeIdleMinutes", 1, 1440),
        low_priority=config.require_bool("computeLowPriority"),
    )


def _cpu_cluster(config: pulumi.Config) -> Compute | None:
    """It shares the GPU cluster's patience and is never low priority: what a CPU node saves is not worth a restart."""
    nodes = _between(config, "cpuMaxNodes", 0, 100)
    name, size = _compute_name(config, "cpuName", "cpu-cluster"), _vm_size(config, "cpuSize")
    if nodes == 0:
        return None
    return Compute(name, size, nodes, _between(config, "computeIdleMinutes", 1, 1440), low_priority=False)


def _compute_name(config: pulumi.Config, key: str, example: str) -> str:
    name = config.require(key)
    if problem := compute_name_problem(name):
        raise _refused(key, name, f"a name that {problem}, such as {example}")
    return name


def _vm_size(config: pulumi.Config, key: str) -> str:
    return _matching(config, key, r"Standard_\w+", "a VM size such as Standard_NC24ads_A100_v4")


def _deployer(config: pulumi.Config) -> Deployer | None:
    kind = _one_of(config, "deployerType", ["User", "Group", "ServicePrincipal"])
    principal = _optional(
        config, "deployer", GUID, "an object id, as `az ad signed-in-user show --query id -o tsv` prints it"
    )
    return Deployer(principal, cast(DeployerType, kind)) if principal else None


def _shared_registry(config: pulumi.Config) -> SharedRegistry | None:
    value = _optional(
        config, "containerRegistry", REGISTRY_ID, "a whole ARM id, as `az acr show -n NAME --query id -o tsv` prints it"
    )
    found = re.fullmatch(REGISTRY_ID, value)
    return SharedRegistry(value, found["subscription"], found["group"], found["name"]) if found else None


def _budget(config: pulumi.Config) -> Budget | None:
    amount = _between(config, "budgetAmount", 0, 10_000_000)
    emails = config.require_object("budgetEmails")
    start = _optional(
        config, "budgetStart", r"20\d\d-(0[1-9]|1[0-2])-01", "the first day of a month, such as 2026-11-01"
    )
    if not isinstance(emails, list) or not all(re.fullmatch(r"[^@\s]+@[^@\s]+\.[^@\s]+", str(one)) for one in emails):
        raise _refused("budgetEmails", str(emails), 'a list of addresses, such as ["ml-platform@contoso.com"]')
    if amount == 0:
        return None
    if not 1 <= len(emails) <= 50:
        raise _refused("budgetEmails", str(emails), "1 to 50 addresses with `budgetAmount`, else nobody would be told")
    if not start:
        raise _refused("budgetStart", start, "this month's first day with `budgetAmount`, such as 2026-11-01")
    return Budget(amount, tuple(str(one) for one in emails), start)


def _lifetime(config: pulumi.Config) -> Lifetime:
    allowed = "a time in UTC such as 2026-11-30T12:00:00Z"
    expires = _optional(config, "expiresOn", r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", allowed)
    try:
        datetime.fromisoformat(expires or "2026-01-01T00:00:00Z")
    except ValueError:
        raise _refused("expiresOn", expires, allowed) from None
    return Lifetime(_tag(config, "branch"), _between(config, "ttlHours", 0, 24 * 366), expires)


def _tag(config: pulumi.Config, key: str) -> str:
    """A tag's value, which Azure takes up to 256 characters long."""
    value = config.get(key) or ""
    if len(value) > 256:
        raise _refused(key, f"{value[:20]}…", "at most 256 characters")
    return value


def _optional(config: pulumi.Config, key: str, pattern: str, allowed: str) -> str:
    """A value that is empty or matches."""
    value = config.get(key) or ""
    if value and not re.fullmatch(pattern, value):
        raise _refused(key, value, f"{allowed}, or nothing")
    return value


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
