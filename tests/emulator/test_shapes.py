"""That answers have the members of Azure's own, and their JSON types, also those that nobody set.

The members were taken from the recordings of azure-ai-ml's tests (Azure/azure-sdk-assets), which are not in here.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emulator.home import DEPLOYER_OBJECT_ID
from tests.support.local_azure import LocalAzure
from tests.support.raw_jobs import blob, submit, wait

Members = dict[str, Any]
WHO = {"createdAt": str, "createdBy": str, "createdByType": str, "lastModifiedAt": str, "lastModifiedByType": str}
ASSET = {"description": None, "tags": dict, "properties": dict, "isArchived": bool, "isAnonymous": bool}
GROWN = {"autoDeleteSetting": None, "stage": "Development", "intellectualProperty": None}
SERVICE = {"jobServiceType": str, "endpoint": str} | dict.fromkeys(("port", "status", "errorMessage", "nodes"))
SHAPES: dict[str, Members] = {
    "": {
        "tags": dict,
        "etag": None,
        "kind": "Default",
        "sku": {"name": "Basic", "tier": "Basic"},
        "systemData": WHO,
        "properties": {
            **{"friendlyName": str, "tenantId": str, "workspaceId": str, "creationTime": str, "ipAllowlist": list},
            **{"hbiWorkspace": False, "v1LegacyMode": False, "storageHnsEnabled": False, "privateLinkCount": 0},
            "notebookInfo": {"resourceId": str, "fqdn": str, "isPrivateLinkEnabled": False},
            **{"publicNetworkAccess": "Enabled", "imageBuildCompute": None, "managedNetwork": dict},
        },
    },
    "/computes/cpu": {
        "tags": dict,
        "properties": {
            **{"createdOn": str, "modifiedOn": str, "computeLocation": str, "isAttachedCompute": False},
            **{"resourceId": None, "provisioningErrors": None, "provisioningWarnings": dict},
            "properties": {
                **{"currentNodeCount": 0, "targetNodeCount": 0, "allocationState": "Steady", "osType": "Linux"},
                **{"subnet": None, "errors": None, "enableNodePublicIp": True, "propertyBag": dict},
                "nodeStateCounts": {f"{name}NodeCount": int for name in ("preparing", "idle", "leaving", "preempted")},
            },
        },
    },
    "/datastores/workspaceblobstore": {
        "properties": {"description": None, "tags": None, "isDefault": True, "subscriptionId": str},
        "systemData": WHO,
    },
    "/environments/shaped/versions/1": {
        "properties": {
            **ASSET,
            **GROWN,
            "environmentType": "UserCreated",
            "osType": "Linux",
            "autoRebuild": "Disabled",
        },
        "systemData": WHO,
    },
    "/models/shaped/versions/1": {
        "properties": {**ASSET, **GROWN, "flavors": dict, "jobName": "before", "provisioningState": "Succeeded"}
    },
    "/models/shaped": {"properties": {"description": None, "tags": dict, "latestVersion": "1", "nextVersion": "2"}},
    "/data/shaped/versions/1": {"properties": {**ASSET, "dataType": "uri_folder"}, "systemData": WHO},
    "/jobs/before": {
        "properties": {
            "properties": {"_azureml.ComputeTargetType": "amlctrain", "_azureml.ClusterName": "cpu"},
            "services": {"Tracking": SERVICE, "Studio": SERVICE},
            "resources": {"instanceCount": 1, "instanceType": None, "shmSize": "2g", "dockerArgs": None},
            "outputs": {"default": {"uri": str, "mode": "ReadWriteMount", "assetName": None}, "made": dict},
            **{"parentJobName": None, "codeId": None, "distribution": None, "limits": None, "parameters": dict},
        }
    },
    "/onlineEndpoints/ep-shapes": {
        "properties": {
            "properties": {"azureml.onlineendpointid": str, "AzureAsyncOperationUri": str},
            **{"compute": None, "traffic": dict, "mirrorTraffic": dict, "scoringUri": str, "swaggerUri": str},
        }
    },
}


@pytest.fixture(scope="module")
def at(azure: LocalAzure, workspace: str) -> str:
    """The workspace with one of everything; the model is what the job `before` wrote."""
    job = submit(azure, workspace, "before", "echo x > ${{outputs.made}}/x", outputs={"made": OUTPUT})
    wait(azure, job, "Completed")
    conda = {"image": "ubuntu", "condaFile": "dependencies:\n- python=3.10\n"}
    put(azure, f"{workspace}/environments/shaped/versions/1", conda)
    model = {"modelType": "custom_model", "modelUri": "azureml://jobs/before/outputs/made"}
    put(azure, f"{workspace}/models/shaped/versions/1", model)
    data = {"dataType": "uri_folder", "dataUri": "azureml://datastores/workspaceblobstore/paths/x/"}
    put(azure, f"{workspace}/data/shaped/versions/1", data)
    return workspace


OUTPUT = {"jobOutputType": "uri_folder", "mode": "ReadWriteMount"}
ENDPOINT = {"location": "eastus2", "identity": {"type": "SystemAssigned"}, "properties": {"authMode": "AMLToken"}}


def put(azure: LocalAzure, path: str, properties: Members) -> Members:
    return azure.put(path, {"properties": properties})


@pytest.fixture(scope="module", autouse=True)
def endpoint(azure: LocalAzure, at: str) -> Iterator[Any]:
    made = azure.request("PUT", f"{at}/onlineEndpoints/ep-shapes", json=ENDPOINT)
    yield made
    azure.request("DELETE", f"{at}/onlineEndpoints/ep-shapes")


def differences(where: str, wanted: Any, found: Any) -> list[str]:
    """What is missing, of another type or of another value."""
    if isinstance(wanted, dict):
        if not isinstance(found, dict):
            return [f"{where} is {found!r}"]
        missing = [f"{where}.{name} is missing" for name in wanted if name not in found]
        return missing + [
            text
            for name in wanted
            if name in found
            for text in differences(f"{where}.{name}", wanted[name], found[name])
        ]
    fits = type(found) is wanted if isinstance(wanted, type) else found == wanted
    return [] if fits else [f"{where} is {found!r}"]


@pytest.mark.parametrize("below", SHAPES)
def test_an_answer_has_the_members_of_azures(azure: LocalAzure, at: str, below: str) -> None:
    assert differences(below, SHAPES[below], azure.request("GET", at + below).json()) == []


def test_a_new_endpoint_has_no_address_yet_and_is_found_where_location_says(azure: LocalAzure, endpoint: Any) -> None:
    made = endpoint.json()["properties"]
    assert (made["provisioningState"], made["scoringUri"], made["swaggerUri"]) == ("Creating", None, None)
    assert azure.request("GET", endpoint.headers["Location"]).json()["properties"]["provisioningState"] == "Succeeded"
    operation = azure.request("GET", endpoint.headers["Azure-AsyncOperation"]).json()
    shape = {"id": str, "name": str, "startTime": str, "percentComplete": 100.0, "status": "Succeeded"}
    assert differences("", shape, operation) == [] and endpoint.headers["x-ms-async-operation-timeout"] == "PT30M"


def test_a_new_cluster_does_not_know_its_nodes_yet_and_has_no_location(azure: LocalAzure, at: str) -> None:
    user = {"adminUserName": "me", "adminUserPassword": "hidden"}
    scale = {"minNodeCount": 0, "maxNodeCount": 1}
    cluster = {"vmSize": "Standard_DS3_v2", "scaleSettings": scale, "userAccountCredentials": user}
    body = {"location": "eastus2", "properties": {"computeType": "AmlCompute", "properties": cluster}}
    answer = azure.request("PUT", f"{at}/computes/fresh", json=body)
    inner = answer.json()["properties"]["properties"]
    assert answer.json()["properties"]["provisioningState"] == "Creating"
    assert [inner[name] for name in ("currentNodeCount", "nodeStateCounts", "allocationState")] == [None] * 3
    assert "Location" not in answer.headers and "Azure-AsyncOperation" in answer.headers
    assert "hidden" not in answer.text + azure.request("GET", f"{at}/computes/fresh").text
    assert azure.request("DELETE", f"{at}/computes/fresh").status_code == 202


def test_what_was_made_lies_where_location_says(azure: LocalAzure, at: str) -> None:
    body = {"properties": {"dataType": "uri_folder", "dataUri": "azureml://datastores/workspaceblobstore/paths/y/"}}
    answer = azure.request("PUT", f"{at}/data/fresh/versions/1?api-version=2023-04-01", json=body)
    assert answer.status_code == 201
    assert azure.request("GET", answer.headers["Location"]).json() == answer.json()


def test_a_components_specification_names_its_version(azure: LocalAzure, at: str) -> None:
    spec = {"name": "shaped", "type": "command", "command": "true"}
    body = {"properties": {"componentSpec": spec}}
    made = azure.put(f"{at}/components/shaped/versions/3", body)["properties"]
    assert made["componentSpec"] == {**spec, "version": "3"} and made["stage"] == "Development"
    assert azure.request("PUT", f"{at}/components/shaped/versions/3", json=body).status_code == 200


def test_a_registry_comes_by_an_operation_of_its_own_and_is_there_at_its_end(azure: LocalAzure, at: str) -> None:
    path = f"{at.split('/providers/')[0]}/providers/Microsoft.MachineLearningServices/registries/shapes"
    answer = azure.request("PUT", path, json={"location": "eastus2", "properties": {}})
    assert answer.status_code == 202 and answer.content == b""
    assert "/registryOperationsStatus/" in answer.headers["Azure-AsyncOperation"] and "Location" in answer.headers
    assert azure.request("GET", answer.headers["Azure-AsyncOperation"]).json()["percentComplete"] == 100.0
    assert azure.request("GET", path).json()["properties"]["discoveryUrl"].endswith("/registries/shapes/discovery")


def test_a_conda_file_is_kept_as_json_and_is_the_same_version_again(azure: LocalAzure, at: str) -> None:
    path, body = f"{at}/environments/shaped/versions/1", {"image": "ubuntu", "condaFile": "dependencies: [python=3.10]"}
    assert azure.request("PUT", path, json={"properties": body}).status_code == 200
    assert json.loads(azure.request("GET", path).json()["properties"]["condaFile"]) == {"dependencies": ["python=3.10"]}
    other = {**body, "condaFile": "dependencies: [python=3.11]"}
    assert azure.request("PUT", path, json={"properties": other}).status_code == 409


def test_a_job_is_tracked_in_its_workspace(azure: LocalAzure, at: str) -> None:
    services = azure.request("GET", f"{at}/jobs/before").json()["properties"]["services"]
    tracking = azure.request("GET", at).json()["properties"]["mlFlowTrackingUri"]
    assert services["Tracking"]["endpoint"] == f"{tracking}?"
    assert services["Studio"]["endpoint"].startswith("https://ml.azure.com/runs/before?wsid=/subscriptions/")


def test_a_clusters_nodes_come_and_go_with_its_jobs(azure: LocalAzure, at: str) -> None:
    def nodes() -> tuple[int, int]:
        inner = azure.request("GET", f"{at}/computes/cpu").json()["properties"]["properties"]
        return inner["currentNodeCount"], inner["nodeStateCounts"]["runningNodeCount"]

    job = submit(azure, at, "busy", "while [ ! -e outputs/go ]; do sleep 0.1; done")
    wait(azure, job, "Running")
    assert nodes() == (1, 1)
    azure.request("POST", f"{job}/cancel")
    wait(azure, job, "Canceled")
    assert nodes() == (0, 0)


def test_a_secret_of_a_datastore_is_a_signature_as_azure_writes_it(azure: LocalAzure, tmp_path: Path) -> None:
    other = azure.make_workspace("rg-shapes")
    body = azure.request("GET", other).json()
    properties = {**body["properties"], "systemDatastoresAuthMode": "AccessKey"}
    path = other.replace("mlw-", "mlwkeys-")
    azure.put(path, {"location": "eastus2", "identity": {"type": "SystemAssigned"}, "properties": properties})
    said = azure.request("POST", f"{path}/datastores/workspaceblobstore/listSecrets").json()
    assert said["secretsType"] == "Sas" and said["sasToken"].startswith("?sv=")
    assert [part.split("=")[0] for part in said["sasToken"][1:].split("&")] == ["sv", "sig", "se", "srt", "ss", "sp"]
    blob(azure, path, "a.txt", b"a")
    store = azure.request("GET", f"{path}/datastores/workspaceblobstore").json()["properties"]
    address = f"https://{store['accountName']}.blob.core.windows.net/{store['containerName']}/a.txt{said['sasToken']}"
    assert azure.request("GET", address, audience=None).content == b"a"


def test_an_endpoints_token_names_endpoint_and_caller(azure: LocalAzure, at: str, endpoint: Any) -> None:
    said = azure.request("POST", f"{at}/onlineEndpoints/ep-shapes/token").json()
    payload = said["accessToken"].split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    assert (claims["aud"], claims["endpointName"], claims["oid"]) == ("azureml", "ep-shapes", DEPLOYER_OBJECT_ID)
    assert said["tokenType"] == "Bearer" and said["refreshAfterTimeUtc"] < said["expiryTimeUtc"]
