"""The training job itself: the same file on a laptop and on a cluster's node.

    python -m training.sft --recipe local --model data/base-model --train data/train.jsonl --eval data/eval.jsonl \
        --output outputs/model

TRL's SFTTrainer on conversations that training/prompt.py has turned into ids and labels. Started again with the same
`--output` it goes on from the newest complete checkpoint; once it is complete it only reports. `complete.json` is
written last: a folder without it is not a finished model.

It runs on a node that has a snapshot of `training/` and of `infra/cli.py` and nothing else of the project.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra import cli
from infra.cli import REFUSED, WRONG_USE, UserError, say
from training import recipe as recipes
from training import tracking
from training.checkpoints import (
    CHECKPOINTS,
    METRICS_FILE,
    claim_output,
    finished_metrics,
    mark_complete,
    resume_point,
    step_of,
)
from training.dataset import file_hash, read_conversations
from training.evaluate import Encoded, Verdict, encode_all, judge, likelihood, load_model
from training.keeper import keeping
from training.prompt import stop_ids
from training.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Job:
    """What a run is made of: a recipe, a base model (folder or hub name), two files, a place for the result."""

    recipe: Recipe
    model: str
    train: Path
    eval: Path
    output: Path

    @property
    def identity(self) -> dict[str, str]:
        """What must be equal for a run to go on from another's checkpoint."""
        return {"recipe": self.recipe.fingerprint, "train": file_hash(self.train), "eval": file_hash(self.eval)}


def train(job: Job) -> dict[str, Any]:
    """Run the job to its end, or go on where it stopped; returns the metrics, `approved` among them.

    Raises:
        UserError: data, model or output that cannot be used, checkpoints of another run, a loss that is no number.
    """
    if finished := finished_metrics(job.output, job.identity):
        say(f"{job.output} is complete already: nothing to do")
        return finished
    claim_output(job.output, job.identity, job.recipe.as_dict())
    _keep_freed_memory()
    model, tokenizer = _load(job)
    train_rows, eval_rows = _encoded(job, tokenizer)
    before = likelihood(model, eval_rows)
    say(f"held-out loss before: {before.nll:.4f} nats per token ({before.tokens} tokens)")
    speed = _fit(job, model, tokenizer, train_rows)
    after = likelihood(model, eval_rows)
    verdict = judge(before.nll, after.nll, job.recipe.job.gate_min_gain)
    metrics = {
        "eval_loss_before": round(before.nll, 6),
        "eval_loss": round(after.nll, 6),
        "eval_tokens": after.tokens,
        **speed,
        "approved": verdict.approved,
        "reason": verdict.reason,
    }
    save(job, model, tokenizer, metrics)
    _say_verdict(verdict)
    return metrics


def _keep_freed_memory() -> None:
    """Tell glibc not to give freed memory back: 1.9 times the speed on a virtual machine's CPU, where page faults are
    dear (M_MMAP_MAX, M_TRIM_THRESHOLD and M_TOP_PAD of mallopt(3)). Other C libraries keep their own ways."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 256 * 2**20)):
            libc.mallopt(option, value)


def _load(job: Job) -> tuple[PreTrainedModel, Any]:
    import torch
    from transformers import set_seed

    if job.recipe.job.cpu_threads > 0:
        torch.set_num_threads(job.recipe.job.cpu_threads)
    set_seed(int(job.recipe.sft.get("seed", 42)))
    options: dict[str, Any] = {"attn_implementation": job.recipe.model.attn_implementation}
    if not Path(job.model).is_dir():
        options["revision"] = job.recipe.model.model_revision
    model, tokenizer = load_model(job.model, dtype=job.recipe.model.dtype, **options)
    tokenizer.chat_template = recipes.template_path(job.recipe).read_text(encoding="utf-8")
    if torch.cuda.is_available():
        model.to(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")  # type: ignore[arg-type]  # a device's name is accepted
    return model, tokenizer


def _encoded(job: Job, tokenizer: Any) -> tuple[list[Encoded], list[Encoded]]:
    max_length = job.recipe.sft.get("max_length")
    try:
        both = [encode_all(tokenizer, read_conversations(file), max_length) for file in (job.train, job.eval)]
    except ValueError as error:
        raise UserError(f"cannot turn the conversations into tokens: {error}") from None
    for file, rows in zip((job.train, job.eval), both, strict=True):
        if not rows:
            raise UserError(f"no reply in {file} begins within max_length = {max_length} tokens")
    return both[0], both[1]


def _fit(job: Job, model: PreTrainedModel, tokenizer: Any, rows: list[Encoded]) -> dict[str, Any]:
    """Train `model` in place; returns steps, tokens and speed. The trainer writes nothing but checkpoints."""
    from transformers.trainer_callback import PrinterCallback
    from trl.trainer.sft_trainer import SFTTrainer

    dataset = _dataset(rows)
    trainer = SFTTrainer(model=model, args=_config(job), train_dataset=dataset, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(tracking.progress())
    steps = _say_plan(job, trainer, rows)
    checkpoint = resume_point(job.output)
    if checkpoint:
        say(f"resuming from {checkpoint}")
    started, done_before = time.monotonic(), step_of(checkpoint)
    with keeping(trainer, job.output, minutes=job.recipe.job.checkpoint_minutes):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    seconds = time.monotonic() - started
    if trainer.state.global_step < trainer.state.max_steps:
        raise UserError(
            f"the training was stopped at step {trainer.state.global_step} of {trainer.state.max_steps}",
            next_command="run the same command again; it goes on from its newest checkpoint",
        )
    tokens = sum(len(ids) for ids, _ in rows) * float(trainer.state.epoch)  # how often the data was seen, in part too
    share = 1 - done_before / max(trainer.state.max_steps, 1)
    return {
        "steps": steps,
        "train_tokens": round(tokens),
        "train_seconds": round(seconds, 2),
        "tokens_per_second": round(tokens * share / max(seconds, 1e-9), 1),
        "parameters": model.num_parameters(),
    }


def _dataset(rows: list[Encoded]) -> Any:
    from datasets import Dataset, disable_progress_bars  # type: ignore[import-untyped]  # no type information

    disable_progress_bars()
    return Dataset.from_dict({"input_ids": [ids for ids, _ in rows], "labels": [labels for _, labels in rows]})


def _config(job: Job) -> Any:
    """TRL's own configuration. Raises UserError, exit code 2, for a value that it refuses."""
    import torch
    from trl.trainer.sft_config import SFTConfig

    ours = {
        "output_dir": str(job.output / CHECKPOINTS),
        "use_cpu": not torch.cuda.is_available(),
        "report_to": "none",
        "disable_tqdm": True,
        # pinning memory is for a GPU's sake; without one torch warns about it
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    try:
        with warnings.catch_warnings():
            # transformers 5.17 knows only this name, 5.23 knows both
            warnings.filterwarnings("ignore", message="`gradient_checkpointing` is deprecated")
            return SFTConfig(**{**ours, **job.recipe.sft, "output_dir": ours["output_dir"]})
    except (ValueError, TypeError) as error:
        raise UserError(f"the recipe {job.recipe.name} cannot run: {error}", code=WRONG_USE) from None


def _say_plan(job: Job, trainer: Any, rows: list[Encoded]) -> int:
    """Print every derived number before the first step; returns the number of optimizer steps."""
    args, tokens = trainer.args, sum(len(ids) for ids, _ in rows)
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    steps_per_epoch = -(-len(trainer.train_dataset) // per_step)
    steps = args.max_steps if args.max_steps > 0 else int(-(-steps_per_epoch * args.num_train_epochs // 1))
    said = sum(label != -100 for _, labels in rows for label in labels)
    say(f"recipe {job.recipe.name} ({job.recipe.fingerprint}) on {args.device}, {args.world_size} process(es)")
    say(f"model: {trainer.model.num_parameters():,} parameters, {trainer.model.dtype}")
    say(f"data: {len(rows)} conversations, {tokens:,} tokens, {said / tokens:.0%} of them the assistant's")
    say(
        f"global batch: {args.per_device_train_batch_size} rows x {args.gradient_accumulation_steps} accumulated x "
        f"{args.world_size} = {per_step}, about {tokens * per_step // len(trainer.train_dataset):,} tokens"
    )
    say(f"steps: {steps} ({steps_per_epoch} an epoch, {args.num_train_epochs:g} epochs)")
    return steps


def save(job: Job, model: PreTrainedModel, tokenizer: Any, metrics: Mapping[str, Any]) -> None:
    """Write model, tokenizer, template, generation config and metrics; the marker last; then drop the checkpoints."""
    if int(os.environ.get("RANK", "0")) != 0:
        return
    _set_generation(model, tokenizer)
    try:
        model.save_pretrained(job.output)
        tokenizer.save_pretrained(job.output)
        (job.output / "recipe.yaml").write_text(job.recipe.as_yaml(), encoding="utf-8")
        mark_complete(job.output, job.identity, metrics)
    except OSError as error:
        raise UserError(
            f"cannot write the model to {job.output}: {error.strerror}; the checkpoints are kept",
            next_command="make room, then run the same command again",
        ) from None


def _set_generation(model: PreTrainedModel, tokenizer: Any) -> None:
    """Both stop tokens, and no sampling: a model that is loaded by anyone ends its replies."""
    from transformers import GenerationConfig

    model.config.use_cache = True  # the trainer may have switched it off
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=stop_ids(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
    )


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
    return Job(recipe, args.model or recipe.model.model_name_or_path, args.train, args.eval, args.output)


def main(argv: list[str]) -> int:
    parser = cli.parser("training.sft", "Fine-tune a model by a recipe; started again it resumes.")
    recipes.add_recipe_options(parser)
    parser.add_argument("--train", type=Path, required=True, metavar="FILE")
    parser.add_argument("--eval", type=Path, required=True, metavar="FILE")
    parser.add_argument("--model", metavar="DIR_OR_NAME", help="the base model (default: the recipe's)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the trained model's folder")
    parser.add_argument("--report", type=Path, metavar="DIR", help="also write metrics.json here")
    parser.add_argument("--gate", action="store_true", help="leave with exit code 3 if the model is not approved")
    args = parser.parse_args(argv)
    job = _job_of(args)
    metrics = train(job)
    if args.report and int(os.environ.get("RANK", "0")) == 0:
        args.report.mkdir(parents=True, exist_ok=True)
        (args.report / METRICS_FILE).write_text(json.dumps(metrics, indent=2) + "\n")
    cli.result({"output": str(args.output), "metrics": metrics}, as_json=args.json)
    return REFUSED if args.gate and not metrics["approved"] else 0


if __name__ == "__main__":
    cli.run(main)
