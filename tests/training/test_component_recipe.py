from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infra.cli import UserError
from training import recipe as recipes
from training.component_parameters import CLUSTER, Input, Parameter, display_name, fitted, inputs_of, resolve
from training.component_recipe import ComponentRecipe
from training.foundation_model import DEFAULTS, SERVED_ON, TRAINS_ON, FoundationModel, find, literal

REGISTRY = "registry-phi-3-mini"
INPUTS = {
    "learning_rate": Input("number", 2e-5),
    "num_train_epochs": Input("integer", 1, least=1),
    "num_nodes_finetune": Input("integer", 1, least=1),
    "per_device_train_batch_size": Input("integer", 1, least=1),
    "per_device_eval_batch_size": Input("integer", 1, least=1),
    "lr_scheduler_type": Input("string", "linear", ("linear", "cosine", "cosine_with_restarts", "polynomial")),
    "apply_lora": Input("string", "false", ("true", "false")),
    "apply_deepspeed": Input("string", "false", ("true", "false")),
    "deepspeed_stage": Input("string", "2", ("2", "3")),
    "precision": Input("string", "32", ("32", "16")),
    "deepspeed": Input("uri_file"),
    "lora_dropout": Input("number", 0.0, most=1),
    "huggingface_id": Input("string"),
}


def load(*changes: str) -> ComponentRecipe:
    recipe = recipes.load_any(REGISTRY, changes)
    assert isinstance(recipe, ComponentRecipe)
    return recipe


# --- the file ---------------------------------------------------------------------------------------------------------


def test_a_recipe_that_names_a_component_is_of_that_kind_and_our_job_refuses_it() -> None:
    assert load().model.component == "chat_completion_pipeline"
    with pytest.raises(UserError, match="not for our own job") as caught:
        recipes.load(REGISTRY)
    assert caught.value.code == 2 and "training.submit --recipe" in str(caught.value.next_command)


def test_what_is_set_goes_to_its_section_and_the_rest_to_the_component() -> None:
    recipe = load("base_model_version=7", "split=1%", "learning_rate=1e-4", "gate_min_gain=0.5", "num_nodes_finetune=2")
    assert recipe.model.base_model_version == "7" and recipe.data.split == "1%"
    assert recipe.parameters["learning_rate"] == 1e-4 and recipe.job.gate_min_gain == 0.5
    assert recipe.job.instance_count == 2 and recipe.insisted == {"learning_rate", "num_nodes_finetune"}
    assert "gate_min_gain" not in recipe.parameters


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("mlflow_model_path=x", "sets `mlflow_model_path`, which is not its to set: .* base_model"),
        ("train_file_path=x", "train_file"),
        ("compute_finetune=x", "the stack's GPU cluster"),
        ("instance_type_finetune=x", "not serverless"),
        ("number_of_gpu_to_use_finetuning=2", "the cluster's VM size"),
        ("registered_name=a b", "no name that Azure ML accepts"),
        ("learning_rate=[1]", r"`learning_rate` in .* is \[1\]"),
        ("num_nodes_finetune=0", "must be 1 or more"),
        ("num_nodes_finetune=x", "takes int"),
        ("gate_min_gain=much", "takes float"),
        ("learning_rate", "is not KEY=VALUE"),
    ],
)
def test_what_cannot_be_is_refused_without_the_registry(change: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        load(change)
    assert caught.value.code == 2 and "\n" not in caught.value.message


def test_an_unknown_key_of_the_model_names_the_nearest(tmp_path: Path) -> None:
    text = recipes.find(REGISTRY).read_text().replace("base_model:", "base_modl:")
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match="unknown key `base_modl`; the nearest is `base_model`"):
        recipes.load_any(str(tmp_path / "mine.yaml"))


def test_another_value_is_another_run_and_another_order_is_not(tmp_path: Path) -> None:
    assert load("learning_rate=1e-4").fingerprint != load().fingerprint
    sections = load().as_dict()
    sections["training"] = dict(reversed(sections["training"].items()))
    (tmp_path / f"{REGISTRY}.yaml").write_text(recipes.as_yaml(sections))
    assert recipes.load_any(str(tmp_path / f"{REGISTRY}.yaml")).fingerprint == load().fingerprint


def test_the_verbs_take_both_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    assert recipes.main(["show", REGISTRY, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["base_model"] == "Phi-3-mini-4k-instruct"
    assert recipes.main(["validate", REGISTRY, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["valid"] is True
    assert recipes.main(["diff", REGISTRY, "phi-3-mini-4k", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["data.split"] == ["5%", "1%"]


# --- its parameters ---------------------------------------------------------------------------------------------------


def test_who_says_a_value_is_said_from_the_default_to_set() -> None:
    recommended = {"precision": 16, "learning_rate": 1e-5, "num_train_epochs": 1, "apply_lora": "true"}
    found = resolve(load("num_train_epochs=2"), recommended, INPUTS)
    assert found["lora_dropout"] == Parameter(0.0, "component default")
    assert found["precision"] == Parameter("16", "model default")
    assert found["learning_rate"] == Parameter(5e-6, "recipe", "model default 1e-05")
    assert found["num_train_epochs"] == Parameter(2, "--set", "model default 1")
    assert found["apply_lora"] == Parameter("true", "recipe"), "the same value overrules nobody"
    assert found["deepspeed_stage"].value == "2", "a number where the component takes a text"
    assert "huggingface_id" not in found and "deepspeed" not in found


def test_what_the_model_recommends_and_the_component_lacks_is_left_out() -> None:
    assert "learning_rate_min" not in resolve(load(), {"learning_rate_min": 1e-7}, INPUTS)


@pytest.mark.parametrize(
    ("change", "where"), [("lerning_rate=1", "--set has"), ("", "the recipe registry-phi-3-mini has")]
)
def test_a_parameter_that_the_component_does_not_have_names_the_nearest(change: str, where: str) -> None:
    recipe = load(*filter(None, [change]))
    inputs = INPUTS if change else {key: one for key, one in INPUTS.items() if key != "learning_rate"}
    with pytest.raises(UserError, match=f"{where} the unknown key `le.*rning_rate`") as caught:
        resolve(recipe, {}, inputs)
    assert caught.value.code == 2 and (not change or "the nearest is `learning_rate`" in caught.value.message)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("lr_scheduler_type", "cosin", "the component takes linear, cosine"),
        ("precision", 8, "the component takes 32, 16"),
        ("apply_lora", "yes", "the component takes true, false"),
        ("num_train_epochs", 1.5, "a whole number"),
        ("num_train_epochs", True, "a whole number"),
        ("num_train_epochs", "inf", "a whole number"),
        ("num_train_epochs", 0, "must be 1 or more"),
        ("lora_dropout", 2, "must be 1 or less"),
        ("learning_rate", "fast", "a number"),
        ("learning_rate", "nan", "a number"),
        ("learning_rate", None, "a number"),
        ("precision", None, "a text"),
        ("deepspeed", "ds.json", "takes a file or a model"),
    ],
)
def test_a_value_that_the_component_does_not_take_is_refused(key: str, value: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        fitted(key, value, INPUTS[key], "recipe")
    assert caught.value.code == 2 and "\n" not in caught.value.message


def test_a_value_is_written_as_the_component_takes_it() -> None:
    assert fitted("apply_lora", True, INPUTS["apply_lora"], "") == "true"
    assert fitted("deepspeed_stage", 3, INPUTS["deepspeed_stage"], "") == "3"
    assert fitted("num_train_epochs", "3", INPUTS["num_train_epochs"], "") == 3
    assert fitted("learning_rate", 1, INPUTS["learning_rate"], "") == 1.0
    assert fitted("x", "true", Input("boolean"), "") is True


def test_inputs_are_read_from_the_component() -> None:
    one = SimpleNamespace(type="integer", default=1, enum=None, min="1", max=None)
    assert inputs_of(SimpleNamespace(inputs={"n": one})) == {"n": Input("integer", 1, (), 1.0, None)}


def test_the_display_name_is_that_of_the_guide() -> None:
    found = resolve(load("per_device_train_batch_size=2", "num_nodes_finetune=3"), {"save_total_limit": 1}, INPUTS)
    assert display_name("Phi-3-mini-4k-instruct", "ultrachat", found, gpus=4) == (
        "Phi-3-mini-4k-instruct-ultrachat-bs24-cosine-ds2-lora-save_limit-1-seqlen-1"
    )
    found |= {"apply_lora": Parameter("false", CLUSTER), "apply_deepspeed": Parameter("false", CLUSTER)}
    found |= {"max_seq_length": Parameter(2048, CLUSTER), "save_total_limit": Parameter(2, CLUSTER)}
    assert display_name("m", "d", found, gpus=1) == "m-d-bs6-cosine-nods-nolora-save_limit2-seqlen2048"


# --- the registry's model ---------------------------------------------------------------------------------------------


def made(**changes: Any) -> FoundationModel:
    values = {"name": "Phi", "version": "7", "id": "azureml://x", "trains_on": None, "served_on": None, "defaults": {}}
    return FoundationModel(**{**values, **changes})


def test_tags_are_read_as_literals() -> None:
    tags = {TRAINS_ON: "['A', 'B']", SERVED_ON: '["C"]', DEFAULTS: " {'precision': 16} "}
    models = SimpleNamespace(get=lambda name, version: SimpleNamespace(name=name, version=version, id="i", tags=tags))
    found = find(SimpleNamespace(models=models), "Phi", "7")  # type: ignore[arg-type]  # as much as is asked of it
    assert (found.trains_on, found.served_on, dict(found.defaults)) == (("A", "B"), ("C",), {"precision": 16})


@pytest.mark.parametrize(
    "text",
    [
        "[open('x')]",
        "__import__('os').system('touch owned')",
        "{}",
        "[1",
        "",
        "(" * 99999,
        "-" * 50000 + "1",
        "-" * 3000 + "1",
    ],
)
def test_a_tag_that_is_no_list_is_refused_and_never_evaluated(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"the tag {TRAINS_ON} of the model Phi:7 is no Python list") as caught:
        literal({TRAINS_ON: text}, TRAINS_ON, [], "Phi:7")
    assert caught.value.code == 2 and len(caught.value.message) < 300
    assert not list(tmp_path.iterdir())


def test_a_vm_size_that_the_model_is_not_trained_on_is_refused_with_those_it_is() -> None:
    made(trains_on=("Standard_NC24ads_A100_v4",)).check_size("standard_nc24ADS_a100_v4", "gpu", "dev")
    with pytest.raises(
        UserError, match="Standard_E4s_v3, and Phi:7 is fine-tuned on Standard_A, Standard_B only"
    ) as caught:
        made(trains_on=("Standard_A", "Standard_B")).check_size("Standard_E4s_v3", "gpu", "dev")
    assert caught.value.code == 2 and "pulumi config set computeSize Standard_A --stack dev" in str(
        caught.value.next_command
    )


def test_without_a_list_only_gpus_that_are_too_old_are_refused() -> None:
    made().check_size("Standard_NC6s_v3", "gpu", "dev")
    with pytest.raises(UserError, match="does not support"):
        made().check_size("Standard_NC6", "gpu", "dev")


def test_an_empty_list_allows_nothing() -> None:
    with pytest.raises(UserError, match="only"):
        made(trains_on=()).check_size("Standard_NC6s_v3", "gpu", "dev")
