"""The pictures of a run: how its loss fell, how fast it went, and what its evaluation measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]
INK, FAINT, LINE, SECOND = "#1f2933", "#9aa5b1", "#0f62fe", "#d9480f"
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.grid": True,
    "grid.color": "#e4e7eb",
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}
DOMAINS = {"eval": "held out", "second": "second domain"}
MODELS = {"_before": ("before", FAINT), "": ("after", LINE)}
SMOOTH = 40
"""A curve is smoothed over so many points a span: 1/40 of the run."""


def draw(rows: Sequence[Row], metrics: Mapping[str, Any], title: str, folder: Path) -> list[Path]:
    """Write loss.png and throughput.png; returns their paths, none if there is nothing to draw.

    Args:
        rows: as `training.progress.Pace.row` makes them.
        metrics: of the whole run: `eval_loss_before`, `eval_loss`, `tokens_per_second` are drawn if they are there.
    """
    rows = [row for row in rows if row.get("loss") is not None]
    if not rows:
        return []
    return [
        _picture(folder / "loss.png", f"Loss of {title}", lambda axes: _loss(axes, rows, metrics)),
        _picture(folder / "throughput.png", f"Speed of {title}", lambda axes: _speed(axes, rows, metrics)),
    ]


def _picture(path: Path, title: str, fill: Callable[[Axes], None]) -> Path:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(title, pad=12)
        axes.set_axisbelow(True)
        fill(axes)
        figure.savefig(path)
    return path


def _loss(axes: Axes, rows: Sequence[Row], metrics: Mapping[str, Any]) -> None:
    steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
    axes.plot(steps, losses, color=LINE, alpha=0.35, linewidth=1)
    axes.plot(steps, smoothed(losses), color=LINE, linewidth=2, label="training")
    for key, name, style in (("eval_loss_before", "held out, before", ":"), ("eval_loss", "held out, after", "--")):
        if isinstance(metrics.get(key), float):
            axes.axhline(metrics[key], color=SECOND, linestyle=style, label=f"{name}: {metrics[key]:.3f}")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per token)")
    axes.set_xlim(left=0)
    axes.legend()


def _speed(axes: Axes, rows: Sequence[Row], metrics: Mapping[str, Any]) -> None:
    unit, seconds = ("minutes", 60.0) if rows[-1]["seconds"] > 180 else ("seconds", 1.0)
    times, speeds = [row["seconds"] / seconds for row in rows], [row["tokens_per_second"] for row in rows]
    axes.plot(times, speeds, color=LINE, alpha=0.35, linewidth=1)
    axes.plot(times, speeds_around(rows), color=LINE, linewidth=2, label="training")
    if isinstance(mean := metrics.get("tokens_per_second"), float):
        axes.axhline(mean, color=SECOND, linestyle="--", label=f"mean: {mean:,.0f}")
    axes.set_xlabel(f"{unit} of training")
    axes.set_ylabel("tokens per second")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    if mfus := [row["mfu"] / row["tokens_per_second"] for row in rows if row.get("mfu") and row["tokens_per_second"]]:
        share = axes.secondary_yaxis(
            "right", functions=(lambda speed: 100 * mfus[0] * speed, lambda mfu: mfu / mfus[0] / 100)
        )
        share.set_ylabel("MFU (% of the dense bf16 peak)")
    axes.legend()


def smoothed(values: Sequence[float]) -> list[float]:
    """Each value as the mean of its neighbourhood."""
    parts = [values[around] for around in _neighbourhoods(len(values))]
    return [sum(part) / len(part) for part in parts]


def speeds_around(rows: Sequence[Row]) -> list[float]:
    """Tokens per second in the neighbourhood of each row: a mean of speeds would count short times too much."""
    begun = [{"seconds": 0.0, "tokens": 0}, *rows]
    speeds = []
    for around in _neighbourhoods(len(rows)):
        before, last = begun[around.start], rows[around.stop - 1]
        speeds.append((last["tokens"] - before["tokens"]) / max(last["seconds"] - before["seconds"], 1e-9))
    return speeds


def _neighbourhoods(count: int) -> Iterator[slice]:
    """Around each of so many: 1/SMOOTH of the whole wide to either side, less near the ends."""
    for at in range(count):
        reach = min(count // SMOOTH, at, count - 1 - at)
        yield slice(at - reach, at + reach + 1)


def draw_evaluation(path: Path, metrics: Mapping[str, Any]) -> None:
    """Bars of the losses in `metrics`, before and after, whiskers of 95 %. Raises OSError for a path that cannot be
    written."""
    import matplotlib
    from matplotlib.figure import Figure

    domains = [domain for domain in DOMAINS if f"{domain}_loss" in metrics]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.5 + 2 * len(domains), 3.5), dpi=120, layout="constrained")
        axes = figure.add_subplot()
        axes.set_axisbelow(True)
        for place, (suffix, (label, colour)) in enumerate(MODELS.items()):
            _bars(
                axes, [_bar(number, metrics, name, suffix) for number, name in enumerate(domains)], place, label, colour
            )
        axes.set_xticks(range(len(domains)), [DOMAINS[domain] for domain in domains])
        axes.set_ylabel("nats per assistant token (95 %)")
        axes.legend()
        figure.savefig(path)


def _bars(
    axes: Axes, found: Sequence[tuple[int, float, float, float] | None], place: int, label: str, colour: str
) -> None:
    """One model's bar in each domain where it was measured."""
    bars = [bar for bar in found if bar]
    if not bars:
        return
    places = [number + (place - 0.5) * 0.36 for number, _, _, _ in bars]
    whiskers = [[below for _, _, below, _ in bars], [above for _, _, _, above in bars]]
    axes.bar(places, [loss for _, loss, _, _ in bars], 0.34, yerr=whiskers, capsize=4, label=label, color=colour)


def _bar(number: int, metrics: Mapping[str, Any], domain: str, suffix: str) -> tuple[int, float, float, float] | None:
    """Where a bar stands, its height, and how far its interval reaches down and up."""
    loss = metrics.get(f"{domain}_loss{suffix}")
    if loss is None:
        return None
    low, high = metrics[f"{domain}_loss_low{suffix}"], metrics[f"{domain}_loss_high{suffix}"]
    return number, loss, max(loss - low, 0.0), max(high - loss, 0.0)
