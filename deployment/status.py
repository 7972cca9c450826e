"""`python -m deployment.status`: the endpoint, its deployments and who gets the traffic."""

from __future__ import annotations

from typing import Any

from deployment.endpoint import endpoint_name, explained
from infra import cli
from infra.cli import UserError
from infra.client import ml_client
from infra.outputs import StackOutputs, add_stack_options, load_outputs


def status(outputs: StackOutputs) -> dict[str, Any]:
    """Keys as in the other verbs' results, and `deployments`: name → model, state, instance_type.

    Raises:
        UserError: there is no endpoint.
    """
    from azure.core.exceptions import ResourceNotFoundError

    from deployment.observe import asset_name

    name = endpoint_name(outputs)
    ml = ml_client(outputs)
    with explained("looking at the endpoint"):
        try:
            endpoint, found = ml.online_endpoints.get(name), list(ml.online_deployments.list(name))
        except ResourceNotFoundError:
            raise UserError(
                f"there is no endpoint {name}: nothing is deployed", next_command=f"make deploy STACK={outputs.stack}"
            ) from None
    traffic = {key: int(percent) for key, percent in (endpoint.traffic or {}).items() if int(percent)}
    leader = max(traffic, key=lambda key: traffic[key], default=None)
    deployments = {
        one.name: {
            "model": asset_name(str(one.model)),
            "state": str(one.provisioning_state).lower(),
            "instance_type": one.instance_type,
        }
        for one in found
    }
    return {
        "endpoint": name,
        "deployment": leader,
        "model": deployments[leader]["model"] if leader in deployments else None,
        "traffic": traffic,
        "scoring_uri": endpoint.scoring_uri,
        "state": str(endpoint.provisioning_state).lower(),
        "deployments": deployments,
    }


def main(argv: list[str]) -> int:
    parser = cli.parser("deployment.status", "Show the endpoint, its deployments and the traffic.")
    add_stack_options(parser)
    given = parser.parse_args(argv)
    cli.result(status(load_outputs(stack=given.stack, file=given.outputs)), as_json=given.json)
    return 0


if __name__ == "__main__":
    cli.run(main)
