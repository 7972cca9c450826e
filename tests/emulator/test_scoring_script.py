"""Deployments with a scoring script: Microsoft's own server around it, from the packages of the conda file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.deployed import WORKSPACE, Deployed, deployed
from tests.support.local_azure import LocalAzure, last_json

SCRIPT = """
import json, os, pathlib
import inflection   # a package that only the conda file brings along

def init():
    global text
    text = next(pathlib.Path(os.environ["AZUREML_MODEL_DIR"]).rglob("words.txt")).read_text()

def run(raw):
    asked = json.loads(raw)
    if asked.get("fail"):
        raise ValueError("as was asked")
    from helper import shout
    return {"model": text, "said": shout(asked["say"]), "from": inflection.__name__}
"""
HELPER = "def shout(text):\n    return text.upper()\n"
SERVER = "azureml-inference-server-http"
CONDA = f"name: scoring\ndependencies:\n  - python=3.11\n  - pip:\n    - {SERVER}\n    - inflection\n"

AS_A_USER = """
import json, sys
from pathlib import Path
from azure.ai.ml import MLClient
from azure.ai.ml.entities import (
    CodeConfiguration, Environment, ManagedOnlineDeployment, ManagedOnlineEndpoint, Model, ProbeSettings,
)
from azure.core.exceptions import HttpResponseError
from azure.identity import DefaultAzureCredential

folder, parts = Path(sys.argv[1]), sys.argv[2].split("/")
ml = MLClient(DefaultAzureCredential(), parts[2], parts[4], parts[8])
ml.online_endpoints.begin_create_or_update(ManagedOnlineEndpoint(name="scored", auth_mode="key")).result()

def deploy(name, conda):
    environment = Environment(image="mcr.microsoft.com/azureml/minimal-py311-inference", conda_file=conda)
    model = Model(path=str(folder / "model"), name="words")
    probe = ProbeSettings(initial_delay=1, period=1, timeout=5, failure_threshold=120)
    ml.online_deployments.begin_create_or_update(ManagedOnlineDeployment(
        name=name, endpoint_name="scored", environment=environment, model=model,
        code_configuration=CodeConfiguration(code=str(folder / "src"), scoring_script="score.py"),
        instance_type="Standard_F4s_v2", instance_count=1, readiness_probe=probe,
    )).result()

deploy("blue", str(folder / "conda.yaml"))
ask = dict(endpoint_name="scored", deployment_name="blue")
good = json.loads(ml.online_endpoints.invoke(request_file=str(folder / "good.json"), **ask))
try:
    bad = ml.online_endpoints.invoke(request_file=str(folder / "bad.json"), **ask)
except HttpResponseError as error:
    bad = error.status_code
log = ml.online_deployments.get_logs("blue", "scored", 400)
try:
    deploy("green", str(folder / "without.yaml"))
    without = "it came up"
except HttpResponseError:
    without = ml.online_deployments.get_logs("green", "scored", 400)
print()
print(json.dumps({"good": good, "bad": bad, "log": log, "without": without}))
"""


@pytest.fixture(scope="module")
def building(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAzure]:
    """An emulator that builds environments."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMULATOR_ENVIRONMENTS", "build")
        azure = LocalAzure.start(tmp_path_factory.mktemp("building"))
    yield azure
    azure.stop()


def test_a_scoring_script_is_served_by_microsofts_server_from_its_conda_file(
    building: LocalAzure, tmp_path: Path
) -> None:
    files = {
        "src/score.py": SCRIPT,
        "src/helper.py": HELPER,
        "model/words.txt": "weights",
        "conda.yaml": CONDA,
        "without.yaml": CONDA.replace(f"    - {SERVER}\n", ""),
        "good.json": json.dumps({"say": "hello"}),
        "bad.json": json.dumps({"fail": True}),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    done = building.run("-c", AS_A_USER, str(tmp_path), building.make_workspace())
    assert done.returncode == 0, done.stderr[-3000:]
    seen = last_json(done.stdout)
    assert seen["good"] == {"model": "weights", "said": "HELLO", "from": "inflection"}
    assert seen["bad"] == 424
    assert "Azure ML Inferencing HTTP server" in seen["log"] and "as was asked" in seen["log"]
    assert "needs azureml-inference-server-http, which this deployment's environment lacks" in seen["without"]


SAVE = """
import mlflow.pyfunc, sys
class Plural(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        import inflection
        return [inflection.pluralize(str(one)) for one in list(model_input)]
named = ["mlflow==" + mlflow.__version__, "inflection"]
mlflow.pyfunc.save_model(sys.argv[1], python_model=Plural(), pip_requirements=named)
"""


def test_an_mlflow_model_is_served_from_the_packages_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run([sys.executable, "-c", SAVE, str(tmp_path / "m")], check=True, capture_output=True)
    monkeypatch.setenv("EMULATOR_ENVIRONMENTS", "build")
    model = f"{WORKSPACE}/models/ml/versions/1"
    probe = {"initialDelay": "PT0S", "period": "PT1S", "timeout": "PT1S", "failureThreshold": 100}
    with deployed(tmp_path / "emulator") as at:
        for path in (tmp_path / "m").rglob("*"):
            if path.is_file():
                at.arm.emulator.blobs.add_file("stw", "images", f"ml/{path.relative_to(tmp_path).as_posix()}", path)
        uri = "https://stw.blob.core.windows.net/images/ml/m"
        at.arm.send("PUT", model, body={"properties": {"modelType": "mlflow_model", "modelUri": uri}})
        assert at.deploy("blue", environment="", model=model, readinessProbe=probe) == "Succeeded"
        assert at.ask({"input_data": ["cat", "mouse"]}, deployment="blue").json() == ["cats", "mice"]


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """An endpoint of an emulator that has this machine's packages alone, and uploaded code `c:1`."""
    folder = tmp_path_factory.mktemp("host")
    with deployed(folder) as made:
        (folder / "score.py").write_text(SCRIPT)
        made.arm.emulator.blobs.add_file("stw", "images", "code/score.py", folder / "score.py")
        code = {"codeUri": "https://stw.blob.core.windows.net/images/code"}
        environment = {"image": "minimal", "condaFile": CONDA}
        for path, properties in (("codes/c", code), ("environments/conda", environment)):
            answer = made.arm.send("PUT", f"{WORKSPACE}/{path}/versions/1", body={"properties": properties})
            assert answer.status_code in (200, 201), answer.text
        yield made


def deploy(at: Deployed, script: str = "score.py", environment: str = "conda") -> str:
    code: dict[str, Any] = {"codeId": f"{WORKSPACE}/codes/c/versions/1", "scoringScript": script}
    return at.deploy("blue", environment=environment, codeConfiguration=code)


def test_without_its_server_on_this_machine_it_fails_and_the_log_says_what_would_help(at: Deployed) -> None:
    said = deploy(at)
    assert said.startswith("Failed") and "exited with code 1" in said
    assert "needs azureml-inference-server-http" in said
    log = at.arm.emulator.deployments.log(f"{WORKSPACE}/onlineEndpoints/end/deployments/blue", 100)
    assert "Not installed: pip, setuptools, wheel, azureml-inference-server-http, inflection" in log
    assert "EMULATOR_ENVIRONMENTS=build" in log


def test_a_script_that_is_not_in_the_code_and_one_without_an_environment_are_refused(at: Deployed) -> None:
    assert "The scoring script 'other.py' is not in the code's folder" in deploy(at, "other.py")
    assert "needs an environment" in deploy(at, environment="")
