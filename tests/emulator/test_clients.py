"""Microsoft's own clients, unmodified, against the emulator: what they submit really runs and really serves."""

from __future__ import annotations

import pytest

from tests.support.local_azure import LocalAzure, last_json

MAIN = """
import os, sys, time
try:
    import infra
    print("sees the checkout")
except ImportError:
    print("sees the snapshot alone")
from azure.identity import ManagedIdentityCredential
identity = ManagedIdentityCredential(client_id=os.environ["DEFAULT_IDENTITY_CLIENT_ID"])
token = identity.get_token("https://storage.azure.com/.default")
print("has a token", len(token.token) > 100, "and a secret", "AZURE_CLIENT_SECRET" in os.environ)
with open(sys.argv[2] + "/out.txt", "w") as out:
    out.write(open(sys.argv[1]).read() * int(sys.argv[3]))
"""

SERVER = """
import http.server, json, os
if "CRASH" in os.environ:
    raise SystemExit("there is no model")
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, body):
        self.send_response(200); self.end_headers(); self.wfile.write(json.dumps(body).encode())
    def do_GET(self): self.answer("ok")
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.answer({"asked": asked, "model": os.listdir(os.environ["AZUREML_MODEL_DIR"]), "path": self.path})
http.server.HTTPServer((os.environ["HOST"], int(os.environ["PORT"])), Handler).serve_forever()
"""

DOCKERFILE = """
FROM python:3.11-slim
RUN pip install nothing
WORKDIR /app
COPY server.py ./
ENV HOST=0.0.0.0 \\
    PORT=5001
CMD ["python", "server.py"]
"""

LOOP = """
import json, os, sys
from pathlib import Path
import requests
from azure.ai.ml import Input, MLClient, Output, command
from azure.ai.ml.entities import BuildContext, Environment, ManagedOnlineDeployment, ManagedOnlineEndpoint, Model
from azure.core.exceptions import HttpResponseError
from azure.identity import DefaultAzureCredential

folder, workspace = Path(sys.argv[1]), sys.argv[2].split("/")
ml = MLClient(DefaultAzureCredential(), workspace[2], workspace[4], workspace[8], enable_telemetry=False)
said = {}
job = command(
    code=str(folder / "code"),
    command="python main.py ${{inputs.rows}} ${{outputs.model}} ${{inputs.times}}",
    environment=Environment(name="base", image="ubuntu:22.04"),
    compute="cpu",
    inputs={"rows": Input(type="uri_file", path=str(folder / "rows.txt")), "times": 2},
    outputs={"model": Output(type="uri_folder", mode="rw_mount")},
)
job = ml.jobs.create_or_update(job)
ml.jobs.stream(job.name)
said["job"] = job.name
said["status"] = ml.jobs.get(job.name).status
ml.jobs.download(job.name, output_name="model", download_path=folder / "downloaded")
said["output"] = (folder / "downloaded/named-outputs/model/out.txt").read_text()
output = f"azureml://jobs/{job.name}/outputs/model"
from_job = lambda: Model(path=output, name="of-a-job", type="custom_model", tags={"a": "b"})
first, second = ml.models.create_or_update(from_job()), ml.models.create_or_update(from_job())
said["versions"] = [first.version, second.version]
said["model_path"] = second.path
route = lambda path: {"port": 5001, "path": path}
environment = ml.environments.create_or_update(Environment(
    name="server", build=BuildContext(path=str(folder / "context")),
    inference_config={
        "liveness_route": route("/h"), "readiness_route": route("/h"), "scoring_route": route("/score")
    },
))
wanted = ManagedOnlineEndpoint(name="ep-clients", auth_mode="key")
endpoint = ml.online_endpoints.begin_create_or_update(wanted).result()

def deploy(name, **more):
    return ml.online_deployments.begin_create_or_update(ManagedOnlineDeployment(
        name=name, endpoint_name="ep-clients", model=second.id, environment=environment.id,
        instance_type="Standard_F4s_v2", instance_count=1, **more)).result()

said["deployment"] = deploy("blue").provisioning_state
endpoint = ml.online_endpoints.get("ep-clients")
endpoint.traffic = {"blue": 100}
ml.online_endpoints.begin_create_or_update(endpoint).result()
key = ml.online_endpoints.get_keys("ep-clients").primary_key
ask = lambda key: requests.post(endpoint.scoring_uri, json={"q": 1}, headers={"Authorization": f"Bearer {key}"})
said["answer"], said["wrong_key"] = ask(key).json(), ask("wrong").status_code
said["log"] = ml.online_deployments.get_logs("blue", "ep-clients", lines=50)
try:
    deploy("green", environment_variables={"CRASH": "1"})
except HttpResponseError as error:
    said["green"] = str(error)
said["green_state"] = ml.online_deployments.get("green", "ep-clients").provisioning_state
said["still"] = ask(key).status_code
ml.online_endpoints.begin_delete("ep-clients").result()
said["endpoints"] = [found.name for found in ml.online_endpoints.list()]
print("\\n" + json.dumps(said))
"""


@pytest.fixture(scope="module")
def said(azure: LocalAzure, workspace: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What the real SDK saw on the way from a job to a served model, in one process of its own."""
    folder = tmp_path_factory.mktemp("client")
    (folder / "code").mkdir()
    (folder / "code" / "main.py").write_text(MAIN)
    (folder / "rows.txt").write_text("row\n")
    (folder / "context").mkdir()
    (folder / "context" / "Dockerfile").write_text(DOCKERFILE)
    (folder / "context" / "server.py").write_text(SERVER)
    (folder / "loop.py").write_text(LOOP)
    done = azure.run(str(folder / "loop.py"), str(folder), workspace)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, object] = last_json(done.stdout)
    return {**found, "job_log": azure.run("-m", "emulator", "logs", str(found["job"])).stdout}


def test_a_job_really_runs_and_its_output_is_downloaded(said: dict[str, object]) -> None:
    assert said["status"] == "Completed"
    assert said["output"] == "row\nrow\n"


def test_a_job_sees_its_snapshot_and_a_managed_identity_but_no_secret(said: dict[str, object]) -> None:
    assert "sees the snapshot alone" in str(said["job_log"])
    assert "has a token True and a secret False" in str(said["job_log"])


def test_a_model_from_a_job_gets_the_next_version_and_an_absolute_path(said: dict[str, object]) -> None:
    assert said["versions"] == ["1", "2"]
    assert "/datastores/workspaceblobstore/paths/azureml/" in str(said["model_path"])


def test_a_deployment_really_serves_with_the_models_leaf_folder_kept(said: dict[str, object]) -> None:
    assert said["deployment"] == "Succeeded"
    assert said["answer"] == {"asked": {"q": 1}, "model": ["model"], "path": "/score"}
    assert "RUN pip install nothing was skipped" in str(said["log"])


def test_a_wrong_key_is_refused(said: dict[str, object]) -> None:
    assert said["wrong_key"] == 401


def test_a_server_that_does_not_come_up_fails_its_deployment_with_the_log_and_leaves_the_other(
    said: dict[str, object],
) -> None:
    assert said["green_state"] == "Failed"
    assert "ResourceNotReady" in str(said["green"])
    assert "there is no model" in str(said["green"])
    assert said["still"] == 200


def test_a_deleted_endpoint_is_gone(said: dict[str, object]) -> None:
    assert said["endpoints"] == []
