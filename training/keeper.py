"""When a run writes a checkpoint: as the recipe says, every so many minutes, and when its node is about to go away.

A node that is taken back (low priority) or a job that is cancelled gets SIGTERM. The run then saves after the optimizer
step that it is in and leaves with exit code 143, what a shell reports of a process that SIGTERM ended: the same command
goes on from there. Where the time until SIGKILL is too short for that, the run goes on from the checkpoint before:
every checkpoint is complete (training/checkpoints.py) or does not count.

All processes of a run decide alike: what one of them wants after a step, all of them do.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from infra.cli import UserError
from training.checkpoints import CHECKPOINTS, complete_checkpoint, keep_newest
from training.mishaps import explained, no_number
from training.ranks import processes, say
from training.room import check_room

STOPPED = 143
GO_ON, SAVE, STOP = 0, 1, 2


@contextlib.contextmanager
def keeping(trainer: Any, output: Path, *, minutes: float) -> Iterator[None]:
    """Around `trainer.train()`: checkpoints that are complete or do not count, and one sentence for what goes wrong.

    Args:
        minutes: between two checkpoints at most; 0 leaves it to the recipe's steps or epochs.

    Raises:
        UserError: stopped by SIGTERM (exit code 143); disk full, memory full, or a loss that is no number (1).
    """
    limit = trainer.args.save_total_limit
    # the trainer would remove the old checkpoint before the new one is known to be whole
    trainer.args.save_total_limit = None
    # it would log the mean of the losses before in the place of one that is no number
    trainer.args.logging_nan_inf_filter = False
    with _terminated() as terminated, explained(output, trainer):
        keeper = _keeper(output, limit, 60 * minutes, terminated)
        trainer.add_callback(keeper)
        yield
    if keeper.wish != STOP and terminated.is_set():  # it came after the last step
        signal.raise_signal(signal.SIGTERM)
    if keeper.wish == STOP:
        raise UserError(
            f"stopped by SIGTERM after step {trainer.state.global_step} of {trainer.state.max_steps}; "
            f"checkpoint-{trainer.state.global_step} is complete",
            next_command="run the same command again; it goes on from there",
            code=STOPPED,
        )


@contextlib.contextmanager
def _terminated() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, however often it comes."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield event
        return
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)


def _keeper(output: Path, limit: int | None, seconds: float, terminated: threading.Event) -> Any:
    from transformers import TrainerCallback

    class Keeper(TrainerCallback):
        wish = GO_ON
        saved_at = 0.0
        saved_step = 0

        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            check_room(output, args, state, limit, model)
            self.saved_at, self.saved_step = time.monotonic(), state.global_step

        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            due = 0 < seconds <= time.monotonic() - self.saved_at
            self.wish = _strongest(STOP if terminated.is_set() else SAVE if due else GO_ON, args.device)
            control.should_save |= self.wish != GO_ON
            control.should_training_stop |= self.wish == STOP
            if control.should_save:
                _raise_unless_finite(model, args, state, output)
            if self.wish == STOP:
                say(f"SIGTERM: saving step {state.global_step}, then leaving")

        def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            # the last step of an epoch may have been saved: writing over a complete checkpoint would break it
            control.should_save &= self.saved_step != state.global_step
            if control.should_save:
                _raise_unless_finite(model, args, state, output)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            complete_checkpoint(output / CHECKPOINTS / f"checkpoint-{state.global_step}")
            keep_newest(output, limit)
            self.saved_at, self.saved_step = time.monotonic(), state.global_step

        def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
            loss = (logs or {}).get("loss", 0.0)
            if not abs(loss) < float("inf"):  # NaN too
                raise no_number("the loss", args, state, output)

    return Keeper()


def _strongest(wish: int, device: Any) -> int:
    """The strongest wish of all processes."""
    if processes() == 1:
        return wish
    import torch
    from torch import distributed

    wishes = torch.tensor(wish, device=device)
    distributed.all_reduce(wishes, distributed.ReduceOp.MAX)
    return int(wishes)


def _raise_unless_finite(model: Any, args: Any, state: Any, output: Path) -> None:
    """A checkpoint of weights that are no numbers would push out a good one."""
    import torch

    norm: Any = torch.nn.utils.get_total_norm([part.detach() for part in model.parameters() if part.requires_grad])
    if hasattr(norm, "full_tensor"):  # sharded weights
        norm = norm.full_tensor()
    if not torch.isfinite(norm):
        raise no_number("a weight", args, state, output)
