"""`python -m deployment.rollback`: all traffic back to the deployment that served before, if it still stands.

What is left is asked of the endpoint, so it works while the old one is kept warm, and on a rollout that was killed. The
one that is rolled back stays, without traffic, for whoever looks for the cause; the next rollout removes it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from deployment.endpoint import BASE, add_endpoint_options, connect, endpoint_name, explained, without_dots
from deployment.observe import observe
from deployment.plan import GOOD, MOVING, Deployment, Observed
from deployment.record import Record
from infra import cli
from infra.cli import UserError, say
from infra.client import ml_client
from infra.outputs import StackOutputs, load_outputs

if TYPE_CHECKING:
    from azure.ai.ml import MLClient


def choose(seen: Observed, *, stack: str) -> tuple[Deployment, Deployment]:
    """Which deployment gets the traffic back, and from which: in a canary the one that has more keeps it, and of two
    where one has all, the other one gets it.

    Raises:
        UserError: there is no other healthy deployment, or one changes just now.
    """
    if seen.state in MOVING or any(one.state in MOVING for one in seen.deployments):
        raise UserError("the endpoint changes just now", next_command="wait a minute, then the same command again")
    by_share = sorted(seen.deployments, key=lambda one: seen.share(one.name))
    if len(by_share) < 2:
        raise UserError(
            "there is nothing to go back to: the deployment that served before is gone",
            next_command=f"python -m deployment.rollout --stack {stack} --model NAME:VERSION   (an earlier version)",
        )
    less, more = by_share[0], by_share[-1]
    to, away = (more, less) if seen.share(less.name) or seen.mirror.get(less.name) else (less, more)
    if to.state != GOOD:
        raise UserError(f"{to.name}, which served before, is {to.state}: it would not answer")
    return to, away


def rollback(outputs: StackOutputs, ml: MLClient, app: str) -> dict[str, Any]:
    """Do it, under the endpoint's lease. Raises UserError; the traffic is then as it was."""
    from deployment import lock, smoke

    name = endpoint_name(outputs, app)
    with lock.held(outputs, name, "a rollback") as lease:
        seen = observe(ml, name)
        if seen.state is None:
            raise UserError(f"there is no endpoint {name}: nothing is deployed")
        to, away = choose(seen, stack=outputs.stack)
        question = smoke.CHAT if app == BASE and to.environment else None
        if question and not seen.share(to.name):
            smoke.check(connect(outputs, app), to.name, question=question)
        lease.check()
        _put(ml, name, to, replace(Record(), rolled_back=away.model or away.environment), outputs.stack)
    say(f"{to.name} has all of the traffic again; {away.name} stands without any, until the next rollout")
    uri = connect(outputs, app).scoring_uri
    return {
        "endpoint": name,
        "deployment": to.name,
        "model": to.model or None,
        "traffic": {to.name: 100},
        "scoring_uri": uri,
        "state": "rolled back",
        "rolled_back": away.model or away.environment,
    }


def _put(ml: MLClient, name: str, to: Deployment, record: Record, stack: str) -> None:
    from deployment.steps import finish

    with explained("shifting the traffic"):
        endpoint = ml.online_endpoints.get(name)
        endpoint.traffic, endpoint.mirror_traffic = {to.name: 100}, {}
        endpoint.tags = record.write(endpoint.tags or {})
        finish(ml.online_endpoints.begin_create_or_update(endpoint), "shifting the traffic", stack)


def main(argv: list[str]) -> int:
    parser = cli.parser("deployment.rollback", "Return all traffic to the deployment that served before.")
    add_endpoint_options(parser)
    parser.add_argument("--dry-run", action="store_true", help="say who would get the traffic, change nothing")
    given = parser.parse_args(argv)
    outputs = load_outputs(stack=given.stack, file=given.outputs)
    with without_dots():
        ml, name = ml_client(outputs), endpoint_name(outputs, given.app)
        if given.dry_run:
            seen = observe(ml, name)
            to, away = choose(seen, stack=outputs.stack)
            shares = dict(seen.traffic)
            plan = {"endpoint": name, "deployment": to.name, "model": to.model or None, "traffic": shares}
            values = {**plan, "scoring_uri": None, "state": "planned", "rolled_back": away.model or away.environment}
        else:
            values = rollback(outputs, ml, given.app)
    cli.result(values, as_json=given.json)
    return 0


if __name__ == "__main__":
    cli.run(main)
