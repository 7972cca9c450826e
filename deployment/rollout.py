"""`python -m deployment.rollout`: bring an approved model version, or any folder with a Dockerfile, to 100 % of an
endpoint's traffic.

The way there is in plan.py, what is done on it in steps.py. Killed at any point and started again, it goes on.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deployment.endpoint import BASE, arm, connect, endpoint_name, explained, without_dots
from deployment.observe import observe
from deployment.plan import Done, Goal, Observed, Step, describe, foresee
from infra import cli
from infra.cli import FAILED, REFUSED, WRONG_USE, UserError, say
from infra.client import ml_client
from infra.outputs import StackOutputs, add_stack_options, load_outputs

if TYPE_CHECKING:
    from azure.ai.ml import MLClient

    from deployment.creation import Maker
    from deployment.image import Image
    from deployment.lock import Lease
    from deployment.model_choice import ModelVersion
    from deployment.quota import Need
    from deployment.steps import Rollout

DEFAULT_SKU = "Standard_E4s_v3"
"""4 cores, 32 GB: Phi-3-mini's 3.8 billion parameters in float32 with room for the cache."""
ENGINES = ("transformers", "openvino", "vllm", "auto", "mlflow")


@dataclass(frozen=True)
class Wanted:
    """What shall be rolled out where, as it was asked for."""

    given: argparse.Namespace
    outputs: StackOutputs
    ml: MLClient
    goal: Goal
    image: Image | None
    model: ModelVersion | None = None

    @property
    def app(self) -> str:
        return _app(self.given)

    @property
    def endpoint(self) -> str:
        return endpoint_name(self.outputs, self.app)


def main(argv: list[str]) -> int:
    given = _options().parse_args(argv)
    _check(given)
    outputs = load_outputs(stack=given.stack, file=given.outputs)
    with without_dots():
        wanted = _wanted(given, outputs, ml_client(outputs))
        seen, need = _look(wanted)
        steps = foresee(wanted.goal, seen, now=time.time(), keep=given.keep * 60)
        unchanged = isinstance(steps[0], Done)
        say(f"endpoint {wanted.endpoint}: {_what(wanted.goal)}")
        if given.dry_run:
            values = _planned(wanted, seen, steps, need)
        elif unchanged:
            say("it serves 100 % of the traffic already: nothing to do")
            values = _result(wanted, seen, "unchanged", describe_done(steps))
        else:
            say(f"  {need.cost()}")
            values = _rolled_out(wanted, need)
    cli.result(values, as_json=given.json)
    return 0


def _rolled_out(wanted: Wanted, need: Need) -> dict[str, Any]:
    from deployment import lock, quota

    given, began = wanted.given, time.monotonic()
    if not given.yes and not _agreed():
        raise UserError("nothing was changed", code=FAILED)
    with lock.held(wanted.outputs, wanted.endpoint, f"a rollout of {_what(wanted.goal)}") as lease:
        rollout = _rollout(wanted, lease)
        if not any(one.serves(wanted.goal) for one in rollout.observe().deployments):
            quota.check(need)
        serving = rollout.run()
        seen = rollout.observe()
    say(f"{serving.name} serves {_what(wanted.goal)} after {time.monotonic() - began:.0f} s")
    return _result(wanted, seen, "serving", serving.name)


def _wanted(given: argparse.Namespace, outputs: StackOutputs, ml: MLClient) -> Wanted:
    """Raises UserError: there is no such model, it is not approved, or it was rolled back by hand."""
    from deployment import image

    made: Image | None = None
    model: ModelVersion | None = None
    if given.source:
        made = image.of_folder(given.source)
    elif given.engine != "mlflow":
        made = image.of_server(_engine(given))
    if given.model or not given.source:
        model = _model(given, outputs, ml)
    if model and given.engine == "mlflow":
        model.check_size(given.instance_type)
    goal = Goal(
        str(model or ""),
        str(made) if made else "",
        given.instance_type,
        given.instance_count,
        given.canary,
        given.mirror,
        given.gate or "",
    )
    return Wanted(given, outputs, ml, goal, made, model)


def _engine(given: argparse.Namespace) -> str:
    """The engine that was asked for; with `auto` the one for the SKU, and why."""
    from deployment.server import engines

    if given.engine != "auto":
        return str(given.engine)
    engine, why = engines.for_sku(given.instance_type)
    say(f"engine {engine}: {why}")
    return engine


def _model(given: argparse.Namespace, outputs: StackOutputs, ml: MLClient) -> ModelVersion:
    from deployment.model_choice import choose, registered

    with explained("listing the models"):
        found = registered(ml, given.model)
    kind = "mlflow_model" if given.engine == "mlflow" else None
    return choose(found, given.model, stack=outputs.stack, kind=kind)


def _look(wanted: Wanted) -> tuple[Observed, Need]:
    """The endpoint as it is, checked for what cannot be changed, and what the goal needs."""
    from azure.core.exceptions import ResourceNotFoundError

    from deployment import quota

    seen = observe(wanted.ml, wanted.endpoint)
    with explained("looking at the endpoint"), suppress(ResourceNotFoundError):  # the rollout creates it
        _maker(wanted).check_endpoint(wanted.ml.online_endpoints.get(wanted.endpoint))
    with explained("asking for sizes and quota"):
        need = quota.need(wanted.ml, wanted.goal, wanted.outputs.location)
    if seen.record.rolled_back and seen.record.rolled_back == wanted.goal.model and not wanted.given.model:
        raise UserError(
            f"{wanted.goal.model} is the newest approved model, and was rolled back by hand",
            next_command=f"train a better one, or to try it again: --model {wanted.goal.model}",
            code=REFUSED,
        )
    return seen, need


def _maker(wanted: Wanted) -> Maker:
    from deployment.creation import Maker

    given = wanted.given
    return Maker(
        wanted.ml,
        wanted.outputs,
        wanted.endpoint,
        wanted.goal,
        wanted.image,
        given.auth,
        given.ready_within * 60,
        _insights(wanted.outputs) if given.traces else "",
    )


def _insights(outputs: StackOutputs) -> str:
    """The connection string of the stack's Application Insights: learn.microsoft.com/rest/api/application-insights"""
    from azure.identity import DefaultAzureCredential

    group = f"/subscriptions/{outputs.subscription_id}/resourceGroups/{outputs.resource_group}"
    path = f"{group}/providers/Microsoft.Insights/components/{outputs.application_insights}"
    reply = arm(DefaultAzureCredential(), "GET", path, {"api-version": "2020-02-02"})
    if reply.status_code != 200:
        raise UserError(
            f"Azure Resource Manager answers {reply.status_code} for the Application Insights "
            f"{outputs.application_insights}, which --traces needs",
            next_command="the same command without --traces",
        )
    return str(reply.json()["properties"]["ConnectionString"])


def _rollout(wanted: Wanted, lease: Lease) -> Rollout:
    from deployment import gate, smoke
    from deployment.steps import Patience, Rollout

    given = wanted.given
    question = smoke.CHAT
    if given.engine == "mlflow":
        question = smoke.MLFLOW_CHAT if wanted.model and wanted.model.is_chat_by_mlflow else smoke.MLFLOW
    if wanted.image and wanted.image.question:
        question = smoke.from_file(wanted.image.question)
    limits = gate.Limits(given.max_error_rate, given.max_slowdown)
    return Rollout(_maker(wanted), lease, wanted.app, question, Patience(given.soak, given.keep * 60, limits))


def _app(given: argparse.Namespace) -> str:
    return given.source.resolve().name if given.source else BASE


def _what(goal: Goal) -> str:
    server = goal.environment or "MLflow's own server"
    return (
        f"{goal.model} on {goal.instance_type}, server {server}" if goal.model else f"{server} on {goal.instance_type}"
    )


def _check(given: argparse.Namespace) -> None:
    if given.source and given.engine == "mlflow":
        raise UserError("--engine mlflow serves a model, and --source a folder: it is one or the other", code=WRONG_USE)
    for name, least in (("mirror", 0), ("soak", 0), ("keep", 0), ("instance_count", 1)):
        if getattr(given, name) < least:
            raise UserError(f"--{name.replace('_', '-')} is {least} at least", code=WRONG_USE)
    if given.mirror > 50:
        raise UserError("--mirror is 50 % at most: Azure mirrors no more", code=WRONG_USE)


def canary(text: str) -> tuple[int, ...]:
    """`10,50,100` as rising percentages that end with 100. Raises ArgumentTypeError."""
    try:
        steps = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} are no percentages, such as 10,50,100") from None
    if list(steps) != sorted(set(steps)) or steps[0] < 1 or steps[-1] != 100:
        raise argparse.ArgumentTypeError(f"{text!r} has to rise from 1 or more to 100, such as 10,50,100")
    return steps


def _options() -> cli.Parser:
    parser = cli.parser("deployment.rollout", "Bring an approved model version to 100 % of the endpoint's traffic.")
    add_stack_options(parser)
    add = parser.add_argument
    add("--model", metavar="NAME[:VERSION]", help="default: the newest approved version of any model")
    add(
        "--source",
        type=Path,
        metavar="FOLDER",
        help="deploy this folder with its Dockerfile, on an endpoint of its own",
    )
    engines = "auto: by the SKU; mlflow: an MLflow model without our server"
    add("--engine", choices=ENGINES, default=ENGINES[0], help=f"default: {ENGINES[0]}; {engines}")
    add("--instance-type", default=DEFAULT_SKU, metavar="SKU", help=f"default: {DEFAULT_SKU}")
    add("--instance-count", type=int, default=1, metavar="N", help="default: 1")
    add(
        "--canary",
        type=canary,
        default=(10, 50, 100),
        metavar="P,…,100",
        help="traffic step by step (default: 10,50,100)",
    )
    add("--soak", type=float, default=60, metavar="SECONDS", help="how long each step is watched (default: 60)")
    add("--keep", type=float, default=10, metavar="MINUTES", help="how long the old one stays, watched (default: 10)")
    add("--mirror", type=int, default=0, metavar="PERCENT", help="first send it copies of requests (default: 0)")
    add("--gate", metavar="COMMAND", help="has to succeed before it gets traffic; sees $ROLLOUT_DEPLOYMENT and more")
    add("--max-error-rate", type=float, default=0.02, metavar="SHARE", help="of requests that may fail (default: 0.02)")
    add("--max-slowdown", type=float, default=2.0, metavar="FACTOR", help="of the median against the old (default: 2)")
    add("--ready-within", type=float, default=10, metavar="MINUTES", help="to load the model (default: 10)")
    add("--auth", choices=("aad_token", "key"), default="aad_token", help="how callers are let in (default: aad_token)")
    add("--traces", action="store_true", help="the new deployment sends spans to the stack's Application Insights")
    add("--dry-run", action="store_true", help="show steps, cost and quota; change nothing")
    add("--yes", action="store_true", help="do not ask (it asks only on a terminal)")
    return parser


def _agreed() -> bool:
    """Ask before anything is spent; without a terminal nobody is there, and the command itself is the consent."""
    if not sys.stdin.isatty():
        return True
    say("an endpoint costs money for as long as it stands. Go on? [y/N]")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def describe_done(steps: list[Step]) -> str:
    last = steps[-1]
    assert isinstance(last, Done)
    return last.deployment


def _planned(wanted: Wanted, seen: Observed, steps: list[Step], need: Need) -> dict[str, Any]:
    more = {
        "steps": [describe(step) for step in steps],
        "instance_type": need.size,
        "instance_count": need.instances,
        "cost_per_hour": None if need.price is None else round(need.price * need.instances, 4),
        "currency": need.currency,
        "quota": {"family": need.family, "needed": need.needed, "used": need.used, "limit": need.limit},
        "room": not need.is_short,
    }
    for line in (need.cost(), need.quota()):
        say(f"  {line}")
    return _result(wanted, seen, "planned", None) | more


def _result(wanted: Wanted, seen: Observed, state: str, deployment: str | None) -> dict[str, Any]:
    uri = connect(wanted.outputs, wanted.app).scoring_uri if deployment else None
    return {
        "endpoint": wanted.endpoint,
        "deployment": deployment,
        "model": wanted.goal.model or None,
        "traffic": dict(seen.traffic),
        "scoring_uri": uri,
        "state": state,
    }


if __name__ == "__main__":
    cli.run(main)
