"""The report: report.json, and report.html with everything in it, pictures included."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flow.evaluation.metrics import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0b5cad", "#d9480f")
STYLE = """body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#1b1f24}
table{border-collapse:collapse;width:100%;margin:1rem 0}td,th{border-bottom:1px solid #dde0e5;padding:.35rem .6rem;
text-align:left;vertical-align:top;overflow-wrap:anywhere}.number{text-align:right;white-space:nowrap}
.bad{color:#a4262c}img{max-width:100%}"""


def write(folder: Path, report: Mapping[str, Any]) -> Path:
    """Write both files into `folder`; returns the page's path.

    Args:
        report: `versions` (a list of one or two: `name`, `metrics`, `rows`), `difference` (or null), `verdict`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    page = folder / "report.html"
    page.write_text(html(report), encoding="utf-8")
    return page


def html(report: Mapping[str, Any]) -> str:
    versions: Sequence[Mapping[str, Any]] = report["versions"]
    names = " against ".join(version["name"] for version in versions)
    parts = [f"<h1>{escape(names)}</h1>", f"<p>{escape(report['verdict'])}</p>", _metrics(versions)]
    if report["difference"]:
        told = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in report["difference"].items())
        parts.append(f"<p>{escape(told)}</p>")
    picture = base64.b64encode(draw(versions)).decode()
    parts += [f'<img alt="Scores and times" src="data:image/png;base64,{picture}">', _answers(versions)]
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(names)}</title><style>{STYLE}</style>'
    return head + "\n".join(parts) + "</html>\n"


def _metrics(versions: Sequence[Mapping[str, Any]]) -> str:
    head = "".join(f'<th class="number">{escape(version["name"])}</th>' for version in versions)
    lines = [f"<tr><th></th>{head}</tr>"]
    for key in versions[0]["metrics"]:
        values = "".join(f'<td class="number">{_number(version["metrics"][key])}</td>' for version in versions)
        lines.append(f"<tr><td>{escape(key.replace('_', ' '))}</td>{values}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _answers(versions: Sequence[Mapping[str, Any]]) -> str:
    head = "".join(f"<th>{escape(version['name'])}</th><th>F1</th>" for version in versions)
    lines = [f"<tr><th>question</th><th>expected</th>{head}</tr>"]
    for rows in zip(*(version["rows"] for version in versions), strict=True):
        answers = "".join(f'<td>{_answer(row)}</td><td class="number">{_number(row["f1"])}</td>' for row in rows)
        lines.append(f"<tr><td>{escape(rows[0]['question'])}</td><td>{escape(rows[0]['expected'])}</td>{answers}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _answer(row: Row) -> str:
    return f'<span class="bad">{escape(row["error"])}</span>' if row["error"] else escape(row["answer"])


def _number(value: float | int | None) -> str:
    return "not measured" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def draw(versions: Sequence[Mapping[str, Any]]) -> bytes:
    """A PNG: the questions sorted by F1, and how long answers took."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    FigureCanvasAgg(figure)  # no window, whatever the machine has
    left, right = figure.subplots(1, 2)
    for version, colour in zip(versions, COLOURS, strict=False):
        _scores(left, version, colour)
        _times(right, version, colour)
    left.set(title="F1 of each question, sorted", ylim=(-0.02, 1.02), xlabel="question")
    right.set(title="Share of answers within a time", ylim=(0, 1.02), xlabel="seconds")
    left.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e4e7eb")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    return drawn.getvalue()


def _scores(axes: Axes, version: Mapping[str, Any], colour: str) -> None:
    scores = sorted((row["f1"] for row in version["rows"]), reverse=True)
    axes.plot(range(1, len(scores) + 1), scores, marker=".", color=colour, label=version["name"])


def _times(axes: Axes, version: Mapping[str, Any], colour: str) -> None:
    seconds = sorted(row["seconds"] for row in version["rows"] if row["seconds"] is not None)
    if seconds:
        axes.step(seconds, [(place + 1) / len(seconds) for place in range(len(seconds))], color=colour, where="post")
