from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from training import plots


def rows(count: int, seconds: float = 1.0, **more: Any) -> list[dict[str, Any]]:
    return [
        {"step": n, "loss": 5.0 / n, "seconds": seconds * n, "tokens": 100 * n, "tokens_per_second": 100.0, **more}
        for n in range(1, count + 1)
    ]


def drawn(
    monkeypatch: pytest.MonkeyPatch, folder: Path, rows: list[dict[str, Any]], metrics: dict[str, Any]
) -> dict[str, Any]:
    """The axes of both pictures, by name."""
    from matplotlib.figure import Figure

    found = {}
    save = Figure.savefig

    def keep(figure: Figure, path: Path, **more: Any) -> None:
        found[path.name] = figure.axes[0]
        save(figure, path, **more)

    monkeypatch.setattr(Figure, "savefig", keep)
    plots.draw(rows, metrics, "a run", folder)
    return found


def labels(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_the_loss_stands_between_what_was_held_out_before_and_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    axes = drawn(monkeypatch, tmp_path, rows(3), {"eval_loss_before": 6.0, "eval_loss": 1.5})["loss.png"]
    raw, curve, before, after = axes.get_lines()
    assert list(raw.get_xdata()) == [1, 2, 3] and list(raw.get_ydata()) == [5.0, 2.5, 5.0 / 3]
    assert list(curve.get_ydata()) == list(raw.get_ydata()), "so few points are not smoothed"
    assert (before.get_ydata()[0], after.get_ydata()[0]) == (6.0, 1.5)
    assert labels(axes) == ["training", "held out, before: 6.000", "held out, after: 1.500"]
    assert axes.get_ylabel() == "loss (nats per token)" and axes.get_title(loc="left") == "Loss of a run"


def test_the_speed_is_drawn_over_time_with_its_mean_and_share_of_the_peak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    axes = drawn(monkeypatch, tmp_path, rows(4, seconds=60, mfu=0.5), {"tokens_per_second": 90.0})["throughput.png"]
    assert list(axes.get_lines()[0].get_xdata()) == [1.0, 2.0, 3.0, 4.0] and axes.get_xlabel() == "minutes of training"
    assert labels(axes) == ["training", "mean: 90"] and axes.get_ylim()[0] == 0
    (share,) = axes.child_axes
    assert share.get_ylabel() == "MFU (% of the dense bf16 peak)"
    assert share._functions[0](100.0) == pytest.approx(50.0) and share._functions[1](50.0) == pytest.approx(100.0)


def test_a_short_run_is_drawn_in_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    axes = drawn(monkeypatch, tmp_path, rows(4, seconds=40), {})["throughput.png"]
    assert list(axes.get_lines()[0].get_xdata()) == [40, 80, 120, 160] and axes.get_xlabel() == "seconds of training"
    assert axes.child_axes == [], "no share of a peak that is not known"


def test_a_row_without_a_loss_is_no_point_and_no_rows_are_no_picture(tmp_path: Path) -> None:
    assert plots.draw([{"step": 1, "loss": None}], {}, "a run", tmp_path) == [] == list(tmp_path.iterdir())
    found = plots.draw([*rows(2), {"step": 3, "loss": None}], {}, "a run", tmp_path)
    assert [path.name for path in found] == ["loss.png", "throughput.png"]


def test_smoothing_keeps_the_ends_and_takes_a_fortieth_to_either_side() -> None:
    peak = [0.0] * 80
    peak[40] = 5.0
    curve = plots.smoothed(peak)
    assert curve[38:43] == [1.0] * 5 and curve[37] == curve[43] == 0.0
    assert plots.smoothed([7.0, *[0.0] * 79])[0] == 7.0


def test_a_speed_is_tokens_over_seconds_and_not_a_mean_of_speeds() -> None:
    """A log that came after a long pause counts by its time."""
    found = rows(80)
    for row in found[40:]:
        row["seconds"] += 95.0
    assert plots.speeds_around(found)[40] == pytest.approx(500 / 100.0)
    assert plots.speeds_around(found)[10] == pytest.approx(100.0)
