"""The price file, and its refresh from a stand-in for the Retail Prices API that answers as Azure documents it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest

from infra import cost, prices
from infra.charges import has_gpu
from infra.cli import UserError
from infra.policy.rules import ALLOWED

SIZE = "Standard_NC24ads_A100_v4"
TODAY = datetime.now(UTC).date().isoformat()


def item(price: float, **more: Any) -> dict[str, Any]:
    """An item with the fields that the API's documentation shows, and the names that the API gives an A100 today."""
    return {
        "currencyCode": "USD",
        "tierMinimumUnits": 0.0,
        "retailPrice": price,
        "unitPrice": price,
        "armRegionName": "eastus2",
        "location": "US East 2",
        "effectiveStartDate": "2026-01-01T00:00:00Z",
        "meterId": "dedicated",
        "meterName": "NC24ads_A100_v4",
        "productId": "DZH318Z09TGJ",
        "skuId": "DZH318Z09TGJ/0026",
        "productName": "NCads A100 v4 Series Linux",
        "skuName": SIZE,
        "serviceName": "Virtual Machines",
        "serviceId": "DZH313Z7MMC8",
        "serviceFamily": "Compute",
        "unitOfMeasure": "1 Hour",
        "type": "Consumption",
        "isPrimaryMeterRegion": True,
        "armSkuName": SIZE,
        **more,
    }


OTHERS = [
    item(9.0, productName="NCads A100 v4 Series Windows", meterId="windows"),
    item(8.0, productName="NCads A100 v4 Series Cloud Services", meterId="cloud"),
    item(0.5, meterName="NC24ads_A100_v4 Spot", meterId="spot"),
    item(8000.0, type="Reservation", meterId="reservation", reservationTerm="1 Year"),
    item(3.0, type="DevTestConsumption", meterId="dev"),
    item(5.0, unitOfMeasure="1/Month", meterId="month"),
    item(7.0, effectiveStartDate="2999-01-01T00:00:00Z"),
]
LOW = item(1.5, meterName="NC24ads_A100_v4 Low Priority", meterId="low")


class Api(ThreadingHTTPServer):
    """Two pages for each question about the one size, nothing for the rest; `asked` holds every query."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, str]] = []
        self.status = [200]  # of the next answers; the last one stays
        self.first: list[dict[str, Any]] = [*OTHERS, LOW]
        self.last: list[dict[str, Any]] = [item(4.5)]
        self.page: dict[str, Any] | None = None  # instead of all that

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/api/retail/prices"


class Handler(BaseHTTPRequestHandler):
    server: Api

    def do_GET(self) -> None:
        query = {key: one[0] for key, one in parse_qs(urlparse(self.path).query).items()}
        self.server.asked.append(query)
        status = self.server.status.pop(0) if len(self.server.status) > 1 else self.server.status[0]
        body = json.dumps(self._page(query)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _page(self, query: dict[str, str]) -> dict[str, Any]:
        page: dict[str, Any] = {"BillingCurrency": "USD", "CustomerEntityId": "Default", "CustomerEntityType": "Retail"}
        items = self.server.last if "$skip" in query else self.server.first
        if "$skip" not in query and SIZE not in query["$filter"]:
            items = []
        more = f"{self.server.address}?$skip=100" if items and "$skip" not in query else None
        return {**page, "Items": items, "NextPageLink": more, "Count": len(items), **(self.server.page or {})}

    def log_message(self, *_: Any) -> None:
        """Not on the tests' output."""


@pytest.fixture
def api() -> Iterator[Api]:
    with Api() as made:
        threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield made
        made.shutdown()


@pytest.fixture
def file(api: Api, tmp_path: Path) -> Path:
    """A price file of one size and the logs, in one region."""
    held = json.loads(prices.FILE.read_text())
    kept = (f"vm/{SIZE}", f"vm/{SIZE}/low-priority", "log-analytics")
    held |= {"source": api.address, "meters": {name: held["meters"][name] for name in kept}}
    held["regions"] = {"eastus2": {"log-analytics": {"price": 2.76, "date": "2026-09-16", "source": "a page"}}}
    made = tmp_path / "prices.json"
    made.write_text(json.dumps(held))
    return made


def amount(file: Path, meter: str, region: str = "eastus2") -> float | None:
    found = prices.read(file).price(meter, region)
    return found.amount if found else None


# --- the refresh ----------------------------------------------------------------------------------------------------


def test_a_refresh_takes_linux_pay_as_you_go_over_all_pages(api: Api, file: Path) -> None:
    left = prices.refresh(file)
    assert (amount(file, f"vm/{SIZE}"), amount(file, f"vm/{SIZE}/low-priority")) == (4.5, 1.5)
    assert left == {"eastus2": ["log-analytics"]}
    assert prices.read(file).price(f"vm/{SIZE}", "eastus2") == prices.Price(4.5, api.address, TODAY)


def test_the_api_is_asked_as_it_is_documented(api: Api, file: Path) -> None:
    prices.refresh(file)
    first = [query for query in api.asked if "$filter" in query]
    assert len(first) == 2, "dedicated and low priority are one question"
    assert first[0] == {
        "api-version": prices.API_VERSION,
        "currencyCode": "'USD'",
        "$filter": f"serviceName eq 'Virtual Machines' and armSkuName eq '{SIZE}' and armRegionName eq 'eastus2'"
        " and priceType eq 'Consumption'",
    }


def test_of_a_meters_tiers_the_dearest_counts(api: Api, file: Path) -> None:
    api.last = [item(0.0), item(2.5, tierMinimumUnits=5.0), item(2.0, tierMinimumUnits=100.0)]
    prices.refresh(file)
    assert amount(file, f"vm/{SIZE}") == 2.5


def test_of_a_tiers_prices_the_newest_counts(api: Api, file: Path) -> None:
    api.last = [item(4.5, effectiveStartDate="2026-06-01T00:00:00Z"), item(6.0)]
    prices.refresh(file)
    assert amount(file, f"vm/{SIZE}") == 4.5


@pytest.mark.parametrize("items", [[], [item(1.0), item(2.0, meterId="other")], [item(0.0)]])
def test_what_is_not_found_once_is_unpriced(api: Api, file: Path, items: list[dict[str, Any]]) -> None:
    api.last = items
    assert f"vm/{SIZE}" in prices.refresh(file)["eastus2"]
    assert amount(file, f"vm/{SIZE}") is None


def test_another_region_and_size_can_be_asked_for(api: Api, file: Path) -> None:
    prices.refresh(file, region="westeurope", sizes=[f"{SIZE}_X"])
    assert amount(file, f"vm/{SIZE}_X", "westeurope") == 4.5
    assert amount(file, f"vm/{SIZE}", "eastus2") == 4.5, "a refresh leaves no region behind"
    assert {query["$filter"].split("armRegionName eq ")[1][:12] for query in api.asked if "$filter" in query} == {
        "'eastus2' an",
        "'westeurope'",
    }


def test_another_currency_is_that_of_all_prices(api: Api, file: Path) -> None:
    api.first, api.last = [{**LOW, "currencyCode": "EUR"}], [item(4.1, currencyCode="EUR")]
    prices.refresh(file, currency="EUR")
    assert prices.read(file).currency == "EUR" and amount(file, f"vm/{SIZE}") == 4.1
    assert api.asked[0]["currencyCode"] == "'EUR'"


def test_a_busy_api_is_asked_again(api: Api, file: Path) -> None:
    api.status = [429, 503, 200]
    prices.refresh(file)
    assert amount(file, f"vm/{SIZE}") == 4.5


def lacking(key: str) -> dict[str, Any]:
    return {"Items": [{name: value for name, value in item(4.5).items() if name != key}]}


@pytest.mark.parametrize(
    ("page", "why"),
    [
        ({"Items": None}, "otherwise than documented"),
        ({"Items": {}, "NextPageLink": 7}, "otherwise than documented|cannot be asked"),
        (lacking("meterId"), "KeyError 'meterId'"),
        (lacking("unitOfMeasure"), "KeyError 'unitOfMeasure'"),
        (lacking("tierMinimumUnits"), "KeyError 'tierMinimumUnits'"),
        ({"Items": [item(4.5, retailPrice=None)]}, "TypeError"),
        ({"Items": [item(4.5, currencyCode="EUR")]}, "EUR where USD was asked for"),
        ({"Items": [], "NextPageLink": None}, "lists nothing for the region 'eastus2'"),
    ],
)
def test_an_api_that_changed_leaves_the_file_whole(api: Api, file: Path, page: dict[str, Any], why: str) -> None:
    before = file.read_text()
    api.page = {"NextPageLink": None, **page}
    with pytest.raises(UserError, match=why):
        prices.refresh(file)
    assert file.read_text() == before and list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("status", [400, 404])
def test_an_api_that_fails_leaves_the_file_whole(api: Api, file: Path, status: int) -> None:
    before = file.read_text()
    api.status = [200, 200, status]  # in the middle of it
    with pytest.raises(UserError, match=f"cannot be asked: {status}"):
        prices.refresh(file)
    assert file.read_text() == before


def test_an_api_that_is_not_there_leaves_the_file_whole(file: Path, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file.read_text().replace(str(api.server_port), "1")
    file.write_text(before)
    monkeypatch.setattr("urllib3.util.Retry.sleep", lambda *_: None)
    with pytest.raises(UserError, match="cannot be asked"):
        prices.refresh(file)
    assert file.read_text() == before


@pytest.mark.parametrize("name", ["XXX", "usd", "'; drop"])
def test_an_unknown_currency_is_wrong_use(api: Api, file: Path, name: str) -> None:
    with pytest.raises(UserError, match="does not price in") as error:
        prices.refresh(file, currency=name)
    assert error.value.code == 2 and not api.asked


def test_the_verb_refreshes_and_says_what_is_left(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cost, "refresh", lambda **more: prices.refresh(file, **more))
    assert cost.main(["--refresh", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"unpriced": {"eastus2": ["log-analytics"]}}
    assert f"eastus2 vm/{SIZE}: 4.5" in printed.err


# --- the file -------------------------------------------------------------------------------------------------------


def test_no_price_is_checked_in_without_its_source_and_date() -> None:
    held = prices.read()
    every = [one for entries in held.regions.values() for one in entries.values()]
    assert every and all(one.source.startswith("https://") and one.date for one in every)


def test_the_file_knows_every_size_that_the_policy_allows() -> None:
    held = prices.read()
    gpus = {size: held.gpus(f"vm/{size}") for size in ALLOWED["vmSizes"]}
    assert None not in gpus.values()
    assert {size for size, count in gpus.items() if count} == {size for size in gpus if has_gpu(f"vm/{size}")}


def test_the_file_is_laid_out_as_a_refresh_writes_it() -> None:
    text = prices.FILE.read_text()
    assert text == prices._text(json.loads(text))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"currency": "XXX"}, "names the currency 'XXX'"),
        ({"meters": {"log-analytics": {"match": {}}}}, "lacks the key `unit` of log-analytics"),
        ({"regions": []}, "not laid out"),
        ({"regions": {"eastus2": {"gold": {"price": 1, "date": "2026-01-01", "source": "x"}}}}, "gold in eastus2"),
        ({"regions": {"eastus2": {"log-analytics": {"price": 1, "date": "2026-01-01"}}}}, "lacks `source`"),
        ({"regions": {"eastus2": {"log-analytics": {"price": 0, "date": "2026-01-01", "source": "x"}}}}, "is 0;"),
        ({"regions": {"eastus2": {"log-analytics": {"price": "1", "date": "2026-01-01", "source": "x"}}}}, "is '1';"),
        ({"regions": {"eastus2": {"log-analytics": {"price": 1, "date": "soon", "source": "x"}}}}, "'soon'"),
    ],
)
def test_a_file_with_wrong_keys_is_one_sentence(file: Path, change: dict[str, Any], why: str) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(UserError, match=r"the price file prices\.json") as error:
        prices.read(file)
    assert why in error.value.message and "\n" not in error.value.message


@pytest.mark.parametrize("key", ["source", "currency", "meters", "regions"])
def test_a_file_that_lacks_a_key_names_it(file: Path, key: str) -> None:
    held = json.loads(file.read_text())
    del held[key]
    file.write_text(json.dumps(held))
    with pytest.raises(UserError, match=f"lacks the key `{key}`"):
        prices.read(file)


@pytest.mark.parametrize("text", ["{", "[]", "7"])
def test_a_file_that_is_none_is_said(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(UserError, match=r"the price file prices\.json"):
        prices.read(file)
