"""How fast a run goes, and one line about it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any


class Pace:
    """Speed between two logs, and since the beginning.

    Args:
        step: that the training starts after.
        last: the last row that an earlier start of the run has noted up to there.
    """

    def __init__(self, step: int = 0, last: Mapping[str, Any] | None = None) -> None:
        self._marks = [(time.monotonic(), step, 0.0)]  # when, after which step, at how many tokens
        # that row may be some steps older than the checkpoint, and they took time and tokens too
        share = step / max(last["step"], 1) if last else 0.0
        self._seconds, self._tokens = (float((last or {}).get(key, 0)) * share for key in ("seconds", "tokens"))

    def row(self, step: int, logs: Mapping[str, Any], memory: float, mfu_per_speed: float = 0.0) -> dict[str, Any]:
        """The metrics since the last log: the trainer's own, and ours.

        Args:
            logs: what the trainer tells; `num_tokens` are those since it was started.
            memory: in bytes.
            mfu_per_speed: the share of the peak that one token a second is; 0 where it is not known.
        """
        now, tokens = time.monotonic(), float(logs.get("num_tokens", 0))
        speed = (tokens - self._marks[-1][2]) / max(now - self._marks[-1][0], 1e-9)
        self._marks.append((now, step, tokens))
        return {
            "step": step,
            "time": round(time.time(), 3),
            "seconds": round(self._seconds + now - self._marks[0][0], 2),
            **{key: finite(value) for key, value in logs.items() if key != "num_tokens"},
            "tokens": round(self._tokens + tokens),
            "tokens_per_second": round(speed, 1),
            **({"mfu": round(speed * mfu_per_speed, 4)} if mfu_per_speed else {}),
            "memory_gb": round(memory / 1e9, 2),
        }

    def seconds_left(self, steps: int) -> float:
        """Until `steps`, without the steps before the first log if there are others: they compile and warm up."""
        begun, first, _ = self._marks[1 if len(self._marks) > 2 else 0]
        now, last, _ = self._marks[-1]
        return (now - begun) / max(last - first, 1) * (steps - last)


def finite(value: Any) -> float | None:
    """None for what is no number, which JSON does not know."""
    number = float(value)
    return number if abs(number) < float("inf") else None


def line(row: Mapping[str, Any], steps: int, seconds_left: float) -> str:
    """A row for a reader: step, loss, learning rate, speed, memory, time left."""
    loss, rate = row["loss"], row.get("learning_rate")
    parts = [
        f"step {row['step']:>{len(str(steps))}}/{steps} {row['step'] / max(steps, 1):>4.0%}",
        "loss is no number" if loss is None else f"loss {loss:.4f}",
        *([f"lr {rate:.1e}"] if rate is not None else []),
        f"{row['tokens_per_second']:,.0f} tokens/s",
        *([f"MFU {row['mfu']:.0%}"] if "mfu" in row else []),
        f"{row['memory_gb']:.1f} GB",
        f"{duration(seconds_left)} left",
    ]
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """45 s, 3 min 20 s, 2 h 05 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def peak_memory(device: Any) -> float:
    """Bytes that this process has had at most: of the GPU, or of the machine where there is none."""
    if device.type == "cuda":
        import torch

        return float(torch.cuda.max_memory_allocated(device))
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
