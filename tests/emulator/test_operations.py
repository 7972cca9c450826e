"""What azure-ai-ml asks of a workspace besides jobs and endpoints, answered as Azure answers it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.local_azure import LocalAzure, last_json
from tests.support.raw_jobs import submit, wait

OPERATIONS = """
import json, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from azure.ai.ml import MLClient, load_component
from azure.ai.ml.entities import (
    AmlCompute, Data, Environment, Model, ApiKeyConfiguration, Registry, RegistryRegionDetails, WorkspaceConnection
)
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
from azure.identity import DefaultAzureCredential

folder, workspace = Path(sys.argv[1]), sys.argv[2].split("/")
ml = MLClient(DefaultAzureCredential(), workspace[2], workspace[4], workspace[8])
said = {}

def refused(call):
    try:
        call()
    except (HttpResponseError, Exception) as error:
        return [type(error).__name__, getattr(error, "status_code", None), str(error)[:300]]

# data: versions, labels, archive, download
rows = folder / "rows"
rows.mkdir()
(rows / "a.txt").write_text("first")
one = ml.data.create_or_update(Data(name="rows", path=str(rows), type="uri_folder"))
(rows / "a.txt").write_text("second")
two = ml.data.create_or_update(Data(name="rows", path=str(rows), type="uri_folder", description="second"))
said["data"] = [one.version, two.version, ml.data.get("rows", label="latest").version]
said["data_list"] = sorted(found.version for found in ml.data.list("rows"))
ml.data.archive("rows", version="1")
said["data_active"] = [found.version for found in ml.data.list("rows")]
ml.data.restore("rows", version="1")
said["data_restored"] = sorted(found.version for found in ml.data.list("rows"))
said["data_missing"] = refused(lambda: ml.data.get("rows", version="9"))
said["data_immutable"] = refused(
    lambda: ml.data.create_or_update(Data(name="rows", version="1", path=str(folder / "ops.py"), type="uri_file"))
)

# environments and components
conda = folder / "conda.yml"
conda.write_text("dependencies: [python=3.10, pip]\\n")
first = ml.environments.create_or_update(Environment(name="env", image="ubuntu:22.04", conda_file=conda))
again = ml.environments.create_or_update(Environment(name="env", image="ubuntu:22.04", conda_file=conda))
other = ml.environments.create_or_update(Environment(name="env", image="ubuntu:24.04"))
said["environments"] = [first.version, again.version, other.version, ml.environments.get("env", label="latest").image]
part = folder / "part.yml"
part.write_text("type: command\\nname: part\\nversion: '1'\\ncommand: echo hi\\nenvironment: azureml:env:1\\n")
made = ml.components.create_or_update(load_component(part))
said["component"] = [made.name, made.version, ml.components.get("part", version="1").command]

# models: archive, download, share with a registry
model = folder / "model"
model.mkdir()
(model / "config.json").write_text("{}")
for number in (1, 2):
    ml.models.create_or_update(Model(name="m", path=str(model), type="custom_model", tags={"n": str(number)}))
said["models"] = [ml.models.get("m", label="latest").version, [found.version for found in ml.models.list("m")]]
ml.models.archive("m", version="1")
said["models_active"] = [found.version for found in ml.models.list("m")]
ml.models.download("m", version="2", download_path=folder / "down")
said["downloaded"] = sorted(str(path.relative_to(folder / "down")) for path in (folder / "down").rglob("*.json"))
ml.registries.begin_create(
    Registry(name="shelf", location="eastus2", replication_locations=[RegistryRegionDetails(location="eastus2")])
).result()
shared = ml.models.share("m", "2", share_with_name="m", share_with_version="7", registry_name="shelf")
said["shared"] = shared.id
said["shared_again"] = refused(
    lambda: ml.models.share("m", "2", share_with_name="m", share_with_version="7", registry_name="shelf")
)
shelf = MLClient(DefaultAzureCredential(), registry_name="shelf")
said["registry"] = [shelf.models.get("m", label="latest").version, shelf.models.get("m", version="7").tags]
shelf.models.download("m", version="7", download_path=folder / "from-shelf")
said["from_shelf"] = sorted(path.name for path in (folder / "from-shelf").rglob("*.json"))

# computes, sizes, quota, workspaces, datastores, connections
ml.compute.begin_create_or_update(AmlCompute(name="small", size="Standard_DS3_v2", max_instances=1)).result()
ml.compute.begin_create_or_update(AmlCompute(name="small", size="Standard_DS3_v2", max_instances=3)).result()
said["scaled"] = ml.compute.get("small").max_instances
said["computes"] = sorted(found.name for found in ml.compute.list())
ml.compute.begin_delete("small").result()
said["gone"] = refused(lambda: ml.compute.get("small"))
said["gpus"] = {size.name: size.gpus for size in ml.compute.list_sizes() if "A100" in size.name}
said["usage"] = [found.limit for found in ml.compute.list_usage() if "NCADSA100v4" in str(found.name)]
said["workspaces"] = [found.name for found in ml.workspaces.list()]
said["keys"] = bool(ml.workspaces.get_keys(workspace[8]).user_storage_key)
ml.connections.create_or_update(
    WorkspaceConnection(
        name="hub", type="custom", target="https://feed.example",
        credentials=ApiKeyConfiguration(key="a secret token"),
    )
)
said["connections"] = [[found.name, found.target] for found in ml.connections.list()]
said["secret_shown"] = "a secret token" in str(ml.connections.get("hub").credentials)
said["secret"] = ml.connections.get("hub", populate_secrets=True).credentials.key
ml.connections.delete("hub")
said["connections_left"] = [found.name for found in ml.connections.list()]
said["datastores"] = sorted(found.name for found in ml.datastores.list())
said["default"] = ml.datastores.get_default().name

# a job's tags, archive, downloads
job = ml.jobs.get("done")
job.tags["seen"] = "yes"
said["tags"] = ml.jobs.create_or_update(job).tags
said["children"] = [found.name for found in ml.jobs.list(parent_job_name="done")]
ml.jobs.archive("done")
said["active"] = "done" in [found.name for found in ml.jobs.list()]
ml.jobs.restore("done")
said["restored"] = "done" in [found.name for found in ml.jobs.list()]
ml.jobs.download("done", all=True, download_path=folder / "job")
said["job_files"] = sorted(str(path.relative_to(folder / "job")) for path in (folder / "job").rglob("*.txt"))
print("\\n" + json.dumps(said))
"""


def run_operations(azure: LocalAzure, workspace: str, folder: Path, python: str = sys.executable) -> dict[str, Any]:
    outputs = {"made": {"jobOutputType": "uri_folder", "mode": "ReadWriteMount"}}
    command = "mkdir outputs && echo default > outputs/d.txt && echo named > ${{outputs.made}}/n.txt"
    wait(azure, submit(azure, workspace, "done", command, outputs=outputs), "Completed")
    (folder / "ops.py").write_text(OPERATIONS)
    done = azure.run(str(folder / "ops.py"), str(folder), workspace, python=python)
    assert done.returncode == 0, done.stderr[-3000:]
    return last_json(done.stdout)


@pytest.fixture(scope="module")
def said(azure: LocalAzure, workspace: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the SDK of this environment was answered, in one process of its own."""
    return run_operations(azure, workspace, tmp_path_factory.mktemp("operations"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("release", "named_output"),
    [("1.16.0", True), ("1.35.2", False)],  # 1.33 and later leave out folders when all outputs are downloaded
)
def test_other_releases_of_the_sdk_are_answered_alike(
    said: dict[str, Any], tmp_path: Path, release: str, named_output: bool
) -> None:
    uv, python = [sys.executable, "-m", "uv"], tmp_path / "venv" / "bin" / "python"
    needs = ["azure-identity", "marshmallow<3.24", "six", "msrest", "setuptools<81"]
    subprocess.run([*uv, "venv", "-q", "--python", sys.executable, str(tmp_path / "venv")], check=True)
    install = [*uv, "pip", "install", "-q", "--python", str(python), f"azure-ai-ml=={release}", *needs]
    subprocess.run(install, check=True)
    azure = LocalAzure.start(tmp_path / "azure")
    try:
        found = run_operations(azure, azure.make_workspace(), tmp_path, str(python))
    finally:
        azure.stop()
    files = found.pop("job_files")
    assert ("named-outputs/made/n.txt" in files) == named_output and "artifacts/outputs/d.txt" in files
    # 1.16 gives an environment a new version each time; the others differ in their words
    for key in found.keys() - {"data_immutable", "shared_again", "computes", "environments"}:
        assert found[key] == said[key], key


def test_versions_count_up_and_latest_is_the_newest(said: dict[str, Any]) -> None:
    assert said["data"] == ["1", "2", "2"] and said["data_list"] == ["1", "2"]
    assert said["models"] == ["2", ["1", "2"]]
    assert said["environments"] == ["1", "1", "2", "ubuntu:24.04"]
    assert said["component"] == ["part", "1", "echo hi"]


def test_an_archived_version_is_not_listed_until_it_is_restored(said: dict[str, Any]) -> None:
    assert said["data_active"] == ["2"] and said["data_restored"] == ["1", "2"]
    assert said["models_active"] == ["2"]


def test_a_version_that_is_not_there_is_404_and_one_that_is_does_not_change(said: dict[str, Any]) -> None:
    assert said["data_missing"][:2] == ["ResourceNotFoundError", 404]
    assert said["data_immutable"] is not None


def test_a_model_comes_down_below_its_leaf_folder(said: dict[str, Any]) -> None:
    assert said["downloaded"] == ["m/model/config.json"]


def test_a_model_is_shared_with_a_registry_once_and_comes_down_from_there(said: dict[str, Any]) -> None:
    assert said["shared"] == "azureml://registries/shelf/models/m/versions/7"
    assert "already exists" in said["shared_again"][2]
    assert said["registry"] == ["7", {"n": "2"}] and said["from_shelf"] == ["config.json"]


def test_a_version_that_the_registry_has_is_not_overwritten_by_whoever_does_not_look_first(
    azure: LocalAzure, workspace: str, said: dict[str, Any]
) -> None:
    guid = azure.request("GET", workspace).json()["properties"]["workspaceId"]
    source = f"azureml://locations/eastus2/workspaces/{guid}/models/m/versions/2"
    registry = workspace.replace("/workspaces/mlw-rg-test", "/registries/shelf")
    address = f"https://eastus2.api.azureml.ms/mferp/managementfrontend{registry}/import"
    wanted = {"destinationName": "m", "destinationVersion": "7", "sourceAssetId": source}
    assert azure.request("POST", address, json={"properties": wanted}).status_code == 409
    unknown = {**wanted, "destinationVersion": "8", "sourceAssetId": source.replace(guid, "elsewhere")}
    assert azure.request("POST", address, json={"properties": unknown}).status_code == 404


def test_clusters_are_scaled_listed_and_deleted_and_sizes_have_their_gpus(said: dict[str, Any]) -> None:
    assert said["scaled"] == 3 and "small" in said["computes"] and said["gone"][1] == 404
    assert said["gpus"]["Standard_NC24ads_A100_v4"] == 1 and said["usage"] == [200]


def test_workspaces_and_datastores_are_listed(said: dict[str, Any]) -> None:
    assert "mlw-rg-test" in said["workspaces"] and said["default"] == "workspaceblobstore"
    assert said["datastores"] == ["workspaceartifactstore", "workspaceblobstore"]
    assert said["keys"] is True


def test_a_connection_tells_its_credentials_only_where_secrets_are_asked_for(said: dict[str, Any]) -> None:
    assert said["connections"] == [["hub", "https://feed.example"]] and said["connections_left"] == []
    assert (said["secret_shown"], said["secret"]) == (False, "a secret token")


def test_a_finished_job_takes_tags_hides_and_gives_its_files(said: dict[str, Any]) -> None:
    assert said["tags"] == {"seen": "yes"} and said["children"] == []
    assert (said["active"], said["restored"]) == (False, True)
    assert {"named-outputs/made/n.txt", "artifacts/outputs/d.txt"} <= set(said["job_files"])
    assert "artifacts/user_logs/std_log.txt" in said["job_files"]
