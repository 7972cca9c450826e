"""A container registry that several stacks share, looked up before anything is created."""

from __future__ import annotations

import pulumi
from pulumi_azure_native import containerregistry

from infra.cli import UserError
from infra.settings import SharedRegistry


def check(registry: SharedRegistry, *, subscription_id: str) -> None:
    """Raise UserError for a registry that is not there.

    Only in the provider's own subscription: its lookup knows no other. The doctor looks into all of them.
    """
    if registry.subscription_id.lower() != subscription_id.lower():
        pulumi.log.info(f"the shared registry {registry.name} lies in another subscription: not looked up here")
        return
    try:
        containerregistry.get_registry(registry_name=registry.name, resource_group_name=registry.resource_group)
    except Exception as error:  # the SDK has no class of its own for a lookup that failed
        raise UserError(
            f"the configuration key `containerRegistry` names {registry.id}: no such registry is there, or you may not "
            "read it; allowed is the whole id of one",
            next_command="az acr list --query [].id -o tsv, then pulumi config set containerRegistry ID",
        ) from error
