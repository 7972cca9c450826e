"""The checked-in price file, and how it is filled in again from the Azure Retail Prices API.

The API takes no login: https://learn.microsoft.com/rest/api/cost-management/retail-prices/azure-retail-prices
Every price has its region, source and date. One that is not found, or not found once, is left out: it is unpriced.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.cli import WRONG_USE, UserError, say

if TYPE_CHECKING:
    import requests

FILE = Path(__file__).with_name("prices.json")
API_VERSION = "2023-01-01-preview"  # its filter values are case-sensitive
LOW_PRIORITY = "/low-priority"
# https://learn.microsoft.com/rest/api/cost-management/retail-prices/azure-retail-prices#supported-currencies
CURRENCIES = (
    *("USD", "AUD", "BRL", "CAD", "CHF", "CNY", "DKK", "EUR", "GBP"),
    *("INR", "JPY", "KRW", "NOK", "NZD", "RUB", "SEK", "TWD"),
)
OTHER_MACHINES = ("Windows", "Cloud Services", "Spot")  # in product or meter; jobs and endpoints run none of these


@dataclass(frozen=True)
class Price:
    """The price of one unit of a meter, where it was read, and when."""

    amount: float
    source: str
    date: str


@dataclass(frozen=True)
class Prices:
    """Prices by region and meter, all in one currency."""

    currency: str
    meters: dict[str, dict[str, Any]]
    regions: dict[str, dict[str, Price]]

    def price(self, meter: str, location: str) -> Price | None:
        """The price in a region, or None: the meter is unknown or unpriced there."""
        return self.regions.get(location, {}).get(meter)

    def gpus(self, meter: str) -> int | None:
        """The GPUs of a VM size, 0 for none; None if the file does not know the size."""
        found = self.meters.get(meter, {}).get("gpus")
        return int(found) if found is not None else None

    def unit(self, meter: str) -> str:
        return str(self.meters.get(meter, {}).get("unit", ""))


# --- the file -------------------------------------------------------------------------------------------------------


def read(path: Path = FILE) -> Prices:
    """Raises UserError for a file that is not a price file."""
    held = _load(path)
    regions = {
        region: {name: Price(float(one["price"]), one["source"], one["date"]) for name, one in entries.items()}
        for region, entries in held["regions"].items()
    }
    return Prices(held["currency"], held["meters"], regions)


def _load(path: Path) -> dict[str, Any]:
    try:
        held: dict[str, Any] = json.loads(path.read_text())
        problem = next(_problems(held), None)
    except (OSError, ValueError) as error:
        problem = f"cannot be read: {error}"
    except (AttributeError, TypeError) as error:
        problem = f"is not laid out as it should be: {error}"
    if problem:
        raise UserError(f"the price file {path.name} {problem}", next_command=f"git checkout {path}")
    return held


def _problems(held: Mapping[str, Any]) -> Iterator[str]:
    if missing := [key for key in ("source", "currency", "meters", "regions") if key not in held]:
        yield f"lacks the key `{missing[0]}`"
        return
    if held["currency"] not in CURRENCIES:
        yield f"names the currency {held['currency']!r}, which Azure does not price in"
    for name, meter in held["meters"].items():
        yield from (f"lacks the key `{key}` of {name}" for key in ("unit", "match") if key not in meter)
    for region, entries in held["regions"].items():
        for name, one in entries.items():
            if wrong := _wrong_price(one) if name in held["meters"] else "is not among `meters`":
                yield f"has a price of {name} in {region} that {wrong}"


def _wrong_price(one: Mapping[str, Any]) -> str | None:
    if missing := {"price", "source", "date"} - set(one):
        return f"lacks `{sorted(missing)[0]}`"
    if isinstance(one["price"], bool) or not isinstance(one["price"], int | float) or one["price"] <= 0:
        return f"is {one['price']!r}; leave out what is not known"
    try:
        date.fromisoformat(one["date"])
    except (TypeError, ValueError):
        return f"is of {one['date']!r}, which is no date"
    return None


# --- the API --------------------------------------------------------------------------------------------------------


def refresh(
    path: Path = FILE, *, region: str | None = None, currency: str | None = None, sizes: Iterable[str] = ()
) -> dict[str, list[str]]:
    """Ask for every price anew and write the file; returns what stays unpriced, by region.

    The file is written as a whole once every answer is there. Raises UserError if the API fails or answers otherwise
    than documented, for an unknown currency, and for a region of which it lists nothing.
    """
    held = _load(path)
    held["currency"] = _currency(currency or held["currency"])
    for size in sizes:
        _add_size(held["meters"], size)
    regions = dict.fromkeys([*held["regions"], *([region] if region else [])])
    session = _session(held["source"])
    held["regions"] = {one: _prices_in(one, held, session) for one in regions}
    temporary = path.with_suffix(".new")
    temporary.write_text(_text(held))
    temporary.replace(path)
    return {one: [name for name in held["meters"] if name not in held["regions"][one]] for one in regions}


def _currency(name: str) -> str:
    if name not in CURRENCIES:
        raise UserError(f"Azure does not price in {name!r}", next_command="--currency USD", code=WRONG_USE)
    return name


def _add_size(meters: dict[str, dict[str, Any]], size: str) -> None:
    for suffix in ("", LOW_PRIORITY):
        match = {"serviceName": "Virtual Machines", "armSkuName": size}
        meters.setdefault(f"vm/{size}{suffix}", {"unit": "1 Hour", "match": match})


def _text(held: Mapping[str, Any]) -> str:
    """The file's text, with a line for each meter and each price: so a refresh reads as a list of changes."""
    parts = {key: json.dumps(held[key]) for key in held if key not in ("meters", "regions")}
    parts["meters"] = _lines({name: json.dumps(one) for name, one in held["meters"].items()}, "  ")
    regions = {
        region: _lines({name: json.dumps(one) for name, one in entries.items()}, "    ")
        for region, entries in held["regions"].items()
    }
    return _lines({**parts, "regions": _lines(regions, "  ")}, "") + "\n"


def _lines(entries: Mapping[str, str], indent: str) -> str:
    inner = ",\n".join(f"{indent}  {json.dumps(key)}: {text}" for key, text in entries.items())
    return f"{{\n{inner}\n{indent}}}" if inner else "{}"


def _prices_in(region: str, held: Mapping[str, Any], session: requests.Session) -> dict[str, dict[str, Any]]:
    answers: dict[str, list[dict[str, Any]]] = {}  # dedicated and low priority have one filter
    found: dict[str, dict[str, Any]] = {}
    for name, meter in held["meters"].items():
        query = _filter({**meter["match"], "armRegionName": region, "priceType": "Consumption"})
        if query not in answers:
            answers[query] = list(_items(session, held["source"], held["currency"], query))
        price = _chosen(answers[query], low_priority=name.endswith(LOW_PRIORITY), unit=meter["unit"])
        say(f"{region} {name}: {price if isinstance(price, str) else price['price']}")
        if not isinstance(price, str):
            found[name] = {**price, "date": _today(), "source": held["source"]}
    if not any(answers.values()):
        raise UserError(
            f"the Retail Prices API lists nothing for the region {region!r}, and {FILE.name} stays as it was",
            next_command="az account list-locations --query [].name",
        )
    return found


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def _filter(wanted: Mapping[str, str]) -> str:
    return " and ".join(f"{key} eq '{value}'" for key, value in wanted.items())


def _session(source: str) -> requests.Session:
    """It asks again where the API is busy; the prices are public and many ask for them."""
    import requests
    from requests.adapters import HTTPAdapter, Retry

    made = requests.Session()
    again = Retry(total=4, backoff_factor=0.5, status_forcelist=(429, 500, 502, 503, 504))
    made.mount(source, HTTPAdapter(max_retries=again))
    return made


def _items(session: requests.Session, source: str, currency: str, query: str) -> Iterator[dict[str, Any]]:
    """Every item of every page; a page holds at most 1,000 (100 in older versions) and names the next."""
    from requests import RequestException

    link: str | None = source
    params = {"api-version": API_VERSION, "currencyCode": f"'{currency}'", "$filter": query}
    try:
        while link:
            answer = session.get(link, params=params, timeout=60)
            answer.raise_for_status()
            page = answer.json()
            yield from (_item(one, currency) for one in page["Items"])
            link, params = page["NextPageLink"], {}
    except RequestException as error:
        cause = getattr(error.args[0] if error.args else None, "reason", error)  # urllib3's, without the whole address
        raise _unusable(f"cannot be asked: {cause}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise _unusable(f"answers otherwise than documented: {type(error).__name__} {error}") from None


def _item(one: Mapping[str, Any], currency: str) -> dict[str, Any]:
    """The fields that decide. Raises KeyError, TypeError or ValueError for an item that lacks them."""
    if one["currencyCode"] != currency:
        raise ValueError(f"a price in {one['currencyCode']} where {currency} was asked for")
    texts = ("meterId", "meterName", "productName", "unitOfMeasure", "type", "effectiveStartDate")
    numbers = ("retailPrice", "tierMinimumUnits")
    return {**{key: str(one[key]) for key in texts}, **{key: float(one[key]) for key in numbers}}


def _unusable(reason: str) -> UserError:
    return UserError(
        f"the Retail Prices API {reason}; {FILE.name} stays as it was",
        next_command="check the network, then: make prices",
    )


def _chosen(items: Iterable[dict[str, Any]], *, low_priority: bool, unit: str) -> dict[str, Any] | str:
    """The one meter that is meant, or why there is none.

    Of its tiers the dearest counts: an estimate should not be too low, and the first tier may be a free grant.
    """
    fit = [one for one in items if _is_meant(one, low_priority=low_priority, unit=unit)]
    if len({one["meterId"] for one in fit}) != 1:
        return "unpriced, several meters fit" if fit else "unpriced, no such meter is listed"
    fit.sort(key=lambda one: str(one["effectiveStartDate"]))
    tiers = {one["tierMinimumUnits"]: one for one in fit}  # of each tier the newest price
    best = max(tiers.values(), key=lambda one: float(one["retailPrice"]))
    if not best["retailPrice"]:
        return "unpriced, the list says 0"
    kept = {key: best[key] for key in ("meterId", "effectiveStartDate")}
    return {"price": best["retailPrice"], **kept}


def _is_meant(item: Mapping[str, Any], *, low_priority: bool, unit: str) -> bool:
    """In force, pay as you go, Linux; low priority where it is asked for and only there."""
    text = f"{item['productName']} {item['meterName']}"
    if any(other in text for other in OTHER_MACHINES) or item["effectiveStartDate"][:10] > _today():
        return False
    return (
        item["type"] == "Consumption"
        and item["unitOfMeasure"] == unit
        and ("Low Priority" in item["meterName"]) == low_priority
    )
