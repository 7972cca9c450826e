"""The Pulumi program: what a stack consists of, and what it exports. The parts are in the modules next to this one."""

from __future__ import annotations

import pulumi
from pulumi_azure_native import authorization, resources

from infra import settings as configuration
from infra import tags
from infra.cli import UserError
from infra.compute import ClusterArgs, cluster
from infra.identity import Identity, IdentityArgs
from infra.naming import Names
from infra.settings import Settings
from infra.workspace import Workspace, WorkspaceArgs


def declare(settings: Settings) -> dict[str, pulumi.Input[str]]:
    """Declare the stack's resources; the values are those of `infra.outputs.StackOutputs`."""
    tags.enforce(settings.tags)
    names = Names.of(settings.workload, settings.stack)
    client = authorization.get_client_config_output()
    group = resources.ResourceGroup(names.resource_group, location=settings.location)
    workspace = Workspace(
        "workspace",
        WorkspaceArgs(names, group.name, settings.location, client.tenant_id, settings.datastore_auth),
    )
    identity = Identity(
        "identity",
        IdentityArgs(
            names.identity,
            group.name,
            settings.location,
            client.subscription_id,
            scopes={
                "resource_group": group.id,
                "storage_account": workspace.storage_account.id,
                "container_registry": workspace.container_registry.id,
            },
            datastore_auth=settings.datastore_auth,
            deployer=settings.deployer,
        ),
    )
    compute = cluster(
        ClusterArgs(group.name, workspace.name, settings.location, identity.id, settings.compute),
        after=identity.assignments,
    )
    return {
        "stack": settings.stack,
        "tenant_id": client.tenant_id,
        "subscription_id": client.subscription_id,
        "location": settings.location,
        "resource_group": group.name,
        "workspace": workspace.name,
        "workspace_id": workspace.id,
        "storage_account": workspace.storage_account.name,
        "key_vault": workspace.key_vault.name,
        "log_analytics": workspace.log_analytics.name,
        "application_insights": workspace.application_insights.name,
        "container_registry": workspace.container_registry.name,
        "identity_id": identity.id,
        "identity_client_id": identity.client_id,
        "identity_principal_id": identity.principal_id,
        "compute": compute.name,
        "compute_size": settings.compute.size,
    }


def main() -> None:
    try:
        settings = configuration.load()
    except UserError as error:
        raise pulumi.RunError(str(error)) from None  # Pulumi prints a RunError without its traceback
    for name, value in declare(settings).items():
        pulumi.export(name, value)


if __name__ == "__main__":
    main()
