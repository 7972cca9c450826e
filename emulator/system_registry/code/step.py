"""What the steps share: their arguments, their files, and how one fails."""

from __future__ import annotations

import argparse
import json
import os
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

ARGS = "finetune_args.json"  # what a step hands to the next beside its files


def arguments(**types: Any) -> argparse.Namespace:
    """The step's arguments by name and type; each may be left out, then it is None."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name, kind in types.items():
        parser.add_argument(f"--{name}", type=kind)
    return parser.parse_args()


def fail(code: str, sentence: str) -> NoReturn:
    raise SystemExit(f"{code}: {sentence}")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The conversations of a JSON lines file, checked. Fails with the number of the first line that is wrong."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            fail("ACFTDataException", f"line {number} of {path.name} is not JSON")
        if problem := _problem(row):
            fail("ACFTDataException", f"line {number} of {path.name}: {problem}")
        rows.append(row)
    if not rows:
        fail("ACFTDataException", f"{path.name} holds no conversation")
    return rows


def _problem(row: Any) -> str | None:
    messages = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(messages, list) or not messages:
        return "there is no list `messages`"
    if not all(isinstance(one, dict) and {"role", "content"} <= one.keys() for one in messages):
        return "each message needs `role` and `content`"
    if "assistant" not in [one["role"] for one in messages]:
        return "no message is the assistant's"
    return None


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def hand_over(source: Path | None, to: Path, **more: Any) -> None:
    """Write what later steps must know: what this one was told, and `more`."""
    known = json.loads((source / ARGS).read_text()) if source else {}
    (to / ARGS).write_text(json.dumps(known | more, indent=2))


def told(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / ARGS).read_text())
    return found


def log_metrics(values: dict[str, float], step: int = 0) -> None:
    """Show metrics in the run, over MLflow's REST interface; a run without tracking does without."""
    tracking, run = os.environ.get("MLFLOW_TRACKING_URI", ""), os.environ.get("MLFLOW_RUN_ID")
    print("metrics:", json.dumps({"step": step, **values}), flush=True)
    if not tracking.startswith("azureml://") or not run:
        return
    listed = [{"key": key, "value": value, "timestamp": 0, "step": step} for key, value in values.items()]
    request = urllib.request.Request(
        tracking.replace("azureml://", "https://", 1) + "/api/2.0/mlflow/runs/log-batch",
        data=json.dumps({"run_id": run, "metrics": listed}).encode(),
        headers={
            "Content-Type": "application/json",
            "Authorization": f"Bearer {os.environ.get('MLFLOW_TRACKING_TOKEN', '')}",
        },
    )
    try:
        urllib.request.urlopen(request, timeout=120).close()
    except OSError as error:  # metrics are no reason to lose a trained model
        print(f"the metrics could not be stored: {error}", flush=True)
