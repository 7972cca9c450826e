"""What the gateway measured, answered as Azure Monitor does.

learn.microsoft.com/rest/api/monitor/metrics/list; names and dimensions: .../azure-monitor/reference/supported-metrics/
microsoft-machinelearningservices-workspaces-onlineendpoints-metrics. Azure's come minutes late; these do not.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

KEPT = 200_000  # requests, of all endpoints
PERCENTILES = {
    "RequestLatency_P50": 0.5,
    "RequestLatency_P90": 0.9,
    "RequestLatency_P95": 0.95,
    "RequestLatency_P99": 0.99,
}


@dataclass(frozen=True)
class Request:
    """One that was answered: when, by which deployment, the status that the caller saw and the model's, how long."""

    at: float
    endpoint: str
    deployment: str
    status: int
    model_status: int
    ms: float


@dataclass
class Metrics:
    requests: deque[Request] = field(default_factory=lambda: deque(maxlen=KEPT))

    def add(self, endpoint: str, deployment: str, status: int, model_status: int, began: float) -> None:
        took = (time.time() - began) * 1000
        self.requests.append(Request(time.time(), endpoint.lower(), deployment, status, model_status, took))

    def answer(self, endpoint: str, query: Mapping[str, str]) -> dict[str, Any]:
        """The metrics that `metricnames` lists, by minute, split by deployment and status where they are counts."""
        begin, end = _timespan(query.get("timespan", ""))
        wanted = re.search(r"deployment eq '([^']+)'", query.get("$filter", ""))
        found = [
            one
            for one in self.requests
            if one.endpoint == endpoint.lower()
            and begin <= one.at <= end
            and (wanted is None or wanted[1] in ("*", one.deployment))
        ]
        names = query.get("metricnames", "RequestsPerMinute").split(",")
        value = [{"name": _name(name), "unit": "Count", "timeseries": _series(name, found)} for name in names]
        return {"timespan": query.get("timespan", ""), "interval": "PT1M", "value": value}


def _series(name: str, found: list[Request]) -> list[dict[str, Any]]:
    counts = name == "RequestsPerMinute"
    series: dict[tuple[str, str, str], dict[int, list[float]]] = {}
    for one in found:
        key = (one.deployment, f"{one.status // 100}xx" if counts else "", str(one.model_status) if counts else "")
        series.setdefault(key, {}).setdefault(int(one.at // 60) * 60, []).append(one.ms)
    return [
        {
            "metadatavalues": [
                {"name": _name(label), "value": text}
                for label, text in zip(("deployment", "statuscodeclass", "modelstatuscode"), key, strict=True)
                if text
            ],
            "data": [_point(name, minute, times) for minute, times in sorted(minutes.items())],
        }
        for key, minutes in series.items()
    ]


def _point(name: str, minute: int, times: list[float]) -> dict[str, Any]:
    stamp = datetime.fromtimestamp(minute, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if name == "RequestsPerMinute":
        return {"timeStamp": stamp, "average": len(times), "total": len(times)}
    at = min(len(times) - 1, int(PERCENTILES.get(name, 0.5) * len(times)))
    return {"timeStamp": stamp, "average": sorted(times)[at]}


def _name(text: str) -> dict[str, str]:
    return {"value": text, "localizedValue": text}


def _timespan(text: str) -> tuple[float, float]:
    """`START/END` in ISO 8601; an hour up to now where it is missing."""
    start, _, end = text.partition("/")
    try:
        return datetime.fromisoformat(start).timestamp(), datetime.fromisoformat(end).timestamp()
    except ValueError:
        return time.time() - 3600, time.time()
