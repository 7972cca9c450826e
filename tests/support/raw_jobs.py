"""Jobs of an emulator as the REST API has them, for tests of what their processes see."""

from __future__ import annotations

import subprocess
import time
from typing import Any

from tests.support.local_azure import LocalAzure

STORAGE = "https://storage.azure.com"


def submit(azure: LocalAzure, workspace: str, name: str, command: str, **properties: object) -> str:
    """A command job on the cluster `cpu`; returns its ARM id."""
    asset = f"{workspace}/environments/base/versions/9"
    environment = azure.put(asset, {"properties": {"image": "ubuntu:22.04"}})["id"]
    wanted = {"jobType": "Command", "command": command, "environmentId": environment}
    body = {"properties": {**wanted, "computeId": f"{workspace}/computes/cpu", **properties}}
    azure.put(f"{workspace}/jobs/{name}", body)
    return f"{workspace}/jobs/{name}"


def wait(azure: LocalAzure, job: str, *states: str) -> dict[str, Any]:
    """The job's properties once it is in one of the states."""
    for _ in range(600):
        found: dict[str, Any] = azure.request("GET", job).json()["properties"]
        if found["status"] in states:
            return found
        if found["status"] in ("Completed", "Failed", "Canceled"):
            break
        time.sleep(0.1)
    raise AssertionError(f"{job} is {found['status']}: {error_of(azure, job)}\n{log(azure, job)}")


def error_of(azure: LocalAzure, job: str) -> str:
    """Why a job failed, as run history says it."""
    workspace, name = job.split("/jobs/")
    address = f"https://eastus2.api.azureml.ms/history/v1.0{workspace}/runs/{name}/details"
    error = azure.request("GET", address).json().get("error") or {}
    return str(error.get("error", {}).get("message", ""))


def log(azure: LocalAzure, job: str) -> str:
    done = azure.run("-m", "emulator", "logs", job.split("/")[-1])
    return done.stdout + done.stderr


def said(azure: LocalAzure, job: str) -> dict[str, str]:
    """What a job printed as `key=value`, by key."""
    lines = [line.partition("=") for line in log(azure, job).splitlines() if "=" in line]
    return {key: value for key, _, value in lines}


def blob(azure: LocalAzure, workspace: str, path: str, content: bytes | None = None) -> bytes | None:
    """Write, or read, a blob of the workspace's default datastore; None for one that is not there."""
    store = azure.request("GET", f"{workspace}/datastores/workspaceblobstore").json()["properties"]
    address = f"https://{store['accountName']}.blob.core.windows.net/{store['containerName']}/{path}"
    headers = {"x-ms-blob-type": "BlockBlob", "x-ms-version": "2025-01-05"}
    if content is None:
        answer = azure.request("GET", address, audience=STORAGE, headers=headers)
        return answer.content if answer.status_code == 200 else None
    assert azure.request("PUT", address, audience=STORAGE, headers=headers, data=content).status_code == 201
    return content


def emulator(azure: LocalAzure, *words: str) -> subprocess.CompletedProcess[str]:
    return azure.run("-m", "emulator", *words)
