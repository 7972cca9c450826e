"""How good a model is on held-out conversations, and whether that is good enough to be deployed.

    python -m training.evaluate --model outputs/model --eval data/eval.jsonl --baseline data/base-model

The measure is the mean negative log likelihood in nats over every token that the assistant says, `<|end|>` included
(the trainer's own `eval_loss` is a mean of batch means, which depends on the batch size).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from infra import cli
from infra.cli import REFUSED, WRONG_USE, UserError
from training.dataset import read_conversations
from training.prompt import IGNORED, Message, encode_conversation

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Encoded: TypeAlias = tuple[list[int], list[int]]
"""Token ids and labels of one conversation."""

BATCH_TOKENS = 2048
DEFAULT_MIN_GAIN = 0.02


@dataclass(frozen=True)
class Likelihood:
    """Nats per assistant token, and over how many tokens."""

    nll: float
    tokens: int


@dataclass(frozen=True)
class Verdict:
    """Whether a model may be deployed, and the sentence that says why."""

    approved: bool
    reason: str


def encode_all(tokenizer: Any, conversations: Sequence[Sequence[Message]], max_length: int | None) -> list[Encoded]:
    """Ids and labels of each conversation, cut at `max_length`; without those that have no assistant's token."""
    rows = []
    for conversation in conversations:
        ids, labels = encode_conversation(tokenizer, conversation)
        if any(label != IGNORED for label in labels[1:max_length]):
            rows.append((ids[:max_length], labels[:max_length]))
    return rows


def likelihood(model: PreTrainedModel, rows: Sequence[Encoded]) -> Likelihood:
    """The token-weighted likelihood of what the assistant says, whatever the batches. Leaves `model` in eval mode."""
    import torch

    model.train(False)
    total, count = 0.0, 0
    for batch in _batches(rows):
        ids, labels, mask = _padded(batch)
        with torch.no_grad():
            logits = model(
                input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False
            ).logits[:, :-1]
        targets = labels[:, 1:].to(model.device)
        total += torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
        ).item()
        count += int((targets != IGNORED).sum())
    return Likelihood(nll=total / max(count, 1), tokens=count)


def _batches(rows: Sequence[Encoded]) -> Iterator[list[Encoded]]:
    """Rows of like length together, about BATCH_TOKENS a batch."""
    batch: list[Encoded] = []
    for row in sorted(rows, key=lambda row: len(row[0])):
        if batch and (len(batch) + 1) * len(row[0]) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _padded(batch: Sequence[Encoded]) -> tuple[Any, Any, Any]:
    """Ids, labels and attention mask, each a tensor of (rows, longest row), padded on the right."""
    import torch

    shape = (len(batch), max(len(ids) for ids, _ in batch))
    ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED)
    for row, (row_ids, row_labels) in enumerate(batch):
        ids[row, : len(row_ids)] = torch.tensor(row_ids)
        labels[row, : len(row_ids)] = torch.tensor(row_labels)
        mask[row, : len(row_ids)] = 1
    return ids, labels, mask


def judge(before: float, after: float, min_gain: float) -> Verdict:
    """The gate: the loss must fall by `min_gain` nats at least. A loss that is no number is refused."""
    gain = before - after
    approved = gain >= min_gain  # False for NaN
    return Verdict(
        approved,
        f"the held-out loss went from {before:.3f} to {after:.3f} nats: a gain of {gain:.3f}, "
        f"{min_gain:g} {'was' if approved else 'would be'} needed",
    )


def load_model(folder: str, **options: Any) -> tuple[PreTrainedModel, Any]:
    """Model and tokenizer of a folder or a hub name. Raises UserError if they cannot be loaded."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if not Path(folder).is_dir() and folder.count("/") != 1:
        raise UserError(
            f"there is no model folder {folder}",
            next_command="python -m training.small_model --out DIR --corpus FILE   (makes one), or name one on the hub",
            code=WRONG_USE,
        )
    try:
        return AutoModelForCausalLM.from_pretrained(folder, **options), AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load the model {folder}: {str(error).splitlines()[0]}") from None


def measure(folder: str, eval_file: Path) -> Likelihood:
    """The likelihood of a file's conversations under a model. Raises UserError if either cannot be used."""
    conversations = read_conversations(eval_file)
    model, tokenizer = load_model(folder, dtype="float32")
    try:
        return likelihood(model, encode_all(tokenizer, conversations, model.config.max_position_embeddings))
    except ValueError as error:
        raise UserError(f"cannot evaluate {folder}: {error}") from None


def main(argv: list[str]) -> int:
    parser = cli.parser("training.evaluate", "Measure a model on held-out conversations and compare it with its base.")
    parser.add_argument("--model", required=True, metavar="DIR")
    parser.add_argument("--eval", type=Path, required=True, metavar="FILE", help="held-out conversations (.jsonl)")
    parser.add_argument(
        "--baseline", metavar="DIR", help="the model it was trained from; without it nothing is approved"
    )
    parser.add_argument("--min-gain", type=float, default=DEFAULT_MIN_GAIN, metavar="NATS", help="default: %(default)s")
    args = parser.parse_args(argv)
    after = measure(args.model, args.eval)
    metrics: dict[str, float] = {"eval_loss": after.nll, "eval_tokens": after.tokens}
    if args.baseline is None:
        verdict = Verdict(False, "there is no --baseline to compare with")
    else:
        before = measure(args.baseline, args.eval)
        metrics["eval_loss_before"] = before.nll
        verdict = judge(before.nll, after.nll, args.min_gain)
    values = {"metrics": metrics, "approved": verdict.approved, "reason": verdict.reason}
    cli.result(values, as_json=args.json)
    return 0 if verdict.approved or args.baseline is None else REFUSED


if __name__ == "__main__":
    cli.run(main)
