"""What Azure answers besides what it was sent: the members that every resource has, with the values that nobody set.

Seen in the HTTP recordings of azure-ai-ml's own tests (Azure/azure-sdk-assets, python/sdk/ml/azure-ai-ml), and held
against them member by member.
"""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from emulator.arm.schema import Body

ASSET: Body = {"description": None, "tags": {}, "properties": {}, "isArchived": False, "isAnonymous": False}
CONTAINER: Body = {"description": None, "tags": {}, "properties": {}, "isArchived": False}
_GROWN = {"autoDeleteSetting": None, "stage": "Development", "intellectualProperty": None}
VERSIONS: dict[str, Body] = {
    "environments": {**_GROWN, "environmentType": "UserCreated", "osType": "Linux", "autoRebuild": "Disabled"},
    "models": {**_GROWN, "flavors": {}, "jobName": None},
    "components": {"autoDeleteSetting": None, "stage": "Development"},
}
DATASTORE = {"description": None, "tags": None, "properties": None}
WORKSPACE: Body = {
    "description": "",
    "hbiWorkspace": False,
    "imageBuildCompute": None,
    "containerRegistry": None,
    "v1LegacyMode": False,
    "publicNetworkAccess": "Enabled",
    "serverlessComputeSettings": None,
    "enableDataIsolation": False,
    "enableServiceSideCMKEncryption": False,
    "managedNetwork": {"isolationMode": "Disabled", "enableNetworkMonitor": False},
}
COMPUTE: Body = {
    "description": None,
    "disableLocalAuth": False,
    "resourceId": None,
    "provisioningErrors": None,
    "provisioningWarnings": {},
    "isAttachedCompute": False,
}
CLUSTER: Body = {
    "vmPriority": "Dedicated",
    "subnet": None,
    "errors": None,
    "remoteLoginPortPublicAccess": "NotSpecified",
    "osType": "Linux",
    "virtualMachineImage": None,
    "isolatedNetwork": False,
    "enableNodePublicIp": True,
    "enableBatchPrivateLink": False,
    "propertyBag": {},
}
ENDPOINT: Body = {"description": None, "compute": None, "mirrorTraffic": {}, "publicNetworkAccess": "Enabled"}
DEPLOYMENT: Body = {
    "description": None,
    "environmentVariables": {},
    "modelMountPath": None,
    "appInsightsEnabled": False,
    "egressPublicNetworkAccess": "Enabled",
}
JOB: Body = {
    "description": None,
    "parentJobName": None,
    "isArchived": False,
    "identity": None,
    "componentId": None,
    "notificationSetting": None,
}
COMMAND: Body = {
    "codeId": None,
    "inputs": {},
    "distribution": None,
    "limits": None,
    "environmentVariables": {},
    "parameters": {},
    "queueSettings": {"jobTier": "Null"},
}
RESOURCES = {"instanceCount": 1, "instanceType": None, "properties": None, "shmSize": "2g", "dockerArgs": None}
OWN_PLACE = re.compile(r"azureml://datastores/workspaceblobstore/paths/azureml/[^/]+/[^/]+/?$")
SERVICE = {"port": None, "status": None, "errorMessage": None, "properties": None, "nodes": None}


def filled(members: Body, given: Body) -> Body:
    """`given` with the members that it does not say; null is how clients write "not said"."""
    return {**members, **{key: value for key, value in given.items() if value is not None or key not in members}}


def version(kind: str, properties: Body) -> Body:
    """A version of an asset as it is answered: `kind` is its collection, such as `models`."""
    whole = filled({**ASSET, **VERSIONS.get(kind, {})}, properties)
    if kind == "environments" and whole.get("condaFile"):
        whole["condaFile"] = conda(str(whole["condaFile"]))
    if kind == "models":
        whole["jobName"] = whole["jobName"] or _job_of(str(whole.get("modelUri")))
    if kind != "data":  # the one asset without it
        whole["provisioningState"] = "Succeeded"
    return whole


def conda(text: str) -> str:
    """A conda file is kept as JSON; one that cannot be read stays, and fails when its image is built."""
    try:
        return json.dumps(yaml.safe_load(text), indent=2)
    except (yaml.YAMLError, TypeError):
        return text


def _job_of(uri: str) -> str | None:
    """The job that wrote what lies at an address."""
    found = re.search(r"azureml://jobs/([^/]+)/|/ExperimentRun/dcid\.([^/]+)/|/paths/azureml/([^/]+)/", uri)
    return next(filter(None, found.groups()), None) if found else None


def job(body: Body, workspace: Body) -> Body:
    """A job as it is answered; of a command also where it runs. `workspace` is what ARM answers of its workspace."""
    properties: Body = filled(JOB, body["properties"])
    properties["services"] = {
        name: {"jobServiceType": name, **SERVICE, **more} for name, more in _services(body, workspace)
    }
    if properties.get("jobType") == "Command":
        properties = filled(COMMAND, properties)
        where = {
            "_azureml.ComputeTargetType": "amlctrain",
            "_azureml.ClusterName": str(properties.get("computeId")).split("/")[-1],
        }
        properties["properties"] = {**(properties.get("properties") or {}), **where}
        properties["resources"] = filled(RESOURCES, properties.get("resources") or {})
    if properties.get("jobType") == "Pipeline":
        properties["properties"] = {**(properties.get("properties") or {}), **_pipeline(properties)}
    outputs = properties.get("outputs") or {}
    described: dict[str, Any] = {"description": None, "assetName": None}
    properties["outputs"] = {name: {**described, **(output or {})} for name, output in outputs.items()}
    return {**body, "properties": properties}


def _pipeline(properties: Body) -> dict[str, str]:
    """What the service writes into a pipeline's properties."""
    settings = properties.get("settings") or {}
    return {
        "azureml.DevPlatv2": "true",
        "azureml.runsource": "azureml.PipelineRun",
        "runSource": "MFE",
        "runType": "HTTP",
        "azureml.parameters": "{}",
        "azureml.continue_on_step_failure": str(settings.get("continue_on_step_failure") is not False),
        "azureml.enforceRerun": str(bool(settings.get("force_rerun"))),
        "azureml.defaultDataStoreName": "workspaceblobstore",
        "azureml.pipelineComponent": "pipelinerun",
    }


def shown(job: Body) -> Body:
    """A job as ARM shows it: of a pipeline's outputs only where the client put them, not where they lie by default."""
    if job["properties"].get("jobType") != "Pipeline":
        return job
    outputs = job["properties"].get("outputs") or {}
    hidden = {name: {**one, "uri": None} for name, one in outputs.items() if OWN_PLACE.match(str(one.get("uri")))}
    return {**job, "properties": {**job["properties"], "outputs": {**outputs, **hidden}}}


def _services(body: Body, workspace: Body) -> list[tuple[str, Body]]:
    _, _, subscription, _, group, *_, name = workspace["id"].split("/")
    studio = f"/subscriptions/{subscription}/resourcegroups/{group}/workspaces/{name}"
    return [
        ("Tracking", {"endpoint": f"{workspace['properties']['mlFlowTrackingUri']}?"}),
        ("Studio", {"endpoint": f"https://ml.azure.com/runs/{body['name']}?wsid={studio}"}),
    ]
