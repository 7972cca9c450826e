"""The steps of a rollout, done in Azure, under a lease that keeps other rollouts away.

What comes next is decided in plan.py from what Azure shows. A new deployment that fails loses what traffic it had in
the same request that notes why; its logs are shown, it is removed, and the exit code is 1, or 3 if a gate refused it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from deployment import causes, doctor, gate, smoke
from deployment.creation import Maker
from deployment.endpoint import arm, connect, explained, first_line
from deployment.observe import observe
from deployment.plan import (
    Ask,
    Close,
    Create,
    CreateEndpoint,
    Deployment,
    Discard,
    Done,
    Keep,
    Mirror,
    Observed,
    Shift,
    Smoke,
    Soak,
    Step,
    Wait,
    describe,
    next_step,
    passes,
)
from deployment.record import Record
from infra.cli import FAILED, REFUSED, UserError, say

if TYPE_CHECKING:
    from azure.ai.ml.entities import OnlineEndpoint
    from azure.core.polling import LROPoller

    from deployment.lock import Lease

WAIT_SECONDS = 1800
LOOK_AGAIN = 3.0
LOG_LINES = 40


class NewDeploymentFailed(UserError):
    """The deployment that this run made does not come up, does not answer, or is worse than the one before.

    `error` is all that Azure said of its creation, `answer` what a request to it got.
    """

    def __init__(self, message: str, *, error: str = "", answer: str = "", code: int = FAILED) -> None:
        super().__init__(message, code=code)
        self.error, self.answer = error, answer


@dataclass(frozen=True)
class Patience:
    """How long things are watched, in seconds: each step of the traffic, and the old deployment's last days."""

    soak: float = 60.0
    keep: float = 600.0
    limits: gate.Limits = field(default_factory=gate.Limits)


@dataclass
class Rollout:
    """One run against one endpoint."""

    make: Maker
    lease: Lease
    app: str
    question: smoke.Question = smoke.CHAT
    patience: Patience = field(default_factory=Patience)
    failure: NewDeploymentFailed | None = None

    def run(self) -> Deployment:
        """Take steps until the goal serves. Raises UserError; the endpoint then serves what it did before."""
        passed: frozenset[str] = frozenset()
        last: Step | None = None
        since = time.monotonic()
        while True:
            seen = self.observe()
            step = next_step(self.make.goal, seen, passed=passed, now=time.time())
            if isinstance(step, Done):
                self._remember(Record())
                return next(one for one in seen.deployments if one.name == step.deployment)
            since = since if step == last else time.monotonic()
            self._check_progress(step, last, since)
            if step != last:
                say(f"  {describe(step)}")
            self._guarded(step)
            passed, last = passed | {passes(step) or ""}, step

    def _check_progress(self, step: Step, last: Step | None, since: float) -> None:
        """Raises UserError for a step that changes nothing, and for one that is waited for too long."""
        if step != last:
            return
        if not isinstance(step, Wait):
            raise UserError(f"after the step “{describe(step)}” nothing has changed in Azure")
        if time.monotonic() - since > WAIT_SECONDS:
            raise UserError(
                f"{step.what} for more than {WAIT_SECONDS // 60} minutes",
                next_command=f"python -m deployment.status --stack {self.make.outputs.stack}, then this command again",
            )

    def observe(self) -> Observed:
        return observe(self.make.ml, self.make.endpoint)

    # -- failing ------------------------------------------------------------------------------------------------------

    def _guarded(self, step: Step) -> None:
        """Do `step`; if the new deployment fails in it, show why and begin to take it back."""
        self.lease.check()
        try:
            self._do(step)
        except NewDeploymentFailed as failure:
            name = _about(step)
            self.failure = failure
            self._take_back(name, failure.message)
            say(f"  {failure.message}")
            self._show_logs(name)
            self._explain(name, failure)

    def _explain(self, name: str, failure: NewDeploymentFailed) -> None:
        """The cause by all that can still be asked, and what to type next."""
        if not (failure.error or failure.answer):
            return  # a gate's command speaks for itself
        make, known = self.make, {"error": failure.error, "answer": failure.answer}
        try:
            findings = causes.diagnose(doctor.examine(make.outputs, make.ml, self.app, name, **known))
        except UserError as error:
            say(f"  the cause could not be looked for: {error.message}")
            return
        doctor.explain(findings)
        failure.next_command = findings[0].repair if findings else None

    def _take_back(self, name: str, cause: str) -> None:
        """One request: the traffic goes back, and the note says so to whoever goes on from here."""
        self._put(self.observe().without(name), {}, Record(returning=name, cause=cause.splitlines()[0]))

    def _closed(self, cause: str) -> UserError:
        """What a run ends with that has undone a failed rollout, its own or one that was killed."""
        failure = self.failure
        if failure is None:
            what = f"an earlier rollout had failed, and is undone now: {cause}\n  {self._left_as()}"
            return UserError(what, next_command="the same command again, to try it once more")
        return UserError(
            f"{failure.message}\n  {self._left_as()}", next_command=failure.next_command, code=failure.code
        )

    def _left_as(self) -> str:
        traffic = self.observe().traffic
        if traffic:
            return "the endpoint is left as it was: " + ", ".join(f"{name} {part} %" for name, part in traffic.items())
        return (
            f"the endpoint {self.make.endpoint} is left as it was, without a deployment; "
            f"to remove it: python -m deployment.teardown --stack {self.make.outputs.stack} --yes"
        )

    # -- doing --------------------------------------------------------------------------------------------------------

    def _do(self, step: Step) -> None:
        match step:
            case CreateEndpoint():
                self._create_endpoint()
            case Wait():
                time.sleep(LOOK_AGAIN)
            case Create(name):
                self._create_deployment(name)
            case Smoke(name):
                self._smoke(name)
            case Ask(name, command):
                self._ask(name, command)
            case Mirror(name, percent):
                self._put(dict(self.observe().traffic), {name: percent}, self.observe().record)
            case Soak(name, beside, _):
                self._soak(name, beside, time.time() + self.patience.soak)
            case Shift(traffic):
                self._shift(dict(traffic))
            case Keep(name, old, until):
                self._soak(name, old, until)
            case Discard(name):
                with explained(f"deleting the deployment {name}"):
                    poller = self.make.ml.online_deployments.begin_delete(name, self.make.endpoint)
                    finish(poller, f"deleting {name}", self.make.outputs.stack)
            case Close(cause):
                self._remember(Record())
                raise self._closed(cause)
            case Done():
                pass

    def _create_endpoint(self) -> None:
        """Create the endpoint; one that stands in a failed state is put again as it is, with its traffic."""
        from azure.core.exceptions import ResourceNotFoundError

        make = self.make
        with explained(f"creating the endpoint {make.endpoint}"):
            try:
                endpoint = make.ml.online_endpoints.get(make.endpoint)
            except ResourceNotFoundError:
                endpoint = make.new_endpoint()
            poller = make.ml.online_endpoints.begin_create_or_update(endpoint)
            finish(poller, "creating the endpoint", make.outputs.stack)

    def _create_deployment(self, name: str) -> None:
        from azure.core.exceptions import HttpResponseError

        make = self.make
        make.register_environment()
        try:
            poller = make.ml.online_deployments.begin_create_or_update(make.new_deployment(name))
            finish(poller, f"creating {name}", make.outputs.stack)
            state = str(make.ml.online_deployments.get(name, make.endpoint).provisioning_state).lower()
        except HttpResponseError as error:
            if not any(one.name == name for one in self.observe().deployments):
                said = f"Azure refused the deployment {name}: {first_line(error)}"
                raise UserError(said, next_command="python -m infra.preflight") from error
            raise NewDeploymentFailed(
                f"the deployment {name} did not come up: {first_line(error)}", error=str(error)
            ) from error
        if state == "failed":
            raise NewDeploymentFailed(
                f"the deployment {name} did not come up: its state is {state}", error="its state is failed"
            )

    def _smoke(self, name: str) -> None:
        try:
            passed = smoke.check(connect(self.make.outputs, self.app), name, question=self.question)
        except smoke.SmokeFailed as failure:
            what = f"the deployment {name} fails its smoke test: {failure.message}"
            raise NewDeploymentFailed(what, answer=failure.message) from failure
        say(f"  {name} answered {passed.completion_tokens} tokens in {passed.seconds:.2f} s")

    def _ask(self, name: str, command: str) -> None:
        """The gate's command, with what it has to know in its environment; its words are on stderr."""
        endpoint = connect(self.make.outputs, self.app)
        about = {
            "ROLLOUT_STACK": self.make.outputs.stack,
            "ROLLOUT_ENDPOINT": endpoint.name,
            "ROLLOUT_DEPLOYMENT": name,
            "ROLLOUT_SCORING_URI": endpoint.scoring_uri,
            "ROLLOUT_MODEL": self.make.goal.model,
        }
        done = subprocess.run(command, shell=True, env={**os.environ, **about}, stdout=sys.stderr)
        if done.returncode != 0:
            raise NewDeploymentFailed(f"the gate refused {name}: {command} left with {done.returncode}", code=REFUSED)

    def _soak(self, name: str, beside: str, until: float) -> None:
        """Watch the new deployment beside the old one until then. Raises NewDeploymentFailed if it is worse."""
        endpoint, limits, began = connect(self.make.outputs, self.app), self.patience.limits, time.time()
        alike = self.observe().share(name) <= 50

        def ask(deployment: str) -> float:
            return smoke.probe(endpoint, self.question, deployment)

        new, old = gate.soak(ask, name, beside, until=until, limits=limits, check=self.lease.check)
        answered = gate.callers(
            self._metrics, f"{self.make.outputs.workspace_id}/onlineEndpoints/{endpoint.name}", name, began
        )
        gate.tell(name, new, beside, old, answered)
        if cause := gate.verdict(new, old, limits, alike=alike) or gate.callers_verdict(answered, limits):
            answer = new.faults[-1] if new.faults else ""
            raise NewDeploymentFailed(f"the deployment {name} is not good enough: {cause}", answer=answer, code=REFUSED)

    def _metrics(self, path: str, query: dict[str, str]) -> Any:
        """What Azure Monitor answers; None if it may not be asked, which is no reason to stop."""
        from azure.identity import DefaultAzureCredential

        try:
            reply = arm(DefaultAzureCredential(), "GET", path, query)
        except UserError:
            return None
        return reply.json() if reply.status_code == 200 else None

    # -- the endpoint's traffic and tags ------------------------------------------------------------------------------

    def _shift(self, traffic: dict[str, int]) -> None:
        """Set the traffic; with the last step it is noted how long the old deployment stays."""
        seen = self.observe()
        record = seen.record
        if len(traffic) == 1 and not record.returning and seen.others(next(iter(traffic))):
            record = replace(record, keep_until=time.time() + self.patience.keep)
        self._put(traffic, {}, record)

    def _remember(self, record: Record) -> None:
        seen = self.observe()
        if seen.record != record:
            self._put(dict(seen.traffic), dict(seen.mirror), record)

    def _put(self, traffic: dict[str, int], mirror: dict[str, int], record: Record) -> None:
        self.lease.check()
        endpoints = self.make.ml.online_endpoints
        with explained("shifting the traffic"):
            endpoint: OnlineEndpoint = endpoints.get(self.make.endpoint)
            endpoint.traffic, endpoint.mirror_traffic = traffic, mirror
            endpoint.tags = record.write({**(endpoint.tags or {}), **self.make.tags})
            finish(endpoints.begin_create_or_update(endpoint), "shifting the traffic", self.make.outputs.stack)

    def _show_logs(self, name: str) -> None:
        """The tail of both containers' logs on stderr: the one that fetches the model, and the server."""
        from azure.core.exceptions import AzureError

        deployments = self.make.ml.online_deployments
        for container in ("storage-initializer", "inference-server"):
            try:
                text = deployments.get_logs(name, self.make.endpoint, LOG_LINES, container_type=container)
            except AzureError as error:
                text = f"(no log: {first_line(error)})"
            say(f"--- {name}, {container}, last {LOG_LINES} lines\n{text.rstrip()}\n---")


def finish(poller: LROPoller[Any], doing: str, stack: str) -> None:
    """Wait for a long-running operation with a sign of life; its failure is raised."""
    began = time.monotonic()
    while not poller.done():
        poller.wait(timeout=15)
        seconds = time.monotonic() - began
        if seconds > WAIT_SECONDS:
            raise UserError(
                f"{doing} takes more than {WAIT_SECONDS // 60} minutes",
                next_command=f"python -m deployment.status --stack {stack}, then this command again",
            )
        if seconds >= 15 and not poller.done():
            say(f"  … {doing}, {seconds:.0f} s")
    poller.result()


def _about(step: Step) -> str:
    """The new deployment that a step is about."""
    return str(getattr(step, "deployment", ""))
