"""`python -m deployment.teardown`: the only place that deletes endpoints.

Online endpoints are made outside of Pulumi and block the destroy of their workspace, so they go first. Deletes those
that carry our tags, waits, looks again, and says what it verified to be gone. With nothing there it does nothing.
"""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING

from deployment.endpoint import TAGS, explained, without_dots
from infra import cli
from infra.cli import WRONG_USE, UserError, say
from infra.client import ml_client
from infra.outputs import StackOutputs, add_stack_options, load_outputs

if TYPE_CHECKING:
    from azure.ai.ml import MLClient

PATIENCE = 1200
"""Seconds until all must be gone; Azure takes one to five minutes for each."""


def our_endpoints(ml: MLClient) -> list[str]:
    """Names of the workspace's endpoints that carry our tags; none where the workspace itself is gone."""
    from azure.core.exceptions import ResourceNotFoundError

    try:
        found = list(ml.online_endpoints.list())
    except ResourceNotFoundError:
        return []
    return [str(one.name) for one in found if all((one.tags or {}).get(key) == text for key, text in TAGS.items())]


def delete(ml: MLClient, names: list[str]) -> None:
    """Delete the endpoints with everything on them, all at once, and verify it. Raises UserError if one stays."""
    from azure.core.exceptions import ResourceNotFoundError

    pollers = []
    for name in names:
        say(f"  deleting the endpoint {name}")
        with explained(f"deleting the endpoint {name}"), contextlib.suppress(ResourceNotFoundError):
            pollers.append(ml.online_endpoints.begin_delete(name))
    deadline = time.monotonic() + PATIENCE
    for poller in pollers:
        with explained("deleting an endpoint"):
            poller.result(timeout=max(1.0, deadline - time.monotonic()))
    while left := [name for name in our_endpoints(ml) if name in names]:
        if time.monotonic() > deadline:
            raise UserError(
                f"still there after {PATIENCE // 60} minutes: {', '.join(left)}; run the same command again"
            )
        time.sleep(2)


def teardown(outputs: StackOutputs) -> list[str]:
    """Delete all of our endpoints in the stack's workspace; the names of those that are gone now."""
    ml = ml_client(outputs)
    with explained("listing the endpoints"):
        names = our_endpoints(ml)
    delete(ml, names)
    return names


def main(argv: list[str]) -> int:
    parser = cli.parser("deployment.teardown", "Delete the stack's online endpoints and verify that they are gone.")
    add_stack_options(parser)
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--dry-run", action="store_true", help="name what would be deleted, delete nothing")
    given = parser.parse_args(argv)
    outputs = load_outputs(stack=given.stack, file=given.outputs)
    if not (given.yes or given.dry_run or _agreed(outputs)):
        raise UserError("nothing was deleted: --yes is missing", code=WRONG_USE)
    with without_dots():
        if given.dry_run:
            values = {"deleted": [], "would_delete": our_endpoints(ml_client(outputs)), "state": "planned"}
        else:
            gone = teardown(outputs)
            say(f"gone, verified: {', '.join(gone)}" if gone else "no endpoint is there: nothing to delete")
            values = {"deleted": gone, "state": "gone"}
    cli.result(values, as_json=given.json)
    return 0


def _agreed(outputs: StackOutputs) -> bool:
    if not sys.stdin.isatty():
        return False
    say(f"delete all endpoints of the stack {outputs.stack} in {outputs.workspace}? [y/N]")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


if __name__ == "__main__":
    cli.run(main)
