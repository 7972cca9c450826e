"""A model version goes to a registry if it is approved, or forced with a reason."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.cli import UserError
from tests.support.local_azure import LocalAzure, last_json
from tests.training.submissions import make_outputs
from training import promote, runs

NAMES = (f"phi-{number}" for number in itertools.count())
Promote = Callable[..., int]
Register = Callable[..., None]


class Registry:
    """The emulator's registry `shared`, as azure-ai-ml shows it."""

    def tags(self, name: str, version: str) -> dict[str, str]:
        return dict(promote.registry_client("shared").models.get(name, version).tags)

    def versions(self, name: str) -> list[str]:
        return [str(one.version) for one in promote._versions(promote.registry_client("shared"), name)]


@pytest.fixture
def name() -> str:
    """A model's name that no other test uses."""
    return next(NAMES)


@pytest.fixture(scope="module")
def shared(azure: LocalAzure, workspace: str) -> str:
    """The ARM id of a registry in another group."""
    group = f"{workspace.split('/resourceGroups/')[0]}/resourceGroups/rg-registry"
    azure.put(group, {"location": "eastus2"})
    made = f"{group}/providers/Microsoft.MachineLearningServices/registries/shared"
    place = {"location": "eastus2", "acrDetails": [], "storageAccountDetails": []}
    body = {"location": "eastus2", "properties": {"regionDetails": [place]}}
    azure.put(made, {**body, "identity": {"type": "SystemAssigned"}})
    return made


@pytest.fixture
def registry(azure: LocalAzure, shared: str, monkeypatch: pytest.MonkeyPatch) -> Registry:
    for key, value in azure.env.items():
        monkeypatch.setenv(key, value)
    return Registry()


@pytest.fixture
def register(workspace: str, registry: Registry, name: str, tmp_path: Path) -> Register:
    """A version of the model in the workspace, by azure-ai-ml."""
    from azure.ai.ml.entities import Model

    from infra.client import ml_client

    client = ml_client(make_outputs(workspace))
    file = tmp_path / "config.json"
    file.write_text("{}")

    def made(version: int, **tags: str) -> None:
        model = Model(name=name, version=str(version), path=str(file), type="custom_model", tags=tags)
        client.models.create_or_update(model)

    return made


@pytest.fixture
def run(
    azure: LocalAzure, workspace: str, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Promote:
    monkeypatch.setenv("RUN_RECORDS", str(tmp_path / "runs"))
    outputs = tmp_path / "outputs.json"
    outputs.write_text(json.dumps(make_outputs(workspace).as_dict()))

    def made(*words: str) -> int:
        where = [] if "--registry" in words else ["--registry", "shared"]
        return promote.main([*words, *where, "--outputs", str(outputs), "--json"])

    return made


def refused(run: Promote, *words: str) -> UserError:
    with pytest.raises(UserError) as caught:
        run(*words)
    return caught.value


def test_an_approved_version_is_shared_with_its_lineage(
    run: Promote,
    registry: Registry,
    register: Register,
    name: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    register(3, approved="true", job="job-a", recipe_hash="abc")
    assert run(f"{name}:3") == 0
    captured = capsys.readouterr()
    address = f"azureml://registries/shared/models/{name}/versions/3"
    assert last_json(captured.out) == {"model": address, "source": f"{name}:3", "approved": True, "shared": True}
    assert registry.tags(name, "3") == {"approved": "true", "job": "job-a", "recipe_hash": "abc"}
    (record,) = runs.records()
    assert record["job"] == "job-a" and record["promoted"]["model"] == address and record["promoted"]["forced"] is None


def test_without_a_version_it_is_the_newest_that_is_approved(
    run: Promote, registry: Registry, register: Register, name: str
) -> None:
    for version, approved in ((2, "true"), (9, "true"), (10, "true"), (11, "false")):
        register(version, approved=approved, job=f"job-{version}")
    assert run(name) == 0
    assert registry.versions(name) == ["10"]


@pytest.mark.parametrize("words", [":1", ""])
def test_one_that_is_not_approved_is_refused(
    run: Promote, registry: Registry, register: Register, name: str, words: str
) -> None:
    register(1, approved="false", job="job-a")
    error = refused(run, name + words)
    assert error.code == 3 and f"{name}:1 is not approved" in error.message and "--force" in str(error.next_command)
    assert not registry.versions(name)


def test_a_forced_one_takes_its_reason_along(
    run: Promote, registry: Registry, register: Register, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    register(1, approved="false", job="job-a")
    assert run(f"{name}:1", "--force", "compared by hand") == 0
    captured = capsys.readouterr()
    assert last_json(captured.out)["approved"] is False and "forced: compared by hand" in captured.err
    assert registry.tags(name, "1")["promotion_forced"] == "compared by hand"
    assert registry.tags(name, "1")["approved"] == "false"
    assert runs.records()[0]["promoted"]["forced"] == "compared by hand"


def test_an_approved_one_needs_no_force_and_is_not_marked(
    run: Promote, registry: Registry, register: Register, name: str
) -> None:
    register(1, approved="true", job="job-a")
    assert run(f"{name}:1", "--force", "to be sure") == 0
    assert "promotion_forced" not in registry.tags(name, "1")


def test_force_without_a_reason_is_wrong_use(run: Promote, registry: Registry) -> None:
    error = refused(run, "phi", "--force", " ")
    assert error.code == 2 and "--force needs a reason" in error.message


def test_a_dry_run_shares_nothing(
    run: Promote, registry: Registry, register: Register, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    register(1, approved="true", job="job-a")
    assert run(name, "--dry-run") == 0
    captured = capsys.readouterr()
    assert last_json(captured.out)["shared"] is False and f"{name}:1 would be shared" in captured.err
    assert not registry.versions(name) and not runs.records()


def test_shared_again_it_is_there_already(
    run: Promote, registry: Registry, register: Register, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    register(1, approved="true", job="job-a")
    assert run(name) == 0 == run(name)
    captured = capsys.readouterr()
    assert "already: nothing to do" in captured.err and last_json(captured.out)["shared"] is True
    assert registry.versions(name) == ["1"]


@pytest.mark.parametrize("theirs", [{"job": "another"}, {}], ids=["another job", "no job"])
@pytest.mark.parametrize("ours", [{"job": "job-a"}, {}], ids=["a job", "no job"])
def test_the_number_of_another_model_is_not_taken_and_a_free_one_is_named(
    run: Promote, registry: Registry, register: Register, name: str, ours: dict[str, str], theirs: dict[str, str]
) -> None:
    register(1, approved="true", **theirs)
    for number in ("2", "12"):
        assert run(f"{name}:1", "--version", number) == 0
    register(2, approved="true", **ours)
    error = refused(run, f"{name}:2")
    assert error.code == 2 and error.next_command == "give --version 13"
    assert ("the job another" if theirs else "another origin") in error.message
    assert run(f"{name}:2", "--version", "13") == 0
    assert registry.tags(name, "13").get("job") == ours.get("job")


@pytest.mark.parametrize("wanted", ["{name}:7", "nothing", "nothing:1"])
def test_a_model_that_is_not_there_is_wrong_use(
    run: Promote, registry: Registry, register: Register, name: str, wanted: str
) -> None:
    register(1, approved="true")
    error = refused(run, wanted.format(name=name))
    assert error.code == 2 and "has no model" in error.message
    assert (f"it has {name} in 1" in error.message) is ("{name}" in wanted)


def test_a_copy_that_the_registry_does_not_show_is_not_called_shared(
    run: Promote, registry: Registry, register: Register, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from azure.ai.ml.operations import ModelOperations

    register(1, approved="true", job="job-a")
    monkeypatch.setattr(ModelOperations, "share", lambda *_, **__: None)
    error = refused(run, name)
    assert error.code == 1 and "does not show it yet" in error.message and not runs.records()


def test_a_copy_that_azure_ai_ml_does_not_find_is_looked_for(
    run: Promote, registry: Registry, register: Register, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from azure.ai.ml.operations import ModelOperations
    from azure.core.exceptions import ResourceNotFoundError

    real = ModelOperations.share

    def share(*words: Any, **more: Any) -> None:
        real(*words, **more)
        raise ResourceNotFoundError("not below the workspace's resource group")

    register(1, approved="true", job="job-a")
    monkeypatch.setattr(ModelOperations, "share", share)
    assert run(name) == 0 and registry.versions(name) == ["1"]


def test_a_registry_that_is_not_there_is_wrong_use(
    run: Promote, registry: Registry, register: Register, name: str
) -> None:
    register(1, approved="true")
    error = refused(run, name, "--registry", "nowhere")
    assert error.code == 2 and "there is no registry nowhere" in error.message
    assert "az ml registry show --name nowhere" in str(error.next_command)


@pytest.fixture
def fault(azure: LocalAzure) -> Iterator[Callable[..., None]]:
    """Faults of the emulator, until the test ends."""

    def made(*words: str) -> None:
        done = azure.run("-m", "emulator", "fault", *words)
        assert done.returncode == 0, done.stderr

    yield made
    made("clear")


@pytest.mark.parametrize(("status", "said"), [("403", "this login may not do that"), ("409", "sharing {} failed: ")])
def test_what_the_registry_refuses_is_one_sentence(
    run: Promote,
    registry: Registry,
    register: Register,
    name: str,
    fault: Callable[..., None],
    status: str,
    said: str,
) -> None:
    register(1, approved="true", job="job-a")
    fault("error", "--match", "registries/shared/import", "--status", status)
    error = refused(run, name)
    assert error.code == 1 and said.format(name) in error.message
    assert "\n" not in error.message and not runs.records()
