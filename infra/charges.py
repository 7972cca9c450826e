"""What is paid for: from the resources that a preview declares, and an endpoint's plan, to metered charges."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from infra.cli import WRONG_USE, UserError
from infra.prices import LOW_PRIORITY

if TYPE_CHECKING:
    from pulumi.automation import EngineEvent

# Declared, and without a meter: learn.microsoft.com/entra/identity/managed-identities-azure-resources/overview,
# learn.microsoft.com/azure/role-based-access-control/overview, azure.microsoft.com/pricing/details/machine-learning;
# what lies in a Cosmos DB account is paid for with the account.
UNMETERED = frozenset(
    {
        "resources:ResourceGroup",
        "managedidentity:UserAssignedIdentity",
        "managedidentity:FederatedIdentityCredential",
        "authorization:RoleAssignment",
        "consumption:Budget",
        "machinelearningservices:Workspace",
        "cosmosdb:SqlResourceSqlDatabase",
        "cosmosdb:SqlResourceSqlContainer",
        "cosmosdb:SqlResourceSqlRoleAssignment",
    }
)
SERVERLESS = "EnableServerless"
HOURS_A_MONTH = 730  # as Azure's own calculator counts
PLAN = '[{"instance_type": "Standard_NC24ads_A100_v4", "instance_count": 1}]'
When = Literal["always", "busy", "deployed", "usage"]


@dataclass(frozen=True)
class Resource:
    """One resource of a preview."""

    type: str
    name: str
    inputs: Mapping[str, Any]


@dataclass(frozen=True)
class Charge:
    """`count` units of a meter: always, in each hour that nodes are busy or instances are deployed, or by use."""

    resource: str
    meter: str
    when: When
    count: int = 1


# --- the preview ----------------------------------------------------------------------------------------------------


def resources(events: Iterable[EngineEvent]) -> list[Resource]:
    """What would be there after the previewed update."""
    found: dict[str, Resource] = {}
    for event in events:
        step = event.resource_pre_event
        if step is not None and step.metadata.new is not None and step.metadata.new.inputs is not None:
            one = step.metadata
            found[one.urn] = Resource(one.type, one.urn.rsplit("::", 1)[-1], step.metadata.new.inputs)
    return list(found.values())


def charges(resource: Resource) -> Iterator[Charge]:
    """What a resource costs by; the meter of an unknown type is the type itself, which no price file has."""
    kind, inputs, name = plain_type(resource.type), resource.inputs, resource.name
    if kind in UNMETERED or ":" not in kind:
        return
    match kind:
        case "machinelearningservices:Compute":
            yield from _cluster(name, inputs)
        case "containerregistry:Registry":
            yield Charge(name, f"container-registry/{_sku(inputs)}", "always")
        case "storage:StorageAccount":
            yield Charge(name, f"storage/{_sku(inputs)}", "usage")
        case "operationalinsights:Workspace" | "applicationinsights:Component":
            yield Charge(name, "log-analytics", "usage")
        case "keyvault:Vault":
            yield Charge(name, f"key-vault/{_sku(inputs.get('properties') or {})}", "usage")
        case "cosmosdb:DatabaseAccount" if SERVERLESS in [one.get("name") for one in inputs.get("capabilities") or []]:
            yield Charge(name, "cosmos-db/serverless", "usage")
            yield Charge(name, "cosmos-db/storage", "usage")
        case _:
            yield Charge(name, kind, "always")


def shared_registry(found: Iterable[Resource]) -> str | None:
    """The name of the container registry that the workspace uses and this stack does not pay for."""
    by_kind = {plain_type(one.type): one for one in found}
    workspace = by_kind.get("machinelearningservices:Workspace")
    if workspace is None or "containerregistry:Registry" in by_kind:
        return None
    return str(workspace.inputs.get("containerRegistry") or "").rpartition("/")[2] or None


def plain_type(token: str) -> str:
    """`azure-native:storage/v20240101:StorageAccount` → `storage:StorageAccount`; others' → without a colon."""
    package, _, rest = token.partition(":")
    if package != "azure-native":
        return ""
    module, _, name = rest.partition(":")
    return f"{module.split('/')[0]}:{name}"


def _sku(inputs: Mapping[str, Any]) -> Any:
    return (inputs.get("sku") or {}).get("name")


def _cluster(name: str, inputs: Mapping[str, Any]) -> Iterator[Charge]:
    inner = (inputs.get("properties") or {}).get("properties") or {}
    scale = inner.get("scaleSettings") or {}
    least, most = int(scale.get("minNodeCount") or 0), int(scale.get("maxNodeCount") or 0)
    meter = vm(inner.get("vmSize"), low_priority=inner.get("vmPriority") == "LowPriority")
    if least:
        yield Charge(name, meter, "always", least)
    if most > least:
        yield Charge(name, meter, "busy", most - least)


def vm(size: Any, *, low_priority: bool = False) -> str:
    """The meter of a VM size."""
    return f"vm/{size}{LOW_PRIORITY if low_priority else ''}"


def has_gpu(meter: str) -> bool:
    """Whether a VM size is of a family with GPUs: NC, ND, NG, NV.

    https://learn.microsoft.com/azure/virtual-machines/sizes/overview
    """
    return re.match(r"vm/standard_n[cdgv]\d", meter, re.IGNORECASE) is not None


# --- the endpoint's plan --------------------------------------------------------------------------------------------


def endpoint_plan(text: str | None) -> list[Charge]:
    """The instances that an endpoint will keep. Raises UserError for anything but the JSON that the help shows."""
    if not text:
        return []
    try:
        held = json.loads(text if text.lstrip()[:1] in ("[", "{") else Path(text).read_text())
    except OSError as error:
        raise _wrong_plan(f"{text} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise _wrong_plan(f"it is not JSON: {error}") from None
    return [_instances(row) for row in (held if isinstance(held, list) else [held])]


def _instances(row: Any) -> Charge:
    if not isinstance(row, dict):
        raise _wrong_plan(f"{json.dumps(row)} is not an object")
    size, count = row.get("instance_type"), row.get("instance_count")
    if not isinstance(size, str) or not size:
        raise _wrong_plan(f"`instance_type` is {json.dumps(size)}, and has to be a VM size")
    if type(count) is not int or count < 1:  # bool is an int too
        raise _wrong_plan(f"`instance_count` is {json.dumps(count)}, and has to be a whole number from 1")
    return Charge("endpoint", vm(size), "deployed", count)


def _wrong_plan(reason: str) -> UserError:
    return UserError(f"the endpoint's plan: {reason}", next_command=f"--endpoint-plan '{PLAN}'", code=WRONG_USE)
