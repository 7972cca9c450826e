"""From a recipe to a registered model: submit the training job, follow it, register what it made.

    python -m training.submit --recipe local
    python -m training.submit --recipe phi-3.5-mini --dry-run      # the job and what it costs; nothing is uploaded
    python -m training.submit --attach JOB        # go on following, register when it is done
    python -m training.submit --list              # the jobs that were submitted from here

The same run submitted again (recipe, data and base model are the same) is followed if it still runs, continued from its
checkpoints if it did not finish, and reported if it did; `--fresh` starts anew. A relative `model_name_or_path` is
looked for in the data folder first, then from the working directory; what is no folder there and reads `owner/name` is
a model on the hub. Ctrl-C leaves the job running.
"""

from __future__ import annotations

import argparse
import contextlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra import cli
from infra.cli import REFUSED, WRONG_USE, UserError, say
from infra.outputs import StackOutputs, add_stack_options, load_outputs
from training import cluster as clusters
from training import component_pipeline, runs
from training import recipe as recipes
from training.azure_faults import azure_faults
from training.cluster import Cluster
from training.component_pipeline import PipelineSubmission
from training.component_recipe import ComponentRecipe
from training.dry_run import dry_run, show
from training.follow import detached, follow, return_command
from training.recipe import Recipe
from training.runs import Attempt
from training.submission import Submission, build_job, check, check_data, snapshot

if TYPE_CHECKING:
    from azure.ai.ml import MLClient


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    if sum(map(bool, (args.recipe, args.attach, args.list))) != 1:
        raise UserError("give one of --recipe (a new job), --attach (one that runs) and --list", code=WRONG_USE)
    if args.list:
        return _list(as_json=args.json)
    recipe = recipes.load_any(args.recipe, args.set) if args.recipe else None
    outputs = load_outputs(stack=args.stack, file=args.outputs)
    made: Submission[Any] | None = None
    if isinstance(recipe, Recipe):
        made = check(recipe, outputs, args.data)
    elif recipe is not None:
        check_data(recipe, args.data)

    from infra.client import ml_client

    client = ml_client(outputs)
    if recipe is None:
        return _to_the_end(client, outputs, args.attach, args)
    with azure_faults(outputs, "asking for the cluster"):
        cluster = clusters.find(client, recipe, outputs)
    if isinstance(recipe, ComponentRecipe):
        made = component_pipeline.check(recipe, outputs, args.data, cluster)
    assert made is not None
    with azure_faults(outputs, "asking for the job"):
        attempt = runs.next_attempt(client, made, fresh=args.fresh)
    if attempt.why:
        say(f"{attempt.why}   (--fresh starts anew)")
    if args.dry_run:
        show(dry_run(made, cluster, attempt, recipes.find(args.recipe)), as_json=args.json)
        return 0
    if not attempt.is_there:
        if isinstance(made, PipelineSubmission):
            component_pipeline.tell(made)
        submit(client, made, cluster, attempt, args.set)
    return _to_the_end(client, outputs, attempt.name, args, is_done=attempt.is_done)


def submit(client: MLClient, made: Submission[Any], cluster: Cluster, attempt: Attempt, changes: list[str]) -> None:
    """Upload what the job needs and submit it. Raises UserError if Azure ML refuses it."""
    say(f"submitting {attempt.name} to {cluster.name} in {made.outputs.workspace}; uploading what is not there yet …")
    with (
        azure_faults(made.outputs, "submitting the job"),
        snapshot(made.recipe) as code,
        contextlib.redirect_stdout(io.StringIO()),  # azure-ai-ml prints colour codes after each upload
        contextlib.redirect_stderr(io.StringIO()),
    ):
        if isinstance(made, PipelineSubmission):
            job = component_pipeline.build_job(made, cluster, attempt.name, code, client)
        else:
            job = build_job(made, cluster, attempt.name, attempt.output, code, client)
        job.tags = {**job.tags, runs.PLACE_TAG: attempt.place}
        accepted = client.jobs.create_or_update(job)
    runs.record(attempt.name, _record(made, cluster, attempt, changes) | {"studio": accepted.studio_url})
    say(f"submitted {attempt.name}: {accepted.studio_url}")


def _record(made: Submission[Any], cluster: Cluster, attempt: Attempt, changes: list[str]) -> dict[str, Any]:
    """What a reader wants to know of a job when the cluster is long gone."""
    tags = made.tags
    return {
        "submitted": runs.now(),
        "stack": made.outputs.stack,
        "workspace": made.outputs.workspace,
        "recipe": made.recipe.name,
        "changes": changes,
        "recipe_hash": tags["recipe_hash"],
        "data": tags["data"],
        "data_hashes": {name: made.hashes[name] for name in ("train", "eval")},
        "base_model": f"{tags['base_model']}@{tags['base_model_version']}",
        "code_hash": tags["code_hash"],
        "git_commit": tags["git_commit"],
        "git_dirty": tags["git_dirty"] == "true",
        "cluster": cluster.name,
        "size": cluster.size,
        "nodes": made.recipe.job.instance_count,
        "processes": cluster.processes(made.recipe),
        "output_of": attempt.place,
        "status": "Submitted",
        "model": None,
    }


def _to_the_end(
    client: MLClient, outputs: StackOutputs, name: str, args: argparse.Namespace, *, is_done: bool = False
) -> int:
    """Follow a job and register its model, unless told to leave it; returns the exit code."""
    if args.detach:
        with azure_faults(outputs, "asking for the job"):
            status = str(client.jobs.get(name).status)
        say(f"  return: {return_command(name, outputs)}")
        cli.result({"job": name, "status": status, "model": None, "metrics": None}, as_json=args.json)
        return 0
    try:
        if not is_done:
            follow_to_the_end(client, outputs, name)
        values = register_model(client, outputs, name)
    except KeyboardInterrupt:
        raise detached(name, outputs) from None
    cli.result(values, as_json=args.json)
    return 0 if values["approved"] else REFUSED


def follow_to_the_end(client: MLClient, outputs: StackOutputs, name: str) -> None:
    """Raises UserError if the job does not complete."""
    from azure.identity import DefaultAzureCredential

    from training.joblog import JobLog
    from training.pipeline_log import PipelineLog

    with azure_faults(outputs, "asking for the job"):
        kind = client.jobs.get(name).type
    whole = PipelineLog if kind == "pipeline" else JobLog
    try:
        follow(lambda: client.jobs.get(name), whole(outputs, DefaultAzureCredential(), name))
    except UserError:
        _note_status(client, name)
        raise


def register_model(client: MLClient, outputs: StackOutputs, name: str) -> dict[str, Any]:
    """Register what a completed job made, unless it is; returns the verb's result."""
    from training.register import finished, read_metrics, register

    with azure_faults(outputs, f"registering the model of {name}"):
        metrics = read_metrics(client, name)
        made = register(client, name, finished(client, name), metrics)
    say(f"registered {made}, {'approved' if made.approved else 'not approved: ' + str(metrics.get('reason'))}")
    runs.record(name, {"status": "Completed", "model": str(made), "approved": made.approved, "ended": runs.now()})
    return {"job": name, "status": "Completed", "model": str(made), "approved": made.approved, "metrics": metrics}


def _note_status(client: MLClient, name: str) -> None:
    """The record of a job that is not followed any more says what was last seen of it."""
    from azure.core.exceptions import AzureError

    with contextlib.suppress(AzureError):
        runs.record(name, {"status": str(client.jobs.get(name).status), "ended": runs.now()})


def _list(*, as_json: bool) -> int:
    found = runs.records()
    if as_json:
        cli.result({"runs": found}, as_json=True)
    else:
        print(runs.table(found))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("training.submit", "Submit a training job to Azure ML, follow it, and register its model.")
    parser.add_argument("--recipe", metavar="NAME_OR_FILE", help=f"one of {', '.join(recipes.names())}; or a file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one value; repeatable")
    parser.add_argument("--data", type=Path, default=Path("data"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--fresh", action="store_true", help="start anew where the same run is there already")
    parser.add_argument("--attach", metavar="JOB", help="follow a job that was submitted before")
    parser.add_argument("--list", action="store_true", help="the jobs that were submitted from here")
    parser.add_argument("--detach", action="store_true", help="do not wait for the job")
    parser.add_argument("--dry-run", action="store_true", help="say what would be submitted, and stop")
    add_stack_options(parser)
    return parser


if __name__ == "__main__":
    cli.run(main)
