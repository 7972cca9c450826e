"""How good a model is on held-out conversations, and whether that is good enough to be deployed.

    python -m training.evaluate --model outputs/model --eval data/eval.jsonl --baseline data/base-model

Measured are the mean negative log likelihood in nats over every token that the assistant says, `<|end|>` included, on
the held-out file and on a second domain, where a model shows what it forgot; and replies to fixed prompts. The files
`metrics.json`, `samples.md`, `samples.json` and `evaluation.png` are written to `--out`. training/gate.py decides.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra import cli
from infra.cli import REFUSED, WRONG_USE, UserError
from training import plots, samples
from training.base_model import loading
from training.dataset import read_conversations
from training.gate import Limits, Verdict, judge
from training.likelihood import Encoded, Likelihood, encode_all, gain, interval, likelihood
from training.prompt import Message
from training.samples import Prompt, Reply, prompts_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Encoded", "Likelihood", "Verdict", "encode_all", "judge", "likelihood", "load_model"]

SECOND_DOMAIN = Path(__file__).parent / "data" / "second-domain.jsonl"
ADAPTER_FILE, TOKENIZER_FILE = "adapter_config.json", "tokenizer_config.json"


@dataclass(frozen=True)
class Questions:
    """What every model is asked. `second`: conversations of another domain, none where there is no such file."""

    held_out: Sequence[Sequence[Message]]
    second: Sequence[Sequence[Message]] = ()

    @property
    def prompts(self) -> list[Prompt]:
        return prompts_of(self.held_out)


@dataclass(frozen=True)
class Measured:
    """What one model answered."""

    held_out: Likelihood
    second: Likelihood | None
    replies: tuple[Reply, ...]


def measure(model: PreTrainedModel, tokenizer: Any, questions: Questions, max_length: int | None = None) -> Measured:
    """Measure a model that is loaded; it stays in eval mode. On a GPU the arithmetic is bfloat16.

    Raises:
        UserError: no held-out conversation has a reply within `max_length` tokens.
        ValueError: a conversation that cannot be turned into tokens.
    """
    import torch

    rows = encode_all(tokenizer, questions.held_out, max_length)
    second = encode_all(tokenizer, questions.second, max_length)
    if not rows:
        raise UserError("no held-out conversation has a reply that can be measured")
    with torch.autocast("cuda", torch.bfloat16) if model.device.type == "cuda" else nullcontext():
        return Measured(
            likelihood(model, rows),
            likelihood(model, second) if second else None,
            tuple(samples.replies(model, tokenizer, questions.prompts)),
        )


def compare(before: Measured | None, after: Measured, limits: Limits) -> tuple[dict[str, Any], Verdict]:
    """The metrics of a model, beside its base model's if that was measured, and the gate's verdict.

    Raises:
        ValueError: the two were not measured on the same conversations.
    """
    metrics = {**_figures("eval", after.held_out), **samples.summary(after.replies)}
    if after.second:
        metrics |= _figures("second", after.second)
    if before is None:
        return metrics, Verdict(False, "there is no --baseline to compare with")
    gained = gain(before.held_out, after.held_out)
    on_second = gain(before.second, after.second) if before.second and after.second else None
    metrics |= _figures("eval", before.held_out, "_before")
    metrics |= {"eval_gain": gained.nats, "eval_gain_error": gained.error}
    metrics |= {f"{name}_before": value for name, value in samples.summary(before.replies).items() if name != "samples"}
    if before.second and on_second:
        metrics |= {**_figures("second", before.second, "_before"), "forgetting": 0.0 - on_second.nats}
    verdict = judge(
        before.held_out.nll,
        after.held_out.nll,
        limits.min_gain,
        error=gained.error,
        forgetting=on_second,
        max_forgetting=limits.max_forgetting,
        degenerate=(int(metrics["degenerate_samples"]), len(after.replies)),
    )
    return {name: _short(value) for name, value in metrics.items()}, verdict


def _figures(domain: str, found: Likelihood, suffix: str = "") -> dict[str, float]:
    low, high = interval(found)
    return {
        f"{domain}_loss{suffix}": found.nll,
        f"{domain}_loss_low{suffix}": low,
        f"{domain}_loss_high{suffix}": high,
        f"{domain}_perplexity{suffix}": found.perplexity,
        **({} if suffix else {f"{domain}_tokens": found.tokens, f"{domain}_conversations": len(found.parts)}),
    }


def _short(value: float) -> float | None:
    """Rounded; None for what JSON cannot say (an infinite or undefined figure)."""
    if isinstance(value, int):
        return value
    return round(value, 6) if abs(value) < float("inf") else None


def write(
    folder: Path, metrics: Mapping[str, Any], questions: Questions, before: Measured | None, after: Measured
) -> None:
    """The four files of an evaluation. Raises UserError if the folder cannot be written."""

    prompts = questions.prompts
    then = list(before.replies) if before else None
    rows = [
        {
            "messages": list(map(dict, prompt.messages)),
            "reference": prompt.reference,
            **({"before": then[number].as_dict()} if then else {}),
            "after": after.replies[number].as_dict(),
        }
        for number, prompt in enumerate(prompts)
    ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        (folder / "samples.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / "samples.md").write_text(samples.as_markdown(prompts, then, after.replies), encoding="utf-8")
        plots.draw_evaluation(folder / "evaluation.png", metrics)
    except OSError as error:
        raise UserError(f"cannot write the evaluation to {folder}: {error.strerror}") from None


def load_model(folder: str, **options: Any) -> tuple[PreTrainedModel, Any]:
    """Model and tokenizer of a folder or a hub name.

    A folder may hold an adapter, whose base model is then loaded too, or be an MLflow model with its files below it.

    Raises:
        UserError: they cannot be loaded.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if not Path(folder).is_dir() and folder.count("/") != 1:
        raise UserError(
            f"there is no model folder {folder}",
            next_command="python -m training.small_model --out DIR --corpus FILE   (makes one), or name one on the hub",
            code=WRONG_USE,
        )
    root, folder = folder, weights_folder(folder)
    try:
        with loading(folder):
            model = AutoModelForCausalLM.from_pretrained(folder, **options)
            return model, AutoTokenizer.from_pretrained(_tokenizer_folder(folder, root))
    except ImportError:
        raise UserError(
            f"{folder} holds an adapter, which needs the package peft",
            next_command="python -m pip install peft   (or give the merged model's folder)",
        ) from None


def weights_folder(folder: str) -> str:
    """Where configuration and weights lie: of an MLflow model somewhere below it, else the folder itself."""
    root = Path(folder)
    if not (root / "MLmodel").is_file():
        return folder
    configs = sorted(root.rglob("config.json"), key=lambda path: (len(path.parts), path))
    return next((str(path.parent) for path in configs if any(path.parent.glob("*.safetensors"))), folder)


def _tokenizer_folder(folder: str, root: str) -> str:
    """An adapter's folder holds no tokenizer, but its base model's does; an MLflow model may keep it elsewhere."""
    file = Path(folder) / ADAPTER_FILE
    if (Path(folder) / TOKENIZER_FILE).is_file() or (Path(root) == Path(folder) and not file.is_file()):
        return folder
    if file.is_file():
        return str(json.loads(file.read_text())["base_model_name_or_path"])
    return next((str(path.parent) for path in sorted(Path(root).rglob(TOKENIZER_FILE))), folder)


def measure_folder(folder: str, questions: Questions) -> Measured:
    """Load and measure a model, on the GPU where there is one. Raises UserError if it cannot be used."""
    import torch

    model, tokenizer = load_model(folder, dtype="float32")
    if torch.cuda.is_available():
        model.to("cuda")  # type: ignore[arg-type]  # transformers' annotation takes no text
    try:
        return measure(model, tokenizer, questions, model.config.max_position_embeddings)
    except ValueError as error:
        raise UserError(f"cannot evaluate {folder}: {error}") from None


def read_questions(held_out: Path, second: Path | None) -> Questions:
    """Raises UserError if a file cannot be read or holds no conversation."""
    return Questions(read_conversations(held_out), read_conversations(second) if second else ())


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    limits = _limits(args)
    second = _second_domain(args.second_domain, limits)
    questions = read_questions(args.eval, second)
    before = measure_folder(args.baseline, questions) if args.baseline else None
    after = measure_folder(args.model, questions)
    metrics, verdict = compare(before, after, limits)
    if args.out:
        write(args.out, {**metrics, "approved": verdict.approved, "reason": verdict.reason}, questions, before, after)
    values = {"metrics": metrics, "approved": verdict.approved, "reason": verdict.reason, "failed": verdict.failed}
    cli.result(values, as_json=args.json)
    return 0 if verdict.approved or args.baseline is None else REFUSED


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("training.evaluate", "Measure a model on held-out conversations and compare it with its base.")
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="a model's folder, or an adapter's")
    add("--eval", type=Path, required=True, metavar="FILE", help="held-out conversations (.jsonl)")
    add("--baseline", metavar="DIR", help="the model it was trained from; without it nothing is approved")
    add("--second-domain", type=Path, metavar="FILE", help="conversations of another kind (default: the shipped ones)")
    add("--recipe", metavar="NAME_OR_FILE", help="whose gate counts (default: the one that lies in --model)")
    add("--min-gain", type=float, metavar="NATS", help="instead of the recipe's gate_min_gain")
    add("--out", type=Path, metavar="DIR", help="write metrics.json, samples.md, samples.json and evaluation.png here")
    return parser


def _limits(args: argparse.Namespace) -> Limits:
    """The recipe's that was named, else of the one that the job saved with the model, else the defaults."""
    from training import recipe as recipes

    saved = Path(args.model) / "recipe.yaml"
    source = args.recipe or (str(saved) if saved.is_file() else None)
    limits = Limits()
    if source:
        job = recipes.load_any(source).job
        limits = Limits(job.gate_min_gain, job.gate_max_forgetting)
    return limits if args.min_gain is None else Limits(args.min_gain, limits.max_forgetting)


def _second_domain(given: Path | None, limits: Limits) -> Path | None:
    """The file to measure forgetting on. A recipe that does not judge it does not need one."""
    if given is None and limits.max_forgetting is None:
        return None
    return given or SECOND_DOMAIN


if __name__ == "__main__":
    cli.run(main)
