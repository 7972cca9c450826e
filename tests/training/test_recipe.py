from __future__ import annotations

import dataclasses
import enum
import json
import typing
from pathlib import Path
from typing import Any

import pytest

from infra.cli import UserError
from tests.support.local_azure import ROOT
from training import recipe as recipes
from training import recipe_docs
from training.recipe_values import kinds_of


@pytest.mark.parametrize("name", recipes.names())
def test_every_shipped_recipe_is_valid_and_survives_being_written(name: str, tmp_path: Path) -> None:
    recipe = recipes.load_any(name)
    path = tmp_path / f"{name}.yaml"
    path.write_text(recipe.as_yaml())
    assert recipes.load_any(str(path)) == recipe
    assert recipes.load_any(str(path)).fingerprint == recipe.fingerprint


def _values_of(hint: Any) -> tuple[str, ...]:
    for part in typing.get_args(hint) or (hint,):
        if isinstance(part, type) and issubclass(part, enum.Enum):
            return tuple(str(member.value) for member in part)
    return ()


def test_the_known_keys_their_kinds_and_their_values_are_those_of_the_installed_trl() -> None:
    from trl.trainer.sft_config import SFTConfig

    known, hints = recipes.sft_keys(), typing.get_type_hints(SFTConfig)
    installed = {field.name for field in dataclasses.fields(SFTConfig) if field.init}
    assert set(known) == installed
    for name, (kinds, values) in known.items():
        plain = {"bool", "int", "float", "str", "list", "dict", "none"}
        assert set(kinds) == (set(kinds_of(hints[name])) & plain or {"str"}), name
        assert values == _values_of(hints[name]), name
    assert not installed & {field.name for field in dataclasses.fields(recipes.JobChoice)}


def test_model_keys_are_those_of_trl_but_for_three() -> None:
    from trl.trainer.model_config import ModelConfig

    theirs = {field.name for field in dataclasses.fields(ModelConfig)}
    ours = {field.name for field in dataclasses.fields(recipes.ModelChoice)}
    assert ours - theirs == {"registered_name", "chat_template", "save_dtype"}


QLORA = ["use_peft=true", "load_in_4bit=true"]
PACKED = ["packing=true", "max_length=512"]
PHI_3 = "model_name_or_path=microsoft/Phi-3-mini-4k-instruct"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        # keys and values
        (["learning_rte=1"], "the nearest is `learning_rate`"),
        (["lora_alfa=8"], "the nearest is `lora_alpha`"),
        (["learning_rate"], "KEY=VALUE"),
        (["learning_rate=[1"], "not YAML"),
        (["learning_rate=fast"], "'fast', and takes float"),
        (["learning_rate=-1"], "above 0"),
        (["learning_rate=0"], "above 0"),
        (["learning_rate=.nan"], "above 0"),
        (["num_train_epochs=0"], "above 0"),
        (["per_device_train_batch_size=0"], "above 0"),
        (["gradient_accumulation_steps=0.5"], "takes int"),
        (["per_device_train_batch_size=true"], "takes int"),
        (["packing=1"], "takes bool"),
        (["lr_scheduler_type=cosin"], "the nearest is `cosine`"),
        (["optim=adamw"], "the nearest is `"),
        (["save_strategy=sometimes"], "it takes"),
        (["max_length=1"], "2 or more"),
        (["instance_count=0"], "1 or more"),
        (["instance_count=two"], "takes int"),
        (["process_count_per_instance=-1"], "0 or more"),
        (["timeout_minutes=0"], "1 or more"),
        (["shm_size=lots"], "such as 16g"),
        (["registered_name=a b"], "no name that Azure ML accepts"),
        (["chat_template=llama"], "phi-3.5"),
        # not a recipe's to set
        (["output_dir=x"], "not its to set"),
        (["completion_only_loss=true"], "not its to set"),
        (["use_liger_kernel=true"], "not its to set"),
        (["trust_remote_code=true"], "Phi-3 is part of transformers"),
        (["eval_strategy=epoch"], "not its to set"),
        (["report_to=mlflow"], "not its to set"),
        (["hub_token=x"], "no secrets"),
        # precision
        (["dtype=float16"], "auto, float32, bfloat16"),
        (["save_dtype=auto"], "float32, bfloat16"),
        (["dtype=bfloat16"], "Set dtype to float32"),
        (["bf16=true", "fp16=true"], "both set"),
        (["gradient_checkpointing=true", "activation_checkpointing=false"], "two names of one key"),
        # adapters
        (["load_in_4bit=true"], "set use_peft to true"),
        (["lora_r=8"], "would mean nothing"),
        (["use_peft=1"], "takes bool"),
        (["use_peft=true", "lora_r=0"], "1 or more"),
        (["use_peft=true", "lora_dropout=1"], "below 1"),
        (["use_peft=true", "lora_target_modules=qkv_proj"], "takes list"),
        (["use_peft=true", "lora_target_modules=[]"], "name some of"),
        (["use_peft=true", "lora_target_modules=[lm_head]"], "lm_head, whose weights the fused loss reads"),
        (["use_peft=true", "lora_target_modules=[q_proj]"], "'q_proj', which Phi-3 does not have"),
        # packing
        (["packing=true", "max_length=null"], "needs a `max_length`"),
        ([*PACKED, "packing_strategy=wrapped"], "use `bfd`"),
        ([*PACKED, "packing_strategy=best"], "bfd, bfd_split or wrapped"),
        ([*PACKED, "attn_implementation=sdpa"], "mask over the whole row"),
        ([*PACKED, "attn_implementation=eager"], "mask over the whole row"),
        ([*PACKED, "attn_implementation=flex_attention"], "mask over the whole row"),
        (["padding_free=true"], "set max_length to null"),
        ([PHI_3, "max_length=8192"], "at most 4096"),
        # without a GPU
        (["compute=tpu"], "gpu, cpu or any"),
        (["compute=cpu", *QLORA], "needs CUDA"),
        (["compute=any", *QLORA], "needs CUDA"),
        (["compute=cpu", "attn_implementation=flash_attention_2"], "CUDA kernel"),
        (["compute=cpu", "attn_implementation=kernels-community/flash-attn"], "CUDA kernel"),
        (["compute=cpu", "attn_implementation=flex_attention"], "no backward pass"),
        (["compute=cpu", "activation_offloading=true"], "there is none"),
        (["compute=cpu", "fp16=true"], "needs CUDA"),
    ],
)
def test_a_recipe_that_cannot_run_is_one_sentence_and_exit_code_2(changes: list[str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        recipes.load("local", changes)
    assert said in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.code == 2


@pytest.mark.parametrize(
    "changes",
    [
        ["dtype=bfloat16", "use_peft=true"],
        ["dtype=bfloat16", "baseline=true"],
        [*PACKED, "attn_implementation=auto", "per_device_train_batch_size=8"],
        [*PACKED, "attn_implementation=eager", "packing_strategy=wrapped", "baseline=true"],
        ["compute=cpu", "attn_implementation=varlen"],
        ["compute=gpu", *QLORA],
        ["padding_free=true", "max_length=null"],
        [PHI_3, "max_length=4096"],
    ],
)
def test_what_can_run_is_let_through(changes: list[str]) -> None:
    recipes.load("local", changes)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "three sections"),
        ("model: {}", "three sections"),
        ("model: [", "not YAML"),
        ("data: {}\nmodel: {}\ntraining: {}", "in this order"),
        ("model: {}\ndata: {}\ntraining: 1", "holds no keys"),
        ("model: {}\ndata: {}\ntraining: {}", "lacks the key `model_name_or_path`"),
        ("model: {1: 2}\ndata: {}\ntraining: {}", "unknown key `1`"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        recipes.load(str(path))


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"the nearest is `phi-3\.5-mini`") as caught:
        recipes.load("phi3.5-mini")
    assert caught.value.code == 2


def test_numbers_and_strategies_mean_what_they_say() -> None:
    sft = recipes.load("local", ["learning_rate=1e-3", "save_strategy=no"]).sft
    assert (sft["learning_rate"], sft["save_strategy"]) == (0.001, "no")


def test_a_run_given_more_time_or_another_place_is_still_the_same_run() -> None:
    was = recipes.load("local").fingerprint
    assert recipes.load("local", ["timeout_minutes=9", "shm_size=8g", "compute=gpu"]).fingerprint == was
    for change in ("seed=8", "learning_rate=1e-4", "instance_count=2", "save_dtype=bfloat16", "split=1%"):
        assert recipes.load("local", [change]).fingerprint != was, change


def test_differences_name_section_and_key(capsys: pytest.CaptureFixture[str]) -> None:
    pairs = recipes.differences(recipes.load("local"), recipes.load("local", ["seed=8", "max_steps=3"]))
    assert pairs == {"training.seed": (7, 8), "training.max_steps": (None, 3)}
    assert recipes.main(["diff", "local", "phi-3.5-mini"]) == 0
    assert "training.learning_rate: 0.001 -> 5e-06" in capsys.readouterr().out


def test_what_show_prints_is_a_recipe(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert recipes.main(["show", "local", "--set", "seed=8"]) == 0
    path = tmp_path / "local.yaml"
    path.write_text(capsys.readouterr().out)
    assert recipes.load(str(path)) == recipes.load("local", ["seed=8"])
    assert recipes.main(["show", "local", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["training"]["seed"] == 7


def test_validate_says_the_fingerprint(capsys: pytest.CaptureFixture[str]) -> None:
    assert recipes.main(["validate", "local", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"recipe": "local", "valid": True, "fingerprint": recipes.load("local").fingerprint}


@pytest.mark.parametrize("words", [["diff", "local"], ["show", "local", "guide"]])
def test_a_verb_with_the_wrong_number_of_recipes_is_wrong_use(words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        recipes.main(words)
    assert caught.value.code == 2


def test_the_page_of_recipes_says_what_the_files_say() -> None:
    assert (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8") == recipe_docs.page()
