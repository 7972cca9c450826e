"""Which cluster a job goes to, and what is wrong with it, found before anything is uploaded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from infra import prices
from infra.cli import UserError
from infra.outputs import StackOutputs
from tests.support.local_azure import LocalAzure
from tests.training.submissions import make_gpu_cluster, make_outputs
from training import cluster as clusters
from training import recipe as recipes

A100 = "Standard_NC24ads_A100_v4"
OUTPUTS = make_outputs("/subscriptions/s/resourceGroups/g/providers/p/workspaces/w")
PHI, LOCAL = recipes.load("phi-3.5-mini"), recipes.load("local")


class Azure:
    """What azure-ai-ml's compute operations answer; `spelling` is how its objects name their fields."""

    def __init__(self, *, size: str = A100, limit: int = 48, used: int = 0, nodes: int = 2, **more: Any) -> None:
        self._sizes = [self._size(A100, "standardNCADSA100v4Family", 24, 1), self._size("Standard_D4", "dFamily", 4, 0)]
        self._rows = [
            SimpleNamespace(id="/usages/x", name={"value": "standardNCADSH100v5Family"}, limit=0, current_value=0),
            SimpleNamespace(id="/workspaces/w/usages/a", name={"value": "standardNCADSA100v4Family"}, limit=0),
            self._row("Standard NCADSA100v4 Family Cluster Dedicated vCPUs", limit, used),
            self._row("dFamily", 100, 0),
            self._row("Total Low-priority vCPUs", more.get("spare", 100), 0),
        ]
        tier = more.get("tier", "dedicated")
        self._cluster = SimpleNamespace(size=size, tier=tier, max_instances=nodes)
        self.compute = self

    def _size(self, name: str, family: str, cores: int, gpus: int) -> Any:
        return SimpleNamespace(name=name, family=family, v_cp_us=cores, gpus=gpus)

    def _row(self, name: str, limit: int, used: int) -> Any:
        localized = {"value": name.replace(" ", "").lower(), "localized_value": name}
        return SimpleNamespace(id="/usages/y", name=localized, limit=limit, current_value=used)

    def get(self, name: str) -> Any:
        return self._cluster

    def list_sizes(self, *, location: str) -> list[Any]:
        return self._sizes

    def list_usage(self, *, location: str) -> list[Any]:
        return self._rows


class Azure135(Azure):
    """As azure-ai-ml 1.35 answers: None under the documented names, the values under Azure's own."""

    def _size(self, name: str, family: str, cores: int, gpus: int) -> Any:
        return SimpleNamespace(name=name, family=family, v_cp_us=None, vCPUs=cores, gpus=gpus)

    def _row(self, name: str, limit: int, used: int) -> Any:
        named = {"value": name, "localizedValue": name}
        return SimpleNamespace(id="/usages/y", name=named, limit=limit, current_value=None, currentValue=used)


def find(azure: Any, recipe: recipes.Recipe = PHI, outputs: StackOutputs = OUTPUTS) -> clusters.Cluster:
    return clusters.find(azure, recipe, outputs)


def test_a_gpu_recipe_goes_to_the_gpu_cluster_with_a_process_for_each_gpu() -> None:
    found = find(Azure())
    assert (found.name, found.gpus, found.cores) == ("gpu", 1, 24)
    assert found.processes(PHI) == 1 and not found.low_priority
    assert clusters.Cluster("c", "s", 8, 96, "f", 1, False, "l").processes(PHI) == 8


def test_a_recipe_that_runs_anywhere_takes_the_cpu_cluster_where_there_is_one_and_one_process() -> None:
    assert clusters.chosen_name(LOCAL, OUTPUTS) == "cpu"
    without = make_outputs(OUTPUTS.workspace_id, cpu_compute="")
    assert clusters.chosen_name(LOCAL, without) == "gpu"
    assert clusters.Cluster("c", "s", 8, 96, "f", 1, False, "l").processes(LOCAL) == 1


def test_a_cpu_recipe_without_a_cpu_cluster_names_the_configuration_that_makes_one() -> None:
    with pytest.raises(UserError, match="has none") as caught:
        clusters.chosen_name(recipes.load("cpu-minimal"), make_outputs(OUTPUTS.workspace_id, cpu_compute=""))
    assert "pulumi config set cpuMaxNodes 1" in str(caught.value.next_command) and caught.value.code == 2


def test_a_size_without_gpus_is_refused_for_a_gpu_recipe_and_fine_for_another() -> None:
    with pytest.raises(UserError, match=r"needs a GPU.*Standard_D4"):
        find(Azure(size="Standard_D4"))
    assert find(Azure(size="standard_d4"), LOCAL).gpus == 0


def test_more_nodes_than_the_cluster_grows_to_are_refused() -> None:
    with pytest.raises(UserError, match="wants 3 nodes") as caught:
        find(Azure(limit=999), recipes.load("phi-3.5-mini", ["instance_count=3"]))
    assert "computeMaxNodes 3" in str(caught.value.next_command)


def test_more_processes_than_gpus_are_refused() -> None:
    with pytest.raises(UserError, match="each process needs its own"):
        find(Azure(), recipes.load("phi-3.5-mini", ["process_count_per_instance=2"]))


@pytest.mark.parametrize("kind", [Azure, Azure135])
def test_quota_that_can_never_suffice_is_refused_however_the_sdk_spells_it(kind: type[Azure]) -> None:
    for limit in (0, 23):
        with pytest.raises(UserError, match=f"24 cores .* the quota is {limit}") as caught:
            find(kind(limit=limit))
        assert "https://ml.azure.com/quota" in str(caught.value.next_command)
    assert find(kind(limit=24)).cores == 24


@pytest.mark.parametrize("kind", [Azure, Azure135])
def test_quota_in_use_is_a_note_that_the_job_will_wait(kind: type[Azure], capsys: pytest.CaptureFixture[str]) -> None:
    find(kind(limit=48, used=25))
    assert "waits until cores are given back" in capsys.readouterr().err
    find(kind(limit=48, used=24))
    assert capsys.readouterr().err == ""


def test_quota_is_for_all_nodes() -> None:
    with pytest.raises(UserError, match="2 x Standard_NC24ads_A100_v4 need 48"):
        find(Azure(limit=47), recipes.load("phi-3.5-mini", ["instance_count=2"]))


def test_low_priority_nodes_have_their_own_quota_and_price(monkeypatch: pytest.MonkeyPatch) -> None:
    found = find(Azure(limit=0, tier="low_priority"))
    assert found.low_priority
    with pytest.raises(UserError, match="low-priority cores"):
        find(Azure(spare=23, tier="LowPriority"))
    meters = {f"vm/{A100}": 4.0, f"vm/{A100}/low-priority": 1.0}
    region = {name: prices.Price(amount, "a test", "2026-01-01") for name, amount in meters.items()}
    monkeypatch.setattr(prices, "read", lambda: prices.Prices("USD", {}, {"eastus2": region}))
    assert found.price == (1.0, "USD") and find(Azure()).price == (4.0, "USD")


def test_a_size_or_a_quota_that_azure_does_not_list_is_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    assert find(Azure(size="Standard_New")).gpus == 0
    assert "GPUs and quota are not checked" in capsys.readouterr().err
    azure = Azure()
    azure._rows = []
    find(azure)
    assert "no quota" in capsys.readouterr().err


def test_against_a_workspace(azure: LocalAzure, workspace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from azure.core.exceptions import ResourceNotFoundError

    from infra.client import ml_client

    for key, value in azure.env.items():
        monkeypatch.setenv(key, value)
    make_gpu_cluster(azure, workspace, "spare", vmPriority="LowPriority")
    outputs = make_outputs(workspace, compute="spare")
    found = find(ml_client(outputs), PHI, outputs)
    assert (found.size, found.gpus, found.cores, found.max_nodes, found.low_priority) == (A100, 1, 24, 2, True)
    with pytest.raises(UserError, match="no cluster 'nope'"):
        find(ml_client(outputs), PHI, make_outputs(workspace, compute="nope"))
    gone = make_outputs(workspace.rsplit("/", 1)[0] + "/gone")
    with pytest.raises(ResourceNotFoundError):
        find(ml_client(gone), PHI, gone)
