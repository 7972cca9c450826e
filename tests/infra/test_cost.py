"""Cost: sums of what is known, names of what is not; the price file, filled from an answer in the API's shape."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from infra import cost, environment, prices
from infra.cli import UserError
from infra.cost import Resource
from infra.prices import Prices
from tests.support.local_azure import LocalAzure, last_json

SIZE = "Standard_NC24ads_A100_v4"
NOW = datetime(2026, 11, 1, tzinfo=UTC)
# Round numbers, so that sums can be checked by eye; no one's prices.
PRICES = Prices(
    "eastus2",
    "USD",
    "a test",
    "2026-11-01",
    {
        f"vm/{SIZE}": {"unit": "1 Hour", "price": 4.0, "gpus": 2},
        f"vm/{SIZE}/low-priority": {"unit": "1 Hour", "price": 1.0},
        "container-registry/Standard": {"unit": "1/Day", "price": 24.0},
        "storage/Standard_LRS": {"unit": "1 GB/Month", "price": None},
    },
)


def cluster(least: int = 0, most: int = 2, **more: Any) -> Resource:
    scale = {"minNodeCount": least, "maxNodeCount": most}
    inner = {"vmSize": SIZE, "scaleSettings": scale, **more}
    inputs = {"location": "eastus2", "properties": {"computeType": "AmlCompute", "properties": inner}}
    return Resource("azure-native:machinelearningservices:Compute", "gpu-cluster", inputs)


REGISTRY = Resource("azure-native:containerregistry:Registry", "cr", {"sku": {"name": "Standard"}})
STORAGE = Resource("azure-native:storage/v20240101:StorageAccount", "st", {"sku": {"name": "Standard_LRS"}})
STACK = [Resource("pulumi:pulumi:Stack", "x", {}), REGISTRY, STORAGE, cluster()]


def estimate(found: list[Resource], **more: Any) -> dict[str, Any]:
    return cost.estimate(found, PRICES, **{"plan": [], "until": None, "now": NOW, **more})


def test_an_idle_stack_pays_for_its_registry_and_not_for_its_cluster() -> None:
    found = estimate(STACK)
    assert found["fixed_per_month"] == {"amount": 730.0, "unpriced": []}
    assert found["per_busy_gpu_hour"] == {"amount": 2.0, "unpriced": [], "per_node": []}  # a node has two GPUs


def test_a_cluster_that_never_shrinks_to_0_is_a_fixed_cost() -> None:
    assert estimate([cluster(least=1)])["fixed_per_month"]["amount"] == 4 * 730


def test_low_priority_has_its_own_price_and_unknown_gpus_are_said() -> None:
    found = estimate([cluster(most=1, vmPriority="LowPriority")])
    assert found["per_busy_gpu_hour"]["amount"] == 1.0
    assert "of a node" in "\n".join(cost.lines({**found, "stack": "x"}))


def test_the_endpoint_counts_every_hour_that_it_is_deployed() -> None:
    plan = cost.endpoint_plan(json.dumps([{"instance_type": SIZE, "instance_count": 3}]))
    assert estimate(STACK, plan=plan)["per_deployed_hour"]["amount"] == 12.0


def test_the_worst_case_is_everything_busy_until_the_expiry() -> None:
    tagged = Resource("azure-native:resources:ResourceGroup", "rg", {"tags": {"expires-on": "2026-11-01T10:00:00Z"}})
    found = estimate([*STACK, tagged])["worst_case"]
    assert found["hours"] == 10.0
    assert found["amount"] == 10 * (1 + 2 * 4)  # a 24th of the registry's day, and two nodes
    assert found["unpriced"] == ["storage/Standard_LRS (by use)"]
    assert estimate(STACK)["worst_case"] is None
    assert "no expiry" in "\n".join(cost.lines(estimate(STACK)))


def test_what_has_no_price_is_named_and_never_0() -> None:
    database = Resource("azure-native:documentdb:DatabaseAccount", "db", {})
    found = estimate([REGISTRY, database])
    assert found["fixed_per_month"] == {"amount": 730.0, "unpriced": ["documentdb:DatabaseAccount"]}
    assert "at least 730.00 USD; unpriced: documentdb:DatabaseAccount" in "\n".join(cost.lines(found))
    assert estimate([database])["fixed_per_month"]["amount"] is None


def test_prices_of_another_region_are_no_prices() -> None:
    there = Resource(REGISTRY.type, "cr", {**REGISTRY.inputs, "location": "westeurope"})
    found = estimate([there])
    assert found["fixed_per_month"]["amount"] is None
    assert "--region westeurope" in "\n".join(cost.lines(found))


@pytest.mark.parametrize(
    "text", ["[{}]", "[1]", "{", "/nowhere.json", '[{"instance_type": "x", "instance_count": "y"}]']
)
def test_a_wrong_plan_is_wrong_use(text: str) -> None:
    with pytest.raises(UserError, match="plan is not such") as error:
        cost.endpoint_plan(text)
    assert error.value.code == 2


# --- the price file -------------------------------------------------------------------------------------------------


def item(price: float, **more: Any) -> dict[str, Any]:
    """An item with the fields that the API's documentation shows."""
    return {
        "currencyCode": "USD",
        "tierMinimumUnits": 0.0,
        "retailPrice": price,
        "unitPrice": price,
        "armRegionName": "eastus2",
        "location": "US East 2",
        "effectiveStartDate": "2026-01-01T00:00:00Z",
        "meterId": "000009d0-057f-5f2b-b7e9-9e26add324a8",
        "meterName": "NC24ads A100 v4",
        "productId": "DZH318Z0BPVW",
        "skuId": "DZH318Z0BPVW/00QZ",
        "productName": "Virtual Machines NCads A100 v4 Series",
        "skuName": "NC24ads A100 v4",
        "serviceName": "Virtual Machines",
        "serviceId": "DZH313Z7MMC8",
        "serviceFamily": "Compute",
        "unitOfMeasure": "1 Hour",
        "type": "Consumption",
        "isPrimaryMeterRegion": True,
        "armSkuName": SIZE,
        **more,
    }


VM_ITEMS = [
    item(9.0, productName="Virtual Machines NCads A100 v4 Series Windows", meterId="w"),
    item(0.5, meterName="NC24ads A100 v4 Spot", meterId="s"),
    item(1.5, meterName="NC24ads A100 v4 Low Priority", meterId="l"),
    item(8000.0, type="Reservation", meterId="r"),
]


class Api:
    """The Retail Prices API: two pages, and what it was asked."""

    def __init__(self) -> None:
        self.filters: list[str] = []
        self.last = [item(4.5)]

    def get(self, url: str, *, params: dict[str, str], timeout: float) -> requests.Response:
        answer = requests.Response()
        answer.status_code = 200
        page: dict[str, Any] = {"BillingCurrency": "USD", "CustomerEntityId": "Default", "CustomerEntityType": "Retail"}
        if params:
            self.filters.append(params["$filter"])
            page |= {"Items": VM_ITEMS, "NextPageLink": f"{url}?$skip=100", "Count": len(VM_ITEMS)}
        else:
            page |= {"Items": self.last, "NextPageLink": None, "Count": len(self.last)}
        answer._content = json.dumps(page).encode()
        return answer


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Api:
    made = Api()
    monkeypatch.setattr(requests, "get", made.get)
    return made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "prices.json"
    made.write_text(prices.FILE.read_text())
    return made


def test_a_refresh_takes_linux_pay_as_you_go_over_all_pages(api: Api, file: Path) -> None:
    left = prices.refresh(file)
    found = prices.read(file)
    assert found.price(f"vm/{SIZE}", "eastus2") == 4.5
    assert found.price(f"vm/{SIZE}/low-priority", "eastus2") == 1.5
    assert found.date == datetime.now(UTC).date().isoformat()
    assert "storage/Standard_LRS" in left  # no item has its unit
    expected = f"serviceName eq 'Virtual Machines' and armSkuName eq '{SIZE}' and armRegionName eq 'eastus2'"
    assert api.filters[0] == f"{expected} and priceType eq 'Consumption'"


def test_of_a_meters_tiers_the_dearest_counts(api: Api, file: Path) -> None:
    api.last = [item(0.0), item(2.5, tierMinimumUnits=5.0)]
    prices.refresh(file)
    assert prices.read(file).price(f"vm/{SIZE}", "eastus2") == 2.5


@pytest.mark.parametrize("items", [[], [item(1.0), item(2.0, meterId="other")], [item(0.0)]])
def test_what_is_not_found_once_stays_unpriced(api: Api, file: Path, items: list[dict[str, Any]]) -> None:
    api.last = items
    assert f"vm/{SIZE}" in prices.refresh(file)


def test_another_region_and_size_can_be_asked_for(api: Api, file: Path) -> None:
    prices.refresh(file, region="westeurope", sizes=("Standard_X",))
    found = prices.read(file)
    assert found.region == "westeurope" and found.price("vm/Standard_X", "westeurope") == 4.5


def test_a_failed_refresh_leaves_the_file_as_it_was(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> requests.Response:
        raise requests.ConnectionError("no route")

    monkeypatch.setattr(requests, "get", fail)
    with pytest.raises(UserError, match="gave no prices"):
        prices.refresh(file)
    assert file.read_text() == prices.FILE.read_text()


def test_no_price_is_checked_in_without_its_source_and_date() -> None:
    found = prices.read()
    for name, meter in found.meters.items():
        assert meter["price"] is None or (found.date and meter.get("meterId")), name


def test_a_preview_of_a_new_stack_is_priced_and_leaves_nothing(azure: LocalAzure) -> None:
    done = azure.run("-m", "infra.cost", "--stack", "cost-test", "--json")
    assert done.returncode == 0, done.stderr
    found = last_json(done.stdout)
    assert {one["meter"] for one in found["items"]} == set(prices.read().meters) - {
        "vm/Standard_E4s_v3",
        f"vm/{SIZE}/low-priority",
    }
    assert not (prices.FILE.parent.parent / "Pulumi.cost-test.yaml").exists()


@pytest.mark.parametrize("configured", [True, False])
def test_a_preview_of_a_new_stack_keeps_a_configuration_that_was_there(
    configured: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[tuple[str, bool]] = []
    stack = SimpleNamespace(preview=lambda **_: SimpleNamespace(change_summary={"create": 1}))
    workspace: Any = SimpleNamespace(remove_stack=lambda name, preserve_config: removed.append((name, preserve_config)))
    monkeypatch.setattr(environment, "PROJECT", tmp_path)
    monkeypatch.setattr(environment, "_ensure_stack", lambda *_: stack)
    if configured:
        (tmp_path / "Pulumi.x.yaml").touch()
    assert environment._preview_only(workspace, "x", True) == {"create": 1}
    assert removed == [("x", configured)]


def test_bringing_up_says_the_price_before_it_asks(capsys: pytest.CaptureFixture[str]) -> None:
    made = {"type": REGISTRY.type, "urn": "urn:pulumi:x::p::t::cr", "new": SimpleNamespace(inputs=REGISTRY.inputs)}
    event: Any = SimpleNamespace(resource_pre_event=SimpleNamespace(metadata=SimpleNamespace(**made)))
    cost.tell([event, SimpleNamespace(resource_pre_event=None)])  # type: ignore[list-item]
    assert "fixed per month: unpriced: container-registry/Standard" in capsys.readouterr().err
