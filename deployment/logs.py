"""`python -m deployment.logs`: the last lines of a deployment's containers."""

from __future__ import annotations

from deployment.endpoint import add_endpoint_options, endpoint_name, explained
from infra import cli
from infra.client import ml_client
from infra.outputs import load_outputs

CONTAINERS = ("inference-server", "storage-initializer")


def main(argv: list[str]) -> int:
    parser = cli.parser("deployment.logs", "Show the last lines of a deployment's log.")
    add_endpoint_options(parser)
    parser.add_argument("--deployment", metavar="NAME", help="blue or green (default: the one with the most traffic)")
    parser.add_argument("--lines", type=int, default=100, help="default: 100")
    parser.add_argument("--container", choices=CONTAINERS, default=CONTAINERS[0], help=f"default: {CONTAINERS[0]}")
    given = parser.parse_args(argv)
    outputs = load_outputs(stack=given.stack, file=given.outputs)

    from deployment.status import status

    seen = status(outputs, given.app)
    name = given.deployment or seen["deployment"] or next(iter(seen["deployments"]), None)
    if name is None:
        raise cli.UserError("the endpoint has no deployment", next_command=f"make deploy STACK={outputs.stack}")
    with explained(f"reading the log of {name}"):
        text = ml_client(outputs).online_deployments.get_logs(
            name, endpoint_name(outputs, given.app), given.lines, container_type=given.container
        )
    if given.json:
        cli.result({"endpoint": seen["endpoint"], "deployment": name, "log": text}, as_json=True)
    else:
        print(text)
    return 0


if __name__ == "__main__":
    cli.run(main)
