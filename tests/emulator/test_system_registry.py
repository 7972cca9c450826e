"""The registry `azureml`: models with their tags, and its component run whole on a handful of conversations."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emulator.testing import AzureMl

pytest_plugins = ["emulator.testing"]
GPU = "Standard_NC24ads_A100_v4"
STEPS = {
    "ft_nlp_common_validation",
    "chat_completion_model_import",
    "chat_completion_datapreprocess",
    "chat_completion_finetune",
    "model_evaluation",
    "ft_nlp_model_converter",
}


@pytest.fixture
def registry(azure_ml: AzureMl) -> Any:
    from azure.ai.ml import MLClient
    from azure.identity import DefaultAzureCredential

    azure_ml.client()
    return MLClient(DefaultAzureCredential(), registry_name="azureml")


@pytest.fixture
def cluster(azure_ml: AzureMl) -> Iterator[str]:
    from azure.ai.ml.entities import AmlCompute

    azure_ml.client().compute.begin_create_or_update(AmlCompute(name="gpu", size=GPU, max_instances=1)).wait()
    yield "gpu"


def write_rows(path: Path, count: int = 24) -> str:
    rows = [
        {"messages": [{"role": "user", "content": f"And {n}?"}, {"role": "assistant", "content": f"It is {n + 1}."}]}
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def submit(azure_ml: AzureMl, registry: Any, cluster: str, train: str, **given: Any) -> str:
    from azure.ai.ml import Input
    from azure.ai.ml.dsl import pipeline

    component = registry.components.get(name="chat_completion_pipeline", label="latest")
    computes = dict.fromkeys(("model_import", "preprocess", "finetune", "model_evaluation"), cluster)
    model = {"mlflow_model_path": f"{registry.models.get('Phi-4-mini-instruct', label='latest').id}"}

    @pipeline(name="tuning")
    def tuning() -> dict[str, Any]:
        made = component(
            train_file_path=Input(type="uri_file", path=train),
            **{f"compute_{step}": name for step, name in computes.items()},
            **{**model, **given},
        )
        return {"trained_model": made.outputs.mlflow_model_folder}

    return str(azure_ml.client().jobs.create_or_update(tuning()).name)


def steps(azure_ml: AzureMl, name: str) -> dict[str, Any]:
    (inner,) = azure_ml.client().jobs.list(parent_job_name=name)
    return {str(one.display_name): one for one in azure_ml.client().jobs.list(parent_job_name=inner.name)}


def test_the_models_have_the_tags_that_the_guide_reads(registry: Any) -> None:
    names = {model.name for model in registry.models.list()}
    assert names == {
        "Phi-3-mini-4k-instruct",
        "Phi-3-mini-128k-instruct",
        "Phi-3.5-mini-instruct",
        "Phi-4-mini-instruct",
    }
    for name in names:
        model = registry.models.get(name, label="latest")
        assert model.id.startswith(f"azureml://registries/azureml/models/{name}/versions/")
        assert model.type == "mlflow_model"
        assert GPU in ast.literal_eval(model.tags["finetune_compute_allow_list"])
        assert GPU in ast.literal_eval(model.tags["inference_compute_allow_list"])
        assert ast.literal_eval(model.tags["model_specific_defaults"])["apply_lora"] == "true"


def test_what_the_registry_does_not_have_is_not_found(registry: Any) -> None:
    from azure.ai.ml.exceptions import ValidationException
    from azure.core.exceptions import ResourceNotFoundError

    with pytest.raises(ValidationException, match="Phi-9-mini does not exist in registry azureml"):
        registry.models.get("Phi-9-mini", label="latest")
    with pytest.raises(ResourceNotFoundError, match="versions/99"):
        registry.models.get("Phi-4-mini-instruct", version="99")


def test_nobody_shares_a_model_into_microsofts_registry(azure_ml: AzureMl, registry: Any, tmp_path: Path) -> None:
    from azure.ai.ml.entities import Model
    from azure.core.exceptions import HttpResponseError

    (tmp_path / "weights.txt").write_text("none")
    model = azure_ml.client().models.create_or_update(Model(name="mine", version="1", path=str(tmp_path)))
    with pytest.raises(HttpResponseError) as caught:
        azure_ml.client().models.share(
            model.name, "1", registry_name="azureml", share_with_name="m", share_with_version="1"
        )
    assert caught.value.status_code == 403


def test_the_component_tunes_a_model_that_is_deployed_without_code_in_its_own_words(
    azure_ml: AzureMl, registry: Any, cluster: str, tmp_path: Path
) -> None:
    train = write_rows(tmp_path / "train.jsonl")
    name = submit(azure_ml, registry, cluster, train, apply_lora="true", learning_rate=1e-3, max_steps=4)
    status = azure_ml.wait(name)
    found = steps(azure_ml, name)
    assert status == "Completed", {key: one.status for key, one in found.items()}
    assert {key: str(one.status) for key, one in found.items()} == dict.fromkeys(STEPS, "Completed")
    azure_ml.client().jobs.download(name, output_name="trained_model", download_path=tmp_path)
    folder = tmp_path / "named-outputs" / "trained_model"
    assert {"MLmodel", "code", "conda.yaml", "data"} <= {path.name for path in folder.iterdir()}
    assert (folder / "data" / "model" / "model.safetensors").is_file()
    assert (folder / "data" / "tokenizer" / "tokenizer.json").is_file()
    azure_ml.client().jobs.download(found["chat_completion_datapreprocess"].name, download_path=tmp_path)
    log = (tmp_path / "artifacts/user_logs/std_log.txt").read_text()
    for split in ("train: 20", "validation: 2", "test: 2"):  # a tenth each of what was given for training
        assert f"{split} conversations" in log
    azure_ml.client().jobs.download(
        found["model_evaluation"].name, output_name="evaluation_result", download_path=tmp_path
    )
    metrics = json.loads((tmp_path / "named-outputs" / "evaluation_result" / "metrics.json").read_text())
    assert 0 < metrics["test_loss"] < 12 and metrics["test_rows"] == 2


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("not json", "line 25 of train.jsonl is not JSON"),
        ('{"prompt": "hello"}', "line 25 of train.jsonl: there is no list `messages`"),
        ('{"messages": [{"role": "user", "content": "hello"}]}', "no message is the assistant's"),
    ],
)
def test_bad_data_fails_the_first_step_which_names_the_line(
    azure_ml: AzureMl, registry: Any, cluster: str, tmp_path: Path, line: str, says: str
) -> None:
    train = write_rows(tmp_path / "train.jsonl")
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write(line + "\n")
    assert says in failure(azure_ml, submit(azure_ml, registry, cluster, train))


def failure(azure_ml: AzureMl, name: str) -> str:
    """What the first step, the only one that ran, said when it failed."""
    assert azure_ml.wait(name) == "Failed"
    found = steps(azure_ml, name)
    assert set(found) == {"ft_nlp_common_validation"}
    details = azure_ml.client().jobs._runs_operations.get_run_details(found["ft_nlp_common_validation"].name)
    return str(details.error.error.message)


def test_a_cluster_of_another_size_than_the_model_allows_fails_the_first_step(
    azure_ml: AzureMl, registry: Any, tmp_path: Path
) -> None:
    name = submit(azure_ml, registry, "cpu", write_rows(tmp_path / "train.jsonl"))
    assert "VM size Standard_DS3_v2 is not among those" in failure(azure_ml, name)


def test_a_folder_that_is_no_mlflow_model_fails_the_first_step(
    azure_ml: AzureMl, registry: Any, cluster: str, tmp_path: Path
) -> None:
    from azure.ai.ml import Input

    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "weights.txt").write_text("none")
    plain = Input(type="mlflow_model", path=str(tmp_path / "plain"))
    name = submit(azure_ml, registry, cluster, write_rows(tmp_path / "train.jsonl"), mlflow_model_path=plain)
    assert "has no file MLmodel" in failure(azure_ml, name)
