"""`python -m deployment.smoke`: one short question through the gateway, and whether the answer is one.

Direct HTTP on purpose: azure-ai-ml's `invoke(deployment_name=…)` keeps the deployment's header in a global, and every
later call of the process goes to that deployment.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deployment.endpoint import Endpoint, add_endpoint_options, connect
from infra import cli
from infra.cli import WRONG_USE, UserError
from infra.outputs import load_outputs

if TYPE_CHECKING:
    import requests

MODEL_STATUS = "ms-azureml-model-error-statuscode"
"""Beside a 424: what the container itself answered."""
NOT_YET = {403, 404, 429, 502, 503, 504}
"""What gateway or container say for a while after a deployment or a role assignment was made."""
LONGEST = 185
"""Seconds; the gateway gives up after 180."""


class SmokeFailed(UserError):
    """The deployment does not answer, or what it answers is not what was asked for."""


class ProbeFailed(Exception):
    """One request that was not answered well; the text says what came instead."""


@dataclass(frozen=True)
class Question:
    """A request's body, and whether its answer has to be a chat completion, or any JSON that is not empty."""

    body: Any
    chat: bool = True


CHAT = Question({"messages": [{"role": "user", "content": "Hello, who are you?"}], "max_tokens": 16, "temperature": 0})
MLFLOW = Question({"input_data": ["Hello, who are you?"], "params": {}}, chat=False)
_FEW_WORDS = {"temperature": 0.6, "top_p": 0.9, "do_sample": True, "max_new_tokens": 16}
MLFLOW_CHAT = Question(
    {"input_data": {"input_string": [CHAT.body["messages"]], "parameters": _FEW_WORDS}, "params": {}}, chat=False
)
"""For what the registry's fine-tuning component makes; the shape is that of Microsoft's guide on it."""


@dataclass(frozen=True)
class Passed:
    """What the answer took, in seconds, and its length in tokens (0 where it is no chat completion)."""

    seconds: float
    completion_tokens: int


def check(
    endpoint: Endpoint, deployment: str | None = None, *, question: Question = CHAT, patience: float = 60.0
) -> Passed:
    """Ask `deployment`, or whatever has the traffic.

    Args:
        patience: seconds in which the gateway's "not yet" answers are taken for that.

    Raises:
        SmokeFailed: with what came instead of an answer.
    """
    deadline = time.monotonic() + patience
    while True:
        began = time.monotonic()
        try:
            reply = _post(endpoint, question, deployment)
        except ProbeFailed as error:
            raise SmokeFailed(str(error)) from error
        if _status(reply) not in NOT_YET or time.monotonic() > deadline:
            try:
                return Passed(time.monotonic() - began, judge(question, _status(reply), reply.text))
            except ProbeFailed as failure:
                raise SmokeFailed(f"the smoke test got {failure}") from None
        time.sleep(1)


def probe(endpoint: Endpoint, question: Question, deployment: str | None = None) -> float:
    """One request, taken as it comes; the seconds it took. Raises ProbeFailed."""
    began = time.monotonic()
    tokens(endpoint, question, deployment)
    return time.monotonic() - began


def tokens(endpoint: Endpoint, question: Question, deployment: str | None = None) -> int:
    """One request, taken as it comes; the tokens of its answer. Raises ProbeFailed."""
    reply = _post(endpoint, question, deployment)
    return judge(question, _status(reply), reply.text)


def _post(endpoint: Endpoint, question: Question, deployment: str | None) -> requests.Response:
    import requests

    headers = endpoint.headers(deployment)
    try:
        return requests.post(endpoint.scoring_uri, json=question.body, headers=headers, timeout=LONGEST)
    except requests.RequestException as error:
        raise ProbeFailed(f"{endpoint.name} cannot be reached: {type(error).__name__}") from error


def _status(reply: requests.Response) -> int:
    """The container's own status where the gateway wraps it."""
    own = reply.headers.get(MODEL_STATUS, "")
    return int(own) if reply.status_code == 424 and own.isdecimal() else reply.status_code


def judge(question: Question, status: int, body: str) -> int:
    """How many tokens a good answer has (0 where it is no chat completion). Raises ProbeFailed for a bad one."""
    if status != 200:
        raise ProbeFailed(f"HTTP {status} instead of an answer: {_shown(body)}")
    try:
        answer: Any = json.loads(body)
        if not question.chat:
            if answer in (None, "", [], {}):
                raise ProbeFailed("an empty answer")
            return 0
        text = answer["choices"][0]["message"]["content"]
        count = answer["usage"]["completion_tokens"]
    except (ValueError, KeyError, IndexError, TypeError):
        kind = "chat completion" if question.chat else "JSON"
        raise ProbeFailed(f"something that is no {kind}: {_shown(body)}") from None
    if not isinstance(text, str) or not text.strip() or not isinstance(count, int):
        raise ProbeFailed("an empty answer")
    return count


def _shown(body: str) -> str:
    """The beginning of an answer, on one line of what a terminal can show."""
    return "".join(letter if letter.isprintable() else " " for letter in body[:300]).strip()


def from_file(path: Path) -> Question:
    """A request's body from a JSON file. Raises UserError, exit code 2, for one that cannot be read."""
    try:
        return Question(json.loads(path.read_text()), chat=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no JSON file that can be sent: {error}", code=WRONG_USE) from None


def main(argv: list[str]) -> int:
    parser = cli.parser("deployment.smoke", "Ask the endpoint one short question through the gateway.")
    add_endpoint_options(parser)
    parser.add_argument("--deployment", metavar="NAME", help="blue or green (default: whatever has the traffic)")
    parser.add_argument("--body", type=Path, metavar="FILE", help="send this JSON and take any JSON for an answer")
    given = parser.parse_args(argv)
    endpoint = connect(load_outputs(stack=given.stack, file=given.outputs), given.app)
    passed = check(endpoint, given.deployment, question=from_file(given.body) if given.body else CHAT)
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
