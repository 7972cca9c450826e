"""`python -m flow.evaluation`: questions to the endpoint, a report, and a verdict; made to be a rollout's gate.

    python -m deployment.rollout --gate "python -m flow.evaluation --min-f1 0.6 --against blue"

In a gate it asks the deployment that is to get traffic ($ROLLOUT_DEPLOYMENT of $ROLLOUT_STACK).
"""

from __future__ import annotations

import asyncio
import json
import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deployment.endpoint import DEPLOYMENT_HEADER
from flow.conversation import Endpoint
from flow.evaluation import report, run
from flow.evaluation.metrics import Row, difference, summary
from flow.target import endpoint_of, outputs_here
from infra import cli
from infra.cli import REFUSED, WRONG_USE, UserError, say
from infra.outputs import add_stack_options

Version = Mapping[str, Any]


def main(argv: list[str]) -> int:
    given = _options().parse_args(argv)
    questions = run.read_questions(given.questions)
    versions = [_measured(given, questions)]
    if given.against is not None:
        versions.append(_compared(given, questions))
    changes = difference(versions[0]["rows"], versions[1]["rows"]) if len(versions) > 1 else None
    failed = _failed(given, versions[0]["metrics"], changes)
    verdict = "refused: " + "; ".join(failed) if failed else "good enough"
    made = {"verdict": verdict, "approved": not failed, "difference": changes, "versions": versions}
    page = report.write(given.out, made)
    result = {**versions[0]["metrics"], **(changes or {}), "approved": not failed, "failed": failed}
    cli.result({**result, "report": str(page)}, as_json=given.json)
    return REFUSED if failed else 0


def _options() -> cli.Parser:
    parser = cli.parser("flow.evaluation", "Put questions to the endpoint and judge the answers.")
    add = parser.add_argument
    add(
        "--questions",
        type=Path,
        default=run.QUESTIONS,
        metavar="FILE",
        help="JSON lines: question, expected, chat_history",
    )
    add("--deployment", default=os.environ.get("ROLLOUT_DEPLOYMENT"), metavar="NAME", help="default: by the traffic")
    add("--answers", type=Path, metavar="RUN", help="judge what `pf run create` got (its folder or output.jsonl)")
    add("--against", metavar="NAME", help="compare with another deployment, or with an earlier report.json")
    add(
        "--out",
        type=Path,
        default=Path(".runs/evaluation"),
        metavar="DIR",
        help="for the report (default: %(default)s)",
    )
    add("--min-f1", type=float, default=0.0, metavar="F1", help="a mean below it is refused (default: 0)")
    add(
        "--max-drop",
        type=float,
        default=0.05,
        metavar="F1",
        help="a larger loss against the other is refused (default: 0.05)",
    )
    add_stack_options(parser)
    return parser


def _measured(given: Namespace, questions: Sequence[Row]) -> Version:
    if given.answers is not None:
        return _version(str(given.answers), run.from_prompt_flow(given.answers, questions))
    return _asked(given, given.deployment, questions)


def _asked(given: Namespace, deployment: str | None, questions: Sequence[Row]) -> Version:
    outputs = outputs_here(given.stack or os.environ.get("ROLLOUT_STACK"), given.outputs)
    found = endpoint_of(outputs)
    say(f"{len(questions)} questions to {deployment or 'the endpoint'}")
    more = {DEPLOYMENT_HEADER: deployment} if deployment else {}
    endpoint = Endpoint(found.url, lambda: {**found.headers(), **more})
    return _version(deployment or "endpoint", asyncio.run(run.run(endpoint, questions)))


def _compared(given: Namespace, questions: Sequence[Row]) -> Version:
    """Another deployment asked now, or a report of the same questions read."""
    path = Path(given.against)
    if path.suffix != ".json":
        return _asked(given, given.against, questions)
    try:
        version: Version = json.loads(path.read_text(encoding="utf-8"))["versions"][0]
        same = [row["question"] for row in version["rows"]] == [row["question"] for row in questions]
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        raise UserError(f"{path} is no report of an evaluation", code=WRONG_USE) from None
    if not same:
        raise UserError(f"{path} is a report of other questions: nothing can be compared", code=WRONG_USE)
    return {**version, "name": f"{version['name']} before"}


def _version(name: str, rows: Sequence[Row]) -> Version:
    return {"name": name, "metrics": summary(rows), "rows": rows}


def _failed(given: Namespace, metrics: Mapping[str, Any], changes: Mapping[str, Any] | None) -> list[str]:
    """The conditions that are not met, each as a sentence's part."""
    found = []
    if metrics["unanswered"]:
        found.append(f"{metrics['unanswered']} of {metrics['questions']} questions got no answer")
    if metrics["f1"] < given.min_f1:
        found.append(f"F1 is {metrics['f1']:.3f}, below {given.min_f1:g}")
    if changes is not None and changes["f1_gain"] < -given.max_drop:
        found.append(f"F1 fell by {-changes['f1_gain']:.3f}, more than {given.max_drop:g}")
    return found


if __name__ == "__main__":
    cli.run(main)
