"""preview, up, refresh and destroy: the engine, the program, the record and the output together."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from emulator.pulumi_cli import deletions, display
from emulator.pulumi_cli.configuration import Entry
from emulator.pulumi_cli.engine import Engine
from emulator.pulumi_cli.errors import UNEXPECTED_CHANGES, CliError
from emulator.pulumi_cli.events import EventLog, state
from emulator.pulumi_cli.policies import Policies, refusal, running
from emulator.pulumi_cli.policy_pack import About, Pack
from emulator.pulumi_cli.project import Project
from emulator.pulumi_cli.refresh import refresh
from emulator.pulumi_cli.state import Stack
from emulator.pulumi_cli.targets import EVERYTHING, Targets
from emulator.pulumi_provider import wire


@dataclass(frozen=True)
class Request:
    """One operation as it was asked for."""

    kind: str  # update, preview, refresh, destroy: Pulumi's own words in the history
    preview: bool
    ask: bool = False
    event_log: str | None = None
    as_json: bool = False
    message: str = ""
    refresh_first: bool = False
    expect_no_changes: bool = False
    suppress_outputs: bool = False
    debug: bool = False
    diff: bool = False
    targets: Targets = EVERYTHING
    parallel: int | None = None
    policy_packs: Sequence[Path] = ()
    policy_configs: Sequence[Path] = ()


class Operation:
    """One operation on one stack."""

    def __init__(self, project: Project, stack: Stack, config: Mapping[str, Entry], request: Request) -> None:
        self.project, self.stack, self.config, self.request = project, stack, config, request

    def perform(self) -> None:
        """Carry it out, print what came of it, and record it.

        With policy packs, and where somebody has to be asked, a preview goes first: what a policy refuses is refused
        before anything is changed.
        """
        request = self.request
        with EventLog(request.event_log) as log:
            log.prelude({key: wire.HIDDEN if one.secret else one.text for key, one in self.config.items()})
            if not request.preview and (request.ask or request.policy_packs):
                rehearsal = replace(request, preview=True, expect_no_changes=False)
                _Run(self, rehearsal, log, rehearsing=True).perform()
                if request.ask:
                    _ask(request.kind)
            _Run(self, request, log).perform()


class _Run:
    """One way through the stack: the preview, or what it announced."""

    def __init__(self, of: Operation, request: Request, log: EventLog, *, rehearsing: bool = False) -> None:
        self.project, self.stack, self.config = of.project, of.stack, of.config
        self.request, self.log, self.rehearsing = request, log, rehearsing
        self.exported: tuple[dict[str, Any], set[str]] = {}, set()

    def perform(self) -> None:
        began, start, result = time.monotonic(), _now(), "failed"
        with self.stack.update() if not self.request.preview else nullcontext():
            if self.request.preview:
                self.stack.load()
            self.stack.rehearsal = self.request.preview
            with running(self.request.policy_packs, self.request.policy_configs, self._about()) as packs:
                engine = self._engine(packs)
                try:
                    self._run(engine)
                    result = "succeeded"
                except CliError as error:
                    self.log.diagnostic("error", str(error))
                    raise
                finally:
                    self._report(engine, time.monotonic() - began)
                    if not self.request.preview:
                        self.stack.record(self._entry(result, start, engine.counts()))
        self._conclude(engine)

    def _about(self) -> About:
        snapshot = self.stack.snapshot
        return About(self.project.name, self.stack.name, self.config, snapshot.tags, self.request.preview)

    def _engine(self, packs: Sequence[Pack]) -> Engine:
        # The provider and grpc take a third of a second to import; `pulumi stack ls` does without.
        from emulator.pulumi_provider.provider import AzureNative

        preview = self.request.preview
        return Engine(
            self.stack,
            AzureNative(),
            preview=preview,
            targets=self.request.targets,
            policies=Policies(packs, stop=not preview),
            on_step=None if self.rehearsing else lambda step: self.log.step(step, preview=preview),
        )

    def _run(self, engine: Engine) -> None:
        if self.request.kind == "destroy":
            deletions.destroy(engine)
        elif self.request.kind == "refresh":
            refresh(engine)
            self.exported = self.stack.snapshot.outputs, set(self.stack.snapshot.secret_outputs)
        else:
            if self.request.refresh_first:
                refresh(engine)
                engine.again()
            self._run_program(engine)

    def _run_program(self, engine: Engine) -> None:
        from emulator.pulumi_cli import program
        from emulator.pulumi_cli.monitor import EngineMonitor, stack_urn

        monitor = EngineMonitor(engine)
        how = program.Run(
            self.project,
            self.stack.name,
            self.config,
            on_line=self.log.diagnostic,
            debug=self.request.debug,
            parallel=self.request.parallel or program.PARALLEL,
        )
        program.run(how, monitor)
        deletions.delete_rest(engine)
        engine.finish(monitor.outputs, monitor.secret_outputs)
        self.exported = monitor.outputs, monitor.secret_outputs
        live = [one for one in self.stack.snapshot.resources if not one.delete]
        engine.policies.judge_stack(live, stack_urn(self.project.name, self.stack.name))

    # --- afterwards -----------------------------------------------------------------------------------------------

    def _report(self, engine: Engine, seconds: float) -> None:
        packs = {pack.name: pack.version for pack in engine.policies.packs}
        for violation in engine.policies.violations:
            self.log.violation(violation)
        counts = engine.counts()
        if not self.rehearsing:
            self.log.summary(counts, seconds, packs)
        if self.request.as_json:
            if not self.rehearsing:
                print(json.dumps(self._as_json(engine, seconds), indent=2))
            return
        if engine.steps:
            print(display.tree(engine.steps, preview=self.request.preview, diff=self.request.diff))
        if packs:
            print(f"\n{display.policies(packs, engine.policies.violations)}")
        print(f"\n{display.summary(counts, preview=self.request.preview, seconds=seconds)}", flush=True)

    def _as_json(self, engine: Engine, seconds: float) -> dict[str, Any]:
        steps = [
            {
                "op": step.op,
                "urn": step.resource.urn,
                "oldState": state(step.old),
                "newState": state(step.new),
                "diffReasons": step.changed,
            }
            for step in engine.steps
            if step.op != "delete-replaced"
        ]
        return {"steps": steps, "duration": int(seconds * 1e9), "changeSummary": engine.counts()}

    def _conclude(self, engine: Engine) -> None:
        request = self.request
        if any(one.mandatory for one in engine.policies.violations):
            raise CliError(refusal(engine.policies.violations))
        if not (request.suppress_outputs or request.as_json or self.rehearsing) and self.exported[0]:
            print(f"\nOutputs:\n{display.outputs(*self.exported)}", flush=True)
        if request.expect_no_changes and set(engine.counts()) - {"same"}:
            raise CliError(
                f"no changes were expected for {request.kind} but changes were "
                f"{'proposed' if request.preview else 'made'} (--expect-no-changes)",
                code=UNEXPECTED_CHANGES,
            )

    def _entry(self, result: str, start: str, counts: dict[str, int]) -> dict[str, Any]:
        config = {
            key: {"secret": True} if one.secret else {"value": one.text, "secret": False}
            for key, one in self.config.items()
        }
        return {
            "kind": self.request.kind,
            "startTime": start,
            "message": self.request.message,
            "environment": {},
            "config": config,
            "result": result,
            "endTime": _now(),
            "resourceChanges": counts,
        }


def _ask(kind: str) -> None:
    print(f"Do you want to perform this {kind}? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise CliError(f"confirmation declined, not proceeding with the {kind}")


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
