"""`python -m deployment.smoke`: one short question through the gateway, and whether the answer is one.

Direct HTTP on purpose: azure-ai-ml's `invoke(deployment_name=…)` keeps the deployment's header in a global, and every
later call of the process goes to that deployment.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from deployment.endpoint import Endpoint, connect
from infra import cli
from infra.cli import UserError
from infra.outputs import add_stack_options, load_outputs

QUESTION = {"messages": [{"role": "user", "content": "Hello, who are you?"}], "max_tokens": 16, "temperature": 0}
NOT_YET = {403, 404, 408, 424, 429, 502, 503, 504}
"""What the gateway says for a while after a deployment or a role assignment was made."""


class SmokeFailed(UserError):
    """The deployment does not answer, or what it answers is not a chat completion."""


@dataclass(frozen=True)
class Passed:
    """What the answer took, in seconds, and its length."""

    seconds: float
    completion_tokens: int


def check(endpoint: Endpoint, deployment: str | None = None, *, patience: float = 60.0) -> Passed:
    """Ask `deployment`, or whatever has the traffic.

    Args:
        patience: seconds in which the gateway's "not yet" answers are taken for that.

    Raises:
        SmokeFailed: with what came instead of an answer.
    """
    import requests

    url, deadline = endpoint.scoring_uri, time.monotonic() + patience
    while True:
        began = time.monotonic()
        try:
            reply = requests.post(url, json=QUESTION, headers=endpoint.headers(deployment), timeout=180)
        except requests.RequestException as error:
            raise SmokeFailed(f"{endpoint.name} cannot be reached: {type(error).__name__}") from error
        if reply.status_code not in NOT_YET or time.monotonic() > deadline:
            return _judge(reply.status_code, reply.text, time.monotonic() - began)
        time.sleep(1)


def _judge(status: int, body: str, seconds: float) -> Passed:
    import json

    if status != 200:
        raise SmokeFailed(f"the smoke test got HTTP {status} instead of an answer: {body[:300]}")
    try:
        answer: Any = json.loads(body)
        text = answer["choices"][0]["message"]["content"]
        tokens = answer["usage"]["completion_tokens"]
    except (ValueError, KeyError, IndexError, TypeError):
        raise SmokeFailed(f"the smoke test got something that is no chat completion: {body[:300]}") from None
    if not isinstance(text, str) or not text.strip() or not isinstance(tokens, int):
        raise SmokeFailed("the smoke test got an empty answer")
    return Passed(seconds, tokens)


def main(argv: list[str]) -> int:
    parser = cli.parser("deployment.smoke", "Ask the endpoint one short question through the gateway.")
    add_stack_options(parser)
    parser.add_argument("--deployment", metavar="NAME", help="blue or green (default: whatever has the traffic)")
    given = parser.parse_args(argv)
    endpoint = connect(load_outputs(stack=given.stack, file=given.outputs))
    passed = check(endpoint, given.deployment)
    cli.result(
        {
            "endpoint": endpoint.name,
            "deployment": given.deployment,
            "scoring_uri": endpoint.scoring_uri,
            "state": "passed",
            "seconds": round(passed.seconds, 3),
            "completion_tokens": passed.completion_tokens,
        },
        as_json=given.json,
    )
    return 0


if __name__ == "__main__":
    cli.run(main)
