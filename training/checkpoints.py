"""What a run leaves in its output folder, and how another start of it goes on from there.

    OUTPUT/checkpoints/run.json        whose checkpoints these are
    OUTPUT/checkpoints/checkpoint-N    the trainer's own, after N optimizer steps
    OUTPUT/complete.json               written last: a folder without it is not a finished model

`identity` is what must be equal for a run to go on from another's checkpoint: hashes of the recipe and the data.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infra.cli import WRONG_USE, UserError

CHECKPOINTS = "checkpoints"
RUN_FILE = "run.json"
METRICS_FILE = "metrics.json"
COMPLETE_FILE = "complete.json"


def finished_metrics(output: Path, identity: Mapping[str, str]) -> dict[str, Any] | None:
    """The metrics of a finished run of the same identity in the output folder, else None."""
    marker = output / COMPLETE_FILE
    if not marker.is_file() or json.loads(marker.read_text())["run"] != identity:
        return None
    metrics: dict[str, Any] = json.loads((output / METRICS_FILE).read_text())
    return metrics


def claim_output(output: Path, identity: Mapping[str, str]) -> None:
    """Make the output folder this run's. Raises UserError if it holds another run's work or cannot be written."""
    run_file = output / CHECKPOINTS / RUN_FILE
    try:
        if (output / COMPLETE_FILE).is_file() or (run_file.is_file() and json.loads(run_file.read_text()) != identity):
            raise UserError(
                f"{output} holds the work of another recipe or other data: it is left as it is",
                next_command="give another --output, or remove that folder",
                code=WRONG_USE,
            )
        run_file.parent.mkdir(parents=True, exist_ok=True)
        run_file.write_text(json.dumps(identity))
    except OSError as error:
        raise UserError(f"cannot write to the output folder {output}: {error.strerror}") from None
    except ValueError:
        raise UserError(f"{run_file} is damaged", next_command=f"rm -r {output / CHECKPOINTS}") from None


def newest_checkpoint(output: Path) -> Path | None:
    """The newest complete checkpoint. `trainer_state.json` is written last; a save cut short leaves a note of it."""
    complete = [
        path
        for path in (output / CHECKPOINTS).glob("checkpoint-*")
        if (path / "trainer_state.json").is_file() and not (path / "checkpoint-is-incomplete.txt").exists()
    ]
    return max(complete, key=step_of, default=None)


def step_of(checkpoint: Path | None) -> int:
    """The number of optimizer steps behind a checkpoint; 0 without one."""
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0


def mark_complete(output: Path, identity: Mapping[str, str], metrics: Mapping[str, Any]) -> None:
    """Write the metrics, the marker last, then drop the checkpoints. Raises OSError."""
    (output / METRICS_FILE).write_text(json.dumps(metrics, indent=2) + "\n")
    files = {path.name: path.stat().st_size for path in sorted(output.iterdir()) if path.is_file()}
    (output / COMPLETE_FILE).write_text(json.dumps({"run": identity, "files": files}, indent=2) + "\n")
    shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)
