"""`python -m deployment.rollout`: bring an approved model version to 100 % of the endpoint's traffic.

What to do next is decided in plan.py from what Azure shows; here it is done. Killed at any point and started again, it
goes on. When a new deployment fails, its log is shown, it is removed, and the endpoint is left as it was.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deployment import smoke
from deployment.endpoint import TAGS, connect, endpoint_name, explained, first_line, without_dots
from deployment.model_choice import ModelVersion, choose, registered
from deployment.plan import (
    Create,
    CreateEndpoint,
    Deployment,
    Discard,
    Done,
    Goal,
    Observed,
    Shift,
    Smoke,
    Step,
    Wait,
    describe,
    foresee,
    next_step,
)
from infra import cli
from infra.cli import FAILED, UserError, say
from infra.client import ml_client
from infra.outputs import StackOutputs, add_stack_options, load_outputs

if TYPE_CHECKING:
    from azure.ai.ml import MLClient
    from azure.ai.ml.entities import OnlineEndpoint
    from azure.core.polling import LROPoller

DEFAULT_SKU = "Standard_E4s_v3"
"""4 cores, 32 GB: Phi-3-mini's 3.8 billion parameters in float32 with room for the cache."""
REQUEST_TIMEOUT_MS = 180_000
"""The gateway's own limit; Azure's default of 5 s cuts every longer answer."""
CONCURRENCY = 64
"""Requests in one container at a time; at Azure's default of 1 nothing can be batched. The server queues, then 429."""
WAIT_SECONDS = 1800
LOG_LINES = 40


class NewDeploymentFailed(UserError):
    """The deployment that this run made does not come up or does not answer."""


@dataclass
class Rollout:
    """One run against one endpoint."""

    ml: MLClient
    outputs: StackOutputs
    goal: Goal
    endpoint: str

    def run(self) -> Deployment:
        """Take steps until the goal serves. Raises UserError; the endpoint then serves what it did before."""
        smoked, last = False, None
        while True:
            seen = self.observe()
            step = next_step(self.goal, seen, smoked=smoked)
            if isinstance(step, Done):
                return next(one for one in seen.deployments if one.name == step.deployment)
            if step == last and not isinstance(step, Wait):
                raise UserError(f"after the step “{describe(step)}” nothing has changed in Azure")
            say(f"  {describe(step)}")
            self._guarded(step)
            smoked, last = smoked or isinstance(step, Smoke), step

    def observe(self) -> Observed:
        """The endpoint and its deployments as Azure shows them now."""
        from azure.core.exceptions import ResourceNotFoundError

        with explained(f"looking at the endpoint {self.endpoint}"):
            try:
                endpoint = self.ml.online_endpoints.get(self.endpoint)
                found = list(self.ml.online_deployments.list(self.endpoint))
            except ResourceNotFoundError:
                return Observed()
        traffic = {name: int(percent) for name, percent in (endpoint.traffic or {}).items() if int(percent)}
        return Observed(str(endpoint.provisioning_state).lower(), traffic, tuple(_deployment(one) for one in found))

    def _guarded(self, step: Step) -> None:
        """Do `step`; if the new deployment fails in it, show why and take it away again."""
        try:
            self._do(step)
        except NewDeploymentFailed as failure:
            name = step.deployment if isinstance(step, Create | Smoke) else ""
            self._show_logs(name)
            self._withdraw(name)
            with explained(f"removing the failed deployment {name}"):
                self._finish(self.ml.online_deployments.begin_delete(name, self.endpoint), f"removing {name}")
            raise UserError(f"{failure.message}\n  {self._left_as()}", code=FAILED) from failure

    def _withdraw(self, name: str) -> None:
        """Give the traffic that `name` may already have back to the others."""
        traffic = self.observe().traffic
        others = {other: percent for other, percent in traffic.items() if other != name}
        if len(others) < len(traffic):
            self._shift({max(others, key=lambda other: others[other]): 100} if others else {})

    def _left_as(self) -> str:
        traffic = self.observe().traffic
        if traffic:
            return "the endpoint is left as it was: " + ", ".join(f"{name} {part} %" for name, part in traffic.items())
        return (
            f"the endpoint {self.endpoint} is left as it was, without a deployment; "
            f"to remove it: python -m deployment.teardown --stack {self.outputs.stack} --yes"
        )

    def _do(self, step: Step) -> None:
        match step:
            case CreateEndpoint():
                self._create_endpoint()
            case Wait():
                time.sleep(3)
            case Create(name):
                self._create_deployment(name)
            case Smoke(name):
                self._smoke(name)
            case Shift(traffic):
                self._shift(dict(traffic))
            case Discard(name):
                with explained(f"deleting the deployment {name}"):
                    self._finish(self.ml.online_deployments.begin_delete(name, self.endpoint), f"deleting {name}")
            case Done():
                pass

    def _create_endpoint(self) -> None:
        """Create the endpoint; one that stands in a failed state is put again as it is, with its traffic."""
        from azure.core.exceptions import ResourceNotFoundError

        with explained(f"creating the endpoint {self.endpoint}"):
            try:
                endpoint = self.ml.online_endpoints.get(self.endpoint)
            except ResourceNotFoundError:
                endpoint = self._new_endpoint()
            self._finish(self.ml.online_endpoints.begin_create_or_update(endpoint), "creating the endpoint")

    def _new_endpoint(self) -> OnlineEndpoint:
        from azure.ai.ml.entities import IdentityConfiguration, ManagedIdentityConfiguration, ManagedOnlineEndpoint

        return ManagedOnlineEndpoint(
            name=self.endpoint,
            description="Chat with the fine-tuned model",
            auth_mode="aad_token",
            identity=IdentityConfiguration(
                type="user_assigned",
                user_assigned_identities=[ManagedIdentityConfiguration(resource_id=self.outputs.serving_identity_id)],
            ),
            tags={**TAGS, "stack": self.outputs.stack},
        )

    def _create_deployment(self, name: str) -> None:
        from azure.ai.ml.entities import ManagedOnlineDeployment, OnlineRequestSettings, ProbeSettings
        from azure.core.exceptions import HttpResponseError

        self._register_environment()
        deployment = ManagedOnlineDeployment(
            name=name,
            endpoint_name=self.endpoint,
            model=f"azureml:{self.goal.model}",
            environment=f"azureml:{self.goal.environment}",
            instance_type=self.goal.instance_type,
            instance_count=1,
            request_settings=OnlineRequestSettings(
                request_timeout_ms=REQUEST_TIMEOUT_MS, max_concurrent_requests_per_instance=CONCURRENCY
            ),
            # in seconds; /health answers before the model is there, /ready only then: loading has ten minutes
            liveness_probe=ProbeSettings(initial_delay=10, period=10, timeout=5, failure_threshold=10),
            readiness_probe=ProbeSettings(initial_delay=5, period=5, timeout=5, failure_threshold=120),
            tags={**TAGS, "stack": self.outputs.stack, "model": self.goal.model},
        )
        try:
            poller = self.ml.online_deployments.begin_create_or_update(deployment)
            self._finish(poller, f"creating {name}")
            state = str(self.ml.online_deployments.get(name, self.endpoint).provisioning_state).lower()
        except HttpResponseError as error:
            if not any(one.name == name for one in self.observe().deployments):
                raise UserError(f"Azure refused the deployment {name}: {first_line(error)}") from error
            raise NewDeploymentFailed(f"the deployment {name} did not come up: {first_line(error)}") from error
        if state == "failed":
            raise NewDeploymentFailed(f"the deployment {name} did not come up: its state is {state}")

    def _register_environment(self) -> None:
        """Register the server's environment if this content is new; Azure builds its image once."""
        from azure.core.exceptions import ResourceNotFoundError

        from deployment import image

        with explained("registering the server's environment"):
            name, _, version = self.goal.environment.partition(":")
            try:
                self.ml.environments.get(name, version)
            except ResourceNotFoundError:
                with tempfile.TemporaryDirectory(prefix="phi-server-") as folder:
                    context = image.stage_context(Path(folder) / "context")
                    self.ml.environments.create_or_update(image.environment(context))

    def _smoke(self, name: str) -> None:
        try:
            passed = smoke.check(connect(self.outputs), name)
        except smoke.SmokeFailed as failure:
            raise NewDeploymentFailed(f"the deployment {name} fails its smoke test: {failure.message}") from failure
        say(f"  {name} answered {passed.completion_tokens} tokens in {passed.seconds:.2f} s")

    def _shift(self, traffic: dict[str, int]) -> None:
        with explained("shifting the traffic"):
            endpoint = self.ml.online_endpoints.get(self.endpoint)
            endpoint.traffic = traffic
            self._finish(self.ml.online_endpoints.begin_create_or_update(endpoint), "shifting the traffic")

    def _finish(self, poller: LROPoller[Any], doing: str) -> None:
        """Wait for a long-running operation with a sign of life; its failure is raised."""
        began = time.monotonic()
        while not poller.done():
            poller.wait(timeout=15)
            seconds = time.monotonic() - began
            if seconds > WAIT_SECONDS:
                raise UserError(
                    f"{doing} takes more than {WAIT_SECONDS // 60} minutes",
                    next_command=f"python -m deployment.status --stack {self.outputs.stack}, then this command again",
                )
            if seconds >= 15 and not poller.done():
                say(f"  … {doing}, {seconds:.0f} s")
        poller.result()

    def _show_logs(self, name: str) -> None:
        """The tail of both containers' logs on stderr: the one that fetches the model, and the server."""
        from azure.core.exceptions import AzureError

        for container in ("storage-initializer", "inference-server"):
            try:
                text = self.ml.online_deployments.get_logs(name, self.endpoint, LOG_LINES, container_type=container)
            except AzureError as error:
                text = f"(no log: {first_line(error)})"
            say(f"--- {name}, {container}, last {LOG_LINES} lines\n{text.rstrip()}\n---")


def _deployment(found: Any) -> Deployment:
    return Deployment(
        name=str(found.name),
        model=asset_name(str(found.model)),
        environment=asset_name(str(found.environment)),
        instance_type=str(found.instance_type),
        state=str(found.provisioning_state).lower(),
    )


def asset_name(identifier: str) -> str:
    """`name:version` of an asset that Azure gives as `…/models/NAME/versions/VERSION` or `azureml:NAME:VERSION`."""
    parts = identifier.rstrip("/").split("/")
    if len(parts) >= 4 and parts[-2] == "versions":
        return f"{parts[-3]}:{parts[-1]}"
    return identifier.removeprefix("azureml:")


def main(argv: list[str]) -> int:
    given = _options().parse_args(argv)
    outputs = load_outputs(stack=given.stack, file=given.outputs)
    from deployment import image

    began = time.monotonic()
    with without_dots():
        ml = ml_client(outputs)
        with explained("listing the models"):
            model = choose(registered(ml, given.model), given.model, stack=outputs.stack)
        goal = Goal(str(model), f"{image.NAME}:{image.context_version()}", given.instance_type)
        rollout = Rollout(ml, outputs, goal, endpoint_name(outputs))
        steps = foresee(goal, rollout.observe())
        _announce(rollout, model, steps)
        unchanged = isinstance(steps[0], Done)
        if given.dry_run:
            values = _result(rollout, "planned") | {"steps": [describe(step) for step in steps]}
        elif not unchanged and not given.yes and not _agreed():
            raise UserError("nothing was changed", code=FAILED)
        else:
            serving = rollout.run()
            values = _result(
                rollout, "unchanged" if unchanged else "serving", serving.name, connect(outputs).scoring_uri
            )
            say(
                f"{serving.name} serves {goal.model}"
                + (f" after {time.monotonic() - began:.0f} s" if not unchanged else "")
            )
    cli.result(values, as_json=given.json)
    return 0


def _options() -> cli.Parser:
    parser = cli.parser("deployment.rollout", "Bring an approved model version to 100 % of the endpoint's traffic.")
    add_stack_options(parser)
    parser.add_argument("--model", metavar="NAME[:VERSION]", help="default: the newest approved version of any model")
    parser.add_argument("--instance-type", default=DEFAULT_SKU, metavar="SKU", help=f"default: {DEFAULT_SKU}")
    parser.add_argument("--dry-run", action="store_true", help="show the steps, change nothing")
    parser.add_argument("--yes", action="store_true", help="do not ask (it asks only on a terminal)")
    return parser


def _announce(rollout: Rollout, model: ModelVersion, steps: list[Step]) -> None:
    say(f"endpoint {rollout.endpoint}: {model} on {rollout.goal.instance_type}, server {rollout.goal.environment}")
    if isinstance(steps[0], Done):
        say("it serves 100 % of the traffic already: nothing to do")


def _agreed() -> bool:
    """Ask before anything is spent; without a terminal nobody is there, and the command itself is the consent."""
    if not sys.stdin.isatty():
        return True
    say("an endpoint costs money for as long as it stands. Go on? [y/N]")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _result(rollout: Rollout, state: str, deployment: str | None = None, uri: str | None = None) -> dict[str, Any]:
    return {
        "endpoint": rollout.endpoint,
        "deployment": deployment,
        "model": rollout.goal.model,
        "traffic": dict(rollout.observe().traffic),
        "scoring_uri": uri,
        "state": state,
    }


if __name__ == "__main__":
    cli.run(main)
