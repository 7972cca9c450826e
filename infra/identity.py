"""The identities of jobs, endpoints and GitHub's workflows, each with its roles."""

from __future__ import annotations

from dataclasses import dataclass

import pulumi
from pulumi_azure_native import authorization, managedidentity

from infra import roles
from infra.settings import Deployer

# https://docs.github.com/actions/how-tos/secure-your-work/security-harden-deployments/oidc-in-azure
GITHUB_ISSUER = "https://token.actions.githubusercontent.com"
AZURE_AUDIENCE = "api://AzureADTokenExchange"


@dataclass(frozen=True)
class IdentityArgs:
    """What `Identity` needs: where, under which name, its grants and their scopes.

    github_subject: the workflows that may sign in as this identity; empty for none.
    """

    name: str
    resource_group: pulumi.Input[str]
    location: str
    subscription_id: pulumi.Input[str]
    grants: tuple[roles.Grant, ...]
    scopes: roles.Scopes
    github_subject: str = ""

    def check(self) -> None:
        """Raise ValueError for a grant whose scope is not there."""
        if missing := {grant.scope for grant in self.grants} - set(self.scopes):
            raise ValueError(f"IdentityArgs.scopes lacks {sorted(missing)}")


class Identity(pulumi.ComponentResource):
    """A user-assigned identity and its role assignments.

    User-assigned rather than the endpoint's own: an endpoint's identity needs AcrPull and Blob Data Reader before the
    endpoint is created.
    """

    def __init__(self, name: str, args: IdentityArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        args.check()
        super().__init__("finetune-phi:infra:Identity", name, None, opts)
        self.resource = managedidentity.UserAssignedIdentity(
            args.name,
            resource_group_name=args.resource_group,
            location=args.location,
            opts=pulumi.ResourceOptions(parent=self),
        )
        self.id, self.client_id = self.resource.id, self.resource.client_id
        self.principal_id = self.resource.principal_id
        self.assignments = [self._grant(name, grant, args) for grant in args.grants]
        if args.github_subject:
            self._trust_github(name, args)
        self.register_outputs({"id": self.id, "clientId": self.client_id, "principalId": self.principal_id})

    def _grant(self, name: str, grant: roles.Grant, args: IdentityArgs) -> authorization.RoleAssignment:
        return roles.assign(
            f"{name}-{grant.name}",
            grant,
            scopes=args.scopes,
            subscription_id=args.subscription_id,
            principal_id=self.principal_id,
            principal_type="ServicePrincipal",
            parent=self,
        )

    def _trust_github(self, name: str, args: IdentityArgs) -> None:
        managedidentity.FederatedIdentityCredential(
            f"{name}-actions",
            resource_group_name=args.resource_group,
            resource_name_=self.resource.name,
            issuer=GITHUB_ISSUER,
            # Whole, by configuration: GitHub puts the owner's and repository's ids in it for new repositories.
            subject=args.github_subject,
            audiences=[AZURE_AUDIENCE],
            opts=pulumi.ResourceOptions(parent=self),
        )


def grant_deployer(
    deployer: Deployer, *, scopes: roles.Scopes, subscription_id: pulumi.Input[str], parent: pulumi.Resource
) -> authorization.RoleAssignment:
    """Let the person or service that runs the stages upload data: no key opens identity-based datastores."""
    return roles.assign(
        f"deployer-{roles.BLOB_WRITER.name}",
        roles.BLOB_WRITER,
        scopes=scopes,
        subscription_id=subscription_id,
        principal_id=deployer.principal_id,
        principal_type=deployer.principal_type,
        parent=parent,
    )
