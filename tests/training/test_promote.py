"""A model version goes to a registry if it is approved, or forced with a reason."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra.cli import UserError
from tests.support.local_azure import LocalAzure, last_json
from tests.support.model_registry import Registry, serving
from tests.training.submissions import make_outputs
from training import promote, runs

NAMES = (f"phi-{number}" for number in itertools.count())
Promote = Callable[..., int]


@pytest.fixture
def name() -> str:
    """A model's name that no other test uses."""
    return next(NAMES)


@pytest.fixture
def register(workspace: str, registry: Registry, name: str, tmp_path: Path) -> Callable[..., None]:
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
def registry(azure: LocalAzure, workspace: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    def tags_of(model: str, version: str) -> dict[str, str]:
        found = azure.request("GET", f"{workspace}/models/{model}/versions/{version}").json()
        return dict(found["properties"]["tags"])

    for key, value in azure.env.items():
        monkeypatch.setenv(key, value)
    with serving(Registry("shared", tags_of)) as made:
        yield made


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
    register: Callable[..., None],
    name: str,
    workspace: str,
    azure: LocalAzure,
    capsys: pytest.CaptureFixture[str],
) -> None:
    register(3, approved="true", job="job-a", recipe_hash="abc")
    assert run(f"{name}:3") == 0
    captured = capsys.readouterr()
    address = f"azureml://registries/shared/models/{name}/versions/3"
    assert last_json(captured.out) == {"model": address, "source": f"{name}:3", "approved": True, "shared": True}
    assert registry.models[name, "3"]["tags"] == {"approved": "true", "job": "job-a", "recipe_hash": "abc"}
    guid = azure.request("GET", workspace).json()["properties"]["workspaceId"]
    assert registry.imports[0]["sourceAssetId"] == (
        f"azureml://locations/eastus2/workspaces/{guid}/models/{name}/versions/3"
    )
    (record,) = runs.records()
    assert record["job"] == "job-a" and record["promoted"]["model"] == address and record["promoted"]["forced"] is None


def test_without_a_version_it_is_the_newest_that_is_approved(
    run: Promote, registry: Registry, register: Callable[..., None], name: str
) -> None:
    for version, approved in ((2, "true"), (9, "true"), (10, "true"), (11, "false")):
        register(version, approved=approved, job=f"job-{version}")
    assert run(name) == 0
    assert list(registry.models) == [(name, "10")]


@pytest.mark.parametrize("words", [":1", ""])
def test_one_that_is_not_approved_is_refused(
    run: Promote, registry: Registry, register: Callable[..., None], name: str, words: str
) -> None:
    register(1, approved="false", job="job-a")
    error = refused(run, name + words)
    assert error.code == 3 and f"{name}:1 is not approved" in error.message and "--force" in str(error.next_command)
    assert not registry.imports


def test_a_forced_one_takes_its_reason_along(
    run: Promote, registry: Registry, register: Callable[..., None], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    register(1, approved="false", job="job-a")
    assert run(f"{name}:1", "--force", "compared by hand") == 0
    captured = capsys.readouterr()
    assert last_json(captured.out)["approved"] is False and "forced: compared by hand" in captured.err
    assert registry.models[name, "1"]["tags"]["promotion_forced"] == "compared by hand"
    assert registry.models[name, "1"]["tags"]["approved"] == "false"
    assert runs.records()[0]["promoted"]["forced"] == "compared by hand"


def test_an_approved_one_needs_no_force_and_is_not_marked(
    run: Promote, registry: Registry, register: Callable[..., None], name: str
) -> None:
    register(1, approved="true", job="job-a")
    assert run(f"{name}:1", "--force", "to be sure") == 0
    assert "promotion_forced" not in registry.models[name, "1"]["tags"]


def test_force_without_a_reason_is_wrong_use(run: Promote, registry: Registry) -> None:
    assert refused(run, "phi", "--force", " ").code == 2


def test_a_dry_run_shares_nothing(
    run: Promote, registry: Registry, register: Callable[..., None], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    register(1, approved="true", job="job-a")
    assert run(name, "--dry-run") == 0
    captured = capsys.readouterr()
    assert last_json(captured.out)["shared"] is False and f"{name}:1 would be shared" in captured.err
    assert not registry.imports and not runs.records()


def test_shared_again_it_is_there_already(
    run: Promote, registry: Registry, register: Callable[..., None], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    register(1, approved="true", job="job-a")
    assert run(name) == 0 == run(name)
    captured = capsys.readouterr()
    assert "already: nothing to do" in captured.err and last_json(captured.out)["shared"] is True
    assert len(registry.imports) == 1


def test_two_models_that_name_no_job_are_not_taken_for_the_same(
    run: Promote, registry: Registry, register: Callable[..., None], name: str
) -> None:
    register(1, approved="true")
    registry.add(name, "1", {})
    assert refused(run, name).code == 2


@pytest.mark.parametrize("tags", [{"job": "another"}, {}])
def test_the_number_of_another_model_is_not_taken_and_a_free_one_is_named(
    run: Promote, registry: Registry, register: Callable[..., None], name: str, tags: dict[str, str]
) -> None:
    register(1, approved="true", job="job-a")
    registry.add(name, "1", tags)
    registry.add(name, "12", {})
    error = refused(run, name)
    assert error.code == 2 and error.next_command == "give --version 13"
    assert ("the job another" if tags else "another origin") in error.message
    assert run(name, "--version", "13") == 0
    assert registry.models[name, "13"]["tags"]["job"] == "job-a"


@pytest.mark.parametrize("wanted", ["{name}:7", "nothing", "nothing:1"])
def test_a_model_that_is_not_there_is_wrong_use(
    run: Promote, registry: Registry, register: Callable[..., None], name: str, wanted: str
) -> None:
    register(1, approved="true")
    error = refused(run, wanted.format(name=name))
    assert error.code == 2 and "has no model" in error.message
    assert (f"it has {name} in 1" in error.message) is ("{name}" in wanted)


def test_a_copy_that_the_registry_does_not_show_is_not_called_shared(
    run: Promote, registry: Registry, register: Callable[..., None], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(1, approved="true", job="job-a")
    monkeypatch.setattr(registry, "add", lambda *_: None)
    error = refused(run, name)
    assert error.code == 1 and "does not show it yet" in error.message and not runs.records()


def test_a_registry_that_is_not_there_is_wrong_use(
    run: Promote, registry: Registry, register: Callable[..., None], name: str
) -> None:
    register(1, approved="true")
    error = refused(run, name, "--registry", "nowhere")
    assert error.code == 2 and "there is no registry nowhere" in error.message
    assert "az ml registry show --name nowhere" in str(error.next_command)


@pytest.mark.parametrize(("status", "said"), [(403, "this login may not do that"), (400, "it is too large")])
def test_what_the_registry_refuses_is_one_sentence(
    run: Promote, registry: Registry, register: Callable[..., None], name: str, status: int, said: str
) -> None:
    register(1, approved="true", job="job-a")
    registry.fault = (status, {"error": {"code": "Refused", "message": "it is too large"}})
    error = refused(run, name)
    assert error.code == 1 and f"sharing {name} failed: " in error.message and said in error.message
    assert "\n" not in error.message and not runs.records()
