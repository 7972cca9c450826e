"""preview, up, refresh and destroy: the engine, the program, the record and the output together."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from emulator.pulumi_cli import display
from emulator.pulumi_cli.engine import Engine, Step
from emulator.pulumi_cli.errors import CliError
from emulator.pulumi_cli.events import EventLog, step_metadata
from emulator.pulumi_cli.project import Project
from emulator.pulumi_cli.state import Stack
from emulator.pulumi_provider import wire


@dataclass(frozen=True)
class Request:
    """One operation as it was asked for."""

    kind: str  # update, preview, refresh, destroy: Pulumi's own words in the history
    preview: bool
    event_log: str | None = None
    as_json: bool = False
    message: str = ""
    refresh_first: bool = False
    expect_no_changes: bool = False
    suppress_outputs: bool = False
    debug: bool = False


def perform(project: Project, stack: Stack, request: Request) -> int:
    """Carry the operation out, print what came of it, and record it."""
    began, start = time.monotonic(), _now()
    config = project.config(stack.name)
    result = "failed"
    with stack.update() if not request.preview else nullcontext(), EventLog(request.event_log) as log:
        if request.preview:
            stack.load()
        log.prelude(config)
        engine = _engine(stack, request, log)
        try:
            exported = _run(project, stack, request, engine, config)
            result = "succeeded"
        except CliError as error:
            log.diagnostic("error", str(error))
            raise
        finally:
            seconds = time.monotonic() - began
            log.summary(engine.counts(), seconds)
            _print(project, stack, request, engine, seconds)
            if not request.preview:
                stack.record(_entry(request, config, result, start, engine.counts()))
    if not (request.suppress_outputs or request.as_json) and exported[0]:
        print(f"\nOutputs:\n{display.outputs(*exported)}", flush=True)
    if request.expect_no_changes and set(engine.counts()) - {"same"}:
        raise CliError("changes were made although none were expected (--expect-no-changes)")
    return 0


def _engine(stack: Stack, request: Request, log: EventLog) -> Engine:
    # The provider and grpc take a third of a second to import; `pulumi stack ls` does without.
    from emulator.pulumi_provider.provider import AzureNative

    on_step: Callable[[Step], None] = lambda step: log.step(step, preview=request.preview)  # noqa: E731
    return Engine(stack, AzureNative(), preview=request.preview, on_step=on_step)


def _run(
    project: Project, stack: Stack, request: Request, engine: Engine, config: dict[str, str]
) -> tuple[dict[str, Any], set[str]]:
    if request.kind == "destroy":
        engine.destroy()
        return {}, set()
    if request.kind == "refresh":
        engine.refresh()
        return stack.snapshot.outputs, set(stack.snapshot.secret_outputs)
    if request.refresh_first:
        engine.refresh()
        engine.again()
    from emulator.pulumi_cli import program
    from emulator.pulumi_cli.monitor import EngineMonitor

    monitor = EngineMonitor(engine)
    program.run(project, stack.name, config, monitor, debug=request.debug)
    engine.delete_rest()
    engine.finish(monitor.outputs, monitor.secret_outputs)
    return monitor.outputs, monitor.secret_outputs


def _print(project: Project, stack: Stack, request: Request, engine: Engine, seconds: float) -> None:
    if request.as_json:
        steps = [{"op": step.op, "urn": step.urn, **_states(step)} for step in engine.steps]
        print(json.dumps({"steps": steps, "duration": int(seconds * 1e9), "changeSummary": engine.counts()}, indent=2))
        return
    root = f"pulumi:pulumi:Stack  {project.name}-{stack.name}"
    if engine.steps:
        print(display.tree(root, engine.steps, preview=request.preview))
    print(f"\n{display.summary(engine.counts(), preview=request.preview, seconds=seconds)}", flush=True)


def _states(step: Step) -> dict[str, Any]:
    metadata = step_metadata(step)
    return {"oldState": metadata["old"], "newState": metadata["new"], "diffReasons": metadata["diffs"]}


def _entry(request: Request, config: dict[str, str], result: str, start: str, counts: dict[str, int]) -> dict[str, Any]:
    return {
        "kind": request.kind,
        "startTime": start,
        "message": request.message,
        "environment": {},
        "config": {key: {"value": value, "secret": False} for key, value in config.items()},
        "result": result,
        "endTime": _now(),
        "resourceChanges": counts,
    }


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def outputs(stack: Stack, *, show_secrets: bool) -> dict[str, Any]:
    """The stack's exports as `pulumi stack output --json` prints them."""
    snapshot = stack.load()
    hidden = set() if show_secrets else set(snapshot.secret_outputs)
    return {key: "[secret]" if key in hidden else wire.shown(value) for key, value in snapshot.outputs.items()}
