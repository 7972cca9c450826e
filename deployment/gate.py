"""Is the new deployment as good as the one that serves? Measured by our own probes, and by Azure Monitor's metrics.

During a soak each deployment gets one small question a second, one after the other, past the traffic. What real callers
got is asked of Azure Monitor at the end; it is some minutes late, so a short soak may find nothing there.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from infra.cli import say

INTERVAL = 1.0
"""Seconds between two probes of a deployment."""
SLACK = 0.25
"""Seconds that a median may be longer whatever the factor says: scheduling, not the model."""
FEWEST = 20
"""Requests of real callers, below which their error rate says nothing."""
METRICS_VERSION = "2018-01-01"


@dataclass(frozen=True)
class Limits:
    """`errors`: the share of requests that may fail; `slowdown`: by what factor the median may be longer."""

    errors: float = 0.02
    slowdown: float = 2.0


@dataclass
class Measured:
    """What probes of one deployment got. `faults` says of each failed one what came instead."""

    seconds: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def asked(self) -> int:
        return len(self.seconds) + len(self.faults)

    @property
    def rate(self) -> float:
        return len(self.faults) / self.asked if self.asked else 0.0

    @property
    def median(self) -> float | None:
        return statistics.median(self.seconds) if self.seconds else None

    def __str__(self) -> str:
        middle = f", median {self.median * 1000:.0f} ms" if self.median is not None else ""
        return f"{self.asked} probes, {len(self.faults)} failed{middle}"


def verdict(new: Measured, old: Measured, limits: Limits, *, alike: bool = True) -> str | None:
    """Why the new deployment may not go on; None if it may. Where the old one fails as often, the new one is not to
    blame. `alike`: the new one has no more traffic than the old; else its answers take longer for that alone.
    """
    if new.rate > max(limits.errors, old.rate):
        what = f"{len(new.faults)} of {new.asked} probes failed ({new.faults[-1]})"
        return f"{what}; {limits.errors:.0%} may, and {len(old.faults)} of {old.asked} did beside it"
    if not alike or new.median is None or old.median is None:
        return None
    if new.median > old.median * limits.slowdown + SLACK:
        return (
            f"its answers take {new.median:.2f} s in the median, and {old.median:.2f} s beside it; "
            f"{limits.slowdown:g} times that may be"
        )
    return None


def hopeless(new: Measured, old: Measured, limits: Limits) -> bool:
    """Whether a soak can end early: three probes in, and failing more than the limit and the old one allow."""
    return len(new.faults) >= 3 and new.rate > max(limits.errors, old.rate) + 0.1


def soak(
    ask: Callable[[str], float],
    new: str,
    old: str,
    *,
    until: float,
    limits: Limits,
    check: Callable[[], None],
) -> tuple[Measured, Measured]:
    """Probe both deployments until the time `until` (seconds since the epoch) or until it is hopeless.

    Args:
        ask: asks a deployment; returns seconds, raises ProbeFailed.
        check: called between probes; what it raises ends the soak.
    """
    from deployment.smoke import ProbeFailed

    measured = {new: Measured(), old: Measured()}
    while True:
        began = time.monotonic()
        for name, found in measured.items():
            check()
            try:
                found.seconds.append(ask(name))
            except ProbeFailed as failure:
                found.faults.append(str(failure))
        if time.time() >= until or hopeless(measured[new], measured[old], limits):
            return measured[new], measured[old]
        time.sleep(max(0.0, min(INTERVAL - (time.monotonic() - began), until - time.time())))


def callers_verdict(answered: dict[str, int], limits: Limits) -> str | None:
    """The same of real callers, by how many answers of each status class there were."""
    total = sum(answered.values())
    failed = answered.get("5xx", 0) + answered.get("424", 0)
    if total < FEWEST or failed / total <= limits.errors:
        return None
    return f"{failed} of {total} requests failed, by Azure Monitor; {limits.errors:.0%} may"


def callers(
    get: Callable[[str, dict[str, str]], Any], endpoint_id: str, deployment: str, since: float
) -> dict[str, int]:
    """Answers of a deployment to real callers since a time, by status class, model faults (424) apart; empty where
    Azure Monitor has none yet or may not be asked.
    """
    span = "/".join(datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") for at in (since, time.time() + 60))
    query = {
        "api-version": METRICS_VERSION,
        "metricnames": "RequestsPerMinute",
        "aggregation": "Total",
        "interval": "PT1M",
        "timespan": span,
        "$filter": f"deployment eq '{deployment}' and statusCodeClass eq '*' and modelStatusCode eq '*'",
    }
    found = get(f"{endpoint_id}/providers/Microsoft.Insights/metrics", query)
    counts: dict[str, int] = {}
    for metric in (found or {}).get("value", []):
        for series in metric.get("timeseries", []):
            labels = {one["name"]["value"].lower(): str(one["value"]) for one in series.get("metadatavalues", [])}
            model = labels.get("modelstatuscode", "")
            kind = (
                "424"
                if labels.get("statuscodeclass") == "4xx" and model.startswith("5")
                else labels.get("statuscodeclass", "?")
            )
            counts[kind] = counts.get(kind, 0) + round(sum(point.get("total") or 0 for point in series.get("data", [])))
    return counts


def tell(name: str, new: Measured, old_name: str, old: Measured, answered: dict[str, int]) -> None:
    """What was measured, on stderr."""
    say(f"  {name}: {new}; {old_name}: {old}")
    if answered:
        said = ", ".join(f"{count} {kind}" for kind, count in sorted(answered.items()))
        say(f"  all requests to {name}, by Azure Monitor: {said}")
