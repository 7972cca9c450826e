"""A pipeline's log: what its steps write, each line behind its step's name, read over Azure ML's run history.

A pipeline has no log of its own. Its children are runs, and a child that is a pipeline has children too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import requests

from infra.outputs import StackOutputs
from training.joblog import JobLog

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential

ENDED = ("Completed", "Failed", "Canceled")


@dataclass
class Step:
    """A run below the pipeline: its log, and what was seen of it last."""

    name: str
    log: JobLog
    status: str = ""
    told: str = ""
    rest: str = ""

    @property
    def is_over(self) -> bool:
        """Whether all is told."""
        return self.told in ENDED

    def lines(self) -> Iterator[str]:
        """What is new, whole lines only, and then the status where it has changed."""
        status = self.status
        *whole, self.rest = (self.rest + self.log.new_text()).split("\n")
        whole += [self.rest] if status in ENDED else []
        last_shown = (line.rstrip("\r").rpartition("\r")[2] for line in whole)  # of a progress bar
        yield from (f"{self.name}: {line}" for line in last_shown if line.strip())
        if status != self.told:
            yield f"{self.name}: {status}"
        self.told = status


@dataclass
class PipelineLog:
    """The logs of all steps of one pipeline, those of its pipelines among them."""

    outputs: StackOutputs
    credential: TokenCredential
    job: str
    _steps: dict[str, Step] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._own = JobLog(self.outputs, self.credential, self.job)

    def new_text(self) -> str:
        """What was written since the last call; empty if nothing was, or the history cannot be read just now."""
        try:
            self._look(self._own)
        except requests.RequestException:
            return ""
        waiting = [step for step in self._steps.values() if not step.is_over]
        return "".join(f"{line}\n" for step in waiting for line in step.lines())

    def fault(self) -> str | None:
        """Why the step that failed did, the innermost first; else why the pipeline did."""
        failed = [step for step in self._steps.values() if step.status == "Failed"]
        for step in reversed(failed):
            if reason := step.log.fault():
                return f"the step {step.name} failed: {reason}"
        return self._own.fault()

    def _look(self, parent: JobLog) -> None:
        """Note the children of a run, and theirs."""
        for child in parent.children():
            job = str(child["runId"])
            if job not in self._steps:
                log = JobLog(self.outputs, self.credential, job, history=self._own.history)
                self._steps[job] = Step(str(child.get("displayName") or job), log)
            step = self._steps[job]
            if not step.is_over:
                self._look(step.log)
                step.status = str(child.get("status") or "")
