"""Cost: sums of what is known, names of what is not."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infra import cost, estimate, prices
from infra.charges import Resource, charges, endpoint_plan, resources
from infra.cli import UserError
from infra.prices import Price, Prices
from tests.infra.conftest import Cli
from tests.support.local_azure import LocalAzure, last_json

SIZE = "Standard_NC24ads_A100_v4"
CPU = "Standard_D4ds_v5"
NOW = datetime(2026, 11, 1, tzinfo=UTC)
# Round numbers, so that sums can be checked by eye; no one's prices.
AMOUNTS = {f"vm/{SIZE}": 4.0, f"vm/{SIZE}/low-priority": 1.0, f"vm/{CPU}": 0.5, "container-registry/Standard": 24.0}
PRICES = Prices(
    "USD",
    {
        f"vm/{SIZE}": {"unit": "1 Hour", "gpus": 2},
        f"vm/{SIZE}/low-priority": {"unit": "1 Hour"},
        f"vm/{CPU}": {"unit": "1 Hour", "gpus": 0},
        "container-registry/Standard": {"unit": "1/Day"},
        "storage/Standard_LRS": {"unit": "1 GB/Month"},
    },
    {"eastus2": {name: Price(amount, "a test", "2026-11-01") for name, amount in AMOUNTS.items()}},
)


def cluster(least: int = 0, most: int = 2, name: str = "gpu-cluster", **more: Any) -> Resource:
    scale = {"minNodeCount": least, "maxNodeCount": most}
    inner = {"vmSize": SIZE, "scaleSettings": scale, **more}
    inputs = {"location": "eastus2", "properties": {"computeType": "AmlCompute", "properties": inner}}
    return Resource("azure-native:machinelearningservices:Compute", name, inputs)


def tagged(**tags: str) -> Resource:
    return Resource("azure-native:resources:ResourceGroup", "rg", {"location": "eastus2", "tags": tags})


REGISTRY = Resource(
    "azure-native:containerregistry:Registry", "cr", {"location": "eastus2", "sku": {"name": "Standard"}}
)
STORAGE = Resource("azure-native:storage/v20240101:StorageAccount", "st", {"sku": {"name": "Standard_LRS"}})
STACK = [Resource("pulumi:pulumi:Stack", "x", {}), REGISTRY, STORAGE, cluster()]


def priced(found: list[Resource], **more: Any) -> dict[str, Any]:
    return estimate.estimate(found, PRICES, **{"plan": [], "until": None, "now": NOW, **more})


def shown(found: dict[str, Any]) -> str:
    return "\n".join(estimate.lines({**found, "stack": "x"}))


def test_an_idle_stack_pays_for_its_registry_and_not_for_its_cluster() -> None:
    found = priced(STACK)
    assert found["fixed_per_month"] == {"amount": 730.0, "unpriced": []}
    assert found["per_busy_gpu_hour"] == {"amount": 2.0, "unpriced": [], "per_node": []}  # a node has two GPUs


def test_a_cluster_that_never_shrinks_to_0_is_a_fixed_cost() -> None:
    until = datetime(2026, 11, 1, 10, tzinfo=UTC)
    found = priced([cluster(least=1)], until=until)
    assert found["fixed_per_month"]["amount"] == 4 * 730
    assert found["worst_case"]["amount"] == 10 * 2 * 4, "no node is counted twice"


def test_low_priority_has_its_own_price_and_unknown_gpus_are_said() -> None:
    found = priced([cluster(most=1, vmPriority="LowPriority")])
    assert found["per_busy_gpu_hour"]["amount"] == 1.0
    assert "of a node" in shown(found)


def test_a_cpu_cluster_is_in_the_worst_case_and_not_in_the_gpu_hour() -> None:
    both = [cluster(), cluster(name="cpu-cluster", vmSize=CPU), tagged(**{"expires-on": "2026-11-01T10:00:00Z"})]
    found = priced(both)
    assert found["per_busy_gpu_hour"]["amount"] == 2.0
    assert found["worst_case"]["amount"] == 10 * (2 * 4 + 2 * 0.5)
    assert priced([cluster(vmSize=CPU)])["per_busy_gpu_hour"] is None
    assert "2 x Standard_D4ds_v5 (cpu-cluster)" in shown(found) and "0.5 an hour each" in shown(found)


def test_the_endpoint_counts_every_hour_that_it_is_deployed() -> None:
    plan = endpoint_plan(json.dumps([{"instance_type": SIZE, "instance_count": 3}]))
    assert priced(STACK, plan=plan)["per_deployed_hour"]["amount"] == 12.0


def test_the_worst_case_is_everything_busy_until_the_expiry() -> None:
    found = priced([*STACK, tagged(**{"expires-on": "2026-11-01T10:00:00Z"})])["worst_case"]
    assert found["hours"] == 10.0 and found["until"] == "2026-11-01T10:00+00:00"
    assert found["amount"] == 10 * (1 + 2 * 4)  # a 24th of the registry's day, and two nodes
    assert found["unpriced"] == [] and found["endpoint"] is False
    assert priced(STACK)["worst_case"] is None
    assert "the stack does not expire" in shown(priced(STACK))


def test_a_planned_endpoint_is_in_the_worst_case_to_its_end() -> None:
    plan = endpoint_plan(json.dumps({"instance_type": SIZE, "instance_count": 1}))
    until = datetime(2026, 11, 1, 10, tzinfo=UTC)
    found = priced(STACK, plan=plan, until=until)["worst_case"]
    assert found["amount"] == 10 * (1 + 2 * 4 + 4) and found["endpoint"] is True


def test_hours_to_live_are_an_expiry_too_and_a_date_goes_before_them() -> None:
    assert priced([*STACK, tagged(**{"ttl-hours": "8"})])["worst_case"]["hours"] == 8.0
    both = {"ttl-hours": "8", "expires-on": "2026-11-01T02:00:00Z"}
    assert priced([*STACK, tagged(**both)])["worst_case"]["hours"] == 2.0
    assert priced([*STACK, tagged(**{"expires-on": "2026-10-31T00:00:00Z"})])["worst_case"]["amount"] == 0.0


def test_what_has_no_price_is_named_and_never_0() -> None:
    database = Resource("azure-native:sql:Server", "db", {})
    found = priced([REGISTRY, database])
    assert found["fixed_per_month"] == {"amount": 730.0, "unpriced": ["sql:Server"]}
    (row,) = [line for line in estimate.lines(found) if line.strip().startswith("fixed per month")]
    assert "at least 730.00 USD" in row and "without sql:Server" in row
    alone = priced([database])
    assert alone["fixed_per_month"]["amount"] is None
    assert "0.00" not in shown(alone) and "sql:Server (db)" in shown(alone)


def test_a_chat_store_is_paid_by_use() -> None:
    account = Resource("azure-native:cosmosdb:DatabaseAccount", "db", {"capabilities": [{"name": "EnableServerless"}]})
    inside = Resource("azure-native:cosmosdb:SqlResourceSqlDatabase", "chat", {})
    found = priced([account, inside])
    assert found["by_use"] == ["cosmos-db/serverless", "cosmos-db/storage"]
    assert found["fixed_per_month"] is None
    provisioned = priced([Resource(account.type, "db", {})])["fixed_per_month"]
    assert provisioned == {"amount": None, "unpriced": ["cosmosdb:DatabaseAccount"]}


def test_a_shared_registry_is_not_this_stacks_to_pay() -> None:
    where = "/subscriptions/s/resourceGroups/shared/providers/Microsoft.ContainerRegistry/registries/crshared"
    workspace = Resource("azure-native:machinelearningservices:Workspace", "mlw", {"containerRegistry": where})
    found = priced([workspace, cluster()])
    assert found["fixed_per_month"] is None and found["shared_registry"] == "crshared"
    assert "the container registry crshared is shared: not this stack's to pay" in shown(found)
    assert priced([workspace, REGISTRY])["shared_registry"] is None


def test_prices_of_another_region_are_no_prices() -> None:
    there = Resource(REGISTRY.type, "cr", {**REGISTRY.inputs, "location": "westeurope"})
    found = priced([there])
    assert found["fixed_per_month"]["amount"] is None
    assert "--region westeurope" in shown(found)


def test_the_table_says_currency_month_and_where_the_prices_are_from() -> None:
    text = shown(priced(STACK))
    assert text.splitlines()[0] == "cost of x in eastus2, in USD; a month has 730 hours"
    assert "prices of 2026-11-01: a test" in text
    assert [line for line in text.splitlines() if "container-registry/Standard (cr)" in line and "24 a day" in line]
    assert "2 x Standard_NC24ads_A100_v4 (gpu-cluster)" in text and "4 an hour each" in text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[{}]", "`instance_type` is null"),
        ("[1]", "1 is not an object"),
        ("{", "not JSON"),
        ("/nowhere.json", "cannot be read"),
        ('{"instance_type": "x", "instance_count": "y"}', '`instance_count` is "y"'),
        ('{"instance_type": "x", "instance_count": -1}', "`instance_count` is -1"),
        ('{"instance_type": "x", "instance_count": 0}', "`instance_count` is 0"),
        ('{"instance_type": "x", "instance_count": 1.5}', "`instance_count` is 1.5"),
        ('{"instance_type": "x", "instance_count": true}', "`instance_count` is true"),
        ('{"instance_type": "", "instance_count": 1}', '`instance_type` is ""'),
    ],
)
def test_a_wrong_plan_is_wrong_use(text: str, why: str) -> None:
    with pytest.raises(UserError) as error:
        endpoint_plan(text)
    assert error.value.code == 2 and why in error.value.message and "\n" not in error.value.message


def test_a_plan_may_lie_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text(json.dumps([{"instance_type": SIZE, "instance_count": 2}]))
    (found,) = endpoint_plan(str(file))
    assert (found.meter, found.count) == (f"vm/{SIZE}", 2)


@pytest.mark.parametrize(
    "options", [["--until", "soon"], ["--region", "westeurope"], ["--currency", "EUR"], ["--size", "Standard_X"]]
)
def test_an_option_that_makes_no_sense_is_wrong_use(options: list[str]) -> None:
    with pytest.raises(UserError) as error:
        cost.main(options)
    assert error.value.code == 2


# --- the preview ----------------------------------------------------------------------------------------------------


def test_every_charge_of_this_program_has_a_meter(pulumi: Cli) -> None:
    """Else a new resource would be told as unpriced for ever, and no refresh could change it."""
    emails = {"budgetEmails": ["ml-platform@contoso.com"], "budgetStart": "2026-11-01", "budgetAmount": 100}
    pulumi.configure(chatStore=True, cpuMaxNodes=2, grants="least", githubSubject="repo:a/b:ref:refs/heads/c", **emails)
    code, out, err = pulumi("preview", "--json")
    assert code == 0, err
    states = [step["newState"] for step in json.loads(out)["steps"]]
    found = [one for state in states for one in charges(Resource(state["type"], state["urn"], state["inputs"]))]
    assert len(found) >= 9
    assert {one.meter for one in found} <= set(prices.read().meters)


def test_a_preview_of_a_new_stack_is_priced_and_leaves_nothing(azure: LocalAzure) -> None:
    done = azure.run("-m", "infra.cost", "--stack", "cost-test", "--json")
    assert done.returncode == 0, done.stderr
    found = last_json(done.stdout)
    assert {one["meter"] for one in found["items"]} == {
        f"vm/{SIZE}",
        "container-registry/Standard",
        "storage/Standard_LRS",
        "log-analytics",
        "key-vault/standard",
    }
    assert found["stack"] == "cost-test" and found["hours_per_month"] == 730
    assert not (prices.FILE.parent.parent / "Pulumi.cost-test.yaml").exists()


def test_bringing_up_says_the_price_before_it_asks(capsys: pytest.CaptureFixture[str]) -> None:
    made = {"type": REGISTRY.type, "urn": "urn:pulumi:x::p::t::cr", "new": SimpleNamespace(inputs=REGISTRY.inputs)}
    event: Any = SimpleNamespace(resource_pre_event=SimpleNamespace(metadata=SimpleNamespace(**made)))
    estimate.tell([event, SimpleNamespace(resource_pre_event=None)])  # type: ignore[list-item]
    printed = capsys.readouterr()
    assert printed.err.startswith("cost of the stack in eastus2, in USD") and printed.out == ""
    assert "container-registry/Standard (cr)" in printed.err and "fixed per month" in printed.err


def test_what_a_preview_deletes_is_not_paid_for() -> None:
    gone: Any = SimpleNamespace(metadata=SimpleNamespace(type=REGISTRY.type, urn="u", new=None))
    assert resources([SimpleNamespace(resource_pre_event=gone)]) == []  # type: ignore[list-item]
