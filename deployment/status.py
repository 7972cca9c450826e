"""`python -m deployment.status`: the endpoint, its deployments, who gets the traffic, and where a rollout stands."""

from __future__ import annotations

import time
from typing import Any

from deployment.endpoint import BASE, add_endpoint_options, connect, endpoint_name
from deployment.observe import observe
from deployment.plan import Observed
from infra import cli
from infra.cli import UserError
from infra.client import ml_client
from infra.outputs import StackOutputs, load_outputs


def status(outputs: StackOutputs, app: str = BASE) -> dict[str, Any]:
    """Keys as in the other verbs' results, `deployments` (name → model, environment, state, instance_type,
    instance_count, traffic, mirror), and `rollout`: in a sentence, where one stands.

    Raises:
        UserError: there is no endpoint.
    """
    name = endpoint_name(outputs, app)
    seen = observe(ml_client(outputs), name)
    if seen.state is None:
        raise UserError(
            f"there is no endpoint {name}: nothing is deployed", next_command=f"make deploy STACK={outputs.stack}"
        )
    leader = max(seen.traffic, key=seen.share, default=None)
    deployments = {
        one.name: {
            "model": one.model or None,
            "environment": one.environment or None,
            "state": one.state,
            "instance_type": one.instance_type,
            "instance_count": one.instances,
            "traffic": seen.share(one.name),
            "mirror": seen.mirror.get(one.name, 0),
        }
        for one in seen.deployments
    }
    return {
        "endpoint": name,
        "deployment": leader,
        "model": deployments[leader]["model"] if leader in deployments else None,
        "traffic": dict(seen.traffic),
        "scoring_uri": connect(outputs, app).scoring_uri,
        "state": seen.state,
        "rollout": standing(seen, time.time()),
        "deployments": deployments,
    }


def standing(seen: Observed, now: float) -> str:
    """Where a rollout stands, by the traffic and the endpoint's tags."""
    record = seen.record
    if record.returning:
        return f"{record.returning} has failed and is being taken back: {record.cause}"
    if len(seen.traffic) > 1 or seen.mirror:
        return "under way, or killed on its way: the same rollout goes on with it, deployment.rollback undoes it"
    idle = [one.name for one in seen.deployments if not seen.share(one.name)]
    if idle and record.keep_until is not None:
        left = record.keep_until - now
        how = f"for {left / 60:.0f} more minutes" if left > 0 else "until the same rollout is run again"
        return f"{idle[0]} is kept warm {how}; deployment.rollback returns to it"
    if idle:
        back = f" after {record.rolled_back} was rolled back" if record.rolled_back else ""
        return f"{idle[0]} stands without traffic{back}; the next rollout removes it"
    return "none"


def main(argv: list[str]) -> int:
    parser = cli.parser("deployment.status", "Show the endpoint, its deployments and the traffic.")
    add_endpoint_options(parser)
    given = parser.parse_args(argv)
    cli.result(status(load_outputs(stack=given.stack, file=given.outputs), given.app), as_json=given.json)
    return 0


if __name__ == "__main__":
    cli.run(main)
