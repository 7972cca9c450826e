"""The engine's events: `--event-log FILE` (JSON lines) and `--event-log tcp://HOST:PORT` (the Automation API's gRPC).

Their shape: https://github.com/pulumi/pulumi/blob/master/sdk/go/common/apitype/events.go
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from emulator.pulumi_cli.goal import Step
from emulator.pulumi_cli.policy_pack import Violation
from emulator.pulumi_cli.state import Resource
from emulator.pulumi_provider import wire


class Sink(Protocol):
    """Where events go."""

    def write(self, line: str) -> None: ...

    def close(self) -> None: ...


class _File:
    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)

    def write(self, line: str) -> None:
        self._file.write(line + "\n")

    def close(self) -> None:
        self._file.close()


class _Stream:
    """A gRPC stream that is fed from a queue."""

    def __init__(self, address: str) -> None:
        import grpc  # type: ignore[import-untyped]
        from pulumi.runtime.proto import events_pb2, events_pb2_grpc

        self._queue: queue.Queue[str | None] = queue.Queue()

        def requests() -> Iterator[Any]:
            while (line := self._queue.get()) is not None:
                yield events_pb2.EventRequest(event=line)

        # The listener is on this machine; HTTPS_PROXY must not stand in between.
        channel = grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])
        stub: Any = events_pb2_grpc.EventsStub(channel)
        self._thread = threading.Thread(target=lambda: stub.StreamEvents(requests()), daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        self._queue.put(line)

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join(timeout=5)


class EventLog:
    """Writes numbered events; without a target it does nothing."""

    def __init__(self, target: str | None) -> None:
        self._sink: Sink | None = None
        if target:
            self._sink = _Stream(target[6:]) if target.startswith("tcp://") else _File(Path(target))
        self._sequence = 0
        self._lock = threading.Lock()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._emit({"cancelEvent": {}})
        if self._sink:
            self._sink.close()

    def prelude(self, config: Mapping[str, str]) -> None:
        self._emit({"preludeEvent": {"config": dict(config)}})

    def step(self, step: Step, *, preview: bool) -> None:
        planning = {"planning": True} if preview else {}
        event = {"metadata": step_metadata(step), **planning}
        self._emit({"resourcePreEvent": event})
        self._emit({"resOutputsEvent": event})

    def violation(self, one: Violation) -> None:
        self._emit(
            {
                "policyEvent": {
                    "resourceUrn": one.urn,
                    "message": one.message,
                    "color": "never",
                    "policyName": one.policy,
                    "policyPackName": one.pack,
                    "policyPackVersion": one.version,
                    "policyPackVersionTag": one.version,
                    "enforcementLevel": "mandatory" if one.mandatory else "advisory",
                }
            }
        )

    def diagnostic(self, severity: str, message: str) -> None:
        self._emit({"diagnosticEvent": {"message": message, "color": "never", "severity": severity}})

    def summary(self, counts: Mapping[str, int], seconds: float, packs: Mapping[str, str]) -> None:
        changes = {"resourceChanges": dict(counts), "durationSeconds": round(seconds), "maybeCorrupt": False}
        self._emit({"summaryEvent": {**changes, "PolicyPacks": dict(packs)}})

    def _emit(self, event: Mapping[str, Any]) -> None:
        if self._sink is None:
            return
        with self._lock:
            line = json.dumps({"sequence": self._sequence, "timestamp": int(time.time()), **event})
            self._sequence += 1
            self._sink.write(line)


def step_metadata(step: Step) -> dict[str, Any]:
    """A step as Pulumi describes one."""
    kinds = {path: {"diffKind": kind, "inputDiff": True} for path, kind in step.paths.items()}
    return {
        "op": step.op,
        "urn": step.resource.urn,
        "type": step.resource.type,
        "provider": "",
        "old": state(step.old),
        "new": state(step.new),
        "diffs": step.changed,
        "detailedDiff": kinds or None,
    }


def state(one: Resource | None) -> dict[str, Any] | None:
    """A resource as Pulumi describes one, without its secrets."""
    if one is None:
        return None
    return {
        "type": one.type,
        "urn": one.urn,
        "id": one.id,
        "parent": one.parent,
        "custom": one.custom,
        "provider": "",
        "protect": one.protect,
        "inputs": wire.shown(one.inputs, one.secrets),
        "outputs": wire.shown(one.outputs, one.secrets),
    }
