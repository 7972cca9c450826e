"""Hands a run's metrics to MLflow, without the training ever waiting for it or failing by it.

Where to: MLFLOW_TRACKING_URI, which Azure ML sets in its jobs together with MLFLOW_RUN_ID (its own run, which it begins
and ends itself). By hand, without either: MLflow's own default, a database that `mlflow ui` opens. In a job whose
service keeps no metrics, and where DISABLE_MLFLOW_INTEGRATION is set (transformers' variable): nowhere.

A server that refuses, hangs or is away is asked again until the run ends (training/delivery.py). What it has not taken
by then is beside the model all the same (training/tracking.py), and that is said in one line.

No `log_model`: Azure ML answers 404 to MLflow 3's logged models. Azure ML's limits count for every server: 200
parameters and 50 metric names a run, 250 metrics a request
(https://learn.microsoft.com/azure/machine-learning/resource-limits-capacity).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from infra.cli import say
from training.delivery import Delivery, reason, without_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient

Row: TypeAlias = Mapping[str, Any]
"""Metrics of one step, by name, with `step` and `time` (seconds since 1970)."""
MAX_PARAMS, MAX_NAMES, MAX_BATCH, MAX_VALUE = 200, 50, 250, 250
PARAMS_A_REQUEST = 100
EXPERIMENT = "finetune-phi"
# what the server will not take, however often it is asked
REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS")
UNKNOWN_RUN = "RESOURCE_DOES_NOT_EXIST"


@dataclass(frozen=True)
class Described:
    """What MLflow is told of a run besides its metrics; `texts` are small files by their names.

    `identity`: what is equal when a run goes on from an earlier start.
    """

    name: str
    identity: Mapping[str, str]
    params: Mapping[str, Any]
    tags: Mapping[str, str]
    texts: Mapping[str, str]


@dataclass(frozen=True)
class Ending:
    """How a run ended. `status`: FINISHED, FAILED or KILLED. What is no number among `metrics` becomes a tag."""

    status: str
    metrics: Mapping[str, Any]
    files: Sequence[Path]


def wanted() -> bool:
    """Whether there is an MLflow to log to."""
    if os.environ.get("DISABLE_MLFLOW_INTEGRATION", "").upper() in ("1", "TRUE"):
        return False
    # the database beside a job's code would be lost with its node
    return "MLFLOW_TRACKING_URI" in os.environ or "AZUREML_RUN_ID" not in os.environ


def load() -> str | None:
    """Import MLflow, in the main thread while no other import is under way; its address for a reader, or None where it
    is not installed."""
    # its own retries would hold a request for minutes; ours go on until the run ends
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # stdout is for the verb's result
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    try:
        import mlflow
    except ImportError:
        return None
    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    address = without_secrets(mlflow.get_tracking_uri())
    _, of_azure, workspace = address.rpartition("/workspaces/")
    return f"azureml://…/{workspace}" if of_azure else address


class MlflowLog:
    """One run in MLflow. `rows` grows while the run trains; `state_file` remembers up to which step they were taken."""

    def __init__(self, described: Described, rows: Sequence[Row], state_file: Path, where: str) -> None:
        self._described, self._rows, self._state_file, self._where = described, rows, state_file, where
        self.delivery = Delivery(self._deliver, f"MLflow at {where}")
        self._client: MlflowClient | None = None
        self._run_id, self._step = "", -1
        self._done: set[str] = set()
        self._names: set[str] = set()
        self._ending: Ending | None = None

    def close(self, ending: Ending, patience: float) -> None:
        """Deliver the rest, waiting `patience` seconds for it at most, and say what was not taken."""
        self._ending = ending
        if not self.delivery.finish(patience):
            left = len(self._waiting())
            what = f"{left} of {len(self._rows)} rows of metrics" if left else "the end of the run"
            why = self.delivery.fault or "no answer"
            say(f"MLflow at {self._where} has not taken {what} ({why}): all of it is beside the model")

    def _deliver(self) -> None:
        ending = self._ending
        client = self._client = self._client or self._connected()
        self._once("the description", lambda: self._describe(client))
        while waiting := self._waiting():
            self._send(client, waiting)
        for name, text in self._described.texts.items():
            self._once(name, lambda name=name, text=text: client.log_text(self._run_id, text, name))  # type: ignore[misc]
        if ending:
            self._send_end(client, ending)

    def _waiting(self) -> list[Row]:
        return [row for row in self._rows if row["step"] > self._step]

    def _connected(self) -> MlflowClient:
        """A client, with the run that is Azure ML's, that an earlier start began, or a new one."""
        from mlflow import MlflowClient

        client = MlflowClient()
        known = _read(self._state_file)
        self._run_id = os.environ.get("MLFLOW_RUN_ID") or self._begun(client, known)
        self._step = int(known["step"]) if known.get("run_id") == self._run_id else -1
        self._remember()
        return client

    def _begun(self, client: MlflowClient, known: Mapping[str, Any]) -> str:
        from mlflow.exceptions import MlflowException

        if known.get("where") == self._where and known["identity"] == self._described.identity:
            try:
                client.update_run(known["run_id"], status="RUNNING")
                return str(known["run_id"])
            except MlflowException as error:
                if error.error_code != UNKNOWN_RUN:
                    raise
        made = client.create_run(_experiment(client), run_name=self._described.name)
        return str(made.info.run_id)

    def _describe(self, client: MlflowClient) -> None:
        from mlflow.entities import Param, RunTag

        # mlflow has no types for these two
        params: list[Any] = [Param(key, str(value)[:MAX_VALUE]) for key, value in self._described.params.items()]  # type: ignore[no-untyped-call]
        tags: list[Any] = [RunTag(key, value[:MAX_VALUE]) for key, value in self._described.tags.items()]  # type: ignore[no-untyped-call]
        client.log_batch(self._run_id, tags=tags)
        if len(params) > MAX_PARAMS:
            say(f"{len(params) - MAX_PARAMS} parameters are beside the model alone: MLflow has {MAX_PARAMS} of a run")
        for first in range(0, min(len(params), MAX_PARAMS), PARAMS_A_REQUEST):
            client.log_batch(self._run_id, params=params[first : first + PARAMS_A_REQUEST])

    def _send(self, client: MlflowClient, waiting: Sequence[Row]) -> None:
        """As many rows as one request may hold."""
        metrics, last = self._metrics(waiting[0]), waiting[0]
        for row in waiting[1:]:
            if len(metrics) + len(row) > MAX_BATCH:
                break
            metrics, last = metrics + self._metrics(row), row
        what = f"the metrics of steps {waiting[0]['step']} to {last['step']}"
        self._once(what, lambda: client.log_batch(self._run_id, metrics))
        self._step = last["step"]
        self._remember()

    def _metrics(self, row: Row) -> list[Any]:
        from mlflow.entities import Metric

        when, step = int(1000 * row["time"]), int(row["step"])
        named = {key: value for key, value in row.items() if self._may_send(key, value)}
        return [Metric(key, float(value), when, step) for key, value in named.items()]

    def _may_send(self, name: str, value: Any) -> bool:
        if name in ("step", "time") or isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if name not in self._names and len(self._names) == MAX_NAMES:
            self._once(name, lambda: say(f"the metric {name} is beside the model alone: MLflow has {MAX_NAMES} names"))
            return False
        self._names.add(name)
        return True

    def _send_end(self, client: MlflowClient, ending: Ending) -> None:
        from mlflow.entities import RunTag

        last = self._rows[-1] if self._rows else {"step": 0}
        # what holds for the whole run is another thing than the last row's value of the same name
        whole = {f"final_{key}" if key in last else key: value for key, value in ending.metrics.items()}
        metrics = self._metrics({**whole, "step": last["step"], "time": time.time()})
        words = {key: value for key, value in ending.metrics.items() if isinstance(value, bool | str)}
        tags: list[Any] = [RunTag(key, str(value)[:MAX_VALUE]) for key, value in words.items()]  # type: ignore[no-untyped-call]
        self._once("the final metrics", lambda: client.log_batch(self._run_id, metrics, tags=tags))
        for file in ending.files:
            self._once(file.name, lambda file=file: client.log_artifact(self._run_id, str(file)))  # type: ignore[misc]
        if "MLFLOW_RUN_ID" not in os.environ:
            self._once("the end", lambda: client.set_terminated(self._run_id, ending.status))

    def _once(self, what: str, send: Callable[[], object]) -> None:
        """Send it if it was not sent before; what the server refuses for good is said and not sent again."""
        from mlflow.exceptions import MlflowException

        if what in self._done:
            return
        try:
            send()
        except MlflowException as error:
            if error.error_code not in REFUSALS:
                raise
            say(f"MLflow at {self._where} refused {what} ({reason(error)}): it is beside the model")
        self._done.add(what)

    def _remember(self) -> None:
        identity = dict(self._described.identity)
        state = {"where": self._where, "run_id": self._run_id, "step": self._step, "identity": identity}
        with contextlib.suppress(FileNotFoundError):  # the run is over, its checkpoints are gone
            self._state_file.write_text(json.dumps(state))


def _read(state_file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(state_file.read_text())
    except (OSError, ValueError):
        return {}
    return found


def _experiment(client: MlflowClient) -> str:
    if given := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return given
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found else client.create_experiment(name))
