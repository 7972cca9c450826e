"""What a recipe may not say: combinations that TRL or Azure would refuse much later, or, worse, accept.

Each sentence says what is set, why it cannot work, and what to set instead. Most of them were found by running them
(CPU, TRL 1.16, transformers 5.23, peft 0.21). What depends on the machine is checked where it is known: the cluster by
training/submit.py, the node by the job.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from training.recipe import LORA_MODULES, TEMPLATES, ModelChoice, template_path
from training.recipe_values import wrong

if TYPE_CHECKING:
    from training.recipe import Recipe

# what the job decides itself: where it writes, how it resumes, and how texts become ids and labels (prompt.py)
RESERVED = {
    "output_dir": "the job's --output says it",
    "resume_from_checkpoint": "a job that is started again resumes by itself",
    "enable_jit_checkpoint": "a job that gets SIGTERM saves by itself (training/keeper.py)",
    "save_only_model": "a run that goes on needs the optimizer's state too",
    "ignore_data_skip": "a run that goes on must not see the same rows again",
    "completion_only_loss": "the labels are the assistant's tokens, or with `assistant_only_loss: false` all",
    "dataset_text_field": "rows are conversations, tokenised by training/prompt.py",
    "dataset_kwargs": "the job prepares the rows itself",
    "chat_template_path": "the section `model` names the template: chat_template",
    "model_init_kwargs": "the section `model` says how the model is loaded",
    "trust_remote_code": "Phi-3 is part of transformers, and the hub's own code of 2024 fails on it",
    "use_cpu": "a GPU is used where there is one",
    "report_to": "the job logs its metrics itself (training/tracking.py)",
    "logging_nan_inf_filter": "it would hide a loss that is no number",
    "use_liger_kernel": "TRL's own fused head is used; layers are compiled instead",
    "eval_strategy": "the held-out file is measured before and after, by training/evaluate.py",
    "load_best_model_at_end": "the held-out file is measured before and after, by training/evaluate.py",
    "push_to_hub": "the model is registered in the workspace; training.promote shares it",
    "hub_token": "a recipe holds no secrets",
}
# tokens, from the models' config.json (max_position_embeddings); a local folder's own is read when it is submitted
LONGEST = {"microsoft/Phi-3-mini-4k-instruct": 4096, "microsoft/Phi-3.5-mini-instruct": 131072}
# attention that reads the documents' borders; the others would build a mask over the whole row
PACKED_ATTENTION = ("auto", "varlen", "flash_attention_2", "flash_attention_3", "flash_attention_4")
LEAST = {"instance_count": 1, "timeout_minutes": 1, "process_count_per_instance": 0, "checkpoint_minutes": 0}
ABOVE_ZERO = ("num_train_epochs", "learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps")


def check(recipe: Recipe) -> None:
    """Raise UserError, exit code 2, with the first thing that cannot work."""
    for rule in (_reserved, _names, _numbers, _precision, _lora, _packing, _place):
        for sentence in rule(recipe):
            raise wrong(sentence)


def _reserved(recipe: Recipe) -> Iterator[str]:
    for key, reason in RESERVED.items():
        if key in recipe.sft:
            yield f"the recipe {recipe.name} sets `{key}`, which is not its to set: {reason}"


def _names(recipe: Recipe) -> Iterator[str]:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", recipe.name):
        yield f"the recipe's name {recipe.name!r} may hold letters, digits, `_`, `.` and `-` only"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}", recipe.model.registered_name):
        yield f"`registered_name` {recipe.model.registered_name!r} is no name that Azure ML accepts for a model"
    if not template_path(recipe).is_file():
        known = ", ".join(sorted(path.stem for path in TEMPLATES.glob("*.jinja")))
        yield f"there is no chat template {recipe.model.chat_template!r}; there are {known}"


def _numbers(recipe: Recipe) -> Iterator[str]:
    job, sft = recipe.job, recipe.sft
    for key, least in LEAST.items():
        if getattr(job, key) < least:
            yield f"`{key}` must be {least} or more"
    for key in ABOVE_ZERO:
        if key in sft and not sft[key] > 0:
            yield f"`{key}` must be a number above 0, not {sft[key]!r}"
    if not re.fullmatch(r"[1-9]\d*[bkmg]", job.shm_size):
        yield f"`shm_size` is {job.shm_size!r}, which is no size of shared memory such as 16g"
    longest, length = LONGEST.get(recipe.model.model_name_or_path), sft.get("max_length")
    if length is not None and length < 2:
        yield f"`max_length` must be 2 or more, not {length}"
    if longest and length and length > longest:
        yield f"max_length {length} is more than {recipe.model.model_name_or_path} was made for: at most {longest}"


def _precision(recipe: Recipe) -> Iterator[str]:
    model, sft = recipe.model, recipe.sft
    for key, known in {"dtype": ("auto", "float32", "bfloat16"), "save_dtype": ("float32", "bfloat16")}.items():
        if getattr(model, key) not in known:
            yield f"`{key}` must be one of {', '.join(known)}, not {getattr(model, key)!r}"
    if model.dtype == "bfloat16" and not (model.use_peft or recipe.job.baseline):
        yield (
            "dtype bfloat16 with all weights trained: most updates at a fine-tuning learning rate are smaller than the "
            "last bit and are lost (3 % of the weights move). Set dtype to float32; bf16 keeps the arithmetic fast"
        )
    if sft.get("bf16") and sft.get("fp16"):
        yield "`bf16` and `fp16` are both set: one kind of 16-bit arithmetic only; Phi is a bf16 model"
    one, other = sft.get("gradient_checkpointing"), sft.get("activation_checkpointing")
    if one is not None and other is not None and one != other:
        yield "`gradient_checkpointing` and `activation_checkpointing` are two names of one key, and differ here"


def _lora(recipe: Recipe) -> Iterator[str]:
    model = recipe.model
    if not model.use_peft:
        default = ModelChoice("", "", "")
        for key in ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"):
            if getattr(model, key) != getattr(default, key):
                yield f"`{key}` is set, but use_peft is not, so it would mean nothing: set use_peft to true"
        if model.load_in_4bit:
            yield "`load_in_4bit` freezes the weights, so it needs adapters to train: set use_peft to true"
        return
    if model.lora_r < 1 or model.lora_alpha < 1 or not 0 <= model.lora_dropout < 1:
        yield "`lora_r` and `lora_alpha` must be 1 or more, `lora_dropout` from 0 to below 1"
    if not model.lora_target_modules:
        yield f"`lora_target_modules` is empty: name some of {', '.join(LORA_MODULES)}"
    yield from (_no_module(name) for name in model.lora_target_modules if name not in LORA_MODULES)


def _no_module(name: str) -> str:
    if name == "lm_head":
        return (
            "`lora_target_modules` names lm_head, whose weights the fused loss reads without an adapter: leave it out, "
            f"the others are {', '.join(LORA_MODULES)}"
        )
    return f"lora_target_modules names {name!r}, which Phi-3 does not have: it has {', '.join(LORA_MODULES)}"


def _packing(recipe: Recipe) -> Iterator[str]:
    sft = recipe.sft
    length = sft.get("max_length")
    if not sft.get("packing"):
        if sft.get("padding_free") and sft.get("max_length", 1024) is not None:
            yield "padding_free without packing cuts nothing: set max_length to null, or packing to true"
        return
    strategy = sft.get("packing_strategy", "bfd")
    if strategy not in ("bfd", "bfd_split", "wrapped"):
        yield f"`packing_strategy` is {strategy!r}; it takes bfd, bfd_split or wrapped"
    if strategy == "wrapped" and not recipe.job.baseline:
        yield "packing_strategy `wrapped` lets a document see its neighbour: use `bfd`"
    if length is None:
        yield "packing needs a `max_length`, the number of tokens in a packed row"
    # `wrapped` has no borders to mind
    attention = recipe.model.attn_implementation
    if strategy != "wrapped" and attention not in PACKED_ATTENTION and "/" not in attention:
        yield (
            f"packing with {attention} attention builds a mask over the whole row (a third of the speed): set "
            "attn_implementation to auto"
        )


def _place(recipe: Recipe) -> Iterator[str]:
    """What needs a GPU, in a recipe that may run without."""
    job, model, sft = recipe.job, recipe.model, recipe.sft
    if job.compute not in ("gpu", "cpu", "any"):
        yield f"`compute` is {job.compute!r}; it takes gpu, cpu or any"
    if job.compute == "gpu":
        return
    needs: Sequence[tuple[bool, str]] = (
        (model.load_in_4bit, "load_in_4bit (QLoRA) needs CUDA"),
        (
            model.attn_implementation.startswith("flash") or "/" in model.attn_implementation,
            f"{model.attn_implementation} attention is a CUDA kernel; auto, varlen and sdpa are not",
        ),
        (model.attn_implementation == "flex_attention", "flex_attention has no backward pass without CUDA"),
        (bool(sft.get("activation_offloading")), "activation_offloading moves a GPU's memory, and there is none"),
        (bool(sft.get("fp16")), "fp16 arithmetic needs CUDA; set bf16, or neither"),
    )
    for met, sentence in needs:
        if met:
            yield f"compute is {job.compute}, but {sentence}; or set compute to gpu"
