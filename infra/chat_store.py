"""The Cosmos DB account that keeps the chats' history.

Serverless: an idle chat costs its storage and nothing else. There are no keys: Cosmos DB's data plane has roles of its
own, outside of Azure RBAC. https://learn.microsoft.com/azure/cosmos-db/how-to-connect-role-based-access-control
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass

import pulumi
from pulumi_azure_native import cosmosdb

DATABASE, CONTAINER = "chat", "turns"
# By user and conversation: all of one user's turns are found, and erased, without looking at anybody else's, and the
# turns of one conversation can be written in one transaction.
PARTITION_KEY = ("/user", "/conversation")
DATA_CONTRIBUTOR = "00000000-0000-0000-0000-000000000002"
TTL_PER_ITEM = -1  # items live for ever unless they say otherwise themselves


@dataclass(frozen=True)
class ChatStoreArgs:
    """What `ChatStore` needs. `writers` are the principal ids that may read and write, by a name for each."""

    name: str
    resource_group: pulumi.Input[str]
    location: str
    writers: Mapping[str, pulumi.Input[str]]

    def check(self) -> None:
        """Raise ValueError where nobody could use the store."""
        if not self.writers:
            raise ValueError("ChatStoreArgs.writers is empty: nobody could read or write")


class ChatStore(pulumi.ComponentResource):
    """Account, database, container, and a data-plane role for each writer."""

    def __init__(self, name: str, args: ChatStoreArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        args.check()
        super().__init__("finetune-phi:infra:ChatStore", name, None, opts)
        self.account = self._account(args)
        self._container(args, self._database(args))
        for writer, principal in args.writers.items():
            self._allow(f"{name}-{writer}", principal, args)
        self.endpoint = self.account.document_endpoint
        self.register_outputs({"endpoint": self.endpoint})

    def _account(self, args: ChatStoreArgs) -> cosmosdb.DatabaseAccount:
        return cosmosdb.DatabaseAccount(
            args.name,
            resource_group_name=args.resource_group,
            location=args.location,
            kind=cosmosdb.DatabaseAccountKind.GLOBAL_DOCUMENT_DB,
            database_account_offer_type=cosmosdb.DatabaseAccountOfferType.STANDARD,
            capabilities=[cosmosdb.CapabilityArgs(name="EnableServerless")],
            consistency_policy=cosmosdb.ConsistencyPolicyArgs(
                default_consistency_level=cosmosdb.DefaultConsistencyLevel.SESSION
            ),
            locations=[cosmosdb.LocationArgs(location_name=args.location, failover_priority=0)],
            disable_local_auth=True,
            minimal_tls_version=cosmosdb.MinimalTlsVersion.TLS12,
            opts=pulumi.ResourceOptions(parent=self),
        )

    def _database(self, args: ChatStoreArgs) -> cosmosdb.SqlResourceSqlDatabase:
        return cosmosdb.SqlResourceSqlDatabase(
            DATABASE,
            database_name=DATABASE,
            resource_group_name=args.resource_group,
            account_name=self.account.name,
            resource=cosmosdb.SqlDatabaseResourceArgs(id=DATABASE),
            opts=pulumi.ResourceOptions(parent=self),
        )

    def _container(
        self, args: ChatStoreArgs, database: cosmosdb.SqlResourceSqlDatabase
    ) -> cosmosdb.SqlResourceSqlContainer:
        key = cosmosdb.ContainerPartitionKeyArgs(
            kind=cosmosdb.PartitionKind.MULTI_HASH, paths=list(PARTITION_KEY), version=2
        )
        return cosmosdb.SqlResourceSqlContainer(
            CONTAINER,
            container_name=CONTAINER,
            resource_group_name=args.resource_group,
            account_name=self.account.name,
            database_name=database.name,
            resource=cosmosdb.SqlContainerResourceArgs(id=CONTAINER, partition_key=key, default_ttl=TTL_PER_ITEM),
            # Azure refuses another partition key for a container that exists, and its name is fixed.
            opts=pulumi.ResourceOptions(
                parent=self, replace_on_changes=["resource.partitionKey"], delete_before_replace=True
            ),
        )

    def _allow(self, name: str, principal: pulumi.Input[str], args: ChatStoreArgs) -> None:
        cosmosdb.SqlResourceSqlRoleAssignment(
            name,
            # Cosmos DB takes a GUID and the provider would send the logical name.
            role_assignment_id=str(
                uuid.uuid5(uuid.NAMESPACE_URL, f"{pulumi.get_project()}/{pulumi.get_stack()}/{name}")
            ),
            resource_group_name=args.resource_group,
            account_name=self.account.name,
            principal_id=principal,
            role_definition_id=pulumi.Output.concat(self.account.id, "/sqlRoleDefinitions/", DATA_CONTRIBUTOR),
            scope=self.account.id,
            opts=pulumi.ResourceOptions(parent=self, delete_before_replace=True),
        )
