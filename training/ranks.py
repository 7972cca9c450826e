"""The processes of one job: who one is, what is said once, what all add up.

torchrun and Azure ML's `distribution: pytorch` start the processes and tell each its place in the environment (RANK,
LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT). Started by hand, a job is one process.
"""

from __future__ import annotations

import os
import time
from typing import TypeVar

from infra import cli
from infra.cli import WRONG_USE, UserError

T = TypeVar("T")
GRACE_SECONDS = 10.0


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """The number of this process on its node, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def per_node(nodes: int) -> int:
    """How many of the processes run on each node. torchrun tells; in Azure ML they are alike on all `nodes`."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or max(processes() // nodes, 1))


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return rank() == 0


def say(*words: object) -> None:
    """One line of progress, said once for all processes."""
    if is_first():
        cli.say(*words)


def let_the_first_speak() -> None:
    """Before another process ends with an error. If the first one meets it too, it says so and ends; then torchrun and
    Azure ML end the others, who have nothing to add. An error of this process alone is said a moment later."""
    if not is_first():
        time.sleep(GRACE_SECONDS)


def begin() -> None:
    """Meet the other processes.

    Raises:
        UserError: more processes than GPUs on a node, or several GPUs for one process.
    """
    import torch

    gpus = torch.cuda.device_count()
    started = f"torchrun --nproc_per_node {gpus} -m training.sft …"
    if processes() == 1 and gpus > 1:
        raise UserError(
            f"one process was started, and it sees {gpus} GPUs: each GPU needs a process of its own",
            next_command=f"{started}   (or CUDA_VISIBLE_DEVICES=0 for one of them)",
            code=WRONG_USE,
        )
    if 0 < gpus <= local_rank():
        raise UserError(
            f"more processes were started on this node than it has GPUs ({gpus})",
            next_command=f"{started}   (in Azure ML: process_count_per_instance={gpus})",
            code=WRONG_USE,
        )
    if processes() > 1:
        from accelerate import PartialState  # type: ignore[import-untyped]  # it has no type information

        PartialState(cpu=gpus == 0)


def wait() -> None:
    """Until all processes have come this far."""
    if processes() > 1:
        import torch.distributed

        torch.distributed.barrier()


def added(*values: float) -> tuple[float, ...]:
    """Each value summed over all processes."""
    if processes() == 1:
        return values
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    together = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(together)
    return tuple(together.tolist())


def from_first(value: T) -> T:
    """What the first process has, in all of them. It must be something that can be pickled."""
    if processes() == 1:
        return value
    import torch.distributed

    found = [value]
    torch.distributed.broadcast_object_list(found, src=0)
    return found[0]


def end() -> None:
    """Part from the others; without it they complain at exit."""
    if processes() > 1:
        import torch.distributed

        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
