from __future__ import annotations

import math
import time
from typing import Any

import pytest

from training.progress import Pace, duration, finite, line


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Its only number is the time, in seconds."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def logged(pace: Pace, clock: list[float], seconds: float, step: int, tokens: int) -> dict[str, Any]:
    clock[0] += seconds
    return pace.row(step, {"loss": 2.0, "num_tokens": tokens}, 3e9, mfu_per_speed=1e-3)


def test_speed_is_that_since_the_last_log(clock: list[float]) -> None:
    pace = Pace()
    first, second = logged(pace, clock, 10, 5, 1000), logged(pace, clock, 5, 10, 2000)
    assert (first["tokens_per_second"], second["tokens_per_second"]) == (100.0, 200.0)
    assert (first["mfu"], second["mfu"]) == (0.1, 0.2)
    assert (second["seconds"], second["tokens"], second["memory_gb"]) == (15.0, 2000, 3.0)


def test_without_a_peak_no_mfu_is_said(clock: list[float]) -> None:
    clock[0] += 1
    assert "mfu" not in Pace().row(1, {"loss": 2.0}, 0.0)


def test_the_first_steps_do_not_count_for_the_time_left(clock: list[float]) -> None:
    """They compile: 100 s for 5 steps, then 1 s a step."""
    pace = Pace()
    logged(pace, clock, 100, 5, 1)
    assert pace.seconds_left(10) == 100, "nothing else is known yet"
    logged(pace, clock, 5, 10, 2)
    logged(pace, clock, 5, 15, 3)
    assert pace.seconds_left(25) == pytest.approx(10)
    assert pace.seconds_left(15) == 0


def test_time_and_tokens_go_on_where_the_last_start_was(clock: list[float]) -> None:
    """Its checkpoint is of step 12, its last row of step 10: two steps were done and not logged."""
    pace = Pace(12, {"step": 10, "seconds": 50.0, "tokens": 1000})
    row = logged(pace, clock, 8, 14, 200)
    assert (row["seconds"], row["tokens"], row["tokens_per_second"]) == (68.0, 1400, 25.0)
    assert pace.seconds_left(16) == pytest.approx(8)


def test_a_line_says_step_loss_rate_speed_share_memory_and_time_left() -> None:
    row = {"step": 5, "loss": 1.23456, "learning_rate": 5e-6, "tokens_per_second": 21543.2, "mfu": 0.512}
    assert line({**row, "memory_gb": 61.25}, 100, 3725) == (
        "step   5/100   5%  loss 1.2346  lr 5.0e-06  21,543 tokens/s  MFU 51%  61.2 GB  1 h 02 min left"
    )
    assert "loss is no number" in line({"step": 5, "loss": None, "tokens_per_second": 1, "memory_gb": 1}, 9, 1)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, "0 s"), (45, "45 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_durations_are_short(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(("value", "known"), [(1, 1.0), ("2.5", 2.5), (math.nan, None), (-math.inf, None)])
def test_what_is_no_number_is_null(value: Any, known: float | None) -> None:
    assert finite(value) == known
