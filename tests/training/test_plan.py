"""What is derived and decided before a run: right numbers, choices that fit, each with its reason."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest

from infra.cli import UserError
from tests.support.jobs import small_job
from training import plan as plans
from training import recipe as recipes
from training import sft
from training.estimate import KEPT, Load, Shape, flops_per_token, memory_of, shape_of
from training.hardware import GIB, Hardware, peak_flops
from training.schedule import Data, Schedule
from training.settings import Choice

PHI = {
    "model_type": "phi3",
    "num_hidden_layers": 32,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32064,
}
DATA = Data(conversations=2000, rows=600, tokens=2_400_000, learned=1_800_000, longest_row=4096, span=1400.0)
H200 = Hardware("cuda", "NVIDIA H200", 139 * GIB, True, 989e12)
H100 = Hardware("cuda", "NVIDIA H100 80GB HBM3", 79 * GIB, True, 989e12)
A100_40 = Hardware("cuda", "NVIDIA A100-SXM4-40GB", 39 * GIB, True, 312e12)
T4 = Hardware("cuda", "Tesla T4", 15 * GIB, False, None)
CPU = Hardware("cpu", "x86_64 CPU", 128 * GIB, True, None)
WHOLE = (
    "compute=gpu",
    "packing=true",
    "max_length=4096",
    "attn_implementation=auto",
    "dtype=auto",
    "per_device_train_batch_size=2",
    "gradient_accumulation_steps=4",
    "num_train_epochs=1",
    "max_steps=-1",
)


def _recipe(*changes: str) -> recipes.Recipe:
    """`local` with what Phi-3.5's recipe would say, and nothing said of what the job decides."""
    recipe = recipes.load("local", [*WHOLE, *changes])
    said = {change.partition("=")[0] for change in changes}
    open_keys = {"bf16", "gradient_checkpointing"} - said
    return dataclasses.replace(recipe, sft={key: value for key, value in recipe.sft.items() if key not in open_keys})


def _plan(hardware: Hardware, *changes: str, processes: int = 1, data: Data = DATA, **options: Any) -> plans.Plan:
    schedule = Schedule(_recipe(*changes), shape_of(PHI), data, processes)
    return plans.make(schedule, hardware, Choice("varlen", "a test"), **options)


@pytest.fixture
def eight_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if bitsandbytes were installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "bitsandbytes" or find(name))


@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 2}, {"tie_word_embeddings": True}])
def test_parameters_are_those_of_the_model(tiny_model: Path, changes: dict[str, Any]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, Phi3Config

    config = Phi3Config.from_pretrained(tiny_model)
    config.update(changes)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    linear = sum(part.numel() for name, part in model.named_parameters() if part.ndim == 2 and "embed" not in name)
    head = 0 if not config.tie_word_embeddings else config.vocab_size * config.hidden_size
    assert shape_of(config.to_dict()).parameters == model.num_parameters()
    assert shape_of(config.to_dict()).matmul_parameters == linear + head


def test_the_arithmetic_of_phi_35_mini_is_the_published_one() -> None:
    shape = shape_of(PHI)
    assert shape.parameters == 3_821_079_552
    assert flops_per_token(shape, 2048) == pytest.approx(23.5e9, rel=0.01)
    lora = shape.lora_parameters(16, recipes.LORA_MODULES)
    assert lora == 25_165_824
    assert flops_per_token(shape, 2048, lora) == pytest.approx(16.3e9, rel=0.01)


def test_another_architecture_is_refused() -> None:
    with pytest.raises(UserError, match="'llama'"):
        shape_of({**PHI, "model_type": "llama"})


def _kept(shape: Shape, kind: str, tokens: int, attention: str = "varlen", checkpointing: bool = False) -> float:
    """Bytes that autograd keeps of real layers for their backward pass, without the weights."""
    import torch
    from transformers import AutoModelForCausalLM, Phi3Config

    from training.attention import register

    register()
    config = Phi3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        pad_token_id=0,
    )
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    weights = {part.untyped_storage().data_ptr() for part in model.parameters()}
    sizes: dict[int, int] = {}
    alive = []

    def keep(part: torch.Tensor) -> torch.Tensor:
        if part.untyped_storage().data_ptr() not in weights:
            sizes[part.untyped_storage().data_ptr()] = part.untyped_storage().nbytes()
            alive.append(part)
        return part

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda part: part),
        torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"),
    ):
        _ = model.model(input_ids=torch.ones(1, tokens, dtype=torch.long), use_cache=False)
    return sum(sizes.values())


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("attention", ["varlen", "eager"])
@pytest.mark.parametrize("kind", list(KEPT))
def test_the_estimate_of_activations_is_what_autograd_keeps(kind: str, attention: str, checkpointing: bool) -> None:
    shapes = [Shape(layers, 192, 640, 3, 3, 64, 512, False) for layers in (1, 3)]
    load = Load(
        tokens=256,
        row=256,
        dtype="bfloat16" if kind == "bfloat16" else "float32",
        autocast=kind == "autocast",
        scores=attention == "eager",
        checkpointing=checkpointing,
    )
    few, many = (memory_of(shape, load).activations for shape in shapes)
    # two token counts, so that what does not grow with them (weights in 16 bits) falls out
    kept = [_kept(shape, kind, 256, attention, checkpointing) for shape in shapes]
    casts = 2 * (shapes[1].matmul_parameters - shapes[0].matmul_parameters)
    measured = kept[1] - kept[0] - (casts if kind == "autocast" and not checkpointing else 0)
    assert many - few == pytest.approx(measured, rel=0.08)


@pytest.mark.parametrize(
    ("hardware", "processes", "changes", "sharded", "checkpointing", "optimizer"),
    [
        (H200, 1, (), False, False, "adamw_torch_fused"),
        (H100, 1, (), False, True, "adamw_torch_fused"),
        (H100, 1, ("per_device_train_batch_size=4",), False, True, "adamw_bnb_8bit"),
        (H100, 8, (), True, False, "adamw_torch_fused"),
        (A100_40, 8, (), True, True, "adamw_torch_fused"),
        (H100, 1, ("use_peft=true",), False, False, "adamw_torch_fused"),
        (A100_40, 8, ("use_peft=true",), False, True, "adamw_torch_fused"),
        (H200, 1, ("gradient_checkpointing=true",), False, True, "adamw_torch_fused"),
        (H200, 1, ("optim=adafactor",), False, False, "adafactor"),
        (CPU, 1, ("max_length=256",), False, False, "adamw_torch_fused"),
    ],
)
@pytest.mark.usefixtures("eight_bit")
def test_memory_decides_what_is_given_up(
    hardware: Hardware, processes: int, changes: tuple[str, ...], sharded: bool, checkpointing: bool, optimizer: str
) -> None:
    row = int(_recipe(*changes).sft["max_length"])
    settings = _plan(hardware, *changes, processes=processes, data=dataclasses.replace(DATA, longest_row=row)).settings
    assert (settings.sharded.value, settings.checkpointing.value, settings.optimizer.value) == (
        sharded,
        checkpointing,
        optimizer,
    ), settings
    assert settings.memory.total <= hardware.memory


def test_without_bitsandbytes_no_8_bit_optimizer_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    settings = _plan(H100, "per_device_train_batch_size=4").settings
    assert settings.optimizer.value == "adamw_torch_fused"
    assert "may run out of memory" in settings.checkpointing.reason


@pytest.mark.parametrize(("hardware", "changes"), [(T4, ()), (CPU, ("max_length=256",))])
def test_a_model_that_cannot_fit_is_refused_before_it_is_loaded(hardware: Hardware, changes: tuple[str, ...]) -> None:
    small = dataclasses.replace(hardware, memory=15 * GIB)
    with pytest.raises(UserError, match="does not fit") as caught:
        _plan(small, *changes)
    assert "use_peft=true" in str(caught.value)


def test_four_bit_weights_fit_where_whole_ones_do_not() -> None:
    settings = _plan(T4, "use_peft=true", "load_in_4bit=true", "per_device_train_batch_size=1").settings
    assert settings.memory.total < 12e9


@pytest.mark.parametrize(
    ("hardware", "changes", "dtype", "autocast"),
    [
        (H200, (), "float32", True),
        (CPU, ("max_length=256",), "float32", True),
        (dataclasses.replace(CPU, bf16=False), ("max_length=256",), "float32", False),
        (H200, ("bf16=false",), "float32", False),
        (H200, ("use_peft=true",), "bfloat16", True),
        (T4, ("use_peft=true", "load_in_4bit=true"), "float32", False),
        (H200, ("dtype=bfloat16", "baseline=true"), "bfloat16", False),
    ],
)
def test_precision_follows_the_hardware_and_what_is_trained(
    hardware: Hardware, changes: tuple[str, ...], dtype: str, autocast: bool
) -> None:
    settings = _plan(hardware, *changes).settings
    assert (settings.dtype.value, settings.autocast.value) == (dtype, autocast)


@pytest.mark.parametrize(
    ("hardware", "tokens", "changes", "compiled"),
    [
        (H200, 30_000_000, (), True),
        (H200, 100_000, (), False),
        (H200, 100_000, ("torch_compile=true",), True),
        (dataclasses.replace(H200, peak=None), 30_000_000, (), False),
        (CPU, 30_000_000, (), False),
        (H200, 30_000_000, ("use_peft=true", "load_in_4bit=true"), False),
    ],
)
def test_layers_are_compiled_when_the_run_is_long_enough(
    hardware: Hardware, tokens: int, changes: tuple[str, ...], compiled: bool
) -> None:
    data = dataclasses.replace(DATA, tokens=tokens, longest_row=512)
    assert _plan(hardware, *changes, data=data).settings.compiled.value is compiled


@pytest.mark.parametrize(
    ("gpu", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10-24Q", 125e12),
        ("Tesla V100-SXM2-16GB", None),
    ],
)
def test_the_peak_is_found_by_the_drivers_name(gpu: str, peak: float | None) -> None:
    assert peak_flops(gpu) == peak


def test_every_number_is_printed_with_its_reason() -> None:
    plan = _plan(H100, processes=8, nodes=1, price=98.32)
    text = "\n".join(plan.lines())
    tokens = 2_400_000
    flops = tokens * flops_per_token(shape_of(PHI), 1400)
    assert "3,821,079,552 parameters" in text
    assert "2 rows x 4 accumulated x 8 process(es) = 64 rows, about 256,000 tokens" in text
    assert f"steps: {math.ceil(300 / 8 / 4)} " in text
    assert f"{flops:.3g} in all (6 a parameter, causal attention over 1,400 tokens" in text
    hours = flops / (8 * 989e12 * 0.4) / 3600
    assert f"about {hours:.2g} hours" in text
    assert f"cost: about {hours * 98.32:.2f} at 98.32" in text
    for what in ("weights", "arithmetic", "attention", "optimizer", "gradient checkpointing", "compiled layers"):
        line = next(line for line in plan.lines() if line.startswith(f"{what}: "))
        assert line.endswith(")"), line
    assert "sharded by FSDP2: yes" in text


def test_a_baselines_faults_are_named() -> None:
    text = "\n".join(
        _plan(
            H200,
            "dtype=bfloat16",
            "packing_strategy=wrapped",
            "attn_implementation=eager",
            "assistant_only_loss=false",
            "baseline=true",
        ).lines()
    )
    assert "small updates round to nothing" in text
    assert "a document sees its neighbour" in text
    assert "all tokens are learned" in text


def test_the_time_is_not_guessed_where_no_peak_is_known() -> None:
    assert "known after the first steps" in "\n".join(_plan(CPU, "max_length=256").lines())


@pytest.mark.parametrize(
    "changes",
    [
        ("num_train_epochs=1.5", "gradient_accumulation_steps=3"),
        ("num_train_epochs=2", "gradient_accumulation_steps=100"),
        ("max_steps=3",),
    ],
)
def test_the_planned_steps_are_those_that_are_made(tmp_path: Path, tiny_model: Path, changes: tuple[str, ...]) -> None:
    job = small_job(tmp_path, tiny_model, ("save_strategy=no", *changes))
    planned = sft.get_ready(job).plan.schedule
    assert sft.train(job)["steps"] == planned.steps


@pytest.mark.parametrize(("rows", "batch", "processes", "accumulated", "steps"), [(9, 2, 2, 2, 2), (8, 2, 2, 2, 1)])
def test_micro_batches_are_dealt_to_the_processes(
    rows: int, batch: int, processes: int, accumulated: int, steps: int
) -> None:
    recipe = _recipe(f"per_device_train_batch_size={batch}", f"gradient_accumulation_steps={accumulated}")
    schedule = Schedule(recipe, shape_of(PHI), dataclasses.replace(DATA, rows=rows), processes)
    assert schedule.steps_per_epoch == steps
