"""MLflow by the workspace's tracking URI: azureml-mlflow inside a job and outside, plain MLflow on what is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.local_azure import LocalAzure, last_json
from tests.support.raw_jobs import submit, wait

IN_THE_JOB = """
import mlflow
with mlflow.start_run() as run:
    for step in range(3):
        mlflow.log_metric("loss", 3.0 - step, step=step)
    mlflow.log_params({"rate": 0.1, "long": "x" * 200})
    mlflow.set_tag("team", "phi")
    mlflow.log_text("hello", "deep/./note.txt")
    print("run", run.info.run_id)
try:
    mlflow.MlflowClient().create_logged_model("0")
except Exception as refused:
    print("logged models:", type(refused).__name__, str(refused)[:200])
"""

OUTSIDE = """
import json, sys
import mlflow, requests
from azure.ai.ml import MLClient
from azure.identity import DefaultAzureCredential
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
workspace = sys.argv[1].split("/")
ml = MLClient(DefaultAzureCredential(), workspace[2], workspace[4], workspace[8], enable_telemetry=False)
mlflow.set_tracking_uri(ml.workspaces.get(workspace[8]).mlflow_tracking_uri)
client = mlflow.MlflowClient()
run = client.get_run("tracked")
said = {"params": run.data.params, "metric": run.data.metrics["loss"], "status": run.info.status}
said["team"], said["name"] = run.data.tags["team"], run.info.run_name
said["history"] = [point.value for point in client.get_metric_history("tracked", "loss")]
said["experiment"] = client.get_experiment(run.info.experiment_id).name
said["artifacts"] = [found.path for found in mlflow.artifacts.list_artifacts(f"{run.info.artifact_uri}/deep")]
said["note"] = open(mlflow.artifacts.download_artifacts(f"{run.info.artifact_uri}/deep/note.txt")).read()
mlflow.set_experiment("by-hand")
with mlflow.start_run(run_name="laptop") as mine:
    mlflow.log_metrics({"a": 1.0, "b": 2.0})
    mlflow.log_dict({"k": 1}, "made.json")
found = client.search_runs([client.get_experiment_by_name("by-hand").experiment_id], "metrics.a > 0.5")
said["mine"] = [(one.info.run_name, one.info.status, one.data.metrics) for one in found]
said["made"] = get_artifact_repository(mine.info.artifact_uri).list_artifacts(None)[0].path
print(json.dumps(said))
"""

PLAIN = """
import json, sys, mlflow
client = mlflow.MlflowClient(sys.argv[1])
names = [found.name for found in client.search_experiments()]
print(json.dumps({"names": names, "metrics": client.get_run("tracked").data.metrics}))
"""


pytestmark = pytest.mark.slow  # MLflow's server and two clients start: 15 s of processor time


@pytest.fixture(scope="module")
def tracked(azure: LocalAzure, workspace: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a job's run looks like to azureml-mlflow afterwards."""
    folder = tmp_path_factory.mktemp("tracking")
    (folder / "outside.py").write_text(OUTSIDE)
    job = submit(azure, workspace, "tracked", f"python - <<'END'\n{IN_THE_JOB}\nEND", experimentName="trial")
    wait(azure, job, "Completed")
    done = azure.run(str(folder / "outside.py"), workspace)
    assert done.returncode == 0, done.stderr[-3000:]
    log = azure.run("-m", "emulator", "logs", "tracked").stdout
    return {**last_json(done.stdout), "log": log}


def test_a_job_logs_to_the_run_that_is_the_job(tracked: dict[str, Any]) -> None:
    assert "run tracked" in tracked["log"]
    assert (tracked["metric"], tracked["history"]) == (1.0, [3.0, 2.0, 1.0])
    assert tracked["params"] == {"rate": "0.1", "long": "x" * 200}
    assert (tracked["team"], tracked["name"], tracked["experiment"]) == ("phi", "tracked", "trial")


def test_the_run_ends_as_the_job_ends(tracked: dict[str, Any]) -> None:
    assert tracked["status"] == "FINISHED"


def test_artifacts_go_up_and_come_down_under_their_normal_names(tracked: dict[str, Any]) -> None:
    assert (tracked["artifacts"], tracked["note"]) == (["deep/note.txt"], "hello")


def test_logged_models_are_refused_as_azure_refuses_them(tracked: dict[str, Any]) -> None:
    assert "logged models: MlflowException" in tracked["log"] and "404" in tracked["log"]


def test_runs_can_be_begun_and_found_from_outside(tracked: dict[str, Any]) -> None:
    assert tracked["mine"] == [["laptop", "FINISHED", {"a": 1.0, "b": 2.0}]]
    assert tracked["made"] == "made.json"


def test_plain_mlflow_opens_the_store(azure: LocalAzure, tracked: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text(PLAIN)
    (store,) = (azure.home.path / "mlflow").glob("*/mlflow.db")
    found = last_json(azure.run(str(tmp_path / "plain.py"), f"sqlite:///{store}").stdout)
    assert {"trial", "by-hand"} <= set(found["names"]) and found["metrics"] == {"loss": 1.0}


def test_a_token_is_asked_for(azure: LocalAzure, workspace: str) -> None:
    address = f"https://eastus2.api.azureml.ms/mlflow/v2.0{workspace}/api/2.0/mlflow/runs/get?run_id=tracked"
    assert azure.request("GET", address, audience=None).status_code == 401
