from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from infra.cli import UserError
from training import recipe as recipes


@pytest.mark.parametrize("name", recipes.names())
def test_every_shipped_recipe_is_valid_and_survives_being_written(name: str, tmp_path: Path) -> None:
    recipe = recipes.load(name)
    path = tmp_path / f"{name}.yaml"
    path.write_text(recipe.as_yaml())
    assert recipes.load(str(path)) == recipe
    assert recipes.load(str(path)).fingerprint == recipe.fingerprint


def test_the_known_keys_are_those_of_the_installed_trl() -> None:
    from trl.trainer.sft_config import SFTConfig

    installed = {field.name for field in dataclasses.fields(SFTConfig) if field.init}
    ours = {field.name for field in dataclasses.fields(recipes.JobChoice)}
    assert set(recipes.known_keys()["training"]) == installed | ours
    assert not installed & ours


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("learning_rte=1", "the nearest key is `learning_rate`"),
        ("learning_rate=-1", "above 0"),
        ("output_dir=x", "not its to set"),
        ("chat_template=llama", "phi-3.5"),
        ("registered_name=a b", "no name"),
        ("instance_count=0", "1 or more"),
        ("instance_count=two", "no int"),
        ("learning_rate", "KEY=VALUE"),
    ],
)
def test_a_recipe_that_cannot_run_is_one_sentence_and_exit_code_2(change: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        recipes.load("local", [change])
    assert said in str(caught.value)
    assert caught.value.code == 2


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention"])
def test_packing_with_a_mask_over_the_row_is_refused(attention: str) -> None:
    with pytest.raises(UserError, match="mask over the whole row"):
        recipes.load("local", ["packing=true", "max_length=512", f"attn_implementation={attention}"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("dtype=float16", "float32, bfloat16"),
        ("save_dtype=auto", "float32, bfloat16"),
        ("load_in_4bit=true", "use_peft"),
        ("use_peft=1", "no bool"),
        ("lora_target_modules=qkv_proj", "no list"),
        ("use_liger_kernel=true", "not its to set"),
    ],
)
def test_a_model_that_cannot_be_trained_so_is_refused(change: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        recipes.load("local", [change])


def test_an_adapter_on_the_head_is_refused() -> None:
    with pytest.raises(UserError, match="lm_head"):
        recipes.load("local", ["use_peft=true", "lora_target_modules=[lm_head]"])


@pytest.mark.parametrize("text", ["", "model: {}", "model: [", "data: {}\nmodel: {}\ntraining: {}"])
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(UserError):
        recipes.load(str(path))


def test_numbers_and_strategies_mean_what_they_say() -> None:
    sft = recipes.load("local", ["learning_rate=1e-3", "save_strategy=no"]).sft
    assert (sft["learning_rate"], sft["save_strategy"]) == (0.001, "no")


def test_differences_name_section_and_key() -> None:
    pairs = recipes.differences(recipes.load("local"), recipes.load("local", ["seed=8", "max_steps=3"]))
    assert pairs == {"training.seed": (7, 8), "training.max_steps": (None, 3)}
