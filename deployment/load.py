"""`python -m deployment.load`: how many requests a second does the endpoint stand, and how long do they take?

Open loop: requests begin at random moments of a given rate whether or not earlier ones are answered, as callers do, and
each one's time counts from the moment at which it should have begun. A closed loop of N clients asks less the slower
the server is, and hides what its callers would see.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deployment import smoke
from deployment.endpoint import BASE, add_endpoint_options, connect
from infra import cli
from infra.cli import WRONG_USE, UserError, say
from infra.outputs import load_outputs

if TYPE_CHECKING:
    from deployment.endpoint import Endpoint

AT_ONCE = 256
"""Requests under way at most; one that finds no room waits, and its waiting counts."""
PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True)
class Sample:
    """One request: when it should have begun and what it took from then, in seconds; its tokens; its fault or ""."""

    at: float
    seconds: float
    tokens: int
    fault: str = ""


def moments(rate: float, seconds: float, seed: int) -> list[float]:
    """When requests begin, in seconds from the start: a Poisson process."""
    dice, found, at = random.Random(seed), [], 0.0
    while (at := at + dice.expovariate(rate)) < seconds:
        found.append(at)
    return found


def run(ask: Callable[[], int], begins: Sequence[float]) -> list[Sample]:
    """Make the requests. `ask` returns the answer's tokens, or raises ProbeFailed."""
    began = time.monotonic()

    def one(at: float) -> Sample:
        try:
            tokens, fault = ask(), ""
        except smoke.ProbeFailed as failure:
            tokens, fault = 0, str(failure)
        return Sample(at, time.monotonic() - began - at, tokens, fault)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        asked = []
        for at in begins:
            time.sleep(max(0.0, began + at - time.monotonic()))
            asked.append(pool.submit(one, at))
        return [future.result() for future in asked]


def summary(samples: Sequence[Sample]) -> dict[str, Any]:
    """Counts, percentiles of the answered requests in milliseconds, and tokens a second over the whole time."""
    good = sorted(one.seconds for one in samples if not one.fault)
    whole = max((one.at + one.seconds for one in samples), default=0.0)
    tokens = sum(one.tokens for one in samples)
    latency = {f"p{percent}": round(percentile(good, percent) * 1000, 1) for percent in PERCENTILES} if good else {}
    return {
        "requests": len(samples),
        "failed": len(samples) - len(good),
        "faults": dict(Counter(one.fault[:80] for one in samples if one.fault).most_common(5)),
        "latency_ms": {**latency, "max": round(good[-1] * 1000, 1)} if good else {},
        "answered_per_second": round(len(good) / whole, 3) if whole else 0.0,
        "tokens_per_second": round(tokens / whole, 2) if whole else 0.0,
    }


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest value that `percent` of all do not exceed."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def asker(endpoint: Endpoint, deployment: str | None, question: smoke.Question) -> Callable[[], int]:
    """A function that asks once, with the one token of the whole test: renewing it is not what is measured."""
    fixed = replace(endpoint, key=endpoint.headers()["Authorization"].removeprefix("Bearer "))
    return lambda: smoke.tokens(fixed, question, deployment)


def draw(samples: Sequence[Sample], about: str, path: Path) -> None:
    """Latency over time, and its distribution."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    good = [one for one in samples if not one.fault]
    bad = [one for one in samples if one.fault]
    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    over, share = figure.subplots(1, 2)
    over.scatter([one.at for one in good], [one.seconds for one in good], s=9, label="answered")
    over.scatter(
        [one.at for one in bad], [one.seconds for one in bad], s=16, marker="x", color="tab:red", label="failed"
    )
    over.set(xlabel="begun after, s", ylabel="took, s", ylim=(0, None), title=about)
    over.legend(loc="upper left")
    ordered = sorted(one.seconds for one in good)
    share.plot(ordered, [(at + 1) / len(ordered) for at in range(len(ordered))])
    for percent in (50, 95, 99) if ordered else ():
        share.axvline(percentile(ordered, percent), linestyle=":", color="grey")
        share.text(percentile(ordered, percent), 0.02, f" p{percent}", rotation=90, va="bottom")
    share.set(xlabel="took at most, s", ylabel="share of the answered", xlim=(0, None), ylim=(0, 1.02))
    figure.savefig(path, dpi=120)


def main(argv: list[str]) -> int:
    given = _options().parse_args(argv)
    if given.rate <= 0 or given.seconds <= 0:
        raise UserError("--rate and --seconds are more than 0", code=WRONG_USE)
    endpoint = connect(load_outputs(stack=given.stack, file=given.outputs), given.app)
    begins = moments(given.rate, given.seconds, given.seed)
    say(f"{len(begins)} requests in {given.seconds:g} s to {endpoint.scoring_uri}; they are paid for like any others")
    ask = asker(endpoint, given.deployment, _question(given))
    samples = run(ask, begins)
    values = {
        "endpoint": endpoint.name,
        "deployment": given.deployment,
        "rate": given.rate,
        "seconds": given.seconds,
        "max_tokens": given.max_tokens,
        "date": datetime.now(UTC).isoformat("T", "seconds"),
        **summary(samples),
        "files": [],
    }
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        files = [given.out / "load.json", given.out / "load.png"]
        values["files"] = [str(path) for path in files]
        draw(samples, f"{given.rate:g} requests a second for {given.seconds:g} s", files[1])
        files[0].write_text(json.dumps(values, indent=2) + "\n")
    cli.result(values, as_json=given.json)
    return 0 if not values["failed"] else cli.FAILED


def _question(given: Any) -> smoke.Question:
    if given.body:
        return smoke.from_file(given.body)
    content = "Tell me about the history of your country."
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": given.max_tokens, "temperature": 0}
    return smoke.Question(body, chat=given.app == BASE)


def _options() -> cli.Parser:
    parser = cli.parser("deployment.load", "Ask the endpoint at a given rate, and show how long the answers take.")
    add_endpoint_options(parser)
    add = parser.add_argument
    add("--deployment", metavar="NAME", help="blue or green (default: whatever has the traffic)")
    add("--rate", type=float, default=2.0, metavar="N", help="requests a second (default: 2)")
    add("--seconds", type=float, default=30.0, help="for how long (default: 30)")
    add("--max-tokens", type=int, default=32, metavar="N", help="of each answer (default: 32)")
    add("--body", type=Path, metavar="FILE", help="send this JSON and take any JSON for an answer")
    add("--seed", type=int, default=0, help="of the moments at which requests begin (default: 0)")
    add("--out", type=Path, metavar="DIR", help="write load.json and load.png there")
    return parser


if __name__ == "__main__":
    cli.run(main)
