"""TRL's SFTTrainer, set up as the plan says."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.cli import WRONG_USE, UserError
from training import lora
from training.plan import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# decided by training/settings.py from the keys of the same names, and told to the trainer in its own way below
DECIDED = ("activation_checkpointing", "assistant_only_loss", "fsdp", "shuffle_dataset", "torch_compile")


def make_trainer(plan: Plan, model: PreTrainedModel, tokenizer: Any, dataset: Any, checkpoints: Path) -> Any:
    """An SFTTrainer that writes nothing but checkpoints.

    Args:
        dataset: rows as `training.packing.prepared` makes them, or any with `input_ids`, `labels` and, where the
            recipe packs, `seq_lengths`.

    Raises:
        UserError: exit code 2: TRL refuses a value of the recipe, or the model lacks a module for its adapter.
    """
    from transformers.trainer_callback import PrinterCallback
    from trl.trainer.sft_trainer import SFTTrainer

    recipe = plan.schedule.recipe
    adapter = lora.configuration(recipe, model)
    args = arguments(plan, checkpoints)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # peft 0.21 asks it
            trainer = SFTTrainer(
                model=model, args=args, train_dataset=dataset, processing_class=tokenizer, peft_config=adapter
            )
    except ValueError as error:
        raise _refused(plan, error) from None
    trainer.remove_callback(PrinterCallback)
    if plan.settings.compiled.value:
        compile_layers(trainer.model)
    return trainer


def arguments(plan: Plan, checkpoints: Path) -> Any:
    """TRL's SFTConfig of a plan. Raises UserError, exit code 2, for a value that it refuses."""
    from trl.trainer.sft_config import SFTConfig

    sft = {key: value for key, value in plan.schedule.recipe.sft.items() if key not in DECIDED}
    try:
        with warnings.catch_warnings():
            # transformers 5.17 knows only this name, 5.23 knows both
            warnings.filterwarnings("ignore", message="`gradient_checkpointing` is deprecated")
            return SFTConfig(**{**sft, **_decided(plan), "output_dir": str(checkpoints)})
    except (ValueError, TypeError) as error:
        raise _refused(plan, error) from None


def _decided(plan: Plan) -> dict[str, Any]:
    settings, cuda = plan.settings, plan.hardware.kind == "cuda"
    values: dict[str, Any] = {
        "use_cpu": not cuda,
        # pinning memory is for a GPU's sake; without one torch warns about it
        "dataloader_pin_memory": cuda,
        "report_to": "none",
        "disable_tqdm": True,
        # it would replace a loss that is no number by the one before, and a ruined run would look healthy
        "logging_nan_inf_filter": False,
        "bf16": settings.autocast.value,
        "optim": settings.optimizer.value,
        "gradient_checkpointing": settings.checkpointing.value and not settings.sharded.value,
        "ddp_find_unused_parameters": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }
    if settings.sharded.value:
        values |= {"fsdp": True, "fsdp_config": _sharding(settings.checkpointing.value)}
    sft = plan.schedule.recipe.sft
    if settings.compiled.value and sft.get("packing") and "pad_to_multiple_of" not in sft:
        # every batch gets the same size: a compiled layer would be compiled again for another one
        values["pad_to_multiple_of"] = plan.schedule.batch * int(sft["max_length"])
    return values


def _sharding(checkpointing: bool) -> dict[str, Any]:
    """FSDP2, a layer at a time. It checkpoints activations itself: done outside, it gathers the weights twice."""
    return {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": ["Phi3DecoderLayer"],
        "reshard_after_forward": True,
        "state_dict_type": "FULL_STATE_DICT",
        "activation_checkpointing": checkpointing,
    }


def compile_layers(model: Any) -> None:
    """Compile each layer in place. The layers share their code, so that it is compiled once; the whole model would be
    compiled again for each number of tokens."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    for layer in base.model.layers:
        layer.compile()


def _refused(plan: Plan, error: Exception) -> UserError:
    return UserError(f"the recipe {plan.schedule.recipe.name} cannot run: {error}", code=WRONG_USE)
