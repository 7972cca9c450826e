"""Workspaces with their two built-in datastores, and the discovery document that leads to the data planes."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from emulator.arm import soft_delete
from emulator.arm.groups import is_tracked
from emulator.arm.ids import ResourceId
from emulator.arm.operations import ML, Operations
from emulator.arm.resources import Arm, json_body
from emulator.arm.schema import ArmError, Body
from emulator.blobs import Blobs
from emulator.machinelearning import shapes
from emulator.machinelearning.assets import system_data

WORKSPACE = f"{ML}/workspaces"
DATASTORE = f"{WORKSPACE}/datastores"
SERVICE = f"{ML}/workspaceOperation"
# The properties that name other resources, and their types.
DEPENDENCIES = {
    "storageAccount": "Microsoft.Storage/storageAccounts",
    "keyVault": "Microsoft.KeyVault/vaults",
    "applicationInsights": "Microsoft.Insights/components",
    "containerRegistry": "Microsoft.ContainerRegistry/registries",
}
REQUIRED = ("storageAccount", "keyVault", "applicationInsights")


class Workspaces:
    def __init__(self, arm: Arm, operations: Operations, blobs: Blobs) -> None:
        self._arm, self._state, self._operations, self._blobs = arm, arm.state, operations, blobs
        arm.on("PUT", WORKSPACE, self.put)
        arm.on("GET", WORKSPACE, self.get)
        arm.on("DELETE", WORKSPACE, self.delete)
        arm.on("POST", f"{WORKSPACE}/listKeys", self.list_keys)
        arm.on("GET", DATASTORE, self.datastore)
        arm.on("POST", f"{DATASTORE}/listSecrets", self.list_secrets)
        self.data_plane_routes = [
            Route("/discovery", self.discovery),
            Route("/discovery/workspaces/{workspace_id}", self.discovery),
        ]

    async def put(self, request: Request, rid: ResourceId) -> Response:
        body, before = self._arm.check(rid, await json_body(request))
        self._check_identity(body)
        self._check_dependencies(body.get("properties") or {})
        body["properties"].pop("allowRecoverSoftDeletedWorkspace", None)  # said in a request, never answered
        body["properties"] = shapes.filled({**shapes.WORKSPACE, "friendlyName": rid.name}, body["properties"])
        members = {"tags": {}, "kind": "Default", "sku": {"name": "Basic", "tier": "Basic"}}
        with self._state.transaction():
            stored, created = self._arm.save(rid, shapes.filled(members, body), before)
            stored |= {"etag": None, "systemData": system_data(before)}
            self._state.put(str(rid), stored, parent=rid.parent)
        if created:
            self._make_datastores(rid, stored)
        return self._arm.answer(rid, stored, created, service=SERVICE)

    @staticmethod
    def _check_identity(body: Body) -> None:
        if str((body.get("identity") or {}).get("type", "None")).lower() == "none":  # Azure/azure-sdk-for-js#10473
            raise ArmError(400, "BadRequest", "Make sure to create your workspace using a client which support MSI.")

    def _check_dependencies(self, properties: Body) -> None:
        """Raise ArmError unless each resource that the workspace stands on is there, of its type and fit for it."""
        if any(not properties.get(name) for name in REQUIRED):  # Azure/azure-rest-api-specs#15878
            raise ArmError(400, "ValidationError", "Missing dependent resources in workspace json")
        for name, kind in DEPENDENCIES.items():
            found = self._state.get(properties[name]) if properties.get(name) else None
            if properties.get(name) and (found is None or found["type"].lower() != kind.lower()):
                message = f"The {name} '{properties[name]}' of the workspace does not exist."
                raise ArmError(400, "ValidationError", message)
        storage = self._state.get(properties["storageAccount"])
        assert storage is not None
        # learn.microsoft.com/azure/machine-learning/concept-workspace#associated-resources
        if storage["properties"].get("isHnsEnabled"):
            raise _unfit(storage, "it has a hierarchical namespace")
        if storage["sku"]["name"].lower().startswith("premium"):
            raise _unfit(storage, "it is a premium account")

    async def get(self, request: Request, rid: ResourceId) -> Response:
        """One workspace, or a list; a subscription's has the soft-deleted ones too (Azure/azure-powershell#28286)."""
        if not rid.is_collection:
            return JSONResponse(self._arm.existing(rid))
        found = self._arm.listed(rid)
        if rid.group is None:
            gone = soft_delete.of_kind(self._state, WORKSPACE.lower())
            found += [{**one, "properties": {**one["properties"], "provisioningState": "SoftDeleted"}} for one in gone]
        return JSONResponse({"value": found})

    def _make_datastores(self, rid: ResourceId, workspace: Body) -> None:
        account = workspace["properties"]["storageAccount"].split("/")[-1]
        identity = workspace["properties"].get("systemDatastoresAuthMode", "accessKey").lower() == "identity"
        containers = {
            "workspaceblobstore": f"azureml-blobstore-{workspace['properties']['workspaceId']}",
            "workspaceartifactstore": "azureml",
        }
        for name, container in containers.items():
            if not self._blobs.has_container(account, container):
                self._blobs.make_container(account, container)
            store_id = ResourceId.parse(f"{rid}/datastores/{name}")
            assert store_id is not None
            body = {
                "id": str(store_id),
                "name": name,
                "type": store_id.type,
                "systemData": system_data(),
                "properties": {
                    **shapes.DATASTORE,
                    "datastoreType": "AzureBlob",
                    "accountName": account,
                    "containerName": container,
                    "endpoint": "core.windows.net",
                    "protocol": "https",
                    "isDefault": name == "workspaceblobstore",
                    "credentials": {"credentialsType": "None" if identity else "AccountKey"},
                    "serviceDataAccessAuthIdentity": "WorkspaceSystemAssignedIdentity",
                    "subscriptionId": rid.scope.split("/")[2],
                    "resourceGroup": rid.scope.split("/")[4],
                },
            }
            self._state.put(str(store_id), body, parent=str(rid))

    async def delete(self, request: Request, rid: ResourceId) -> Response:
        """Softly, or for good with `forceToPurge`, which is also how a soft-deleted workspace is purged.

        Endpoints block it, since ARM keeps track of them; computes and jobs go along, as
        learn.microsoft.com/azure/machine-learning/concept-soft-delete has it.
        """
        self._arm.check_parent(rid)
        purge = request.query_params.get("forceToPurge", "").lower() == "true"
        found = self._state.get(str(rid)) or (soft_delete.find(self._state, rid) if purge else None)
        if found is None:
            return Response(status_code=204)
        self._check_nothing_nested(rid)
        ended = self._arm.remove(str(rid), purge=purge)
        if purge:
            soft_delete.drop(self._state, rid)
        return Response(status_code=202, headers=self._operations.start(found["location"], ended, service=SERVICE))

    def _check_nothing_nested(self, rid: ResourceId) -> None:
        below = [ResourceId.parse(body["id"]) for body in self._state.below(str(rid)) if is_tracked(body)]
        if nested := [str(one).split("/providers/")[-1] for one in below]:
            # The sentence: Azure/terraform-provider-azapi#894
            message = (
                "Cannot delete resource while nested resources exist. Some existing nested resource IDs include: "
                f"'{', '.join(nested)}'. Please delete all nested resources before deleting this resource."
            )
            raise ArmError(409, "CannotDeleteResource", message)

    async def datastore(self, request: Request, rid: ResourceId) -> Response:
        if not rid.is_collection:
            return JSONResponse(self._arm.existing(rid))
        self._arm.check_parent(rid)
        found = self._state.children(rid.parent, DATASTORE)
        if request.query_params.get("isDefault", "").lower() == "true":
            found = [store for store in found if store["properties"]["isDefault"]]
        return JSONResponse({"value": found})

    async def list_keys(self, request: Request, rid: ResourceId) -> Response:
        """The keys of what the workspace stands on; none where its storage account takes none."""
        properties = self._arm.existing(rid.action[0])["properties"]
        account = properties["storageAccount"].split("/")[-1]
        self._check_keys_allowed(account)
        insights = self._state.get(properties["applicationInsights"]) or {"properties": {}}
        return JSONResponse(
            {
                "userStorageKey": self._blobs.shared_access.key(account),
                "userStorageResourceId": properties["storageAccount"],
                "appInsightsInstrumentationKey": insights["properties"].get("InstrumentationKey"),
                "containerRegistryCredentials": None,
                "notebookAccessKeys": None,
            }
        )

    async def list_secrets(self, request: Request, rid: ResourceId) -> Response:
        store, _ = rid.action
        properties = self._arm.existing(store)["properties"]
        if properties["credentials"]["credentialsType"] == "None":
            raise ArmError(400, "UserError", "The datastore has no credentials: it is accessed by identity.")
        self._check_keys_allowed(properties["accountName"])
        token = self._blobs.shared_access.for_account(properties["accountName"])
        return JSONResponse({"secretsType": "Sas", "sasToken": token})

    def _check_keys_allowed(self, account: str) -> None:
        """Azure hands the key out, and refuses whatever is signed with it; here it is refused at once."""
        for found in self._state.of_type("Microsoft.Storage/storageAccounts"):
            if found["name"] == account and found["properties"].get("allowSharedKeyAccess") is False:
                message = "Key based authentication is not permitted on this storage account."
                raise ArmError(403, "KeyBasedAuthenticationNotPermitted", message)

    async def discovery(self, request: Request) -> Response:
        base = f"https://{request.url.hostname}"
        names = ("api", "catalog", "experimentation", "gallery", "history", "hyperdrive", "labeling")
        more = ("modelmanagement", "pipelines", "studio")
        return JSONResponse({name: base for name in (*names, *more)})


def _unfit(storage: Body, why: str) -> ArmError:
    message = f"The storage account '{storage['name']}' cannot be the workspace's default one: {why}."
    return ArmError(400, "BadRequest", message)
