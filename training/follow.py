"""Following a job to its end: its log as it is written, its status, and why it failed.

Nothing that happens here touches the job. A log that cannot be read for a while is read later from where it was left; a
service that does not answer, and a login that has expired, are tried again for some minutes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from infra.cli import INTERRUPTED, UserError, say
from infra.outputs import StackOutputs
from training.azure_faults import LOGIN, first_line, is_workspace_gone, login_fault
from training.runs import FINISHED

if TYPE_CHECKING:
    from azure.ai.ml.entities import Job

    from training.joblog import Log

POLL_SECONDS = 1.0
PATIENCE_SECONDS = 600.0
"""How long the service may fail to answer before the follower gives up; the job goes on without it."""
LAST_LINES = 20


class LogLines:
    """Prints whole lines as they come, and keeps the last few."""

    def __init__(self) -> None:
        self.last: list[str] = []
        self._rest = ""

    def add(self, text: str) -> None:
        *whole, self._rest = (self._rest + text).split("\n")
        for line in whole:
            if line.strip():
                say(f"  {line}")
                self.last = [*self.last, line][-LAST_LINES:]


def follow(get_job: Callable[[], Job], log: Log) -> Job:
    """Print a job's log until it ends; returns the finished job.

    Raises:
        UserError: the job failed or was cancelled; Azure ML has been silent for too long, or does not show the job.
    """
    lines, answers = LogLines(), _Answers(log.outputs, log.job)
    status = ""
    while True:
        job = answers.of(get_job)
        if job is not None and job.status != status:
            status = str(job.status)
            say(f"job {log.job}: {status}")
        lines.add(log.new_text())
        if job is not None and status in FINISHED:
            lines.add(log.new_text() + "\n")
            _raise_unless_completed(job, status, log, lines.last)
            return job
        time.sleep(POLL_SECONDS)


class _Answers:
    """What Azure ML says of the job; None while it says nothing, and a note when that begins and ends."""

    def __init__(self, outputs: StackOutputs, job: str) -> None:
        self._outputs, self._job = outputs, job
        self._answered, self._silent = time.monotonic(), ""

    def of(self, get_job: Callable[[], Job]) -> Job | None:
        from azure.core.exceptions import AzureError

        try:
            job = get_job()
        except AzureError as error:
            self._note(self._reason(error))
            return None
        if self._silent:
            say(f"Azure ML answers again after {time.monotonic() - self._answered:.0f} s")
        self._answered, self._silent = time.monotonic(), ""
        return job

    def _note(self, reason: str) -> None:
        if time.monotonic() - self._answered > PATIENCE_SECONDS:
            raise UserError(
                f"no answer from Azure ML for {PATIENCE_SECONDS:.0f} seconds: {reason}; the job {self._job} goes on",
                next_command=return_command(self._job, self._outputs),
            )
        if not self._silent:
            say(f"no answer from Azure ML: {reason}; the job goes on, trying again …")
        self._silent = reason

    def _reason(self, error: Exception) -> str:
        """Why there is no answer just now. Raises UserError if there will be none."""
        from azure.core.exceptions import (
            ClientAuthenticationError,
            HttpResponseError,
            ServiceRequestError,
            ServiceResponseError,
        )

        if isinstance(error, ClientAuthenticationError):
            return f"{login_fault(error)}; sign in again in another terminal: {LOGIN.split('   ')[0]}"
        if isinstance(error, ServiceRequestError | ServiceResponseError):
            return first_line(error)
        code = error.status_code if isinstance(error, HttpResponseError) else None
        if code is None or code >= 500 or code in (408, 429):
            return first_line(error)
        if is_workspace_gone(error, self._outputs):
            raise UserError(
                f"the workspace {self._outputs.workspace} of the stack {self._outputs.stack} is gone, and the job "
                f"{self._job} with it",
                next_command=f"make up STACK={self._outputs.stack}",
            )
        what = f"has no job {self._job!r}" if code == 404 else f"does not show the job: {first_line(error)}"
        raise UserError(
            f"the workspace {self._outputs.workspace} {what}", next_command="python -m training.submit --list"
        )


def _raise_unless_completed(job: Any, status: str, log: Log, last: list[str]) -> None:
    if status == "Completed":
        return
    reason = log.fault() if status == "Failed" else None
    tail = "\n".join(f"    {line}" for line in last) or "    (it wrote no log)"
    goes_on = "it goes on from its newest checkpoint" if job.type != "pipeline" else "it begins anew"
    raise UserError(
        f"the job {job.name} has {'failed' if status == 'Failed' else 'been cancelled'}"
        f"{f': {_without_log(reason)}' if reason else ''}\n  the last lines of its log:\n{tail}",
        next_command=f"submit it again: {goes_on}; the whole log: "
        f"{return_command(job.name, log.outputs)}, or {job.studio_url}",
    )


def _without_log(reason: str) -> str:
    """Azure ML's reason repeats the end of the log, which stands below."""
    return reason.split(" Error: ")[0].strip() if "std_log.txt" in reason else reason.strip()


def return_command(job: str, outputs: StackOutputs) -> str:
    return f"python -m training.submit --attach {job} --stack {outputs.stack}"


def detached(job: str, outputs: StackOutputs) -> UserError:
    """What to say to who stops following: the job goes on, how to return to it, how to end it."""
    place = f"--resource-group {outputs.resource_group} --workspace-name {outputs.workspace}"
    return UserError(
        f"no longer following; the job {job} goes on",
        next_command=f"{return_command(job, outputs)}   (to end it: az ml job cancel --name {job} {place})",
        code=INTERRUPTED,
    )
