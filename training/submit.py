"""From a recipe to a registered model: submit the training job, follow it, register what it made.

    python -m training.submit --recipe local
    python -m training.submit --attach JOB        # go on following, register when it is done

The job's node gets a snapshot of `training/` and `infra/cli.py`, the data and (where it is a folder) the base model as
inputs. A relative `model_name_or_path` is looked for in the data folder first, then from the working directory; what is
no folder there and reads `owner/name` is a model on the hub. Ctrl-C leaves the job running.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra import cli
from infra.cli import INTERRUPTED, REFUSED, WRONG_USE, UserError, say
from infra.outputs import PROJECT, StackOutputs, add_stack_options, load_outputs
from training import recipe as recipes
from training.dataset import file_hash
from training.recipe import Recipe
from training.register import MODEL_OUTPUT, NAME_TAG, REPORT_OUTPUT

if TYPE_CHECKING:
    from azure.ai.ml import MLClient
    from azure.ai.ml.entities import Job

    from training.joblog import JobLog

ENVIRONMENT = "finetune-phi-train"
FINISHED = ("Completed", "Failed", "Canceled")
POLL_SECONDS = 1.0
PATIENCE_SECONDS = 600.0
"""How long the service may fail to answer before the follower gives up; the job goes on without it."""
LAST_LINES = 20
# the node needs these of the project, and nothing else
SNAPSHOT = ("infra/__init__.py", "infra/cli.py", "training")


@dataclass(frozen=True)
class Plan:
    """Everything a job is made of, checked, before anything is uploaded. `base_model`: a folder, or a hub name."""

    recipe: Recipe
    outputs: StackOutputs
    train: Path
    eval: Path
    base_model: Path | str

    @property
    def tags(self) -> dict[str, str]:
        """The lineage, which the job carries and its model inherits. Strings all, as Azure ML demands."""
        return {
            "stack": self.outputs.stack,
            "recipe": self.recipe.name,
            "recipe_hash": self.recipe.fingerprint,
            "train_hash": file_hash(self.train)[:16],
            "eval_hash": file_hash(self.eval)[:16],
            "base_model": self.base_model if isinstance(self.base_model, str) else self.base_model.name,
            NAME_TAG: self.recipe.model.registered_name,
        }

    @property
    def command(self) -> str:
        """What the node runs. Azure ML starts the processes of a distributed job itself, so there is no torchrun."""
        model = self.base_model if isinstance(self.base_model, str) else "${{inputs.base_model}}"
        return (
            f"python -m training.sft --recipe training/recipes/{self.recipe.name}.yaml --model {model}"
            " --train ${{inputs.train}} --eval ${{inputs.eval}}"
            f" --output ${{{{outputs.{MODEL_OUTPUT}}}}} --report ${{{{outputs.{REPORT_OUTPUT}}}}}"
        )


def make_plan(recipe: Recipe, outputs: StackOutputs, data: Path) -> Plan:
    """A plan whose inputs all exist. Raises UserError, exit code 2, with the command that makes what is missing."""
    files = (data / recipe.data.train_file, data / recipe.data.eval_file)
    for file in files:
        if not file.is_file():
            share = f" --split {recipe.data.split}" if recipe.data.split else ""
            raise UserError(
                f"the training data is missing: there is no file {file}",
                next_command=f"python -m training.dataset --source {recipe.data.source}{share} --out {data}",
                code=WRONG_USE,
            )
    return Plan(recipe, outputs, *files, find_base_model(recipe, data))


def find_base_model(recipe: Recipe, data: Path) -> Path | str:
    """The base model's folder, or its name on the hub. Raises UserError if it is neither."""
    name = recipe.model.model_name_or_path
    for folder in (data / name, Path(name)):
        if (folder / "config.json").is_file():
            return folder
    if name.count("/") == 1 and not name.startswith((".", "/")):
        return name
    raise UserError(
        f"the base model is missing: there is no model folder {data / name}",
        next_command=f"python -m training.small_model --out {data / name} --corpus {data / recipe.data.train_file}",
        code=WRONG_USE,
    )


@contextlib.contextmanager
def snapshot(recipe: Recipe) -> Iterator[Path]:
    """A folder with what the node needs: the code, and the recipe with all its values."""
    skip = shutil.ignore_patterns("__pycache__", "data", "environment", ".*")
    with tempfile.TemporaryDirectory(prefix="finetune-phi-") as name:
        # the code's folder is named alike each time: azure-ai-ml finds a snapshot again by its contents
        folder = Path(name) / "snapshot"
        for part in SNAPSHOT:
            source, target = PROJECT / part, folder / part
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=skip)
            else:
                shutil.copy(source, target)
        (folder / "training" / "recipes" / f"{recipe.name}.yaml").write_text(recipe.as_yaml(), encoding="utf-8")
        yield folder


def build_job(plan: Plan, code: Path, environment: Any) -> Any:
    """The azure-ai-ml command job of a plan."""
    from azure.ai.ml import Input, Output, command
    from azure.ai.ml.entities import ManagedIdentityConfiguration

    job, outputs = plan.recipe.job, plan.outputs
    inputs = {
        "train": Input(type="uri_file", path=str(plan.train.resolve())),
        "eval": Input(type="uri_file", path=str(plan.eval.resolve())),
    }
    if isinstance(plan.base_model, Path):
        inputs["base_model"] = Input(type="uri_folder", path=str(plan.base_model.resolve()))
    made = command(
        command=plan.command,
        code=str(code),
        inputs=inputs,
        outputs={
            MODEL_OUTPUT: Output(type="uri_folder", mode="rw_mount"),
            REPORT_OUTPUT: Output(type="uri_folder", mode="rw_mount"),
        },
        environment=environment,
        compute=outputs.compute,
        experiment_name="finetune-phi",
        display_name=f"{plan.recipe.name}-{plan.recipe.fingerprint[:6]}",
        tags=plan.tags,
        identity=ManagedIdentityConfiguration(client_id=outputs.training_identity_client_id),
        # azure-identity picks the user-assigned identity by its client id
        environment_variables={"AZURE_CLIENT_ID": outputs.training_identity_client_id, "PYTHONUNBUFFERED": "1"},
        instance_count=job.instance_count,
        shm_size=job.shm_size,
        timeout=job.timeout_minutes * 60,
        distribution=(
            {"type": "pytorch", "process_count_per_instance": max(1, job.process_count_per_instance)}
            if job.instance_count * job.process_count_per_instance > 1
            else None
        ),
    )
    return made


def environment_of(client: MLClient, recipe: Recipe) -> str:
    """The id of the job's environment: registered once for each content of its folder (`name:hash`).

    Raises:
        UserError: the folder has no Dockerfile.
    """
    from azure.ai.ml.entities import BuildContext, Environment
    from azure.core.exceptions import ResourceNotFoundError

    folder = PROJECT / recipe.job.environment
    if not (folder / "Dockerfile").is_file():
        raise UserError(f"the recipe's environment {folder} has no Dockerfile", code=WRONG_USE)
    version = folder_hash(folder)
    try:
        client.environments.get(ENVIRONMENT, version=version)
    except ResourceNotFoundError:
        context = BuildContext(path=str(folder))
        client.environments.create_or_update(Environment(name=ENVIRONMENT, version=version, build=context))
    return f"azureml:{ENVIRONMENT}:{version}"


def folder_hash(folder: Path) -> str:
    """12 hex digits for the names and contents of a folder's files."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{file_hash(path)}\n".encode())
    return digest.hexdigest()[:12]


def submit(client: MLClient, plan: Plan) -> str:
    """Upload what the job needs and submit it; returns the job's name. Raises UserError if Azure ML refuses it."""
    from azure.core.exceptions import HttpResponseError

    try:
        with snapshot(plan.recipe) as code, contextlib.redirect_stdout(sys.stderr):
            job = client.jobs.create_or_update(build_job(plan, code, environment_of(client, plan.recipe)))
    except HttpResponseError as error:
        raise UserError(f"the job was not accepted: {error.message}") from None
    return str(job.name)


def follow(get_job: Callable[[], Job], log: JobLog) -> Job:
    """Print a job's log until it ends; returns the finished job.

    A log that cannot be read is tried again; so is a service that does not answer, for PATIENCE_SECONDS.

    Raises:
        UserError: Azure ML has been silent for too long, or refuses to show the job.
    """
    lines = LogLines()
    status, answered = "", time.monotonic()
    while True:
        job = _try_get(get_job)
        if job is None and time.monotonic() - answered > PATIENCE_SECONDS:
            raise UserError(
                f"Azure ML has not answered for {PATIENCE_SECONDS:.0f} seconds; the job {log.job} goes on without us",
                next_command=f"python -m training.submit --attach {log.job}",
            )
        if job is not None:
            answered = time.monotonic()
            if job.status != status:
                status = str(job.status)
                say(f"job {log.job}: {status}")
        lines.add(log.new_text())
        if job is not None and status in FINISHED:
            lines.add(log.new_text() + "\n")
            _raise_unless_completed(job, status, log, lines.last)
            return job
        time.sleep(POLL_SECONDS)


class LogLines:
    """Prints whole lines as they come, and keeps the last few."""

    def __init__(self) -> None:
        self.last: list[str] = []
        self._rest = ""

    def add(self, text: str) -> None:
        *whole, self._rest = (self._rest + text).split("\n")
        for line in whole:
            if line.strip():
                say(f"  {line}")
                self.last = [*self.last, line][-LAST_LINES:]


def _try_get(get_job: Callable[[], Job]) -> Job | None:
    """The job, or None if the service does not answer just now."""
    from azure.core.exceptions import HttpResponseError, ServiceRequestError, ServiceResponseError

    try:
        return get_job()
    except (ServiceRequestError, ServiceResponseError):
        return None
    except HttpResponseError as error:
        if error.status_code is not None and (error.status_code >= 500 or error.status_code in (408, 429)):
            return None
        raise UserError(f"Azure ML does not show the job: {error.message}") from None


def _raise_unless_completed(job: Job, status: str, log: JobLog, last: list[str]) -> None:
    if status == "Completed":
        return
    reason = log.fault() if status == "Failed" else None
    tail = "\n".join(f"    {line}" for line in last) or "    (it wrote no log)"
    raise UserError(
        f"the job {job.name} has {'failed' if status == 'Failed' else 'been cancelled'}"
        f"{f': {reason.strip()}' if reason else ''}\n  the last lines of its log:\n{tail}",
        next_command=f"python -m training.submit --attach {job.name}   (its whole log), or open {job.studio_url}",
    )


def follow_and_register(client: MLClient, outputs: StackOutputs, name: str) -> dict[str, Any]:
    """Follow a job to its end and register its model; returns the verb's result."""
    from azure.identity import DefaultAzureCredential

    from training.joblog import JobLog
    from training.register import read_metrics, register

    job = follow(lambda: client.jobs.get(name), JobLog(outputs, DefaultAzureCredential(), name))
    metrics = read_metrics(client, name)
    made = register(client, name, dict(job.tags or {}), metrics)
    say(f"registered {made}, {'approved' if made.approved else 'not approved: ' + str(metrics.get('reason'))}")
    return {"job": name, "status": "Completed", "model": str(made), "approved": made.approved, "metrics": metrics}


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    if bool(args.recipe) == bool(args.attach):
        raise UserError("give either --recipe (a new job) or --attach (one that runs)", code=WRONG_USE)
    recipe = recipes.load(args.recipe, args.set) if args.recipe else None
    outputs = load_outputs(stack=args.stack, file=args.outputs)
    plan = make_plan(recipe, outputs, args.data) if recipe else None
    if plan and args.dry_run:
        cli.result(_dry(plan), as_json=args.json)
        return 0

    from infra.client import ml_client

    client = ml_client(outputs)
    name = args.attach
    if plan:
        name = submit(client, plan)
        say(f"submitted {name} to {outputs.compute} in {outputs.workspace}")
    if args.detach:
        cli.result(
            {"job": name, "status": str(client.jobs.get(name).status), "model": None, "metrics": None},
            as_json=args.json,
        )
        return 0
    try:
        values = follow_and_register(client, outputs, name)
    except KeyboardInterrupt:
        raise _detached(name) from None
    cli.result(values, as_json=args.json)
    return 0 if values["approved"] else REFUSED


def _detached(name: str) -> UserError:
    return UserError(
        f"no longer following; the job {name} goes on",
        next_command=f"python -m training.submit --attach {name}   (or: az ml job cancel --name {name})",
        code=INTERRUPTED,
    )


def _dry(plan: Plan) -> dict[str, Any]:
    job = plan.recipe.job
    return {
        "command": plan.command,
        "compute": plan.outputs.compute,
        "compute_size": plan.outputs.compute_size,
        "nodes": job.instance_count,
        "processes": job.instance_count * max(1, job.process_count_per_instance),
        "inputs": {"train": str(plan.train), "eval": str(plan.eval), "base_model": str(plan.base_model)},
        "tags": plan.tags,
    }


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("training.submit", "Submit a training job to Azure ML, follow it, and register its model.")
    parser.add_argument("--recipe", metavar="NAME_OR_FILE", help=f"one of {', '.join(recipes.names())}; or a file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one value; repeatable")
    parser.add_argument("--data", type=Path, default=Path("data"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--attach", metavar="JOB", help="follow a job that was submitted before")
    parser.add_argument("--detach", action="store_true", help="do not wait for the job")
    parser.add_argument("--dry-run", action="store_true", help="say what would be submitted, and stop")
    add_stack_options(parser)
    return parser


if __name__ == "__main__":
    cli.run(main)
