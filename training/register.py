"""The one home of registration: a job's output becomes a version of a registered model, with its lineage as tags.

    python -m training.register --job JOB

A job is registered once: asked again, the version that it already has is the answer.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra import cli
from infra.cli import UserError
from infra.client import ml_client
from infra.outputs import add_stack_options, load_outputs

if TYPE_CHECKING:
    from azure.ai.ml import MLClient

MODEL_OUTPUT, REPORT_OUTPUT = "model", "report"
MLFLOW_OUTPUT = "trained_model"
"""What the registry component's pipeline calls its MLflow model; so Microsoft's guide does."""
NAME_TAG, JOB_TAG, APPROVED_TAG, KIND_TAG = "registered_name", "job", "approved", "model_type"
CUSTOM, MLFLOW = "custom_model", "mlflow_model"


@dataclass(frozen=True)
class Registered:
    """One version of a model in the workspace."""

    name: str
    version: str
    approved: bool

    def __str__(self) -> str:
        return f"{self.name}:{self.version}"


def register(client: MLClient, job: str, lineage: Mapping[str, str], metrics: Mapping[str, Any]) -> Registered:
    """Register what a finished job made; the job's existing version if it has one.

    A job of ours makes a custom model, its output `model`; a pipeline of the registry's component an MLflow model, its
    output `trained_model`. `lineage` are the tags that `training.submit` gave the job (stack, recipe, data, base model,
    code, registered name); the metrics are added. All tags are strings: Azure ML knows no other.

    Raises:
        UserError: Azure ML refuses the registration.
    """
    from azure.ai.ml.entities import Model
    from azure.core.exceptions import HttpResponseError

    name = lineage[NAME_TAG]
    if existing := registered_version(client, name, job):
        return existing
    tags = {key: value for key, value in lineage.items() if key != NAME_TAG}
    tags |= {JOB_TAG: job, APPROVED_TAG: str(bool(metrics.get("approved"))).lower()}
    tags |= metric_tags(metrics)
    kind = lineage.get(KIND_TAG, CUSTOM)
    output = MLFLOW_OUTPUT if kind == MLFLOW else MODEL_OUTPUT
    model = Model(name=name, path=f"azureml://jobs/{job}/outputs/{output}", type=kind, tags=tags)
    try:
        made = client.models.create_or_update(model)
    except HttpResponseError as error:
        raise UserError(
            f"the job {job} is done, but its model was not registered: {error.message}",
            next_command=f"python -m training.register --job {job}",
        ) from None
    return Registered(name, str(made.version), tags[APPROVED_TAG] == "true")


def metric_tags(metrics: Mapping[str, Any]) -> dict[str, str]:
    """The numbers among a job's metrics, as texts."""
    numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
    return {key: f"{value:.6g}" for key, value in numbers.items() if not isinstance(value, bool)}


def registered_version(client: MLClient, name: str, job: str) -> Registered | None:
    """The version of a model that came from a job, or None."""
    from azure.core.exceptions import ResourceNotFoundError

    try:
        for model in client.models.list(name=name):
            tags = model.tags or {}
            if tags.get(JOB_TAG) == job:
                return Registered(name, str(model.version), tags.get(APPROVED_TAG) == "true")
    except ResourceNotFoundError:  # Azure answers 404, not an empty list, for a name without versions
        return None
    return None


def read_metrics(client: MLClient, job: str) -> dict[str, Any]:
    """The job's metrics, from its small output `report` (the model itself stays where it is).

    Raises:
        UserError: the output cannot be read, or holds no metrics.
    """
    from azure.ai.ml.exceptions import MlException
    from azure.core.exceptions import AzureError

    again = f"python -m training.register --job {job}"
    with tempfile.TemporaryDirectory(prefix="finetune-phi-") as folder:
        try:
            with contextlib.redirect_stdout(sys.stderr):  # azure-ai-ml prints its progress
                client.jobs.download(job, download_path=folder, output_name=REPORT_OUTPUT)
        except (AzureError, MlException) as error:
            raise UserError(
                f"the job {job} is done, but its metrics cannot be read: {error}", next_command=again
            ) from None
        for path in Path(folder).rglob("metrics.json"):
            metrics: dict[str, Any] = json.loads(path.read_text())
            return metrics
    raise UserError(f"the job {job} is done, but its output `{REPORT_OUTPUT}` has no metrics.json", next_command=again)


def main(argv: list[str]) -> int:
    parser = cli.parser("training.register", "Register the model of a finished training job, with its lineage.")
    parser.add_argument("--job", required=True, help="the name of the job")
    add_stack_options(parser)
    args = parser.parse_args(argv)
    client = ml_client(load_outputs(stack=args.stack, file=args.outputs))
    job = finished(client, args.job)
    metrics = read_metrics(client, args.job)
    made = register(client, args.job, job, metrics)
    cli.result({"model": str(made), "approved": made.approved, "metrics": metrics}, as_json=args.json)
    return 0


def finished(client: MLClient, name: str) -> dict[str, str]:
    """The lineage tags of a completed training job. Raises UserError for any other job."""
    from azure.core.exceptions import ResourceNotFoundError

    try:
        job = client.jobs.get(name)
    except ResourceNotFoundError:
        raise UserError(f"the workspace has no job {name!r}", code=cli.WRONG_USE) from None
    if job.status != "Completed":
        raise UserError(
            f"the job {name} is {job.status}: only a completed one has a model",
            next_command=f"python -m training.submit --attach {name}",
        )
    tags = dict(job.tags or {})
    if NAME_TAG not in tags:
        raise UserError(f"the job {name} was not submitted by training.submit: it does not say how to call its model")
    return tags


if __name__ == "__main__":
    cli.run(main)
