"""The endpoint and its deployments as Azure shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deployment.endpoint import explained
from deployment.plan import Deployment, Observed
from deployment.record import Record

if TYPE_CHECKING:
    from azure.ai.ml import MLClient


def observe(ml: MLClient, name: str) -> Observed:
    """What is there now; an endpoint that is not there has the state None."""
    from azure.core.exceptions import ResourceNotFoundError

    with explained(f"looking at the endpoint {name}"):
        try:
            endpoint = ml.online_endpoints.get(name)
            found = list(ml.online_deployments.list(name))
        except ResourceNotFoundError:
            return Observed()
    return Observed(
        str(endpoint.provisioning_state).lower(),
        _shares(endpoint.traffic),
        tuple(_deployment(one) for one in found),
        _shares(endpoint.mirror_traffic),
        Record.read(endpoint.tags or {}),
    )


def _shares(given: Any) -> dict[str, int]:
    return {str(name): int(percent) for name, percent in (given or {}).items() if int(percent)}


def _deployment(found: Any) -> Deployment:
    return Deployment(
        name=str(found.name),
        model=asset_name(found.model),
        environment=asset_name(found.environment),
        instance_type=str(found.instance_type),
        state=str(found.provisioning_state).lower(),
        instances=int(found.instance_count or 1),
    )


def asset_name(identifier: Any) -> str:
    """`name:version` of an asset that Azure gives as `…/models/NAME/versions/VERSION` or `azureml:NAME:VERSION`; empty
    where a deployment has none.
    """
    parts = str(identifier or "").rstrip("/").split("/")
    if len(parts) >= 4 and parts[-2] == "versions":
        return f"{parts[-3]}:{parts[-1]}"
    return str(identifier or "").removeprefix("azureml:")
