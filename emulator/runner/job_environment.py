"""The environment variables that a job's processes find.

Azure ML's own: learn.microsoft.com/azure/machine-learning/how-to-train-distributed-gpu (ranks) and
.../how-to-use-mlflow-configure-tracking (MLflow); AZUREML_* are those that azureml-core's run context reads.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from emulator.arm.schema import ArmError, Body
from emulator.entra import Entra
from emulator.home import Home
from emulator.runner.process import base_environment, identity_environment
from emulator.state import State

TOKEN_LIFETIME = 14 * 24 * 3600  # seconds: a run's token outlives the longest job, since nothing here renews it


@dataclass(frozen=True)
class JobEnvironment:
    """Makes the variables of jobs; `inherited` is the environment in which the emulator was started."""

    home: Home
    state: State
    entra: Entra
    proxy_port: int
    admin_port: int
    inherited: Mapping[str, str]

    def of(self, job: Body, inputs: Mapping[str, str], outputs: Mapping[str, str], venv: Path | None) -> dict[str, str]:
        properties, identity = job["properties"], self._identity(job["properties"])
        env = {
            **base_environment(self.inherited, self.home, self.proxy_port),
            **identity_environment(self.state, self.admin_port, identity),
            **self._run(job, identity),
            "EMULATOR_VM_SIZE": self._size(job),
            **{f"AZURE_ML_INPUT_{key}": value for key, value in inputs.items()},
            **{f"AZURE_ML_OUTPUT_{key}": value for key, value in outputs.items()},
            **(properties.get("environmentVariables") or {}),
        }
        if venv is not None:
            env |= {"PATH": os.pathsep.join([str(venv / "bin"), env["PATH"]]), "VIRTUAL_ENV": str(venv)}
        return env

    def _run(self, job: Body, identity: Mapping[str, str] | None) -> dict[str, str]:
        name, experiment = job["name"], str(job["properties"].get("experimentName", "Default"))
        workspace = self.state.get("/".join(job["id"].split("/")[:9]))
        assert workspace is not None
        parts, token = workspace["id"].split("/"), self._token(name, identity)
        service = workspace["properties"]["discoveryUrl"].removesuffix("/discovery")
        number = experiment_id(workspace["id"], experiment)
        return {
            "AZUREML_RUN_ID": name,
            "AZUREML_ROOT_RUN_ID": str((self.state.record("run", job["id"]) or {}).get("rootRunId") or name),
            "AZUREML_RUN_TOKEN": token,
            "AZUREML_EXPERIMENT_NAME": experiment,
            "AZUREML_EXPERIMENT_ID": number,
            "AZUREML_ARM_PROJECT_NAME": experiment,
            "AZUREML_ARM_SUBSCRIPTION": parts[2],
            "AZUREML_ARM_RESOURCEGROUP": parts[4],
            "AZUREML_ARM_WORKSPACE_NAME": parts[8],
            "AZUREML_WORKSPACE_ID": workspace["properties"]["workspaceId"],
            "AZUREML_WORKSPACE_SCOPE": workspace["id"],
            "AZUREML_SERVICE_ENDPOINT": service,
            "AZUREML_DISCOVERY_SERVICE_ENDPOINT": workspace["properties"]["discoveryUrl"],
            "MLFLOW_TRACKING_URI": workspace["properties"]["mlFlowTrackingUri"],
            "MLFLOW_TRACKING_TOKEN": token,
            "MLFLOW_RUN_ID": name,
            "MLFLOW_EXPERIMENT_NAME": experiment,
            "MLFLOW_EXPERIMENT_ID": number,
        }

    def _size(self, job: Body) -> str:
        """The VM size that the node stands for, where Azure's nodes would ask their own metadata service."""
        compute = self.state.get(job["properties"]["computeId"]) or {"properties": {}}
        return str((compute["properties"].get("properties") or {}).get("vmSize", ""))

    def _token(self, run: str, identity: Mapping[str, str] | None) -> str:
        who = identity or {"client_id": run, "principal_id": run}
        ids = {"client_id": who["client_id"], "object_id": who["principal_id"]}
        return self.entra.issue("https://ml.azure.com", **ids, lifetime=TOKEN_LIFETIME)

    def _identity(self, properties: Body) -> dict[str, str] | None:
        """The job's managed identity: the one that it names, else the first one of its cluster.

        Raises ArmError 400, which fails the job, for one that its cluster does not have.
        """
        wanted = properties.get("identity") or {}
        which = str(wanted.get("clientId") or wanted.get("resourceId") or "")
        compute = (self.state.get(properties["computeId"]) or {}).get("identity") or {}
        for key, ids in (compute.get("userAssignedIdentities") or {}).items():
            if which.lower() in ("", key.lower(), ids["clientId"].lower()):
                return {"client_id": ids["clientId"], "principal_id": ids["principalId"]}
        if which:
            message = f"The managed identity '{which}' is not assigned to the compute of the job, so it has no token."
            raise ArmError(400, "IdentityNotFound", message)
        if compute.get("principalId"):
            return {"client_id": compute["principalId"], "principal_id": compute["principalId"]}
        return None


def experiment_id(workspace: str, experiment: str) -> str:
    """An experiment's number in MLflow's store: the same each time, so that a job knows it before MLflow runs."""
    return str(1 + zlib.crc32(f"{workspace.lower()}\0{experiment}".encode()) % (2**31 - 2))
