"""The resource types that the provider knows: how each one's arguments become an ARM request.

Paths, API versions and names follow the schema of pulumi-azure-native 3.29 (each class's docstring names its API
version) and the ARM reference, https://learn.microsoft.com/rest/api/.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# These are siblings of `properties` in an ARM body, for every type that has them.
TOP_LEVEL = frozenset({"location", "tags", "sku", "kind", "identity", "eTag", "extendedLocation", "zones"})

GROUP = "/subscriptions/{subscriptionId}/resourceGroups/{resourceGroupName}"


@dataclass(frozen=True)
class ResourceType:
    """One type: where it lives, how its body is laid out, and which changes need a new resource.

    path: ARM path; each `{argument}` is filled from the inputs, the last one is the resource's own name.
    naming: what a nameless resource is called: the logical name with 8 random hex digits, unchanged, or a GUID.
    nested: the argument `properties` is ARM's `properties` as it stands, not spread over the arguments.
    renames: argument -> ARM property, where they differ.
    immutable: arguments, besides those of the path and the location, whose change replaces the resource.
    lone: a part of its parent that always exists: neither created as new nor deleted.
    """

    path: str
    api_version: str
    naming: Literal["suffix", "logical", "guid"] = "suffix"
    nested: bool = False
    renames: Mapping[str, str] = field(default_factory=dict)
    immutable: frozenset[str] = frozenset()
    lone: bool = False

    @property
    def path_arguments(self) -> list[str]:
        """The arguments in the path, without the subscription, which belongs to the provider."""
        return [name for name in re.findall(r"\{(\w+)\}", self.path) if name != "subscriptionId"]

    @property
    def name_argument(self) -> str:
        return self.path_arguments[-1]

    @property
    def replacing(self) -> frozenset[str]:
        """Every argument whose change needs a new resource."""
        return frozenset({*self.path_arguments, "location", *self.immutable})


def _provider(namespace_and_type: str, argument: str) -> str:
    return f"{GROUP}/providers/{namespace_and_type}/{{{argument}}}"


_COSMOS = _provider("Microsoft.DocumentDB/databaseAccounts", "accountName")
_ML = _provider("Microsoft.MachineLearningServices/workspaces", "workspaceName")
_STORAGE = _provider("Microsoft.Storage/storageAccounts", "accountName")
_IDENTITY = _provider("Microsoft.ManagedIdentity/userAssignedIdentities", "resourceName")

RESOURCES: Mapping[str, ResourceType] = {
    "azure-native:resources:ResourceGroup": ResourceType(GROUP, "2024-03-01"),
    "azure-native:storage:StorageAccount": ResourceType(
        _STORAGE,
        "2024-01-01",
        renames={
            "networkRuleSet": "networkAcls",
            "enableHttpsTrafficOnly": "supportsHttpsTrafficOnly",
            "enableNfsV3": "isNfsV3Enabled",
        },
        immutable=frozenset({"isHnsEnabled", "kind"}),
    ),
    "azure-native:storage:BlobServiceProperties": ResourceType(
        _STORAGE + "/blobServices/{blobServicesName}", "2024-01-01", naming="logical", lone=True
    ),
    "azure-native:keyvault:Vault": ResourceType(
        _provider("Microsoft.KeyVault/vaults", "vaultName"), "2024-11-01", nested=True
    ),
    "azure-native:operationalinsights:Workspace": ResourceType(
        _provider("Microsoft.OperationalInsights/workspaces", "workspaceName"),
        "2023-09-01",
        # Log Analytics keeps its SKU among the properties, unlike its neighbours.
        renames={"sku": "sku"},
    ),
    "azure-native:applicationinsights:Component": ResourceType(
        _provider("Microsoft.Insights/components", "resourceName"),
        "2020-02-02",
        # This API writes its properties in Pascal case, two of them with an underscore.
        renames={
            "applicationType": "Application_Type",
            "flowType": "Flow_Type",
            "requestSource": "Request_Source",
            "workspaceResourceId": "WorkspaceResourceId",
            "ingestionMode": "IngestionMode",
            "retentionInDays": "RetentionInDays",
            "samplingPercentage": "SamplingPercentage",
            "disableIpMasking": "DisableIpMasking",
            "disableLocalAuth": "DisableLocalAuth",
            "immediatePurgeDataOn30Days": "ImmediatePurgeDataOn30Days",
            "appId": "AppId",
            "applicationId": "ApplicationId",
            "connectionString": "ConnectionString",
            "creationDate": "CreationDate",
            "instrumentationKey": "InstrumentationKey",
            "tenantId": "TenantId",
        },
    ),
    "azure-native:containerregistry:Registry": ResourceType(
        _provider("Microsoft.ContainerRegistry/registries", "registryName"), "2023-01-01-preview"
    ),
    "azure-native:managedidentity:UserAssignedIdentity": ResourceType(_IDENTITY, "2023-01-31"),
    "azure-native:managedidentity:FederatedIdentityCredential": ResourceType(
        _IDENTITY + "/federatedIdentityCredentials/{federatedIdentityCredentialResourceName}",
        "2023-01-31",
        naming="logical",
    ),
    "azure-native:authorization:RoleAssignment": ResourceType(
        "{scope}/providers/Microsoft.Authorization/roleAssignments/{roleAssignmentName}",
        "2022-04-01",
        naming="guid",
        immutable=frozenset({"principalId", "principalType", "roleDefinitionId"}),
    ),
    "azure-native:machinelearningservices:Workspace": ResourceType(
        _ML, "2025-12-01", immutable=frozenset({"keyVault", "storageAccount", "hbiWorkspace"})
    ),
    "azure-native:machinelearningservices:Compute": ResourceType(
        _ML + "/computes/{computeName}", "2025-12-01", naming="logical", nested=True
    ),
    "azure-native:cosmosdb:DatabaseAccount": ResourceType(_COSMOS, "2025-10-15"),
    "azure-native:cosmosdb:SqlResourceSqlDatabase": ResourceType(
        _COSMOS + "/sqlDatabases/{databaseName}", "2025-10-15", naming="logical"
    ),
    "azure-native:cosmosdb:SqlResourceSqlContainer": ResourceType(
        _COSMOS + "/sqlDatabases/{databaseName}/containers/{containerName}", "2025-10-15", naming="logical"
    ),
    "azure-native:cosmosdb:SqlResourceSqlRoleAssignment": ResourceType(
        _COSMOS + "/sqlRoleAssignments/{roleAssignmentId}",
        "2025-10-15",
        naming="logical",
        immutable=frozenset({"principalId", "scope"}),
    ),
    "azure-native:consumption:Budget": ResourceType(
        "{scope}/providers/Microsoft.Consumption/budgets/{budgetName}", "2024-08-01"
    ),
}


def canonical(token: str) -> str:
    """A token without the API version that an explicit import adds, `azure-native:storage/v20240101:…`."""
    return re.sub(r"^(azure-native:\w+)/v\w+:", r"\1:", token)
