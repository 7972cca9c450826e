"""Adapters (LoRA, https://arxiv.org/abs/2106.09685; on four-bit weights QLoRA, https://arxiv.org/abs/2305.14314).

Phi-3 joins queries, keys and values in `qkv_proj` and both halves of SwiGLU in `gate_up_proj`; an adapter on one of
them serves all its parts. peft knows no default modules for this architecture, so a recipe names them.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.cli import WRONG_USE, UserError
from training.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from training.settings import Settings

ADAPTER = "adapter"
"""The folder beside the merged model that holds what was trained."""


def check(recipe: Recipe) -> None:
    """Raises UserError, exit code 2, where a package that the recipe needs is not installed."""
    needed = {"peft": recipe.model.use_peft, "bitsandbytes": recipe.model.load_in_4bit}
    needed["bitsandbytes"] |= "bnb" in str(recipe.sft.get("optim", "")) or "8bit" in str(recipe.sft.get("optim", ""))
    for package, wanted in needed.items():
        if wanted and importlib.util.find_spec(package) is None:
            raise UserError(
                f"the recipe {recipe.name} needs the package {package}, which is not installed",
                next_command=f"python -m pip install {package}",
                code=WRONG_USE,
            )


def configuration(recipe: Recipe, model: PreTrainedModel) -> Any:
    """peft's configuration of the recipe, or None where all weights are trained.

    Raises:
        UserError: exit code 2: the model lacks a module that the recipe names.
    """
    if not recipe.model.use_peft:
        return None
    from peft import LoraConfig  # type: ignore[import-not-found, unused-ignore]

    there = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    missing = [name for name in recipe.model.lora_target_modules if name not in there]
    if missing or not recipe.model.lora_target_modules:
        linear = sorted(
            {name.rpartition(".")[2] for name, part in model.named_modules() if hasattr(part, "in_features")}
        )
        raise UserError(
            f"the model has no module {', '.join(missing) or 'for an adapter: lora_target_modules is empty'}; its "
            f"linear modules are {', '.join(name for name in linear if name != 'lm_head')}",
            next_command="name some of them in lora_target_modules of the recipe",
            code=WRONG_USE,
        )
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=recipe.model.lora_r,
        lora_alpha=recipe.model.lora_alpha,
        lora_dropout=recipe.model.lora_dropout,
        target_modules=list(recipe.model.lora_target_modules),
    )


def four_bit(settings: Settings) -> Any:
    """How the frozen weights are loaded: NF4 with nested quantisation, computed with in the run's precision."""
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if settings.autocast.value else torch.float32,
    )


def merged(base: str, adapter: Path, **options: Any) -> PreTrainedModel:
    """The base model with a saved adapter added to its weights, in float32 on the CPU.

    The base is read again, unquantised and unrounded: adding to bfloat16 or four-bit weights would round the sum.
    """
    from peft import PeftModel  # type: ignore[import-not-found, unused-ignore]
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype="float32", **options)
    whole: PreTrainedModel = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    return whole
