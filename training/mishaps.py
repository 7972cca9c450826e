"""What can end a training before its time, each in one sentence with the next command."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infra.cli import UserError
from training.checkpoints import drop_incomplete, newest_checkpoint
from training.ranks import is_first

FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# safetensors and torch.save raise errors of their own, which tell the cause in words or not at all
FULL_WORDS = (*(f"(os error {number})" for number in FULL_ERRORS), "inline_container", "PytorchStreamWriter")
MEMORY_WORDS = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


@contextlib.contextmanager
def explained(output: Path, trainer: Any) -> Iterator[None]:
    """Turn a full disk and exhausted memory into a UserError; let everything else pass as it is."""
    try:
        yield
    except Exception as error:
        if is_disk_full(error):
            raise _disk_full(output, trainer.state) from None
        if is_memory_full(error):
            raise _memory_full(output, trainer.args, trainer.state) from None
        raise


def is_disk_full(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in FULL_ERRORS
    return not isinstance(error, UserError) and any(words in str(error) for words in FULL_WORDS)


def is_memory_full(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in MEMORY_WORDS)


def no_number(what: str, args: Any, state: Any, output: Path) -> UserError:
    """For a loss or a weight that is NaN or infinite."""
    return UserError(
        f"{what} is no number any more at step {state.global_step} of {state.max_steps}; {_kept(output)}",
        # from the checkpoint on the same recipe would do the same again
        next_command=f"the same with --set learning_rate={args.learning_rate / 2:g} and another --output",
    )


def _disk_full(output: Path, state: Any) -> UserError:
    if is_first():
        drop_incomplete(output)
    return UserError(
        f"no room is left on the disk of {output}: step {state.global_step} could not be saved; {_kept(output)}",
        next_command="make room, then run the same command again",
    )


def _memory_full(output: Path, args: Any, state: Any) -> UserError:
    batch, accumulated = args.per_device_train_batch_size, args.gradient_accumulation_steps
    if batch > 1:
        changes = f"per_device_train_batch_size={batch // 2} --set gradient_accumulation_steps={accumulated * 2}"
    elif not args.gradient_checkpointing:
        changes = "gradient_checkpointing=true"
    else:
        changes = "use_peft=true"
    return UserError(
        f"out of memory at step {state.global_step + 1} of {state.max_steps}{_memory(args)}; {_kept(output)}",
        next_command=f"the same with --set {changes} and another --output",
    )


def _memory(args: Any) -> str:
    """How full the GPU is, where there is one."""
    if args.device.type != "cuda":
        return ""
    import torch

    free, total = torch.cuda.mem_get_info(args.device)
    return f" ({(total - free) / 1e9:.0f} of {total / 1e9:.0f} GB on the GPU are in use)"


def _kept(output: Path) -> str:
    checkpoint = newest_checkpoint(output)
    return f"{checkpoint.name} is kept" if checkpoint else "there is no checkpoint yet"
