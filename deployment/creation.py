"""What a rollout creates: the endpoint, the server's environment, and a deployment of it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deployment import image
from deployment.endpoint import TAGS, explained
from deployment.plan import Goal
from infra.cli import UserError
from infra.outputs import StackOutputs

if TYPE_CHECKING:
    from azure.ai.ml import MLClient
    from azure.ai.ml.entities import (
        ManagedOnlineDeployment,
        OnlineEndpoint,
        OnlineRequestSettings,
        ProbeSettings,
    )

REQUEST_TIMEOUT_MS = 180_000
"""The gateway's own limit; Azure's default of 5 s cuts every longer answer."""
CONCURRENCY = 64
"""Requests in one container at a time; at Azure's default of 1 nothing can be batched. The server queues, then 429."""
PROBE_SECONDS = 5
# without our server: what Microsoft's guide on the registry's models gives them, in ms and seconds
MLFLOW_TIMEOUT_MS, MLFLOW_INITIAL_DELAY = 90_000, 600


@dataclass(frozen=True)
class Maker:
    """What is the same of all that one run makes. `ready_within`: seconds that a server has to become ready; `traces`:
    the connection string of the Application Insights that gets them, empty for none.
    """

    ml: MLClient
    outputs: StackOutputs
    endpoint: str
    goal: Goal
    image: image.Image | None
    auth: str = "aad_token"
    ready_within: float = 600
    traces: str = field(default="", repr=False)

    @property
    def tags(self) -> dict[str, str]:
        expiry = {"expires-on": self.outputs.expires_on} if self.outputs.expires_on else {}
        return {**TAGS, "stack": self.outputs.stack, **expiry}

    def new_endpoint(self) -> OnlineEndpoint:
        from azure.ai.ml.entities import IdentityConfiguration, ManagedIdentityConfiguration, ManagedOnlineEndpoint

        return ManagedOnlineEndpoint(
            name=self.endpoint,
            description="Chat with the fine-tuned model",
            auth_mode=self.auth,
            identity=IdentityConfiguration(
                type="user_assigned",
                user_assigned_identities=[ManagedIdentityConfiguration(resource_id=self.outputs.serving_identity_id)],
            ),
            tags=self.tags,
        )

    def check_endpoint(self, found: OnlineEndpoint) -> None:
        """What an endpoint keeps for its whole life has to be what this stack wants: asked before anything is made.

        Raises:
            UserError: another identity, or another way to let callers in.
        """
        replace = f"python -m deployment.teardown --stack {self.outputs.stack}, then this command again"
        held = [str(one.resource_id).lower() for one in _identities(found)]
        if held and self.outputs.serving_identity_id.lower() not in held:
            raise UserError(
                f"the endpoint {self.endpoint} acts as {held[0].split('/')[-1]}, and the stack's serving identity is "
                f"{self.outputs.serving_identity_id.split('/')[-1]}; an endpoint's identity cannot be changed",
                next_command=replace,
            )
        if (mode := str(found.auth_mode).lower()) != self.auth:
            raise UserError(
                f"the endpoint {self.endpoint} lets callers in by {mode}, and {self.auth} is wanted; that cannot be "
                "changed",
                next_command=f"leave it at --auth {mode}, or {replace}",
            )

    def new_deployment(self, name: str) -> ManagedOnlineDeployment:
        from azure.ai.ml.entities import ManagedOnlineDeployment, ProbeSettings

        return ManagedOnlineDeployment(
            name=name,
            endpoint_name=self.endpoint,
            model=f"azureml:{self.goal.model}" if self.goal.model else None,
            environment=f"azureml:{self.goal.environment}" if self.goal.environment else None,
            environment_variables=self._variables(),
            instance_type=self.goal.instance_type,
            instance_count=self.goal.instances,
            request_settings=self._request_settings(),
            liveness_probe=self._liveness_probe(),
            readiness_probe=ProbeSettings(
                initial_delay=PROBE_SECONDS,
                period=PROBE_SECONDS,
                timeout=5,
                failure_threshold=max(1, round(self.ready_within / PROBE_SECONDS) - 1),
            ),
            tags={**self.tags, "model": self.goal.model},
        )

    def _request_settings(self) -> OnlineRequestSettings:
        from azure.ai.ml.entities import OnlineRequestSettings

        if self.image is None:
            return OnlineRequestSettings(request_timeout_ms=MLFLOW_TIMEOUT_MS)
        return OnlineRequestSettings(
            request_timeout_ms=REQUEST_TIMEOUT_MS, max_concurrent_requests_per_instance=CONCURRENCY
        )

    def _liveness_probe(self) -> ProbeSettings:
        """In seconds. Our /health answers before the model is there, /ready only then; MLflow's server does not."""
        from azure.ai.ml.entities import ProbeSettings

        if self.image is None:
            return ProbeSettings(initial_delay=MLFLOW_INITIAL_DELAY)
        return ProbeSettings(initial_delay=10, period=10, timeout=5, failure_threshold=10)

    def _variables(self) -> dict[str, str]:
        """Where traces go, and what a container of the user's own needs to find model endpoint and chat store as its
        managed identity.
        """
        traces = {"APPLICATIONINSIGHTS_CONNECTION_STRING": self.traces} if self.traces else {}
        if self.image is None or self.image.is_ours:
            return traces
        return {
            **traces,
            "AZURE_CLIENT_ID": self.outputs.serving_identity_client_id,
            "STACK_OUTPUTS_JSON": json.dumps(self.outputs.as_dict()),
        }

    def register_environment(self) -> None:
        """Register the server's environment if this content is new; Azure builds its image once."""
        from azure.core.exceptions import ResourceNotFoundError

        if self.image is None:
            return
        with explained("registering the server's environment"):
            try:
                self.ml.environments.get(self.image.name, self.image.version)
            except ResourceNotFoundError:
                with tempfile.TemporaryDirectory(prefix="phi-server-") as folder:
                    context = image.stage_context(Path(folder) / "context", self.image.files)
                    self.ml.environments.create_or_update(image.environment(self.image, context))


def _identities(found: OnlineEndpoint) -> list[Any]:
    given: Any = getattr(found.identity, "user_assigned_identities", None) or []
    return list(given.values()) if isinstance(given, Mapping) else list(given)
