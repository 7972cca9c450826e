"""A stack's outputs, data and a client for tests that submit jobs to the emulator from within this process."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emulator.home import Home, client_environment
from infra.outputs import StackOutputs
from tests.support.local_azure import LocalAzure
from tests.support.small import chat, write_jsonl
from training.dataset import file_hash
from training.submission import Submission

SOURCE = "training/data/first-questions.jsonl"
GPU_SIZE = "Standard_NC24ads_A100_v4"
GOOD_METRICS = {"approved": True, "reason": "better", "eval_loss": 1.5, "eval_loss_before": 2.5}
SUCCEEDS = (
    f"echo '{json.dumps(GOOD_METRICS)}' > ${{{{outputs.report}}}}/metrics.json && "
    "echo '{}' > ${{outputs.model}}/config.json && ls ${{inputs.data}} && echo done"
)


def make_outputs(workspace: str, **changes: str) -> StackOutputs:
    """The outputs of a stack around a workspace of `LocalAzure.make_workspace`, with the clusters gpu and cpu.

    Inside an emulator's environment the training identity is the one that the clusters have.
    """
    parts = workspace.split("/")
    values = dict.fromkeys(StackOutputs.__dataclass_fields__, "x")
    values |= {"stack": "local-x", "subscription_id": parts[2], "resource_group": parts[4], "workspace": parts[8]}
    values |= {"workspace_id": workspace, "location": "eastus2", "compute": "gpu", "cpu_compute": "cpu"}
    if "EMULATOR_HOME" in os.environ and (record := Home.default().running()):
        held = _identities(LocalAzure(Home.default(), client_environment(Home.default(), record["port"])), workspace)
        values |= {"training_identity_client_id": next((one["clientId"] for one in held.values()), "x")}
    return StackOutputs(**{**values, **changes})


def _identities(azure: LocalAzure, workspace: str) -> dict[str, dict[str, str]]:
    """The identities of the cluster `cpu`, by their ids."""
    found = azure.request("GET", f"{workspace}/computes/cpu").json()
    return dict(found.get("identity", {}).get("userAssignedIdentities", {}))


def make_gpu_cluster(azure: LocalAzure, workspace: str, name: str = "gpu", size: str = GPU_SIZE, **more: Any) -> None:
    scale = {"minNodeCount": 0, "maxNodeCount": 2}
    inner = {"vmSize": size, "vmPriority": "Dedicated", "scaleSettings": scale, **more}
    used = {"type": "UserAssigned", "userAssignedIdentities": {key: {} for key in _identities(azure, workspace)}}
    properties = {"computeType": "AmlCompute", "properties": inner}
    body = {"location": "eastus2", "identity": used, "properties": properties}
    azure.put(f"{workspace}/computes/{name}", body)


def make_data(folder: Path, source: str = SOURCE) -> Path:
    """A data folder with two files, their card and something that looks like a base model."""
    (folder / "base-model").mkdir(parents=True)
    (folder / "base-model" / "config.json").write_text('{"max_position_embeddings": 512}')
    for name in ("train.jsonl", "eval.jsonl"):
        write_jsonl(folder / name, [chat(f"Hello {folder}!", "Hello!")])
    hashes = {name: file_hash(folder / name) for name in ("train.jsonl", "eval.jsonl")}
    (folder / "card.json").write_text(json.dumps({"source": source, "hashes": hashes}))
    return folder


def with_command(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    """Let the jobs that are submitted run this instead of a training."""
    monkeypatch.setattr(Submission, "command", lambda self, cluster: command)


Submit = Callable[..., int]
