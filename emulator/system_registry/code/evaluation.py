"""Step 5: the mean loss of a token of the test set, under the fine-tuned model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import step


def main() -> None:
    args = step.arguments(
        per_device_eval_batch_size=int, preprocess_output=Path, model_path=Path, evaluation_result=Path
    )
    rows = [one for one in step.read_lines(args.preprocess_output / "test.jsonl") if len(one) > 1]
    loss = _loss(args.model_path, rows)
    metrics = {"test_loss": loss, "test_perplexity": math.exp(min(loss, 50)), "test_rows": float(len(rows))}
    (args.evaluation_result / "metrics.json").write_text(json.dumps(metrics, indent=2))
    step.log_metrics(metrics)


def _loss(folder: Path, rows: list[list[int]]) -> float:
    """Nats a token, over all tokens but the first of each row."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.eval()
    total, count = 0.0, 0
    with torch.inference_mode():
        for ids in rows:
            tokens = torch.tensor([ids])
            total += float(model(input_ids=tokens, labels=tokens).loss) * (len(ids) - 1)
            count += len(ids) - 1
    return total / count


if __name__ == "__main__":
    main()
