"""One configuration, measured in a process of its own, by the job's own code: `bench.training` calls it."""

from __future__ import annotations

import argparse
import json
import platform
import resource
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import synthetic
from infra import cli
from training import attention, hardware, packing
from training import plan as plans
from training import recipe as recipes
from training.estimate import shape_of
from training.evaluate import Encoded, likelihood
from training.recipe import Recipe
from training.schedule import Schedule
from training.trainer import make_trainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from training.plan import Plan


@dataclass(frozen=True)
class Configuration:
    """A recipe to be measured. `keeps_memory`: as the job does at its start (training/hardware.py)."""

    recipe: str
    changes: tuple[str, ...] = ()
    keeps_memory: bool = True


CONFIGURATIONS = {
    "guide": Configuration("guide", keeps_memory=False),
    "ours": Configuration("phi-3.5-mini"),
    "compiled": Configuration("phi-3.5-mini", ("torch_compile=true",)),
    "lora": Configuration("phi-3.5-mini-lora"),
}


@dataclass(frozen=True)
class Workload:
    """What every configuration has to do: steps of so many tokens, on chats of that length.

    `warm` steps at the beginning are not counted. `changes` are to the recipe: the same for all configurations, but
    that `rows` tokens of a row are kept where the recipe says nothing else.
    """

    tokens_per_step: int
    steps: int
    warm: int
    mean_length: int = synthetic.MEAN_LENGTH
    row: int | None = None


WORKLOADS = {
    # 8,192 tokens a step are the guide's; four steps of them are a minute on one core
    "speed-cpu": Workload(8192, steps=4, warm=1),
    "speed-gpu": Workload(65536, steps=1000, warm=3),
    # many small steps: what a learning rate of 5e-6 moves needs steps
    "loss": Workload(768, steps=200, warm=1, mean_length=300, row=768),
    "test": Workload(512, steps=3, warm=1, mean_length=100, row=256),
}
DOMAIN, HELD_OUT_SEED = "b", 10**6


def recipe_for(configuration: Configuration, workload: Workload) -> Recipe:
    """The recipe with the workload's batch; its own rows, learning rate, precision and all else stay."""
    plain = recipes.load(configuration.recipe, configuration.changes)
    row = workload.row or int(plain.sft["max_length"])
    batch = min(int(plain.sft["per_device_train_batch_size"]), max(workload.tokens_per_step // row, 1))
    accumulated = max(workload.tokens_per_step // (batch * row), 1)
    changes = {
        "max_length": row,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulated,
        "save_strategy": "no",
        "logging_steps": 1,
    }
    return recipes.load(configuration.recipe, [*configuration.changes, *(f"{k}={v}" for k, v in changes.items())])


def rows_for(recipe: Recipe, chats: Sequence[Encoded]) -> list[Encoded]:
    """As training.packing.encoded does with a file's conversations."""
    whole = recipe.sft.get("packing_strategy") in packing.WHOLE
    length = None if whole else int(recipe.sft["max_length"])
    everything = recipe.sft.get("assistant_only_loss") is False
    return [(ids[:length], ids[:length] if everything else labels[:length]) for ids, labels in chats]


def planned(recipe: Recipe, dataset: Any, conversations: int, shape: str, workload: Workload) -> Plan:
    facts = packing.facts(conversations, dataset)
    schedule = Schedule(recipe, shape_of(synthetic.configuration(shape).to_dict()), facts, 1)
    chosen = attention.choose(recipe.model.attn_implementation, packed="seq_lengths" in dataset.column_names)
    return plans.make(schedule, hardware.detect(1), chosen)


def run(
    name: str, workload: Workload, shape: str, device: str, weights: Path | None, seconds: float, begun: float
) -> dict[str, Any]:
    """Train and measure. `begun`: when the process started; it ends about `seconds` later, if the steps last longer."""
    import torch

    configuration = CONFIGURATIONS[name]
    if configuration.keeps_memory:
        hardware.keep_freed_memory()
    if device == "cpu":
        torch.set_num_threads(1)
    recipe = recipe_for(configuration, workload)
    chats = synthetic.conversations(DOMAIN, _tokens(workload), 0, workload.mean_length)
    dataset = packing.prepared(rows_for(recipe, chats), recipe)
    plan = planned(recipe, dataset, len(chats), shape, workload)
    model = _model(plan, shape, device, weights)
    before = held_out_loss(model, plan, workload)
    trainer, clock = _trainer(plan, model, dataset, workload, seconds, begun)
    trainer.train()
    return {
        **clock.measured(plan, device),
        "loss_before": round(before, 4),
        "loss_after": round(held_out_loss(model, plan, workload), 4),
        "peak_memory": _peak_memory(device),
        "plan": plan.lines(),
        "recipe": recipe.name,
        "fingerprint": recipe.fingerprint,
    }


def _tokens(workload: Workload) -> int:
    """Enough for the steps of a CPU; on a GPU the rows come round again."""
    return min(workload.tokens_per_step * workload.steps, 4_000_000) + 50_000


def _model(plan: Plan, shape: str, device: str, weights: Path | None) -> PreTrainedModel:
    dtype, kind = plan.settings.dtype.value, plan.attention.value
    if weights is None:
        return synthetic.model(shape, dtype, kind, device)
    from transformers import AutoModelForCausalLM, logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(weights, dtype=dtype, attn_implementation=kind)
    return loaded


def held_out_loss(model: PreTrainedModel, plan: Plan, workload: Workload) -> float:
    """Nats per token of the assistant, on chats that nobody trains on, cut at 2,048 tokens."""
    import torch

    chats = synthetic.conversations(DOMAIN, 20_000, HELD_OUT_SEED, workload.mean_length)
    autocast = plan.settings.autocast.value
    with torch.autocast(model.device.type, torch.bfloat16) if autocast else nullcontext():
        return likelihood(model, [(ids[:2048], labels[:2048]) for ids, labels in chats]).nll


def _trainer(
    plan: Plan, model: PreTrainedModel, dataset: Any, workload: Workload, seconds: float, begun: float
) -> tuple[Any, Any]:
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        """When each step ended, by the wall's clock and by the processor's."""

        def __init__(self) -> None:
            self.ends: list[tuple[float, float]] = []
            self.losses: list[float] = []

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            import torch

            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.ends.append((time.perf_counter(), time.process_time()))
            enough = len(self.ends) > workload.warm + 1 and time.time() - begun > seconds
            control.should_training_stop = control.should_training_stop or enough

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                self.losses.append(float(logs["loss"]))

        def measured(self, plan: Plan, device: str) -> dict[str, Any]:
            return _speeds(self.ends, self.losses, plan, workload, device)

    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    steps = max(round(workload.tokens_per_step * workload.steps / plan.schedule.tokens_per_step), workload.warm + 2)
    trainer = make_trainer(plan, model, synthetic.tokenizer(), dataset, folder)
    trainer.args.max_steps = steps
    clock = Clock()
    trainer.add_callback(clock)
    return trainer, clock


def _speeds(
    ends: list[tuple[float, float]], losses: list[float], plan: Plan, workload: Workload, device: str
) -> dict[str, Any]:
    """Of the steps after the warm ones. Tokens are those of the rows' documents, padding is none of them."""
    counted = len(ends) - workload.warm
    tokens = counted * plan.schedule.tokens_per_step
    first, last = ends[workload.warm - 1], ends[-1]
    wall, cpu = last[0] - first[0], last[1] - first[1]
    speed = tokens / wall
    peak = plan.peak_flops if device == "cuda" else None
    return {
        "steps": len(ends),
        "tokens": round(tokens),
        "tokens_in_all": round(len(ends) * plan.schedule.tokens_per_step),
        "learned_share": round(plan.schedule.data.learned / plan.schedule.data.tokens, 4),
        "seconds": round(wall, 3),
        "cpu_seconds": round(cpu, 3),
        "tokens_per_second": round(speed, 1),
        "tokens_per_cpu_second": round(tokens / cpu, 1),
        "flops_per_token": plan.schedule.flops_per_token,
        "mfu": round(speed * plan.schedule.flops_per_token / peak, 4) if peak else None,
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
    }


def _peak_memory(device: str) -> int:
    """Bytes: of the GPU's memory, or of the process's."""
    import torch

    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def pretrain(out: Path, shape: str, steps: int) -> None:
    """Weights that know another domain: a fine-tune of random weights would be no fine-tune."""
    import torch

    hardware.keep_freed_memory()
    torch.set_num_threads(1)
    attention.register()
    rows = synthetic.conversations("a", steps * 2048, 0, 300)
    model = synthetic.model(shape, "float32", "sdpa", "cpu")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ids = torch.tensor([token for row, _ in rows for token in row][: steps * 2048]).view(steps, 4, 512)
    for batch in ids:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(out)


def main(argv: list[str]) -> int:
    begun = time.time()
    parser = argparse.ArgumentParser(prog="python -m bench.measure")
    parser.add_argument("--config", choices=CONFIGURATIONS)
    parser.add_argument("--workload", choices=WORKLOADS)
    parser.add_argument("--shape", choices=synthetic.SHAPES, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--pretrain", type=int, default=0, metavar="STEPS")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    if args.pretrain:
        pretrain(args.out, args.shape, args.pretrain)
        return 0
    found = run(args.config, WORKLOADS[args.workload], args.shape, args.device, args.weights, args.seconds, begun)
    args.out.write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    cli.run(main)
