"""The Azure ML workspace and the resources that it stands on."""

from __future__ import annotations

from dataclasses import dataclass

import pulumi
from pulumi_azure_native import (
    applicationinsights,
    containerregistry,
    keyvault,
    machinelearningservices,
    operationalinsights,
    storage,
)

from infra.naming import LIMITS, SUFFIX, Names
from infra.settings import SharedRegistry

LOG_RETENTION_DAYS = 30  # the least that this pricing tier takes


@dataclass(frozen=True)
class WorkspaceArgs:
    """What `Workspace` needs: names, place, tenant, and how jobs reach the datastores."""

    names: Names
    resource_group: pulumi.Input[str]
    location: str
    tenant_id: pulumi.Input[str]
    datastore_auth: str
    purge_protection: bool = False
    registry: SharedRegistry | None = None  # None for one of its own

    def check(self) -> None:
        """Raise ValueError for what Azure would refuse half-way through."""
        machinelearningservices.SystemDatastoresAuthMode(self.datastore_auth)
        for kind, limit in LIMITS.items():
            if len(name := getattr(self.names, kind)) + SUFFIX > limit:
                raise ValueError(f"the {kind.replace('_', ' ')}'s name {name!r} is too long: at most {limit - SUFFIX}")


class Workspace(pulumi.ComponentResource):
    """Storage, key vault, Log Analytics, Application Insights, workspace, and a container registry unless it is shared.

    `container_registry_id` and `_name` are the registry's, whoever's it is.
    """

    def __init__(self, name: str, args: WorkspaceArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        args.check()
        super().__init__("finetune-phi:infra:Workspace", name, None, opts)
        self.storage_account = self._storage_account(args)
        self.key_vault = self._key_vault(args)
        self.log_analytics = self._log_analytics(args)
        self.application_insights = self._application_insights(args)
        self.container_registry_id, self.container_registry_name = self._container_registry(args)
        self.resource = self._workspace(args)
        self.id, self.name = self.resource.id, self.resource.name
        self.register_outputs({"id": self.id, "name": self.name})

    def _child(self) -> pulumi.ResourceOptions:
        return pulumi.ResourceOptions(parent=self)

    def _storage_account(self, args: WorkspaceArgs) -> storage.StorageAccount:
        return storage.StorageAccount(
            args.names.storage_account,
            resource_group_name=args.resource_group,
            location=args.location,
            kind=storage.Kind.STORAGE_V2,
            sku=storage.SkuArgs(name=storage.SkuName.STANDARD_LRS),
            is_hns_enabled=False,  # Azure ML refuses a default storage account with a hierarchical namespace
            enable_https_traffic_only=True,
            minimum_tls_version=storage.MinimumTlsVersion.TLS1_2,
            allow_blob_public_access=False,
            # With identity-based datastores nothing needs the account's key, so nobody can leak it.
            allow_shared_key_access=args.datastore_auth == "AccessKey",
            opts=self._child(),
        )

    def _key_vault(self, args: WorkspaceArgs) -> keyvault.Vault:
        return keyvault.Vault(
            args.names.key_vault,
            resource_group_name=args.resource_group,
            location=args.location,
            properties=keyvault.VaultPropertiesArgs(
                tenant_id=args.tenant_id,
                sku=keyvault.SkuArgs(family=keyvault.SkuFamily.A, name=keyvault.SkuName.STANDARD),
                enable_rbac_authorization=True,
                enable_soft_delete=True,
                soft_delete_retention_in_days=7,
                enable_purge_protection=args.purge_protection or None,  # Azure takes true or nothing
            ),
            opts=self._child(),
        )

    def _log_analytics(self, args: WorkspaceArgs) -> operationalinsights.Workspace:
        return operationalinsights.Workspace(
            args.names.log_analytics,
            resource_group_name=args.resource_group,
            location=args.location,
            sku=operationalinsights.WorkspaceSkuArgs(name=operationalinsights.WorkspaceSkuNameEnum.PER_GB2018),
            retention_in_days=LOG_RETENTION_DAYS,
            opts=self._child(),
        )

    def _application_insights(self, args: WorkspaceArgs) -> applicationinsights.Component:
        return applicationinsights.Component(
            args.names.application_insights,
            resource_group_name=args.resource_group,
            location=args.location,
            kind="web",
            application_type=applicationinsights.ApplicationType.WEB,
            ingestion_mode=applicationinsights.IngestionMode.LOG_ANALYTICS,
            workspace_resource_id=self.log_analytics.id,
            opts=self._child(),
        )

    def _container_registry(self, args: WorkspaceArgs) -> tuple[pulumi.Output[str], pulumi.Output[str]]:
        """The id and the name of the registry, which is made here unless it is shared."""
        if args.registry:
            return pulumi.Output.from_input(args.registry.id), pulumi.Output.from_input(args.registry.name)
        made = containerregistry.Registry(
            args.names.container_registry,
            resource_group_name=args.resource_group,
            location=args.location,
            sku=containerregistry.SkuArgs(name=containerregistry.SkuName.STANDARD),
            admin_user_enabled=False,
            opts=self._child(),
        )
        return made.id, made.name

    def _workspace(self, args: WorkspaceArgs) -> machinelearningservices.Workspace:
        return machinelearningservices.Workspace(
            args.names.workspace,
            resource_group_name=args.resource_group,
            location=args.location,
            identity=machinelearningservices.ManagedServiceIdentityArgs(
                type=machinelearningservices.ManagedServiceIdentityType.SYSTEM_ASSIGNED
            ),
            storage_account=self.storage_account.id,
            key_vault=self.key_vault.id,
            application_insights=self.application_insights.id,
            container_registry=self.container_registry_id,
            # The SDK's enum: Azure wants `Identity` and ignores `identity`.
            system_datastores_auth_mode=machinelearningservices.SystemDatastoresAuthMode(args.datastore_auth),
            public_network_access=machinelearningservices.PublicNetworkAccessType.ENABLED,
            opts=self._child(),
        )
