"""`training.submit --dry-run`: the job as it would be submitted, and what it would cost; nothing is uploaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from infra import cli
from infra.cli import say
from training.cluster import Cluster
from training.component_pipeline import PipelineSubmission, facts
from training.recipe import Recipe
from training.recipe_docs import header, hours
from training.register import MODEL_OUTPUT, REPORT_OUTPUT
from training.runs import Attempt
from training.submission import DATA, ENVIRONMENT, Submission, node_variables


def dry_run(made: Submission[Any], cluster: Cluster, attempt: Attempt, file: Path) -> dict[str, Any]:
    """The job's parts and its cost. `file`: the recipe's, whose header tells the hours."""
    return {
        "job": attempt.name,
        "would": _would(attempt),
        **(facts(made) if isinstance(made, PipelineSubmission) else _command_job(made, cluster, attempt)),
        "compute": cluster.name,
        "compute_size": cluster.size,
        "low_priority": cluster.low_priority,
        "nodes": made.recipe.job.instance_count,
        "identity": made.outputs.training_identity_client_id,
        "environment_variables": node_variables(made),
        "tags": made.tags,
        "cost": cost(made, cluster, file),
    }


def _would(attempt: Attempt) -> str:
    if attempt.is_there:
        return "report" if attempt.is_done else "follow"
    return "continue" if attempt.place != attempt.name else "begin"


def _command_job(made: Submission[Recipe], cluster: Cluster, attempt: Attempt) -> dict[str, Any]:
    job, processes = made.recipe.job, cluster.processes(made.recipe)
    return {
        "command": made.command(cluster),
        "code": made.code_hash,
        "environment": f"{ENVIRONMENT}:{made.environment_version}",
        "gpus": cluster.gpus * job.instance_count,
        "processes": processes * job.instance_count,
        "global_batch": _global_batch(made, processes * job.instance_count),
        "inputs": {"data": f"{DATA}:{made.data_version}", "base_model": str(made.base_model)},
        "outputs": {MODEL_OUTPUT: attempt.output or "(Azure ML's default)", REPORT_OUTPUT: "(Azure ML's default)"},
        "shm_size": job.shm_size,
        "timeout_minutes": job.timeout_minutes,
    }


def _global_batch(made: Submission[Recipe], processes: int) -> int:
    """Rows in an optimizer step, all processes together; TRL's defaults where the recipe says nothing."""
    sft = made.recipe.sft
    return int(sft.get("per_device_train_batch_size", 8) * sft.get("gradient_accumulation_steps", 1) * processes)


def cost(made: Submission[Any], cluster: Cluster, file: Path) -> dict[str, Any]:
    """Prices of the nodes alone; null is what is not known. `at_most`: if the job runs into its time limit."""
    nodes, limit = made.recipe.job.instance_count, made.recipe.job.timeout_minutes / 60
    expected, price = hours(file), cluster.price
    amount, currency = price or (None, None)
    return {
        "hours": expected,
        "hours_are": header(file).get("Hours", "not known"),
        "node_hour": amount,
        "currency": currency,
        "expected": None if amount is None or expected is None else round(amount * expected * nodes, 2),
        "at_most": None if amount is None else round(amount * limit * nodes, 2),
    }


def show(values: dict[str, Any], *, as_json: bool) -> None:
    """JSON on stdout, or YAML and a sentence about the cost."""
    if as_json:
        cli.result(values, as_json=True)
        return
    import yaml

    if "parameters" in values:
        values = {**values, "parameters": {key: _in_words(one) for key, one in values["parameters"].items()}}
    print(yaml.safe_dump(values, sort_keys=False, width=1000), end="")
    say(cost_sentence(values))


def _in_words(parameter: dict[str, Any]) -> str:
    over = f", instead of {parameter['instead_of']}" if "instead_of" in parameter else ""
    return f"{parameter['value']} ({parameter['source']}{over})"


def cost_sentence(values: dict[str, Any]) -> str:
    found, size = values["cost"], values["compute_size"]
    if found["node_hour"] is None:
        return f"cost: unpriced: infra/prices.json has no price of {size} in this region   (make prices fills it in)"
    nodes = f"{values['nodes']} x {size} at {found['node_hour']:g} {found['currency']} an hour"
    expected = f"about {found['expected']:g}" if found["expected"] is not None else "not known"
    return (
        f"cost: {expected} {found['currency']} ({nodes}; hours: {found['hours_are']}); "
        f"at most {found['at_most']:g} {found['currency']}, when the time limit stops it"
    )
