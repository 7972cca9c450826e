"""Whether the disk holds what a run is going to write, asked before the first step."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

from infra.cli import UserError
from training.checkpoints import CHECKPOINTS, newest_checkpoint

OPTIMIZER_BYTES = {"8bit": 2, "4bit": 1, "adafactor": 1, "sgd": 4}
"""Of the optimizer's state for each trained parameter, by a part of its name; Adam's two moments take 8."""


def check_room(output: Path, args: Any, state: Any, limit: int | None, model: Any) -> None:
    """Compare the checkpoints that will lie there at once, and the model at the end, with the free space.

    Raises:
        UserError: they do not fit.
    """
    free = shutil.disk_usage(output).free
    here = _folder_bytes(output / CHECKPOINTS)
    each, count = _checkpoint_bytes(output, args, model), _checkpoints_at_once(args, state, limit)
    need = each * count + _saved_bytes(model)
    if free and need > free + here:  # some mounted file systems tell 0
        raise UserError(
            f"{output} has room for {_gigabytes(free + here)}, and this run needs about {_gigabytes(need)}: "
            f"{count} checkpoint(s) of {_gigabytes(each)} and the model",
            next_command="make room or give an --output with more"
            + ("" if limit == 1 else ", or keep one checkpoint: --set save_total_limit=1"),
        )


def _checkpoints_at_once(args: Any, state: Any, limit: int | None) -> int:
    """One more than are kept, because the newest is written before the oldest is removed."""
    saves: int = {
        "no": 1,  # by the clock, or at SIGTERM
        "epoch": math.ceil(args.num_train_epochs),
        "steps": math.ceil(state.max_steps / max(state.save_steps or 1, 1)),
    }.get(str(args.save_strategy.value), 1)
    return saves if limit is None else min(saves, limit + 1)


def _checkpoint_bytes(output: Path, args: Any, model: Any) -> int:
    """As large as the last one, or what weights and optimizer will take."""
    if last := newest_checkpoint(output):
        return _folder_bytes(last)
    trained = [part for part in model.parameters() if part.requires_grad]
    each = next((size for name, size in OPTIMIZER_BYTES.items() if name in str(args.optim)), 8)
    return _saved_bytes(model) + each * sum(int(part.numel()) for part in trained)


def _saved_bytes(model: Any) -> int:
    """Of the weights that are saved: all, or of adapters themselves."""
    adapters = hasattr(model, "peft_config")
    saved = (part for part in model.parameters() if part.requires_grad or not adapters)
    return sum(int(part.numel() * part.element_size()) for part in saved)


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
