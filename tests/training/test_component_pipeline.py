"""The second way of training against the emulator: its registry, its pipelines, the real SDK.

Where the registry's own component is not what is tested, a step of one line stands in for it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emulator.system_registry import catalogue
from infra.cli import UserError
from tests.support.local_azure import LocalAzure, last_json
from tests.training.submissions import GOOD_METRICS, GPU_SIZE, SOURCE, make_data, make_gpu_cluster, make_outputs
from training import component_pipeline, follow, runs, submission, submit
from training import recipe as recipes
from training.cluster import Cluster
from training.component_parameters import Parameter
from training.component_recipe import ComponentRecipe

REGISTRY = "registry-phi-3-mini"
MAKES_A_MODEL = (
    "mkdir -p ${{outputs.mlflow_model_folder}}/data && echo flavors: > ${{outputs.mlflow_model_folder}}/MLmodel"
)


@pytest.fixture(scope="module")
def place(azure: LocalAzure) -> str:
    """A workspace of this module's own, with a GPU cluster."""
    workspace = azure.make_workspace("rg-registry")
    make_gpu_cluster(azure, workspace)
    return workspace


@pytest.fixture
def run(azure: LocalAzure, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`training.submit` in this process, on the emulator."""
    for key, value in azure.env.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("RUN_RECORDS", str(tmp_path / "runs"))
    monkeypatch.setattr(follow, "POLL_SECONDS", 0.1)
    data, outputs = make_data(tmp_path / "data"), tmp_path / "outputs.json"

    def made(*words: str, **changes: str) -> int:
        outputs.write_text(json.dumps(make_outputs(place, **changes).as_dict()))
        which = [] if "--attach" in words else ["--recipe", REGISTRY, "--set", f"source={SOURCE}"]
        return submit.main([*which, *words, "--data", str(data), "--outputs", str(outputs), "--json"])

    return made


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let a step of one line stand in for the component, and another for the evaluation."""

    def to(tuning: str = MAKES_A_MODEL, metrics: dict[str, Any] | None = None) -> None:
        said = json.dumps(GOOD_METRICS if metrics is None else metrics)
        judged = f"ls ${{{{inputs.model}}}}/MLmodel && echo '{said}' > ${{{{outputs.report}}}}/metrics.json"
        monkeypatch.setattr(component_pipeline, "evaluation_command", lambda made: judged)
        whole = component_pipeline.check

        def check(*args: Any) -> component_pipeline.PipelineSubmission:
            made = whole(*args)
            made.__dict__["component"] = _one_line(made.component, tuning)
            return made

        monkeypatch.setattr(component_pipeline, "check", check)

    return to


def _one_line(component: Any, line: str) -> Any:
    """A command component with the inputs of the registry's component."""
    from azure.ai.ml import Input, Output
    from azure.ai.ml.entities import CommandComponent

    return CommandComponent(
        name=component.name,
        version="1",
        command=line,
        inputs={name: Input(type=one.type, optional=True) for name, one in component.inputs.items()},
        outputs={"mlflow_model_folder": Output(type="mlflow_model")},
        environment="azureml://registries/azureml/environments/{}/versions/{}".format(*catalogue.environment()),
    )


def _uploads(azure: LocalAzure) -> int:
    return azure.run("-m", "emulator", "requests", "--match", "PUT").stdout.count("/azureml-blobstore")


# --- before anything is uploaded --------------------------------------------------------------------------------------


def test_a_dry_run_says_every_parameter_with_its_source_and_uploads_nothing(
    run: Callable[..., int], azure: LocalAzure, capsys: pytest.CaptureFixture[str]
) -> None:
    before = _uploads(azure)
    assert run("--dry-run", "--set", "num_train_epochs=2") == 0
    said = last_json(capsys.readouterr().out)
    assert _uploads(azure) == before
    assert said["would"] == "begin" and said["gpus"] == 1 and said["cost"]["hours"] is None
    assert said["model"].startswith("azureml://registries/azureml/models/Phi-3-mini-4k-instruct/versions/")
    assert not said["model"].endswith("latest") and "latest" not in said["component"]
    parameters = said["parameters"]
    assert parameters["learning_rate"] == {"value": 5e-6, "source": "recipe"}
    assert parameters["num_train_epochs"] == {"value": 2, "source": "--set", "instead_of": "model default 1"}
    assert parameters["precision"] == {"value": "16", "source": "model default"}
    assert parameters["lora_r"] == {"value": 8, "source": "component default"}
    assert parameters["compute_finetune"] == {"value": "gpu", "source": "cluster"}
    assert said["display_name"] == "Phi-3-mini-4k-instruct-first-questions-bs1-cosine-ds2-lora-save_limit1-seqlen-1"
    assert said["tags"]["base_model_version"] == said["model"].rsplit("/", 1)[1]
    assert "Standard_NC24ads_A100_v4" in said["tags"]["inference_compute_allow_list"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("base_model=Phi-3-mini-4k-instuct", "no model 'Phi-3-mini-4k-instuct'; the nearest: Phi-3-mini-4k-instruct"),
        ("base_model_version=9999", "no version '9999' of the model Phi-3-mini-4k-instruct; the nearest: 15"),
        ("component=chat_completion_pipelin", "no component '.*'; the nearest: chat_completion_pipeline"),
        ("component_version=9.9.9", "no version '9.9.9' of the component chat_completion_pipeline; it has 0"),
        ("lerning_rate=1", "--set has the unknown key `lerning_rate`; the nearest is `learning_rate`"),
        ("lr_scheduler_type=cosin", "lr_scheduler_type.*cosin'; the nearest is `cosine`"),
        ("precision=64", "takes 32, 16"),
        ("registry=azuerml", "there is no registry azuerml"),
    ],
)
def test_what_the_registry_does_not_have_or_take_is_one_sentence(
    run: Callable[..., int], azure: LocalAzure, change: str, said: str
) -> None:
    before = _uploads(azure)
    with pytest.raises(UserError, match=said) as caught:
        run("--set", change)
    assert caught.value.code == 2 and "\n" not in caught.value.message
    assert _uploads(azure) == before


def test_a_vm_size_outside_the_models_list_is_refused(run: Callable[..., int], azure: LocalAzure, place: str) -> None:
    make_gpu_cluster(azure, place, "older", size="Standard_NC6s_v3")
    with pytest.raises(
        UserError, match="the nodes of older are Standard_NC6s_v3, and Phi-3-mini-4k-instruct:15 is"
    ) as caught:
        run(compute="older")
    assert caught.value.code == 2


def test_a_size_whose_gpus_azure_does_not_tell_is_refused(
    azure: LocalAzure, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in azure.env.items():
        monkeypatch.setenv(key, value)
    unknown = Cluster("gpu", GPU_SIZE, gpus=0, cores=0, family="", max_nodes=1, low_priority=False, location="eastus2")
    recipe = recipes.load_any(REGISTRY)
    assert isinstance(recipe, ComponentRecipe)
    with pytest.raises(UserError, match=f"does not say how many GPUs a {GPU_SIZE} has") as caught:
        component_pipeline.check(recipe, make_outputs(place), tmp_path, unknown)
    assert caught.value.code == 2


def test_a_registry_that_cannot_be_reached_is_one_sentence(run: Callable[..., int], azure: LocalAzure) -> None:
    azure.run("-m", "emulator", "fault", "error", "--status", "503", "--match", "/registries/azureml/discovery")
    try:
        with pytest.raises(UserError, match="asking the registry azureml failed") as caught:
            run()
        assert caught.value.code == 1 and "\n" not in caught.value.message
    finally:
        azure.run("-m", "emulator", "fault", "clear")


def test_missing_data_are_said_before_azure_is_asked(run: Callable[..., int], tmp_path: Path) -> None:
    (tmp_path / "data" / "eval.jsonl").unlink()
    with pytest.raises(UserError, match="incomplete") as caught:
        run()
    assert "python -m training.dataset" in str(caught.value.next_command)


# --- the pipeline -----------------------------------------------------------------------------------------------------


def test_the_pipeline_is_the_component_and_our_evaluation(
    run: Callable[..., int], azure: LocalAzure, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--detach", "--set", "seed=5") == 0
    name = last_json(capsys.readouterr().out)["job"]
    job = azure.request("GET", f"{place}/jobs/{name}").json()["properties"]
    azure.request("POST", f"{place}/jobs/{name}/cancel")
    assert job["settings"]["force_rerun"] is True and job["settings"]["continue_on_step_failure"] is False
    assert job["displayName"].startswith("Phi-3-mini-4k-instruct-first-questions-bs1-cosine-ds2-lora")
    tuning, judging = job["jobs"]["fine_tuning"], job["jobs"]["evaluation"]
    assert "/registries/azureml/components/chat_completion_pipeline/versions/" in tuning["componentId"]
    values = {key: one.get("value", one.get("uri")) for key, one in tuning["inputs"].items()}
    assert (values["seed"], values["apply_lora"], values["compute_finetune"]) == ("5", "true", "gpu")
    assert values["train_file_path"].endswith("/train.jsonl") and values["test_file_path"].endswith("/eval.jsonl")
    assert values["number_of_gpu_to_use_finetuning"] == "1"
    assert judging["inputs"]["model"]["value"] == "${{parent.jobs.fine_tuning.outputs.mlflow_model_folder}}"
    assert set(job["outputs"]) >= {"trained_model", "report"}
    assert job["tags"]["model_type"] == "mlflow_model" and job["tags"]["recipe"] == REGISTRY


def test_what_it_makes_is_registered_as_an_mlflow_model_with_lineage_and_once(
    run: Callable[..., int],
    quick: Callable[..., None],
    azure: LocalAzure,
    place: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    quick()
    words = ("--set", "registered_name=once", "--set", "seed=6")
    assert run(*words) == 0
    captured = capsys.readouterr()
    said = last_json(captured.out)
    assert set(said) >= {"job", "status", "model", "metrics"} and said["model"] == "once:1" and said["approved"] is True
    assert captured.err.splitlines().count("  evaluation: Completed") == 1
    model = azure.request("GET", f"{place}/models/once/versions/1").json()["properties"]
    assert model["modelType"] == "mlflow_model"
    tags = model["tags"]
    assert tags["job"] == said["job"] and tags["approved"] == "true" and tags["eval_loss"] == "1.5"
    assert tags["base_model_version"] == "15" and tags["component"].startswith("chat_completion_pipeline:")
    assert {"stack", "recipe", "recipe_hash", "data", "git_commit", "code_hash", "inference_compute_allow_list"} <= set(
        tags
    )
    for again in (words, ("--attach", said["job"])):
        assert run(*again) == 0
        assert last_json(capsys.readouterr().out)["model"] == "once:1"


def test_a_model_that_the_gate_refuses_is_registered_and_ends_with_3(
    run: Callable[..., int], quick: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    quick(metrics={"approved": False, "reason": "no gain", "eval_loss": 2.0})
    assert run("--set", "registered_name=refused", "--set", "seed=7") == 3
    said = last_json(capsys.readouterr().out)
    assert said["approved"] is False and said["model"] == "refused:1"


def test_a_step_that_fails_is_named_and_the_run_begins_anew(
    run: Callable[..., int], quick: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    quick("echo tuning is over; exit 7")
    with pytest.raises(UserError, match="the step fine_tuning failed") as caught:
        run("--set", "seed=8")
    assert "fine_tuning: tuning is over" in caught.value.message and "begins anew" in str(caught.value.next_command)
    (record,) = runs.records()
    assert record["status"] == "Failed"
    quick()
    assert run("--set", "seed=8", "--detach") == 0
    captured = capsys.readouterr()
    assert last_json(captured.out)["job"].endswith("-2") and "a pipeline does not resume" in captured.err


def test_a_run_that_still_goes_is_followed_and_not_started_twice(
    run: Callable[..., int], quick: Callable[..., None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    quick(f"until test -f {tmp_path}/go; do sleep 0.1; done; {MAKES_A_MODEL}")
    assert run("--set", "seed=9", "--set", "registered_name=followed", "--detach") == 0
    first = last_json(capsys.readouterr().out)["job"]
    (tmp_path / "go").touch()
    assert run("--set", "seed=9", "--set", "registered_name=followed") == 0
    captured = capsys.readouterr()
    assert last_json(captured.out) | {"job": first} == last_json(captured.out)
    assert "submitting" not in captured.err


def test_another_version_or_parameter_is_another_run_and_another_cluster_is_not(
    run: Callable[..., int], azure: LocalAzure, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make_gpu_cluster(azure, place, "second")

    def job(*words: str, **changes: str) -> str:
        assert run("--dry-run", *words, **changes) == 0
        return str(last_json(capsys.readouterr().out)["job"])

    assert job() == job(compute="second") == job()
    other = ("--set", "base_model=Phi-3.5-mini-instruct", "--set", "base_model_version=latest")
    assert len({job(), job("--set", "seed=1"), job(*other)}) == 3


def test_what_latest_comes_to_is_part_of_the_run(
    run: Callable[..., int], place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipes.load_any(REGISTRY, [f"source={SOURCE}"])
    assert isinstance(recipe, ComponentRecipe)
    cluster = Cluster("gpu", GPU_SIZE, gpus=1, cores=24, family="", max_nodes=1, low_priority=False, location="eastus2")
    made = component_pipeline.check(recipe, make_outputs(place), tmp_path / "data", cluster)
    newer = dataclasses.replace(made, model=dataclasses.replace(made.model, id=made.model.id + "0"))
    advised = dataclasses.replace(made, parameters={**made.parameters, "lora_r": Parameter(4, "model default")})
    assert len({made.key, newer.key, advised.key}) == 3


def test_the_snapshot_holds_what_the_evaluation_reads() -> None:
    with submission.snapshot(recipes.load_any(REGISTRY)) as folder:
        assert (folder / "training/data/second-domain.jsonl").is_file()
        assert (folder / f"training/recipes/{REGISTRY}.yaml").is_file()
        assert not (folder / "training/data/first-questions.jsonl").exists()
