"""What 8-bit weights cost: the exported model beside the original on held-out conversations, and a gate on it.

The verdict is written beside the export. The engine takes no export without one that says yes, so a quantised model
that lost too much cannot come to serve.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from infra.cli import REFUSED, UserError

if TYPE_CHECKING:
    import torch

VERDICT = "quantisation.json"
MAX_RISE = 0.02
"""Nats per token by which the loss on the held-out conversations may rise; fine-tuning gains some tenths."""
MAX_TOKENS = 2048
"""Of each conversation."""

OPENVINO_MODEL = "openvino_model.xml"


@dataclass(frozen=True)
class Verdict:
    """Losses in nats per token of the assistant, with the original's weights and with the exported ones."""

    loss_before: float
    loss_after: float
    tokens: int
    max_rise: float = MAX_RISE

    @property
    def rise(self) -> float:
        return self.loss_after - self.loss_before

    @property
    def approved(self) -> bool:
        return self.rise <= self.max_rise  # false for a loss that is not a number, too

    def write(self, folder: Path) -> None:
        found = {**asdict(self), "rise": self.rise, "approved": self.approved}
        (folder / VERDICT).write_text(json.dumps(found, indent=1) + "\n")


def check(original: Path, exported: Path, held_out: Path) -> Verdict:
    """Measure both on the conversations in `held_out` (a .jsonl as training.dataset writes it).

    Raises:
        UserError: a model or the file cannot be read, or the file holds no reply.
    """
    from training.evaluate import encode_all, likelihood, load_model, read_questions

    model, tokenizer = load_model(str(original), dtype="float32")
    rows = encode_all(tokenizer, read_questions(held_out, None).held_out, MAX_TOKENS)
    if not rows:
        raise UserError(f"no conversation in {held_out} has a reply that can be measured")
    before = likelihood(model, rows)
    after = likelihood(_Exported(exported), rows)  # type: ignore[arg-type]  # as much of a model as is asked of it
    return Verdict(round(before.nll, 5), round(after.nll, 5), before.tokens)


def require_approved(folder: Path) -> None:
    """Raises UserError, with the exit code of a gate, unless the export in `folder` was measured and approved."""
    again = f"python -m deployment.server.openvino_export --model DIR --eval FILE --out {folder}"
    try:
        verdict = json.loads((folder / VERDICT).read_text())
    except (OSError, ValueError):
        raise UserError(
            f"the exported model in {folder} was never measured: there is no {VERDICT}",
            next_command=again,
            code=REFUSED,
        ) from None
    if verdict.get("approved") is not True:
        raise UserError(
            f"the exported model in {folder} was refused: 8-bit weights raise its loss by {verdict.get('rise')} nats",
            next_command="serve the original with --engine transformers",
            code=REFUSED,
        )


class _Exported:
    """An exported model that answers a forward pass as transformers' models do."""

    device = "cpu"

    def __init__(self, folder: Path) -> None:
        import openvino as ov  # type: ignore[import-not-found]

        self._request = ov.Core().compile_model(str(folder / OPENVINO_MODEL), "CPU").create_infer_request()

    def train(self, mode: bool) -> None:
        assert not mode

    def __call__(self, *, input_ids: torch.Tensor, attention_mask: torch.Tensor, use_cache: bool) -> Any:
        import torch

        self._request.reset_state()
        rows, length = input_ids.shape
        inputs = {
            "input_ids": input_ids.numpy(),
            "attention_mask": attention_mask.numpy(),
            "position_ids": torch.arange(length).repeat(rows, 1).numpy(),
            "beam_idx": torch.arange(rows, dtype=torch.int32).numpy(),
        }
        return SimpleNamespace(logits=torch.from_numpy(self._request.infer(inputs)["logits"].copy()))
