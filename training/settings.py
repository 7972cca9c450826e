"""What the job decides where the recipe leaves it open: precision, memory, speed. Each with its reason.

A key that the recipe sets is obeyed. Nothing here needs torch or the weights: the choices follow from the model's
shape, the machine and the amount of work, so that they can be printed before anything is loaded.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from dataclasses import dataclass
from typing import Generic, TypeVar

from infra.cli import UserError
from training.estimate import Load, Memory, gigabytes, memory_of
from training.hardware import Hardware
from training.recipe import Recipe
from training.schedule import Schedule

USABLE = 0.92
"""Of a device's memory: the rest is lost to fragments."""
COMPILE_SECONDS = 90
"""What compiling one layer takes, about; it is compiled once for all."""
COMPILE_GAIN = 0.15
"""Of the time of a step on a GPU; modelled (fused norms, rotary embedding and SwiGLU), not measured here."""
ASSUMED_MFU = 0.4
"""For estimates of time before the first step."""
SAID = "the recipe says so"

T = TypeVar("T")


@dataclass(frozen=True)
class Choice(Generic[T]):
    """What was chosen for the user, and why: both are printed."""

    value: T
    reason: str

    def __str__(self) -> str:
        return f"{self.value} ({self.reason})"


@dataclass(frozen=True)
class Settings:
    """Everything that was decided."""

    dtype: Choice[str]
    autocast: Choice[bool]
    compiled: Choice[bool]
    sharded: Choice[bool]
    checkpointing: Choice[bool]
    optimizer: Choice[str]
    memory: Memory


def decide(schedule: Schedule, hardware: Hardware) -> Settings:
    """The settings of a run.

    Raises:
        UserError: weights, gradients and optimizer alone need more memory than there is.
    """
    recipe, row = schedule.recipe, schedule.data.longest_row
    autocast = _autocast(recipe, hardware)
    dtype = _dtype(recipe, autocast.value)
    compiled = _compiled(schedule, hardware)
    fixed = Load(
        tokens=schedule.batch * row,
        row=row,
        dtype=dtype.value,
        autocast=autocast.value,
        lora=schedule.adapters,
        four_bit=recipe.model.load_in_4bit,
        scores=recipe.model.attn_implementation == "eager",
        compiled=compiled.value,
        cuda=hardware.kind == "cuda",
    )
    limit = USABLE * hardware.memory
    loads = _options(fixed, schedule, hardware)
    needs = [memory_of(schedule.shape, load) for load in loads]
    number = next((number for number, need in enumerate(needs) if need.total <= limit), len(loads) - 1)
    load, memory, reason = loads[number], needs[number], _reason(needs[0], needs[number], limit)
    _raise_unless_it_fits(memory, hardware)
    return Settings(
        dtype,
        autocast,
        compiled,
        Choice(load.shards > 1, SAID if "fsdp" in recipe.sft else reason if schedule.processes > 1 else "one process"),
        Choice(load.checkpointing, SAID if _said_checkpointing(recipe) is not None else reason),
        Choice(_optimizer(recipe, load.eight_bit_optimizer), SAID if "optim" in recipe.sft else reason),
        memory,
    )


def _autocast(recipe: Recipe, hardware: Hardware) -> Choice[bool]:
    if "bf16" in recipe.sft:
        return Choice(bool(recipe.sft["bf16"]), SAID)
    if recipe.sft.get("fp16"):
        return Choice(False, "the recipe asks for float16")
    if recipe.model.dtype == "bfloat16" and not recipe.model.use_peft:
        return Choice(False, "the weights are bfloat16 themselves")
    if hardware.bf16:
        return Choice(True, f"the {hardware.name} computes in bfloat16")
    return Choice(False, f"the {hardware.name} does not compute in bfloat16")


def _dtype(recipe: Recipe, autocast: bool) -> Choice[str]:
    if recipe.model.dtype != "auto":
        return Choice(recipe.model.dtype, SAID)
    if recipe.model.use_peft and autocast:
        return Choice("bfloat16", "they are frozen, so no update can be lost to rounding; the adapters are float32")
    return Choice("float32", "master weights: in bfloat16 small updates round to nothing")


def _compiled(schedule: Schedule, hardware: Hardware) -> Choice[bool]:
    recipe = schedule.recipe
    if "torch_compile" in recipe.sft:
        return Choice(bool(recipe.sft["torch_compile"]), SAID)
    if hardware.kind != "cuda":
        return Choice(False, "without a GPU it takes longer than it saves")
    if recipe.model.load_in_4bit:
        return Choice(False, "four-bit weights are unpacked by kernels that cannot be compiled into a layer")
    if hardware.peak is None:
        return Choice(False, f"how long the run takes is not known: no peak is on record for {hardware.name}")
    seconds = schedule.flops / (hardware.peak * schedule.processes * ASSUMED_MFU)
    saved = seconds * COMPILE_GAIN
    return Choice(saved > COMPILE_SECONDS, f"about {saved:.0f} s saved for {COMPILE_SECONDS} s of compiling")


def _options(fixed: Load, schedule: Schedule, hardware: Hardware) -> list[Load]:
    """What may be combined, the fastest first; what the recipe sets is the same in all.

    Sharding comes before checkpointing: it costs some traffic between the GPUs, checkpointing a third more arithmetic.
    """
    recipe, sft, processes = schedule.recipe, schedule.recipe.sft, schedule.processes
    checkpointing = _said_checkpointing(recipe)
    can_shard = hardware.kind == "cuda" and processes > 1 and not recipe.model.use_peft
    has_8bit = hardware.kind == "cuda" and importlib.util.find_spec("bitsandbytes") is not None
    shards = [bool(sft["fsdp"])] if "fsdp" in sft else [False, True] if can_shard else [False]
    checkpoints = [checkpointing] if checkpointing is not None else [False, True]
    bits = ["8bit" in str(sft["optim"])] if "optim" in sft else [False, True] if has_8bit else [False]
    return [
        dataclasses.replace(
            fixed,
            shards=processes if shard else 1,
            copies=processes > 1 and not shard,
            checkpointing=checkpoint,
            eight_bit_optimizer=eight_bit,
        )
        for eight_bit in bits
        for checkpoint in checkpoints
        for shard in shards
    ]


def _said_checkpointing(recipe: Recipe) -> bool | None:
    for key in ("gradient_checkpointing", "activation_checkpointing"):
        if key in recipe.sft:
            return bool(recipe.sft[key])
    return None


def _optimizer(recipe: Recipe, eight_bit: bool) -> str:
    return str(recipe.sft.get("optim", "adamw_bnb_8bit" if eight_bit else "adamw_torch_fused"))


def _reason(first: Memory, chosen: Memory, limit: float) -> str:
    if chosen.total > limit:
        return f"even so it needs about {gigabytes(chosen.total)} of {gigabytes(limit)}: it may run out of memory"
    if first is chosen:
        return f"it fits: about {gigabytes(chosen.total)} of {gigabytes(limit)}"
    return f"otherwise about {gigabytes(first.total)} would be needed, and there are {gigabytes(limit)}"


def _raise_unless_it_fits(memory: Memory, hardware: Hardware) -> None:
    fixed = memory.weights + memory.gradients + memory.optimizer
    if fixed > hardware.memory:
        raise UserError(
            f"the model does not fit: weights, gradients and optimizer take {gigabytes(fixed)}, and a process has "
            f"{gigabytes(hardware.memory)} ({hardware.name})",
            next_command="train adapters: --set use_peft=true --set load_in_4bit=true   (or take more or larger GPUs)",
        )
