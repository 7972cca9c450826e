"""What a stack would cost: the charges that a preview declares, by the checked-in prices, and how that is told.

A price that is not known is named as unpriced and never counted as nothing; a sum with such parts says `at least`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from infra.charges import (
    HOURS_A_MONTH,
    Charge,
    Resource,
    charges,
    has_gpu,
    resources,
    shared_registry,
)
from infra.cli import WRONG_USE, UserError, say
from infra.prices import LOW_PRIORITY, Price, Prices, read

if TYPE_CHECKING:
    from pulumi.automation import EngineEvent

PER_MONTH = {"1 Hour": HOURS_A_MONTH, "1/Day": HOURS_A_MONTH / 24, "1/Month": 1.0}
PAID = {
    "always": "always",
    "busy": "while busy",
    "deployed": "while deployed",
    "usage": "by use",
}
UNITS = {
    "1 Hour": "an hour",
    "1/Day": "a day",
    "1/Month": "a month",
    "1 GB/Month": "a GB and month",
    "1 GB": "a GB",
    "10K": "10,000 operations",
    "1M": "a million request units",
}


@dataclass(frozen=True)
class Item:
    """A charge with its price, None where it is unpriced, and the price's unit."""

    charge: Charge
    price: Price | None
    unit: str

    @property
    def monthly(self) -> float:
        """How many units are paid in a month, of a charge that is paid always."""
        return self.charge.count * PER_MONTH.get(self.unit, 1.0)

    def as_dict(self) -> dict[str, Any]:
        known = asdict(self.price) if self.price else {"amount": None, "source": None, "date": None}
        return {**asdict(self.charge), "unit": self.unit, "price": known.pop("amount"), **known}


def estimate(
    found: list[Resource], prices: Prices, *, plan: list[Charge], until: datetime | None, now: datetime | None = None
) -> dict[str, Any]:
    """Every sum, as the verb prints it with --json."""
    now = now or datetime.now(UTC)
    location = next((str(one.inputs["location"]) for one in found if one.inputs.get("location")), "")
    all_charges = [*(charge for one in found for charge in charges(one)), *plan]
    items = [Item(one, prices.price(one.meter, location), prices.unit(one.meter)) for one in all_charges]
    by_use = sorted({one.charge.meter for one in items if one.charge.when == "usage"})
    return {
        "region": location,
        "currency": prices.currency,
        "hours_per_month": HOURS_A_MONTH,
        "prices_from": _sources(items),
        "fixed_per_month": _sum([(one, one.monthly) for one in items if one.charge.when == "always"]),
        "per_busy_gpu_hour": _per_gpu(items, prices),
        "per_deployed_hour": _sum([(one, one.charge.count) for one in items if one.charge.when == "deployed"]),
        "worst_case": _worst(items, until or _expiry(found, now), now),
        "items": [one.as_dict() for one in items],
        "unpriced": sorted({one.charge.meter for one in items if one.price is None}),
        "by_use": by_use,
        "shared_registry": shared_registry(found),
    }


def _sources(items: Iterable[Item]) -> list[dict[str, str]]:
    used = {(one.price.source, one.price.date) for one in items if one.price}
    return [{"source": source, "date": day} for source, day in sorted(used)]


def _sum(parts: Sequence[tuple[Item, float]]) -> dict[str, Any] | None:
    """Price times count over all parts: None if there are none, its amount None if none has a price."""
    if not parts:
        return None
    known = [one.price.amount * count for one, count in parts if one.price]
    missing = sorted({one.charge.meter for one, _ in parts if one.price is None})
    return {"amount": round(sum(known), 4) if known else None, "unpriced": missing}


def _per_gpu(items: Iterable[Item], prices: Prices) -> dict[str, Any] | None:
    """One GPU's share of its node's hour; of a size whose GPUs are not in the file, the node's hour."""
    busy = [one for one in items if one.charge.when == "busy" and has_gpu(one.charge.meter)]
    found = _sum([(one, 1 / (prices.gpus(one.charge.meter) or 1)) for one in busy])
    if found is not None:
        found["per_node"] = [one.charge.meter for one in busy if not prices.gpus(one.charge.meter)]
    return found


def _worst(items: list[Item], until: datetime | None, now: datetime) -> dict[str, Any] | None:
    """All nodes busy and all instances deployed in every hour that is left; None without an expiry."""
    if until is None:
        return None
    hours = max((until - now).total_seconds() / 3600, 0.0)
    parts = [(one, _hourly(one) * hours) for one in items if one.charge.when != "usage"]
    return {
        **(_sum(parts) or {"amount": None, "unpriced": []}),
        "until": until.isoformat(timespec="minutes"),
        "hours": round(hours, 1),
        "endpoint": any(one.charge.when == "deployed" for one, _ in parts),
    }


def _hourly(one: Item) -> float:
    return one.monthly / HOURS_A_MONTH if one.charge.when == "always" else one.charge.count


def _expiry(found: Iterable[Resource], now: datetime) -> datetime | None:
    """By the tags that the program puts on all of a stack's resources."""
    tags: Mapping[str, Any] = next((held for one in found if (held := one.inputs.get("tags"))), {})
    if text := tags.get("expires-on"):
        return moment(str(text), "the tag expires-on")
    hours = str(tags.get("ttl-hours", ""))
    return now + timedelta(hours=int(hours)) if hours.isdecimal() else None


def moment(text: str, where: str) -> datetime:
    try:
        made = datetime.fromisoformat(text)
    except ValueError:
        raise UserError(
            f"{where} is {text!r}, which is no time", next_command="such as 2027-01-31T18:00", code=WRONG_USE
        ) from None
    return made if made.tzinfo else made.replace(tzinfo=UTC)


# --- what is read ---------------------------------------------------------------------------------------------------


def lines(found: Mapping[str, Any]) -> list[str]:
    """The estimate as a table for a reader: what is paid for, then the sums."""
    place = f"{found.get('stack', 'the stack')} in {found['region']}"
    title = f"cost of {place}, in {found['currency']}; a month has {found['hours_per_month']} hours"
    rows = [*_item_rows(found), ("", "", ""), *_sum_rows(found)]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    table = [f"  {row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}".rstrip() for row in rows]
    return [title, *table, *_notes(found)]


def _item_rows(found: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """One row for each meter; a meter that several resources use is one row, which names them all."""
    merged: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for item in found["items"]:
        merged.setdefault((item["when"], item["meter"]), []).append(item)
    for when, meter in sorted(merged, key=lambda pair: (list(PAID).index(pair[0]), pair[1])):
        items = merged[when, meter]
        price, unit = items[0]["price"], items[0]["unit"]
        what = meter.removeprefix("vm/").replace(LOW_PRIORITY, ", low priority")
        many = f"{sum(item['count'] for item in items)} x " if meter.startswith("vm/") else ""
        each = " each" if many else ""
        names = ", ".join(item["resource"].rstrip("-") for item in items)
        shown = "unpriced" if price is None else f"{price:,.10g} {UNITS.get(unit, 'per ' + unit)}{each}"
        yield PAID[when], f"{many}{what} ({names})", shown


def _sum_rows(found: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    none = {
        "fixed per month": "nothing is paid for that stands idle",
        "per busy GPU hour": "there is no cluster with GPUs",
        "per deployed hour": "no endpoint is planned: add --endpoint-plan",
        "worst case until expiry": "the stack does not expire: set expiresOn, or add --until TIME",
    }
    for label, why in none.items():
        value = found[label.removesuffix(" until expiry").replace(" ", "_").lower()]
        yield label, *(_amount(value, found["currency"]) if value else ("-", why))


def _amount(value: Mapping[str, Any], currency: str) -> tuple[str, str]:
    """A sum, and what there is to say about it."""
    notes = [f"without {', '.join(value['unpriced'])}"] if value["unpriced"] else []
    if value.get("per_node"):
        notes.append("of a node: its GPUs are not in the price file")
    if "until" in value:
        what = "nodes and endpoint" if value["endpoint"] else "nodes, but no endpoint,"
        notes.append(f"all {what} for {value['hours']:,g} hours, until {value['until']}")
    if value["amount"] is None:
        return "unpriced", "; ".join(notes)
    return f"{'at least ' if value['unpriced'] else ''}{value['amount']:,.2f} {currency}", "; ".join(notes)


def _notes(found: Mapping[str, Any]) -> Iterator[str]:
    if found["shared_registry"]:
        yield f"  the container registry {found['shared_registry']} is shared: not this stack's to pay"
    yield "  in no sum: what is paid by use, traffic, the nodes' disks, discounts, taxes"
    for one in found["prices_from"]:
        yield f"  prices of {one['date']}: {one['source']}"
    if found["unpriced"]:
        yield f"  unpriced: python -m infra.cost --refresh --region {found['region']} asks Azure's public price list"


def tell(events: Iterable[EngineEvent]) -> None:
    """Say on stderr what a previewed update would cost."""
    for line in lines(estimate(resources(events), read(), plan=[], until=None)):
        say(line)
