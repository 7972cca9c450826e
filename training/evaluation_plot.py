"""A picture of an evaluation: the loss before and after on each domain, with its interval."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

DOMAINS = {"eval": "held-out", "second": "second domain"}
MODELS = {"_before": ("before", "#9aa5b1"), "": ("after", "#2a6f97")}


def draw(path: Path, metrics: Mapping[str, Any]) -> None:
    """Bars of the losses in `metrics`, whiskers of 95 %. Raises OSError if the file cannot be written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    domains = [domain for domain in DOMAINS if f"{domain}_loss" in metrics]
    figure = Figure(figsize=(1.5 + 2 * len(domains), 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for place, (suffix, (label, colour)) in enumerate(MODELS.items()):
        bars = [bar for number, domain in enumerate(domains) if (bar := _bar(number, metrics, domain, suffix))]
        if not bars:
            continue
        places = [number + (place - 0.5) * 0.36 for number, _, _, _ in bars]
        whiskers = [[below for _, _, below, _ in bars], [above for _, _, _, above in bars]]
        axes.bar(places, [loss for _, loss, _, _ in bars], 0.34, yerr=whiskers, capsize=4, label=label, color=colour)
    axes.set_xticks(range(len(domains)), [DOMAINS[domain] for domain in domains])
    axes.set_ylabel("nats per assistant token (95 %)")
    axes.legend()
    figure.savefig(path, dpi=120)


def _bar(number: int, metrics: Mapping[str, Any], domain: str, suffix: str) -> tuple[int, float, float, float] | None:
    """Where a bar stands, its height, and how far its interval reaches down and up."""
    loss = metrics.get(f"{domain}_loss{suffix}")
    if loss is None:
        return None
    low, high = metrics[f"{domain}_loss_low{suffix}"], metrics[f"{domain}_loss_high{suffix}"]
    return number, loss, max(loss - low, 0.0), max(high - loss, 0.0)
