"""What a run says while it trains: a progress line at each log."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from infra.cli import UserError, say

if TYPE_CHECKING:
    from transformers import TrainerCallback


def progress() -> TrainerCallback:
    """A callback that prints loss, tokens/s and time left at each log, and stops at a loss that is no number."""
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        def __init__(self) -> None:
            self.begun = (0.0, 0, 0.0)  # when, at which step, at how many tokens

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.begun = (time.monotonic(), state.global_step, 0.0)

        def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
            if not logs or "loss" not in logs or not state.is_world_process_zero:
                return
            loss = float(logs["loss"])
            if loss != loss:
                raise UserError(
                    f"the loss is no number any more at step {state.global_step}; the last checkpoint is kept",
                    next_command="run again with --set learning_rate=… (lower)",
                )
            seconds = time.monotonic() - self.begun[0]
            done = state.global_step - self.begun[1]
            left = seconds / max(done, 1) * (state.max_steps - state.global_step)
            tokens = f", {logs['num_tokens'] / seconds:,.0f} tokens/s" if "num_tokens" in logs else ""
            say(f"step {state.global_step}/{state.max_steps}: loss {loss:.4f}{tokens}, {left:.0f} s left")

    return Progress()
