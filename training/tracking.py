"""What a run says and notes while it trains: a line and a row of metrics at each log, and two pictures at the end.

    OUTPUT/metrics.jsonl       a row for each log, always; a run that goes on continues it
    OUTPUT/loss.png, throughput.png
    OUTPUT/environment.txt     what it ran on and with

The same goes to MLflow where there is one (training/mlflow_log.py). Only the first process does any of it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.cli import INTERRUPTED, UserError, say
from training import mlflow_log, plots, provenance
from training.checkpoints import CHECKPOINTS
from training.keeper import STOPPED
from training.mlflow_log import Described, Ending, MlflowLog
from training.progress import Pace, line, peak_memory
from training.ranks import is_first, processes
from training.recipe import Recipe

if TYPE_CHECKING:
    from transformers import TrainerCallback

ROWS_FILE = "metrics.jsonl"
ENVIRONMENT_FILE = "environment.txt"
# seconds to wait for MLflow at the end: of a run that is done, that failed, that has to be gone
PATIENCE = {"FINISHED": 30.0, "FAILED": 10.0, "KILLED": 2.0}


@contextlib.contextmanager
def following(recipe: Recipe, output: Path, lineage: Mapping[str, str]) -> Iterator[Run]:
    """Note a run from its beginning to its end, whatever that is. `lineage`: hashes of what it is made of."""
    run = Run(recipe, output, lineage)
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    except UserError as error:
        status = "KILLED" if error.code in (STOPPED, INTERRUPTED) else "FAILED"
        raise
    finally:
        run.close(status)


class Run:
    """The rows of one run and where they go. `metrics`: what is known at the end, for the pictures and for MLflow."""

    def __init__(self, recipe: Recipe, output: Path, lineage: Mapping[str, str]) -> None:
        self.recipe, self.output, self.commit = recipe, output, provenance.commit()
        self.metrics: dict[str, Any] = {}
        self.rows = read_rows(output / ROWS_FILE)
        self._mlflow = self._open(lineage) if is_first() else None

    def _open(self, lineage: Mapping[str, str]) -> MlflowLog | None:
        """Write down the environment; MLflow's side of the run, where there is an MLflow."""
        environment = provenance.environment()
        with _noted(self.output):
            (self.output / ENVIRONMENT_FILE).write_text(environment, encoding="utf-8")
        where = mlflow_log.load() if mlflow_log.wanted() else None
        say(f"metrics: {self.output / ROWS_FILE}" + (f" and MLflow at {where}" if where else ""))
        if where is None:
            return None
        values = {key: value for section in self.recipe.as_dict().values() for key, value in section.items()}
        described = Described(
            name=f"{self.recipe.name}-{self.recipe.fingerprint[:6]}",
            identity=lineage,
            params={**values, "processes": processes()},
            tags={
                "recipe": self.recipe.name,
                "mlflow.source.git.commit": self.commit,
                **{f"{key}_hash": value for key, value in lineage.items()},
            },
            texts={"recipe.yaml": self.recipe.as_yaml(), ENVIRONMENT_FILE: environment},
        )
        return MlflowLog(described, self.rows, self.output / CHECKPOINTS / "mlflow.json", where)

    def begin(self, step: int) -> None:
        """The training starts after `step`: rows after it are of steps that are done again."""
        self.rows[:] = [row for row in self.rows if row["step"] <= step]
        with _noted(self.output):
            lines = "".join(json.dumps(row) + "\n" for row in self.rows)
            (self.output / ROWS_FILE).write_text(lines, encoding="utf-8")
        if self._mlflow:
            self._mlflow.delivery.start()

    def add(self, row: dict[str, Any]) -> None:
        """Note a row."""
        self.rows.append(row)
        with _noted(self.output), (self.output / ROWS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self._mlflow:
            self._mlflow.delivery.wake()

    def callback(self, flops_per_token: float = 0.0, peak_flops: float | None = None) -> TrainerCallback:
        """What the trainer tells of each log. MFU is said where the peak, of all processes together, is known."""
        return _callback(self, flops_per_token / peak_flops if peak_flops else 0.0)

    def close(self, status: str) -> None:
        """Draw, and hand over what is left."""
        if not is_first():
            return
        pictures = self._drawn() if status != "KILLED" else []
        if self._mlflow:
            noted = [self.output / name for name in (ROWS_FILE, "metrics.json")]
            files = [path for path in (*noted, *pictures) if path.is_file()]
            self._mlflow.close(Ending(status, self.metrics, files), PATIENCE[status])

    def _drawn(self) -> list[Path]:
        title = f"{self.recipe.name} ({self.recipe.fingerprint[:6]}), commit {self.commit}"
        try:
            return plots.draw(self.rows, self.metrics, title, self.output)
        except Exception as error:  # noqa: BLE001  a picture is no reason to fail a training that is done
            say(f"the pictures were not drawn: {error}")
            return []


@contextlib.contextmanager
def _noted(output: Path) -> Iterator[None]:
    """What cannot be noted is said; a disk that is full ends the run at its next checkpoint."""
    try:
        yield
    except OSError as error:
        say(f"cannot write down the metrics in {output}: {error.strerror}")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows that were noted; a last one that was cut short is left out."""
    rows: list[dict[str, Any]] = []
    with contextlib.suppress(OSError, ValueError):
        rows.extend(map(json.loads, path.read_text(encoding="utf-8").splitlines()))
    return rows


def _callback(run: Run, mfu_per_speed: float) -> TrainerCallback:
    from transformers import TrainerCallback

    class Tracking(TrainerCallback):
        pace = Pace()

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.is_world_process_zero:
                run.begin(state.global_step)
                self.pace = Pace(state.global_step, run.rows[-1] if run.rows else None)

        def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
            if not logs or "loss" not in logs or not state.is_world_process_zero:
                return
            row = self.pace.row(state.global_step, logs, peak_memory(args.device), mfu_per_speed)
            run.add(row)
            say(line(row, state.max_steps, self.pace.seconds_left(state.max_steps)))

    return Tracking()
