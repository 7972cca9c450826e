"""The identity that jobs and endpoints run as, with its roles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pulumi
from pulumi_azure_native import authorization, managedidentity

from infra import roles
from infra.settings import Deployer


@dataclass(frozen=True)
class IdentityArgs:
    """What `Identity` needs: where, under which name, and the scopes of its grants."""

    name: str
    resource_group: pulumi.Input[str]
    location: str
    subscription_id: pulumi.Input[str]
    scopes: Mapping[roles.Scope, pulumi.Input[str]]
    datastore_auth: str
    deployer: Deployer | None = None


class Identity(pulumi.ComponentResource):
    """A user-assigned identity and its role assignments, and the deployer's role on the storage account.

    User-assigned rather than the endpoint's own: an endpoint's identity needs AcrPull and Blob Data Reader before the
    endpoint is created.
    """

    def __init__(self, name: str, args: IdentityArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        if missing := {grant.scope for grant in roles.grants(args.datastore_auth)} - set(args.scopes):
            raise ValueError(f"IdentityArgs.scopes lacks {sorted(missing)}")
        super().__init__("finetune-phi:infra:Identity", name, None, opts)
        self.resource = managedidentity.UserAssignedIdentity(
            args.name,
            resource_group_name=args.resource_group,
            location=args.location,
            opts=pulumi.ResourceOptions(parent=self),
        )
        self.assignments = [self._grant(grant, args) for grant in roles.grants(args.datastore_auth)]
        if args.deployer:
            self.assignments.append(self._grant_deployer(args.deployer, args))
        if args.datastore_auth == "Identity":
            pulumi.log.info(f"Storage Blob Data Contributor is granted too: {roles.BLOB_WRITER.reason}", self)
        self.id, self.client_id = self.resource.id, self.resource.client_id
        self.principal_id = self.resource.principal_id
        self.register_outputs({"id": self.id, "clientId": self.client_id, "principalId": self.principal_id})

    def _grant(self, grant: roles.Grant, args: IdentityArgs) -> authorization.RoleAssignment:
        return roles.assign(
            grant.name,
            grant,
            scopes=args.scopes,
            subscription_id=args.subscription_id,
            principal_id=self.resource.principal_id,
            principal_type="ServicePrincipal",
            parent=self,
        )

    def _grant_deployer(self, deployer: Deployer, args: IdentityArgs) -> authorization.RoleAssignment:
        return roles.assign(
            f"deployer-{roles.BLOB_WRITER.name}",
            roles.BLOB_WRITER,
            scopes=args.scopes,
            subscription_id=args.subscription_id,
            principal_id=deployer.principal_id,
            principal_type=deployer.principal_type,
            parent=self,
        )
