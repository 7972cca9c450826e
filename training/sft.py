"""The training job itself: the same file on a laptop and on a cluster's nodes.

    python -m training.sft --recipe local --model data/base-model --train data/train.jsonl --eval data/eval.jsonl \
        --output outputs/model
    torchrun --nproc_per_node 2 -m training.sft …        (Azure ML starts the processes by itself)

TRL's SFTTrainer on conversations that training/prompt.py has turned into ids and labels. Started again with the same
`--output` it goes on from the newest complete checkpoint; once it is complete it only reports. `complete.json` is
written last: a folder without it is not a finished model.

It runs on a node that has a snapshot of `training/` and of `infra/cli.py` and nothing else of the project.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra import cli
from infra.cli import REFUSED, WRONG_USE, UserError
from training import attention, hardware, job_evaluation, lora, model_card, packing, plan, ranks, saving, tracking
from training import recipe as recipes
from training.base_model import identity_of, load_weights, read_shape, read_tokenizer
from training.checkpoints import (
    CHECKPOINTS,
    METRICS_FILE,
    claim_output,
    finished_metrics,
    mark_complete,
    resume_point,
    step_of,
)
from training.dataset import file_hash
from training.evaluate import Measured, compare, write
from training.gate import Limits, Verdict
from training.job_evaluation import Asked
from training.keeper import keeping
from training.plan import Plan
from training.ranks import say
from training.recipe import Recipe
from training.schedule import Schedule
from training.tracking import Run
from training.trainer import make_trainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Job:
    """What a run is made of: a recipe, a base model (folder or hub name), two files, a place for the result.

    `price` is that of one node for an hour, in any currency: it only makes the plan say what the run costs.
    """

    recipe: Recipe
    model: str
    train: Path
    eval: Path
    output: Path
    price: float | None = None

    @property
    def identity(self) -> dict[str, str]:
        """What must be equal for a run to go on from another's checkpoint."""
        return {
            "recipe": self.recipe.fingerprint,
            "train": file_hash(self.train),
            "eval": file_hash(self.eval),
            "base_model": identity_of(self.model, self.recipe),
        }


@dataclass(frozen=True)
class Ready:
    """A job that is read, checked and planned; nothing large is loaded yet."""

    tokenizer: Any
    dataset: Any
    asked: Asked
    plan: Plan


def train(job: Job) -> dict[str, Any]:
    """Run the job to its end, or go on where it stopped; returns the metrics, `approved` among them.

    Raises:
        UserError: data, model or output that cannot be used, checkpoints of another run, a model that does not fit, no
            memory or no room on the disk, a loss that is no number; stopped by SIGTERM (exit code 143).
    """
    if finished := finished_metrics(job.output, job.identity):
        say(f"{job.output} is complete already: nothing to do")
        return finished
    start(job)
    ready = get_ready(job)
    for line in ready.plan.lines():
        say(line)
    with tracking.following(job.recipe, job.output, job.identity) as followed:
        return _learned_and_judged(job, ready, followed)


def _learned_and_judged(job: Job, ready: Ready, followed: Run) -> dict[str, Any]:
    ran = saving.trained_before(job.output, job.identity) or learn(job, ready, followed)
    before, after = job_evaluation.recalled(ran["before"]), job_evaluation.measured(load_saved(job, ready), ready.asked)
    gate = job.recipe.job
    found, verdict = compare(before, after, Limits(gate.gate_min_gain, gate.gate_max_forgetting))
    metrics = {**found, **ran["speed"], "approved": verdict.approved, "reason": verdict.reason}
    followed.metrics = metrics
    finish(job, ready, metrics, before, after)
    _say_verdict(verdict)
    return metrics


def start(job: Job) -> None:
    """Meet the other processes and make the output folder this job's."""
    import torch
    from transformers import set_seed

    ranks.begin()
    if ranks.is_first():
        claim_output(job.output, job.identity, job.recipe.as_dict())
    ranks.wait()
    hardware.keep_freed_memory()
    if job.recipe.job.cpu_threads > 0:
        torch.set_num_threads(job.recipe.job.cpu_threads)
    set_seed(int(job.recipe.sft.get("seed", 42)))


def get_ready(job: Job) -> Ready:
    """Read everything but the weights, and plan."""
    lora.check(job.recipe)
    shape = read_shape(job.model, job.recipe)
    tokenizer = read_tokenizer(job.model, job.recipe)
    rows, held_out = (packing.encoded(tokenizer, file, job.recipe) for file in (job.train, job.eval))
    dataset = packing.prepared(rows, job.recipe)
    schedule = Schedule(job.recipe, shape, packing.facts(len(rows), dataset), ranks.processes())
    per_node = ranks.per_node(job.recipe.job.instance_count)
    chosen = attention.choose(job.recipe.model.attn_implementation, packed="seq_lengths" in dataset.column_names)
    nodes = ranks.processes() // per_node
    made = plan.make(schedule, hardware.detect(per_node), chosen, nodes=nodes, price=job.price)
    asked = job_evaluation.asked(tokenizer, job.eval, held_out, job.recipe, made.settings.autocast.value)
    return Ready(tokenizer, dataset, asked, made)


def learn(job: Job, ready: Ready, followed: Run) -> dict[str, Any]:
    """Train, and save what was trained; returns what is known of the run, as it is noted beside the model."""
    model = load_weights(job.model, ready.plan)
    # four-bit weights are worse than those that the adapter is merged into: the gain would look larger than it is
    whole = load_weights(job.model, ready.plan, whole=True) if job.recipe.model.load_in_4bit else model
    before = job_evaluation.measured(whole, ready.asked)
    del whole
    say(f"held-out loss before: {before.held_out.nll:.4f} nats per token ({before.held_out.tokens} tokens)")
    trainer = make_trainer(ready.plan, model, ready.tokenizer, ready.dataset, job.output / CHECKPOINTS)
    trainer.add_callback(followed.callback(ready.plan.schedule.flops_per_token, ready.plan.peak_flops))
    speed = run(trainer, job.output, ready.plan)
    ran = {"run": job.identity, "before": job_evaluation.noted(before), "speed": speed}
    saving.save(trainer, ready.tokenizer, job.recipe, job.model, job.output, ran)
    saving.forget(trainer)
    say(f"saved to {job.output}")
    return ran


def run(trainer: Any, output: Path, plan: Plan) -> dict[str, Any]:
    """Train, from the newest checkpoint if there is one; returns steps, tokens and speed."""
    checkpoint = resume_point(output)
    if checkpoint:
        say(f"resuming from {checkpoint}")
    started = time.monotonic()
    with keeping(trainer, output, minutes=plan.schedule.recipe.job.checkpoint_minutes):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    seconds, steps = time.monotonic() - started, trainer.state.max_steps
    if trainer.state.global_step < steps:
        raise UserError(
            f"the training was stopped at step {trainer.state.global_step} of {steps}",
            next_command="run the same command again; it goes on from its newest checkpoint",
        )
    share = 1 - step_of(checkpoint) / max(steps, 1)
    speed = plan.schedule.tokens * share / max(seconds, 1e-9)
    mfu = {"mfu": round(speed * plan.schedule.flops_per_token / plan.peak_flops, 4)} if plan.peak_flops else {}
    return {
        "steps": steps,
        "train_tokens": round(plan.schedule.tokens),
        "train_seconds": round(seconds, 2),
        "tokens_per_second": round(speed, 1),
        **mfu,
        "parameters": plan.schedule.shape.parameters,
    }


def load_saved(job: Job, ready: Ready) -> PreTrainedModel | None:
    """The model that was saved, as its users will have it; None on other nodes than the first.

    Another node may not see yet what the first has written to a mounted output.
    """
    if ranks.rank() >= ranks.per_node(job.recipe.job.instance_count):
        return None
    return load_weights(str(job.output), ready.plan, whole=True)


def finish(job: Job, ready: Ready, metrics: Mapping[str, Any], before: Measured, after: Measured) -> None:
    """Write what is known at the end; the marker last."""
    if ranks.is_first():
        write(job.output, metrics, ready.asked.questions, before, after)
        model_card.write_card(job.output, job.recipe, job.model, job.identity, metrics)
        mark_complete(job.output, job.identity, metrics)
    ranks.wait()


def _say_verdict(verdict: Verdict) -> None:
    say(f"{'approved' if verdict.approved else 'not approved'}: {verdict.reason}")


def _job_of(args: argparse.Namespace) -> Job:
    recipe = recipes.load(args.recipe, args.set)
    for option in ("train", "eval"):
        if not getattr(args, option).is_file():
            raise UserError(
                f"--{option}: there is no file {getattr(args, option)}",
                next_command=f"python -m training.dataset --source {recipe.data.source} --out data",
                code=WRONG_USE,
            )
    base = args.model or recipe.model.model_name_or_path
    return Job(recipe, base, args.train, args.eval, args.output, args.price_per_hour)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("training.sft", "Fine-tune a model by a recipe; started again it resumes.")
    recipes.add_recipe_options(parser)
    parser.add_argument("--train", type=Path, required=True, metavar="FILE")
    parser.add_argument("--eval", type=Path, required=True, metavar="FILE")
    parser.add_argument("--model", metavar="DIR_OR_NAME", help="the base model (default: the recipe's)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the trained model's folder")
    parser.add_argument("--report", type=Path, metavar="DIR", help="also write metrics.json here")
    parser.add_argument("--gate", action="store_true", help="leave with exit code 3 if the model is not approved")
    parser.add_argument("--price-per-hour", type=float, metavar="AMOUNT", help="of one node: the plan says the cost")
    return parser


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    try:
        return _main(args)
    except UserError as error:
        ranks.let_the_first_speak()
        if ranks.is_first():
            raise
        raise UserError(f"process {ranks.rank()}: {error}", code=error.code) from None


def _main(args: argparse.Namespace) -> int:
    job = _job_of(args)
    metrics = train(job)
    if args.report and ranks.is_first():
        args.report.mkdir(parents=True, exist_ok=True)
        (args.report / METRICS_FILE).write_text(json.dumps(metrics, indent=2) + "\n")
    if ranks.is_first():
        cli.result({"output": str(args.output), "metrics": metrics}, as_json=args.json)
    ranks.end()
    return REFUSED if args.gate and not metrics["approved"] else 0


if __name__ == "__main__":
    cli.run(main)
