"""Who may do what: the role ids, the table of grants, and a grant as a Pulumi resource.

Ids: https://learn.microsoft.com/azure/role-based-access-control/built-in-roles
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import pulumi
from pulumi_azure_native import authorization


class Role(StrEnum):
    """Azure's built-in roles, by the id that is the same in every tenant."""

    CONTRIBUTOR = "b24988ac-6180-42a0-ab88-20f7382dd24c"
    STORAGE_BLOB_DATA_READER = "2a2b9908-6ea1-4ae2-8e65-a410df84e7d1"
    STORAGE_BLOB_DATA_CONTRIBUTOR = "ba92f5b4-2d11-453d-a403-e96b0029c9fe"
    ACR_PULL = "7f951dda-4ed3-4680-a7ca-43fe172d538d"
    AZUREML_METRICS_WRITER = "635dd51f-9968-44d3-b7fb-6d9a6bd613ae"
    AZUREML_DATA_SCIENTIST = "f6c7c914-8db3-469d-8ca1-694a8f32e121"
    MANAGED_IDENTITY_OPERATOR = "f1a07417-d97a-45cb-824c-7a7467783830"


ScopeName = Literal["resource_group", "storage_account", "container_registry", "workspace"]


@dataclass(frozen=True)
class Scope:
    """A place that roles are granted on, and the resource that takes their assignments with it when it is deleted."""

    id: pulumi.Input[str]
    deleted_with: pulumi.Resource | None


Scopes = Mapping[ScopeName, Scope]


@dataclass(frozen=True)
class Grant:
    """One row of the table: a role on a scope, and why it is needed."""

    name: str
    role: Role
    scope: ScopeName
    reason: str


CONTRIBUTOR = Grant("contributor", Role.CONTRIBUTOR, "resource_group", "jobs and endpoints manage what they run on")
BLOB_READER = Grant("blob-reader", Role.STORAGE_BLOB_DATA_READER, "storage_account", "it reads data and models")
ACR_PULL = Grant("acr-pull", Role.ACR_PULL, "container_registry", "nodes and endpoints pull their images")
BLOB_WRITER = Grant(
    "blob-contributor",
    Role.STORAGE_BLOB_DATA_CONTRIBUTOR,
    "storage_account",
    "the datastores are identity-based, so a job writes its outputs as its own identity, and Reader may not write",
)
METRICS_WRITER = Grant(
    "metrics-writer", Role.AZUREML_METRICS_WRITER, "workspace", "an endpoint reports its metrics to the workspace"
)

GUIDE = (CONTRIBUTOR, BLOB_READER, ACR_PULL)  # one identity for jobs and endpoints
LEAST_TRAINING = (BLOB_WRITER, ACR_PULL)
LEAST_SERVING = (BLOB_READER, ACR_PULL, METRICS_WRITER)
GITHUB = (
    Grant("data-scientist", Role.AZUREML_DATA_SCIENTIST, "workspace", "it submits jobs, registers models and deploys"),
    Grant(BLOB_WRITER.name, BLOB_WRITER.role, BLOB_WRITER.scope, "it uploads code and data"),
    Grant(
        "identity-operator",
        Role.MANAGED_IDENTITY_OPERATOR,
        "resource_group",
        "it hands the stack's identities to jobs and endpoints",
    ),
)


def guide(datastore_auth: str) -> tuple[Grant, ...]:
    """The guide's three roles, and the right to write where jobs could not write without it."""
    return (*GUIDE, BLOB_WRITER) if datastore_auth == "Identity" else GUIDE


def assign(
    name: str,
    grant: Grant,
    *,
    scopes: Scopes,
    subscription_id: pulumi.Input[str],
    principal_id: pulumi.Input[str],
    principal_type: str,
    parent: pulumi.Resource,
) -> authorization.RoleAssignment:
    """Give a principal a role.

    Principal, role and scope of an assignment cannot change, and one such triple exists once: hence the replacement
    that deletes first. The name is left to the provider; a preview does not know the ids one would derive it from.
    The principal's type is always said: the SDK's default is User, with which ARM looks a fresh identity up too early
    and answers PrincipalNotFound.
    """
    scope = scopes[grant.scope]
    return authorization.RoleAssignment(
        name,
        scope=scope.id,
        role_definition_id=pulumi.Output.concat(
            "/subscriptions/", subscription_id, "/providers/Microsoft.Authorization/roleDefinitions/", grant.role.value
        ),
        principal_id=principal_id,
        principal_type=principal_type,
        opts=pulumi.ResourceOptions(parent=parent, delete_before_replace=True, deleted_with=scope.deleted_with),
    )
