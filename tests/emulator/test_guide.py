"""Microsoft's fine-tuning guide for Phi-3, its files unmodified, from the data set to an answer of the deployed model.

The files are a reader's own copy, in the folder that GUIDE names: this repository has none of them. Only what the guide
asks the reader to fill in is filled in. Its pins are built twice: for the reader's machine and for the job.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.local_azure import LocalAzure

GUIDE = Path(os.environ.get("GUIDE", ""))
FILES = ("config.py", "download_dataset.py", "conda.yml", "finetuning_dir/fine_tune.py", "setup_ml.py")
READER = ("azure-ai-ml==1.16", "azure-identity==1.17.1", "datasets==2.21.0", "requests", "setuptools<81")
# what the guide's pins leave open, and has changed since
CONSTRAINTS = "marshmallow<3.24\nsetuptools<81\ntyro<1\nhuggingface-hub<0.26\nfsspec<=2024.6.1\n"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("GUIDE") or not all((GUIDE / name).is_file() for name in FILES),
        reason="GUIDE does not name a folder with the guide's files; `make guide GUIDE=FOLDER`",
    ),
]


class Reader:
    """Somebody who types the guide's commands, in a folder with its files."""

    def __init__(self, azure: LocalAzure, workspace: str, folder: Path, python: Path) -> None:
        self.azure, self.workspace, self.folder, self.python = azure, workspace, folder, python
        identity = f"id-{workspace.split('/')[4]}"
        self.identity = workspace.split("/providers/")[0] + (
            f"/providers/Microsoft.ManagedIdentity/userAssignedIdentities/{identity}"
        )
        ids = azure.request("GET", self.identity).json()["properties"]
        self.client_id, self.principal_id = ids["clientId"], ids["principalId"]

    def fill_in(self, name: str, **values: str) -> None:
        """Replace what stands between quotes after `KEY =`, and only there."""
        path = self.folder / name
        text = path.read_text()
        for key, value in values.items():
            text, count = re.subn(rf'^({key} = )"[^"]*"', rf'\g<1>"{value}"', text, flags=re.MULTILINE)
            assert count == 1, f"{name} has no {key} to fill in"
        path.write_text(text)

    def types(self, script: str, timeout: float = 1200) -> str:
        done = self.azure.run(script, timeout=timeout, python=str(self.python), cwd=str(self.folder))
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        return done.stdout + done.stderr

    def grants(self) -> None:
        """The three roles that the guide has the reader assign to the managed identity."""
        group = self.workspace.split("/providers/")[0]
        roles = (
            "b24988ac-6180-42a0-ab88-20f7382dd24c",
            "2a2b9908-6ea1-4ae2-8e65-a410df84e7d1",
            "7f951dda-4ed3-4680-a7ca-43fe172d538d",
        )
        definitions = f"/subscriptions/{group.split('/')[2]}/providers/Microsoft.Authorization/roleDefinitions"
        for number, role in enumerate(roles):
            name = f"00000000-0000-4000-8000-00000000000{number}"
            wanted = {"principalId": self.principal_id, "principalType": "ServicePrincipal"}
            body = {"properties": {**wanted, "roleDefinitionId": f"{definitions}/{role}"}}
            self.azure.put(f"{group}/providers/Microsoft.Authorization/roleAssignments/{name}", body)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    home = tmp_path_factory.mktemp("guide")
    constraints = home / "constraints.txt"
    constraints.write_text(CONSTRAINTS)
    patch = pytest.MonkeyPatch()
    patch.setenv("EMULATOR_ENVIRONMENTS", "build")
    patch.setenv("UV_CONSTRAINT", str(constraints))
    patch.setenv("OMP_NUM_THREADS", "1")
    azure = LocalAzure.start(home / "azure", hub=True)
    folder = home / "work"
    shutil.copytree(GUIDE, folder)
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "-q", "--python", sys.executable, str(home / "venv")], check=True)
    python = home / "venv" / "bin" / "python"
    subprocess.run([*uv, "pip", "install", "-q", "--python", str(python), *READER], check=True)
    yield Reader(azure, azure.make_workspace("rg-guide"), folder, python)
    azure.stop()
    patch.undo()


@pytest.fixture(scope="module")
def job(reader: Reader) -> str:
    """The guide up to its fine-tuning job; the job's name, as the guide's script prints it."""
    parts = reader.workspace.split("/")
    reader.fill_in(
        "config.py",
        AZURE_SUBSCRIPTION_ID=parts[2],
        AZURE_RESOURCE_GROUP_NAME=parts[4],
        AZURE_ML_WORKSPACE_NAME=parts[8],
        AZURE_MANAGED_IDENTITY_CLIENT_ID=reader.client_id,
        AZURE_MANAGED_IDENTITY_NAME=reader.identity.split("/")[-1],
        AZURE_MODEL_NAME="finetune-phi-model",
        AZURE_ENDPOINT_NAME="finetune-phi-endpoint",
        AZURE_DEPLOYMENT_NAME="finetune-phi-deployment",
    )
    reader.grants()
    assert "Train dataset size: 16" in reader.types("download_dataset.py")
    said = reader.types("setup_ml.py")
    return re.findall(r"Job name: (\S+)", said)[-1]


def test_the_guides_job_runs_with_the_guides_pins_and_logs_its_model(reader: Reader, job: str) -> None:
    found = reader.azure.request("GET", f"{reader.workspace}/jobs/{job}").json()["properties"]
    assert found["status"] == "Completed"
    from emulator.state import State

    state = State(reader.azure.home.database)
    account = state.of_type("Microsoft.Storage/storageAccounts")[0]["name"]
    names = [row[0] for row in state.list_blobs(account, "azureml", f"ExperimentRun/dcid.{job}/model_output/")]
    state.close()
    assert any(name.endswith("model_output/MLmodel") for name in names), names


def test_the_guides_model_is_deployed_without_code_and_answers(reader: Reader, job: str) -> None:
    reader.fill_in("deploy_model.py", JOB_NAME=job)
    said = reader.types("deploy_model.py")
    assert "Failed to create" not in said, said[-4000:]
    endpoint = f"{reader.workspace}/onlineEndpoints/finetune-phi-endpoint"
    address = reader.azure.request("GET", endpoint).json()["properties"]["scoringUri"]
    key = reader.azure.request("POST", f"{endpoint}/listKeys").json()["primaryKey"]
    reader.fill_in("config.py", AZURE_ML_API_KEY=key, AZURE_ML_ENDPOINT=address)
    code = "from promptflow.client import PFClient; print(PFClient().test('.')['answer'])"
    done = reader.azure.run("-c", code, cwd=str(reader.folder), timeout=300)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert done.stdout.strip().splitlines()[-1], "the flow answered nothing"
    asked = reader.azure.run("-m", "emulator", "requests", "--match", "inference.ml.azure.com/score").stdout
    assert " POST   200 " in asked
