"""The checked-in price file, and how it is filled in again from the Azure Retail Prices API.

The API takes no login: https://learn.microsoft.com/rest/api/cost-management/retail-prices/azure-retail-prices
A price that is not found, or not found once, stays null, which means unpriced.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from infra.cli import UserError, say

FILE = Path(__file__).with_name("prices.json")
API_VERSION = "2023-01-01-preview"  # its filter values are case-sensitive
LOW_PRIORITY = "/low-priority"


@dataclass(frozen=True)
class Prices:
    """Prices per meter, of one region, in one currency, as of a date."""

    region: str
    currency: str
    source: str
    date: str | None
    meters: dict[str, dict[str, Any]]

    def price(self, meter: str, location: str) -> float | None:
        """The price of one unit, or None: the meter is unknown, unpriced, or priced for another region."""
        found = self.meters.get(meter, {}).get("price")
        return float(found) if found is not None and location == self.region else None

    def gpus(self, meter: str) -> int | None:
        found = self.meters.get(meter, {}).get("gpus")
        return int(found) if found is not None else None

    def unit(self, meter: str) -> str:
        return str(self.meters.get(meter, {}).get("unit", ""))


def read(path: Path = FILE) -> Prices:
    """Raises UserError for a file that is not a price file."""
    held = _load(path)
    return Prices(held["region"], held["currency"], held["source"], held["date"], held["meters"])


def _load(path: Path) -> dict[str, Any]:
    try:
        held: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the prices in {path}: {error}", next_command=f"git checkout {path}") from None
    if missing := {"region", "currency", "source", "date", "meters"} - set(held):
        raise UserError(f"the price file {path} lacks {sorted(missing)[0]!r}", next_command=f"git checkout {path}")
    return held


def refresh(
    path: Path = FILE, *, region: str | None = None, currency: str | None = None, sizes: tuple[str, ...] = ()
) -> list[str]:
    """Ask for every meter's price anew and write the file; returns the meters that stay unpriced."""
    held = _load(path)
    held["region"], held["currency"] = region or held["region"], currency or held["currency"]
    for size in sizes:
        _add_size(held["meters"], size)
    for name, meter in held["meters"].items():
        items = _items(held["source"], held["region"], held["currency"], meter["match"])
        meter.update(_chosen(name, meter["unit"], items))
        say(f"{name}: {'unpriced, ' + meter['why'] if meter['price'] is None else meter['price']}")
    held["date"] = datetime.now(UTC).date().isoformat()
    path.write_text(json.dumps(held, indent=2) + "\n")
    return [name for name, meter in held["meters"].items() if meter["price"] is None]


def _add_size(meters: dict[str, dict[str, Any]], size: str) -> None:
    for suffix in ("", LOW_PRIORITY):
        match = {"serviceName": "Virtual Machines", "armSkuName": size}
        meters.setdefault(f"vm/{size}{suffix}", {"unit": "1 Hour", "price": None, "match": match})


def _items(source: str, region: str, currency: str, match: dict[str, str]) -> list[dict[str, Any]]:
    """Every page of the answer; a page holds at most 100 items (1,000 in later versions) and names the next."""
    import requests

    wanted = {**match, "armRegionName": region, "priceType": "Consumption"}
    query = " and ".join(f"{key} eq '{value}'" for key, value in wanted.items())
    link: str | None = source
    params = {"api-version": API_VERSION, "currencyCode": f"'{currency}'", "$filter": query}
    found: list[dict[str, Any]] = []
    while link:
        try:
            answer = requests.get(link, params=params, timeout=60)
            answer.raise_for_status()
            page = answer.json()
            found += page["Items"]
        except (requests.RequestException, ValueError, KeyError) as error:
            raise UserError(
                f"the Retail Prices API gave no prices, and {FILE.name} stays as it was: {error}",
                next_command="check the network, then: make prices",
            ) from None
        link, params = page.get("NextPageLink"), {}
    return found


def _chosen(name: str, unit: str, items: list[dict[str, Any]]) -> dict[str, Any]:
    """The one meter that is meant. Of its tiers the dearest counts: an estimate should not be too low."""
    fit = [one for one in items if _is_meant(one, low_priority=name.endswith(LOW_PRIORITY), unit=unit)]
    if len({one["meterId"] for one in fit}) != 1:
        return {"price": None, "why": "no such meter is listed" if not fit else "several meters fit"}
    best = max(fit, key=lambda one: float(one["retailPrice"]))
    if not best["retailPrice"]:
        return {"price": None, "why": "the list says 0"}
    kept = {"price": best["retailPrice"], "meterId": best["meterId"], "effectiveStartDate": best["effectiveStartDate"]}
    return {**kept, "why": None}


def _is_meant(item: dict[str, Any], *, low_priority: bool, unit: str) -> bool:
    """Linux, pay as you go, and low priority only where it is asked for."""
    meter, product = str(item["meterName"]), str(item["productName"])
    if "Windows" in product or "Cloud Services" in product or "Spot" in meter:
        return False
    return item["type"] == "Consumption" and item["unitOfMeasure"] == unit and ("Low Priority" in meter) == low_priority
