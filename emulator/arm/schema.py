"""What ARM knows of each resource type besides its body: its name rule, what it answers of its own, how long it takes.

Name rules: learn.microsoft.com/azure/azure-resource-manager/management/resource-name-rules. A type that is not in
TYPES is one that the emulator does not have, and is refused as ARM refuses an unregistered type. What a type's body
takes stands in `schemas/`.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from emulator.arm.ids import ResourceId
from emulator.home import TENANT_ID

Body = dict[str, Any]
GUID = r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"


class ArmError(Exception):
    """An error in ARM's shape: {"error": {"code", "message", …}}."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@dataclass(frozen=True)
class ResourceType:
    """One resource type.

    rule, words: the names that it takes, as a pattern and for people; code: how a wrong one is refused.
    outputs: makes the read-only properties, once.
    long: how a PUT is answered before it is done: with the resource and an operation to poll, or with the operation
        alone; "" for at once.
    """

    name: str
    rule: str = r".{1,260}"
    words: str = "1-260 characters"
    code: str = "InvalidResourceName"
    outputs: Callable[[ResourceId, Body], Body] = field(default=lambda _id, _body: {})
    long: Literal["", "with resource", "alone"] = ""


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


def _workspace(rid: ResourceId, body: Body) -> Body:
    host = f"{str(body.get('location')).replace(' ', '').lower()}.api.azureml.ms"
    number = str(uuid.uuid4())
    notebooks = f"ml-{rid.name}-{host.split('.')[0]}-{number}.{host.split('.')[0]}.notebooks.azure.net".lower()
    notebook: Body = {"resourceId": uuid.uuid4().hex, "fqdn": notebooks, "isPrivateLinkEnabled": False}
    return {
        "workspaceId": number,
        "discoveryUrl": f"https://{host}/discovery",
        "mlFlowTrackingUri": f"azureml://{host}/mlflow/v1.0{rid}",
        "tenantId": TENANT_ID,
        "creationTime": datetime.now(UTC).isoformat(),
        "notebookInfo": {**notebook, "notebookPreparationError": None},
        "allowRoleAssignmentOnRG": True,
        "softDeleteEnabled": False,
        "storageHnsEnabled": False,
        "linkedModelInventoryArmId": None,
        "privateLinkCount": 0,
        "ipAllowlist": [],
        "networkAcls": {"defaultAction": "Allow", "bypass": "", "ipRules": [], "resourceAccessRules": []},
    }


_ML, _COSMOS = "Microsoft.MachineLearningServices/workspaces", "Microsoft.DocumentDB/databaseAccounts"
_IDENTITY = "Microsoft.ManagedIdentity/userAssignedIdentities"

TYPES = {
    found.name.lower(): found
    for found in (
        ResourceType(
            "Microsoft.Resources/resourceGroups",
            r"[-\w._()]{0,89}[-\w_()]",
            "1-90 letters, digits, '-', '_', '.', '(' and ')', no '.' last",
        ),
        ResourceType(
            "Microsoft.Storage/storageAccounts",
            r"[a-z0-9]{3,24}",
            "3-24 lower-case letters and digits",
            "AccountNameInvalid",
            _storage,
        ),
        ResourceType("Microsoft.Storage/storageAccounts/blobServices", r"default", "'default'"),
        ResourceType(
            "Microsoft.KeyVault/vaults",
            r"[a-zA-Z](?!.*--)[a-zA-Z0-9-]{1,22}[a-zA-Z0-9]",
            "3-24 letters, digits and hyphens, a letter first, no hyphen last and no two in a row",
            "VaultNameNotValid",
            lambda rid, body: {"vaultUri": f"https://{rid.name}.vault.azure.net/"},
        ),
        ResourceType(
            "Microsoft.OperationalInsights/workspaces",
            r"[a-zA-Z0-9][a-zA-Z0-9-]{2,61}[a-zA-Z0-9]",
            "4-63 letters, digits and hyphens, no hyphen first or last",
            outputs=lambda rid, body: {"customerId": str(uuid.uuid4())},
            long="with resource",
        ),
        ResourceType(
            "Microsoft.Insights/components",
            r"[^%&\\?/]{0,259}[^%&\\?/. ]",
            "1-260 characters without % & \\ ? /, no space or '.' last",
            outputs=_insights,
        ),
        ResourceType(
            "Microsoft.ContainerRegistry/registries",
            r"[a-zA-Z0-9]{5,50}",
            "5-50 letters and digits",
            outputs=lambda rid, body: {"loginServer": f"{rid.name.lower()}.azurecr.io"},
            long="with resource",
        ),
        ResourceType(
            _IDENTITY,
            r"[a-zA-Z0-9][-\w]{2,127}",
            "3-128 letters, digits, '-' and '_', a letter or digit first",
            outputs=_identity,
        ),
        ResourceType(
            f"{_IDENTITY}/federatedIdentityCredentials",
            r"[a-zA-Z0-9][-\w]{2,119}",
            "3-120 letters, digits, '-' and '_', a letter or digit first",
        ),
        ResourceType("Microsoft.Authorization/roleAssignments", GUID, "a GUID", "InvalidRoleAssignmentId"),
        ResourceType(
            "Microsoft.Authorization/locks", r"[^<>%&:\\?/]{1,260}", "1-260 characters without < > % & : \\ ? /"
        ),
        ResourceType(
            _COSMOS,
            r"[a-z0-9](?!.*--)[a-z0-9-]{1,42}[a-z0-9]",
            "3-44 lower-case letters, digits and hyphens, a letter or digit first and last",
            "BadRequest",
            _cosmos,
            "with resource",
        ),
        ResourceType(
            f"{_COSMOS}/sqlDatabases",
            r"[^/\\#?]{1,255}",
            "1-255 characters without / \\ # ?",
            "BadRequest",
            long="alone",
        ),
        ResourceType(
            f"{_COSMOS}/sqlDatabases/containers",
            r"[^/\\#?]{1,255}",
            "1-255 characters without / \\ # ?",
            "BadRequest",
            long="alone",
        ),
        ResourceType(f"{_COSMOS}/sqlRoleAssignments", GUID, "a GUID", "BadRequest", long="alone"),
        ResourceType("Microsoft.Consumption/budgets", r"[-\w]{1,63}", "1-63 letters, digits, '-' and '_'"),
        ResourceType(
            _ML,
            r"[a-zA-Z0-9][\w-]{2,32}",
            "3-33 letters, digits, '-' and '_', a letter or digit first",
            outputs=_workspace,
            long="with resource",
        ),
        ResourceType(
            f"{_ML}/computes",
            r"[a-zA-Z](?!.*-\d+$)[a-zA-Z0-9-]{1,22}[a-zA-Z0-9]",
            "3-24 letters, digits and hyphens, a letter first, and not ending in a hyphen or in a hyphen and digits",
            long="with resource",
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


def check_name(rid: ResourceId) -> None:
    """Raise ArmError for a name that the type does not take."""
    kind = known(rid)
    if not re.fullmatch(kind.rule, rid.name):
        raise ArmError(400, kind.code, f"'{rid.name}' is not a valid name for {kind.name}: it takes {kind.words}.")
