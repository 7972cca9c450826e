"""What ARM knows of each resource type: its name rule, what it must be given, and what it answers of its own.

Name rules: learn.microsoft.com/azure/azure-resource-manager/management/resource-name-rules. A type that is not in
TYPES is one that the emulator does not have, and is refused as ARM refuses an unregistered type.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from emulator.arm.ids import ResourceId
from emulator.home import TENANT_ID

Body = dict[str, Any]


class ArmError(Exception):
    """An error in ARM's shape: {"error": {"code", "message", …}}."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@dataclass(frozen=True)
class ResourceType:
    """One resource type. `required` are paths into the body; `outputs` makes the read-only properties once."""

    name: str
    rule: str = r".{1,260}"
    required: tuple[str, ...] = ("location",)
    outputs: Callable[[ResourceId, Body], Body] = field(default=lambda _id, _body: {})


def _identity(_id: ResourceId, _body: Body) -> Body:
    return {"principalId": str(uuid.uuid4()), "clientId": str(uuid.uuid4()), "tenantId": TENANT_ID}


def _storage(rid: ResourceId, body: Body) -> Body:
    hosts = {kind: f"https://{rid.name}.{kind}.core.windows.net/" for kind in ("blob", "dfs", "file", "queue", "table")}
    return {"primaryEndpoints": hosts, "primaryLocation": body.get("location"), "statusOfPrimary": "available"}


def _insights(rid: ResourceId, body: Body) -> Body:
    key, host = str(uuid.uuid4()), f"https://{body.get('location')}-0.in.applicationinsights.azure.com/"
    connection = f"InstrumentationKey={key};IngestionEndpoint={host}"
    return {"AppId": str(uuid.uuid4()), "InstrumentationKey": key, "ConnectionString": connection}


def _cosmos(rid: ResourceId, body: Body) -> Body:
    return {"documentEndpoint": f"https://{rid.name}.documents.azure.com:443/"}


TYPES = {
    found.name.lower(): found
    for found in (
        ResourceType("Microsoft.Resources/resourceGroups", r"[-\w._()]{0,89}[-\w_()]"),
        ResourceType(
            "Microsoft.Storage/storageAccounts", r"[a-z0-9]{3,24}", ("location", "sku.name", "kind"), _storage
        ),
        ResourceType("Microsoft.Storage/storageAccounts/blobServices", required=()),
        ResourceType("Microsoft.Storage/storageAccounts/managementPolicies", required=()),
        ResourceType(
            "Microsoft.KeyVault/vaults",
            r"[a-zA-Z](?!.*--)[a-zA-Z0-9-]{1,22}[a-zA-Z0-9]",
            ("location", "properties.sku.name", "properties.tenantId"),
            lambda rid, body: {"vaultUri": f"https://{rid.name}.vault.azure.net/"},
        ),
        ResourceType(
            "Microsoft.OperationalInsights/workspaces",
            r"[a-zA-Z0-9][a-zA-Z0-9-]{2,61}[a-zA-Z0-9]",
            outputs=lambda rid, body: {"customerId": str(uuid.uuid4())},
        ),
        ResourceType("Microsoft.Insights/components", required=("location", "kind"), outputs=_insights),
        ResourceType(
            "Microsoft.ContainerRegistry/registries",
            r"[a-zA-Z0-9]{5,50}",
            ("location", "sku.name"),
            lambda rid, body: {"loginServer": f"{rid.name.lower()}.azurecr.io"},
        ),
        ResourceType("Microsoft.ManagedIdentity/userAssignedIdentities", r"[a-zA-Z0-9][-\w]{2,127}", outputs=_identity),
        ResourceType("Microsoft.ManagedIdentity/userAssignedIdentities/federatedIdentityCredentials", required=()),
        ResourceType(
            "Microsoft.Authorization/roleAssignments",
            r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
            ("properties.roleDefinitionId", "properties.principalId"),
        ),
        ResourceType("Microsoft.DocumentDB/databaseAccounts", r"[a-z0-9-]{3,44}", outputs=_cosmos),
        ResourceType("Microsoft.DocumentDB/databaseAccounts/sqlDatabases", required=()),
        ResourceType("Microsoft.DocumentDB/databaseAccounts/sqlDatabases/containers", required=()),
        ResourceType("Microsoft.DocumentDB/databaseAccounts/sqlRoleAssignments", required=()),
        ResourceType("Microsoft.Consumption/budgets", required=("properties.amount",)),
        ResourceType(
            "Microsoft.MachineLearningServices/workspaces",
            r"[a-zA-Z0-9][\w-]{2,32}",
            ("location", "properties.storageAccount", "properties.keyVault", "properties.applicationInsights"),
        ),
        ResourceType(
            "Microsoft.MachineLearningServices/workspaces/computes",
            r"[a-zA-Z](?!.*-\d+$)[a-zA-Z0-9-]{1,22}[a-zA-Z0-9]",
            ("location", "properties.computeType"),
        ),
    )
}


def known(rid: ResourceId) -> ResourceType:
    """The type of an id. Raises ArmError for a type that is not emulated, in the words ARM has for unknown ones."""
    found = TYPES.get(rid.type.lower())
    if found is None:
        message = f"The resource type '{'/'.join(rid.types)}' could not be found in the namespace '{rid.namespace}'."
        raise ArmError(404, "InvalidResourceType", message)
    return found


def validate(rid: ResourceId, body: Body) -> None:
    """Check a name and the required fields of a PUT. Raises ArmError as ARM would answer."""
    kind = known(rid)
    if not re.fullmatch(kind.rule, rid.name):
        code = "AccountNameInvalid" if kind.name.endswith("storageAccounts") else "InvalidResourceName"
        raise ArmError(400, code, f"{rid.name} is not a valid name for {kind.name}: it must match {kind.rule}.")
    for path in kind.required:
        value: Any = body
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value in (None, ""):
            code = "LocationRequired" if path == "location" else "InvalidRequestContent"
            raise ArmError(400, code, f"The property '{path}' is required for {kind.name} '{rid.name}'.")
