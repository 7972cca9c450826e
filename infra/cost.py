"""`python -m infra.cost`: what the stack would cost, from what a preview declares and the checked-in price file.

A price that is not known is named as unpriced and never counted as nothing; a sum with such parts says `at least`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from infra.cli import WRONG_USE, UserError, parser, result, run, say
from infra.prices import LOW_PRIORITY, Prices, read, refresh

if TYPE_CHECKING:
    from pulumi.automation import EngineEvent

HOURS_A_MONTH = 730  # as Azure's own calculator counts
PER_MONTH = {"1 Hour": HOURS_A_MONTH, "1/Day": HOURS_A_MONTH / 24, "1/Month": 1.0}
# Declared, and without a meter: learn.microsoft.com/entra/identity/managed-identities-azure-resources/overview,
# learn.microsoft.com/azure/role-based-access-control/overview, azure.microsoft.com/pricing/details/machine-learning
UNMETERED = frozenset(
    {
        "resources:ResourceGroup",
        "managedidentity:UserAssignedIdentity",
        "managedidentity:FederatedIdentityCredential",
        "authorization:RoleAssignment",
        "consumption:Budget",
        "machinelearningservices:Workspace",
    }
)
When = Literal["always", "busy", "deployed", "usage"]


@dataclass(frozen=True)
class Resource:
    """One resource of a preview."""

    type: str
    name: str
    inputs: Mapping[str, Any]


@dataclass(frozen=True)
class Charge:
    """What is paid for: `count` units of a meter, always, per busy or deployed hour, or by use."""

    resource: str
    meter: str
    when: When
    count: float = 1
    price: float | None = None
    unit: str = ""


def main(argv: list[str]) -> int:
    arguments = _parser().parse_args(argv)
    if arguments.refresh:
        left = refresh(region=arguments.region, currency=arguments.currency, sizes=tuple(arguments.size))
        result({"unpriced": left}, as_json=arguments.json)
        return 0
    plan = endpoint_plan(arguments.endpoint_plan)
    until = _moment(arguments.until, "--until") if arguments.until else None
    from infra import environment

    name, events = environment.previewed(arguments.stack)
    found = {"stack": name, **estimate(resources(events), read(), plan=plan, until=until)}
    if arguments.json:
        result(found, as_json=True)
    else:
        print("\n".join(lines(found)))
    return 0


def _parser() -> argparse.ArgumentParser:
    made = parser("infra.cost", "Price what a preview declares, from the checked-in price file.")
    made.add_argument("--stack", help="the Pulumi stack (default: the selected one)")
    made.add_argument(
        "--endpoint-plan", metavar="JSON", help='[{"instance_type": SIZE, "instance_count": 1}], or a file'
    )
    made.add_argument("--until", metavar="TIME", help="when the stack goes (default: its tag expires-on)")
    made.add_argument("--refresh", action="store_true", help="fill the price file from the Azure Retail Prices API")
    made.add_argument("--region", help="with --refresh: the region (default: the file's)")
    made.add_argument("--currency", help="with --refresh: the currency (default: the file's)")
    made.add_argument("--size", action="append", default=[], help="with --refresh: add a VM size to the file")
    return made


# --- what is declared -----------------------------------------------------------------------------------------------


def resources(events: Iterable[EngineEvent]) -> list[Resource]:
    """What would be there after the previewed update."""
    found: dict[str, Resource] = {}
    for event in events:
        step = event.resource_pre_event
        if step is not None and step.metadata.new is not None and step.metadata.new.inputs is not None:
            one = step.metadata
            found[one.urn] = Resource(one.type, one.urn.rsplit("::", 1)[-1], step.metadata.new.inputs)
    return list(found.values())


def charges(resource: Resource) -> list[Charge]:
    """What a resource costs by; the meter of an unknown type is the type itself, which no price file has."""
    kind, inputs, name = plain_type(resource.type), resource.inputs, resource.name
    if kind in UNMETERED or ":" not in kind:
        return []
    match kind:
        case "machinelearningservices:Compute":
            return _cluster(name, inputs)
        case "containerregistry:Registry":
            return [Charge(name, f"container-registry/{inputs.get('sku', {}).get('name')}", "always")]
        case "storage:StorageAccount":
            return [Charge(name, f"storage/{inputs.get('sku', {}).get('name')}", "usage")]
        case "operationalinsights:Workspace" | "applicationinsights:Component":
            return [Charge(name, "log-analytics", "usage")]
        case "keyvault:Vault":
            return [Charge(name, f"key-vault/{inputs.get('properties', {}).get('sku', {}).get('name')}", "usage")]
    return [Charge(name, kind, "always")]


def plain_type(token: str) -> str:
    """`azure-native:storage/v20240101:StorageAccount` → `storage:StorageAccount`; others' → without a colon."""
    package, _, rest = token.partition(":")
    if package != "azure-native":
        return ""
    module, _, name = rest.partition(":")
    return f"{module.split('/')[0]}:{name}"


def _cluster(name: str, inputs: Mapping[str, Any]) -> list[Charge]:
    inner = inputs.get("properties", {}).get("properties", {})
    scale = inner.get("scaleSettings", {})
    least, most = int(scale.get("minNodeCount") or 0), int(scale.get("maxNodeCount") or 0)
    meter = f"vm/{inner.get('vmSize')}{LOW_PRIORITY if inner.get('vmPriority') == 'LowPriority' else ''}"
    always = [Charge(name, meter, "always", least)] if least else []
    return [*always, Charge(name, meter, "busy", most - least)]


def endpoint_plan(text: str | None) -> list[Charge]:
    """The instances that an endpoint will keep. Raises UserError for anything but the JSON that the help shows."""
    if not text:
        return []
    try:
        held = json.loads(text if text.lstrip()[:1] in "[{" else Path(text).read_text())
        rows = held if isinstance(held, list) else [held]
        return [
            Charge("endpoint", f"vm/{row['instance_type']}", "deployed", int(row["instance_count"])) for row in rows
        ]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"the endpoint's plan is not such as it should be: {type(error).__name__} {error}",
            next_command="""--endpoint-plan '[{"instance_type": "Standard_NC24ads_A100_v4", "instance_count": 1}]'""",
            code=WRONG_USE,
        ) from None


# --- what it costs --------------------------------------------------------------------------------------------------


def estimate(
    found: list[Resource], prices: Prices, *, plan: list[Charge], until: datetime | None, now: datetime | None = None
) -> dict[str, Any]:
    """Every sum, as the verb prints it with --json."""
    location = next((str(one.inputs["location"]) for one in found if one.inputs.get("location")), prices.region)
    priced = [_priced(one, prices, location) for one in [*(c for r in found for c in charges(r)), *plan]]
    until = until or _expiry(found)
    by_use = sorted({one.meter for one in priced if one.when == "usage"})
    return {
        "region": location,
        "currency": prices.currency,
        "prices_from": {"source": prices.source, "region": prices.region, "date": prices.date},
        "fixed_per_month": _sum([(one, _monthly(one)) for one in priced if one.when == "always"]),
        "per_busy_gpu_hour": _per_gpu([one for one in priced if one.when == "busy"], prices),
        "per_deployed_hour": _sum([(one, one.count) for one in priced if one.when == "deployed"]),
        "worst_case": _worst(priced, until, now or datetime.now(UTC), by_use),
        "items": [asdict(one) for one in priced],
        "unpriced": sorted({one.meter for one in priced if one.price is None}),
        "by_use": by_use,
    }


def _priced(one: Charge, prices: Prices, location: str) -> Charge:
    price = prices.price(one.meter, location)
    return Charge(one.resource, one.meter, one.when, one.count, price, prices.unit(one.meter))


def _monthly(one: Charge) -> float:
    return one.count * PER_MONTH.get(one.unit, 1.0)


def _sum(parts: list[tuple[Charge, float]]) -> dict[str, Any] | None:
    """Price times count over all parts: None if there are none, its amount None if none has a price."""
    if not parts:
        return None
    known = [one.price * count for one, count in parts if one.price is not None]
    missing = sorted({one.meter for one, _ in parts if one.price is None})
    return {"amount": round(sum(known), 4) if known else None, "unpriced": missing}


def _per_gpu(busy: list[Charge], prices: Prices) -> dict[str, Any] | None:
    """One node's hour by its GPUs; of a size whose GPUs are not in the file, the node's hour."""
    shares = [(one, 1 / (prices.gpus(one.meter) or 1)) for one in busy]
    found = _sum(shares)
    if found is not None:
        found["per_node"] = [one.meter for one in busy if not prices.gpus(one.meter)]
    return found


def _worst(priced: list[Charge], until: datetime | None, now: datetime, by_use: list[str]) -> dict[str, Any] | None:
    """All nodes busy and all instances deployed in every hour that is left; None without an expiry."""
    if until is None:
        return None
    hours = max((until - now).total_seconds() / 3600, 0.0)
    parts = [
        (one, (_monthly(one) / HOURS_A_MONTH if one.when == "always" else one.count) * hours)
        for one in priced
        if one.when != "usage"
    ]
    found = _sum(parts) or {"amount": None, "unpriced": []}
    return {
        **found,
        "unpriced": [*found["unpriced"], *(f"{one} (by use)" for one in by_use)],
        "until": until.isoformat(),
        "hours": round(hours, 1),
    }


def _expiry(found: list[Resource]) -> datetime | None:
    for one in found:
        if text := (one.inputs.get("tags") or {}).get("expires-on"):
            return _moment(str(text), "the tag expires-on")
    return None


def _moment(text: str, where: str) -> datetime:
    try:
        made = datetime.fromisoformat(text)
    except ValueError:
        raise UserError(
            f"{where} is {text!r}, which is no time", next_command="such as 2027-01-31T18:00", code=WRONG_USE
        ) from None
    return made if made.tzinfo else made.replace(tzinfo=UTC)


# --- what is read ---------------------------------------------------------------------------------------------------


def lines(found: Mapping[str, Any]) -> list[str]:
    """The estimate for a reader."""
    source, currency = found["prices_from"], found["currency"]
    dated = f"as of {source['date']}" if source["date"] else "never filled in: make prices"
    made = [f"prices: {source['source']}, {source['region']}, {dated}"]
    rows = {
        "fixed per month": (found["fixed_per_month"], "nothing is paid for that stands idle"),
        "per busy GPU hour": (found["per_busy_gpu_hour"], "there is no cluster"),
        "per deployed hour": (found["per_deployed_hour"], "no endpoint is planned here (--endpoint-plan)"),
        "worst case until expiry": (found["worst_case"], "not known: the stack has no expiry (--until TIME)"),
    }
    made += [f"  {label}: {_amount(value, currency) if value else none}" for label, (value, none) in rows.items()]
    if found["unpriced"]:
        made.append(f"  unpriced: {', '.join(found['unpriced'])}")
    if found["by_use"]:
        made.append(f"  by use, in no sum: {', '.join(found['by_use'])}")
    if found["region"] != source["region"]:
        made.append(
            f"  the prices are of {source['region']}: python -m infra.cost --refresh --region {found['region']}"
        )
    return made


def _amount(value: Mapping[str, Any], currency: str) -> str:
    missing = f"unpriced: {', '.join(value['unpriced'])}" if value["unpriced"] else ""
    if value["amount"] is None:
        return missing
    node = " (of a node: its GPUs are not in the price file)" if value.get("per_node") else ""
    return f"{'at least ' if missing else ''}{value['amount']:,.2f} {currency}{node}{'; ' + missing if missing else ''}"


def tell(events: Iterable[EngineEvent]) -> None:
    """Say on stderr what a previewed update would cost."""
    for line in lines(estimate(resources(events), read(), plan=[], until=None)):
        say(line)


if __name__ == "__main__":
    run(main)
