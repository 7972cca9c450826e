"""Adapters on Phi-3's fused modules: only they are trained, and what is saved is whole."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from infra.cli import UserError
from tests.support.jobs import small_job
from tests.support.small import FIRST_QUESTIONS
from training import lora, sft
from training import recipe as recipes
from training.base_model import load_weights
from training.sft import Job
from training.trainer import make_trainer

LORA = ("use_peft=true", "learning_rate=1e-2", "num_train_epochs=4", "save_strategy=no", "dtype=auto")
needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Job, dict[str, Any]]:
    job = small_job(tmp_path_factory.mktemp("adapted"), tiny_model, LORA)
    return job, sft.train(job)


def _logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(input_ids=torch.arange(20, 60)[None], use_cache=False).logits


@needs_peft
def test_the_merged_folder_is_the_base_with_its_adapter(adapted: tuple[Job, dict[str, Any]]) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    job, metrics = adapted
    merged = AutoModelForCausalLM.from_pretrained(job.output)
    base = AutoModelForCausalLM.from_pretrained(job.model)
    before = _logits(base)
    beside = PeftModel.from_pretrained(base, str(job.output / lora.ADAPTER))
    assert torch.allclose(_logits(merged), _logits(beside), atol=1e-4)
    assert not torch.allclose(_logits(merged), before, atol=1e-1)
    assert metrics["eval_loss"] < metrics["eval_loss_before"] - 1


@needs_peft
def test_only_the_named_modules_differ_from_the_base(adapted: tuple[Job, dict[str, Any]]) -> None:
    from safetensors.torch import load_file

    job, _ = adapted
    base, merged = (load_file(Path(folder) / "model.safetensors") for folder in (job.model, job.output))
    changed = {name for name in base if not base[name].equal(merged[name])}
    assert changed == {name for name in base if name.split(".")[-2] in recipes.LORA_MODULES}
    assert set(base) == set(merged)


@needs_peft
def test_the_planned_adapter_is_the_one_that_is_trained(tmp_path: Path, tiny_model: Path) -> None:
    job = small_job(tmp_path, tiny_model, (*LORA, "lora_r=4", "lora_target_modules=[qkv_proj, down_proj]"))
    ready = sft.get_ready(job)
    model = load_weights(job.model, ready.plan)
    trainer = make_trainer(ready.plan, model, ready.tokenizer, ready.dataset, tmp_path / "checkpoints")
    trained = {name: part for name, part in trainer.model.named_parameters() if part.requires_grad}
    assert sum(part.numel() for part in trained.values()) == ready.plan.schedule.adapters
    assert {name.split(".lora_")[0].split(".")[-1] for name in trained} == {"qkv_proj", "down_proj"}
    assert {str(part.dtype) for part in trained.values()} == {"torch.float32"}


@needs_peft
@needs_bitsandbytes
def test_four_bit_weights_are_trained_and_saved_whole(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from training.small_model import corpus_from, make_small_model

    # on a CPU bitsandbytes wants rows that are whole blocks of 64 weights
    make_small_model(tmp_path / "base", corpus_from([FIRST_QUESTIONS]), hidden=256, layers=1)
    job = small_job(tmp_path, tmp_path / "base", (*LORA, "compute=gpu", "load_in_4bit=true"))
    metrics = sft.train(job)
    merged = AutoModelForCausalLM.from_pretrained(job.output)
    assert not getattr(merged, "is_quantized", False)
    assert {part.dtype for part in merged.parameters()} == {torch.float32}
    assert metrics["eval_loss"] < metrics["eval_loss_before"] - 1


@needs_peft
def test_a_model_without_a_module_is_one_sentence(tmp_path: Path, tiny_model: Path) -> None:
    job = small_job(tmp_path, tiny_model, LORA)
    ready = sft.get_ready(job)
    model = load_weights(job.model, ready.plan)
    wanted = dataclasses.replace(job.recipe.model, lora_target_modules=("qkv_proj", "q_proj"))
    with pytest.raises(UserError) as caught:
        lora.configuration(dataclasses.replace(job.recipe, model=wanted), model)
    assert "no module q_proj" in str(caught.value)
    assert "down_proj, gate_up_proj, o_proj, qkv_proj" in str(caught.value)
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("package", "changes"),
    [
        ("peft", ("use_peft=true",)),
        ("bitsandbytes", ("compute=gpu", "use_peft=true", "load_in_4bit=true")),
        ("bitsandbytes", ("optim=adamw_bnb_8bit",)),
    ],
)
def test_a_package_that_is_missing_is_named_before_anything_is_read(
    package: str, changes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find("json"))
    with pytest.raises(UserError, match=f"needs the package {package}") as caught:
        lora.check(recipes.load("local", changes))
    assert caught.value.code == 2


def test_a_run_of_whole_weights_needs_none_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    lora.check(recipes.load("local"))
