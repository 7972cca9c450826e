"""The Pulumi program: what a stack consists of, and what it exports. The parts are in the modules next to this one."""

from __future__ import annotations

from dataclasses import dataclass

import pulumi
from pulumi_azure_native import authorization, resources
from pulumi_azure_native import machinelearningservices as ml

from infra import budget, registry, roles, tags
from infra import settings as configuration
from infra.chat_store import ChatStore, ChatStoreArgs
from infra.cli import UserError
from infra.compute import ClusterArgs, cluster
from infra.identity import Identity, IdentityArgs, grant_deployer
from infra.naming import Names
from infra.settings import Compute, Settings
from infra.workspace import Workspace, WorkspaceArgs


@dataclass(frozen=True)
class Place:
    """What every part is given: the configuration, the names, and where it goes."""

    settings: Settings
    names: Names
    tenant_id: str
    subscription_id: str
    group: resources.ResourceGroup


@dataclass(frozen=True)
class Parts:
    """What a stack consists of; None is what its configuration does not ask for."""

    workspace: Workspace
    training: Identity
    serving: Identity
    github: Identity | None
    gpu_cluster: ml.Compute
    cpu_cluster: ml.Compute | None
    chat_store: ChatStore | None


def main() -> None:
    try:
        place = locate(configuration.load())
        parts = declare(place)
    except UserError as error:
        raise pulumi.RunError(str(error)) from None  # Pulumi prints a RunError without its traceback
    for name, value in outputs(place, parts).items():
        pulumi.export(name, value)


def locate(settings: Settings) -> Place:
    """The resource group, for everything else to go into. Raises UserError for a shared registry that is not there."""
    client = authorization.get_client_config()
    if settings.registry:
        registry.check(settings.registry, subscription_id=client.subscription_id)
    names = Names.of(settings.workload, settings.stack)
    group = resources.ResourceGroup(names.resource_group, location=settings.location, tags=settings.tags)
    tags.enforce(settings.tags, group=group)
    return Place(settings, names, client.tenant_id, client.subscription_id, group)


def declare(place: Place) -> Parts:
    """Declare the stack's resources."""
    settings, names = place.settings, place.names
    workspace = _workspace(place)
    scopes = _scopes(place, workspace)
    training, serving = _identities(place, scopes)
    if settings.deployer:
        grant_deployer(settings.deployer, scopes=scopes, subscription_id=place.subscription_id, parent=workspace)
    if settings.budget:
        budget.monthly(names.budget, settings.budget, scope=place.group.id)
    return Parts(
        workspace,
        training,
        serving,
        github=_identity("github", names.github_identity, roles.GITHUB, place, scopes)
        if settings.github_subject
        else None,
        gpu_cluster=_cluster(settings.compute, place, workspace, training),
        cpu_cluster=_cluster(settings.cpu, place, workspace, training) if settings.cpu else None,
        chat_store=_chat_store(place, serving) if settings.chat_store else None,
    )


def _workspace(place: Place) -> Workspace:
    settings = place.settings
    return Workspace(
        "workspace",
        WorkspaceArgs(
            place.names,
            place.group.name,
            settings.location,
            place.tenant_id,
            settings.datastore_auth,
            settings.purge_protection,
            settings.registry,
        ),
    )


def _scopes(place: Place, workspace: Workspace) -> roles.Scopes:
    group = place.group
    return {
        "resource_group": roles.Scope(group.id, group),
        "storage_account": roles.Scope(workspace.storage_account.id, group),
        # A shared registry stays when the group goes, so its assignment has to be deleted for itself.
        "container_registry": roles.Scope(workspace.container_registry_id, None if place.settings.registry else group),
        "workspace": roles.Scope(workspace.id, group),
    }


def _identities(place: Place, scopes: roles.Scopes) -> tuple[Identity, Identity]:
    """Who jobs run as, and who endpoints run as: in the guide the same."""
    if place.settings.grants == "least":
        training = _identity("training", place.names.training_identity, roles.LEAST_TRAINING, place, scopes)
        serving = _identity("serving", place.names.serving_identity, roles.LEAST_SERVING, place, scopes)
        return training, serving
    grants = roles.guide(place.settings.datastore_auth)
    both = _identity("identity", place.names.identity, grants, place, scopes)
    if roles.BLOB_WRITER in grants:
        pulumi.log.info(f"Storage Blob Data Contributor is granted too: {roles.BLOB_WRITER.reason}", both)
    return both, both


def _identity(
    name: str, resource_name: str, grants: tuple[roles.Grant, ...], place: Place, scopes: roles.Scopes
) -> Identity:
    subject = place.settings.github_subject if name == "github" else ""
    args = IdentityArgs(
        resource_name, place.group.name, place.settings.location, place.subscription_id, grants, scopes, subject
    )
    return Identity(name, args)


def _cluster(compute: Compute, place: Place, workspace: Workspace, training: Identity) -> ml.Compute:
    args = ClusterArgs(place.group.name, workspace.name, place.settings.location, training.id, compute)
    return cluster(args, after=training.assignments)


def _chat_store(place: Place, serving: Identity) -> ChatStore:
    """The flow writes as the endpoints' identity; whoever tries it from outside of Azure, as the deployer."""
    writers: dict[str, pulumi.Input[str]] = {"serving": serving.principal_id}
    if place.settings.deployer:
        writers["deployer"] = place.settings.deployer.principal_id
    return ChatStore(
        "chat-store", ChatStoreArgs(place.names.chat_store, place.group.name, place.settings.location, writers)
    )


def outputs(place: Place, parts: Parts) -> dict[str, pulumi.Input[str]]:
    """What the stack exports: the fields of `infra.outputs.StackOutputs`."""
    settings, workspace = place.settings, parts.workspace
    return {
        "stack": settings.stack,
        "tenant_id": place.tenant_id,
        "subscription_id": place.subscription_id,
        "location": settings.location,
        "expires_on": settings.lifetime.expires_on,
        "resource_group": place.group.name,
        "workspace": workspace.name,
        "workspace_id": workspace.id,
        "storage_account": workspace.storage_account.name,
        "key_vault": workspace.key_vault.name,
        "log_analytics": workspace.log_analytics.name,
        "application_insights": workspace.application_insights.name,
        "container_registry": workspace.container_registry_name,
        "container_registry_id": workspace.container_registry_id,
        **_ids("training", parts.training),
        **_ids("serving", parts.serving),
        "github_client_id": parts.github.client_id if parts.github else "",
        "compute": parts.gpu_cluster.name,
        "compute_size": settings.compute.size,
        "cpu_compute": parts.cpu_cluster.name if parts.cpu_cluster else "",
        "chat_store": parts.chat_store.endpoint if parts.chat_store else "",
    }


def _ids(role: str, identity: Identity) -> dict[str, pulumi.Input[str]]:
    return {
        f"{role}_identity_id": identity.id,
        f"{role}_identity_client_id": identity.client_id,
        f"{role}_identity_principal_id": identity.principal_id,
    }


if __name__ == "__main__":
    main()
