"""The training job, sent a signal just before one of its steps begins.

    python -m tests.support.killed STEP SIGNAL ARGUMENTS OF training.sft …

Each of several processes signals itself; with `STEP:RANK` only that one.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any


def signal_before(step: int, number: int) -> None:
    """Let the trainer of this process send itself a signal before the step after `step`."""
    from transformers.trainer_callback import DefaultFlowCallback

    def on_step_begin(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == step:
            os.kill(os.getpid(), number)

    DefaultFlowCallback.on_step_begin = on_step_begin  # type: ignore[method-assign]


if __name__ == "__main__":
    from infra import cli
    from training import sft

    step, _, rank = sys.argv.pop(1).partition(":")
    number = signal.Signals[sys.argv.pop(1)]
    if rank in ("", os.environ.get("RANK", "0")):
        signal_before(int(step), number)
    cli.run(sft.main)
