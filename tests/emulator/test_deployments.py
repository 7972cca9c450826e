"""Online deployments: what the gateway answers, how traffic is split, and what becomes of servers that fail."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request

from emulator.home import DEPLOYER_CLIENT_ID, SUBSCRIPTION_ID
from tests.support.deployed import DOCKERFILE, ENDPOINT, GROUP, SERVER, WORKSPACE, Deployed, deployed


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """An endpoint with blue, which has all the traffic."""
    with deployed(tmp_path_factory.mktemp("deployed")) as made:
        assert made.deploy("blue", environmentVariables={"SAY": "blue"}) == "Succeeded"
        assert made.traffic(blue=100) == 200
        yield made


@pytest.fixture
def green(at: Deployed) -> Iterator[Deployed]:
    """A second deployment, which has no traffic; gone afterwards."""
    assert at.deploy("green", environmentVariables={"SAY": "green"}) == "Succeeded"
    yield at
    remove(at, "green")


def remove(at: Deployed, name: str) -> None:
    assert at.traffic(blue=100) == 200
    answer = at.arm.send("DELETE", f"{ENDPOINT}/deployments/{name}")
    assert answer.status_code == 202, answer.text
    while at.arm.send("GET", f"{ENDPOINT}/deployments/{name}").status_code != 404:
        time.sleep(0.05)


def until(check: Any, seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


# -- the gateway's answers ---------------------------------------------------------------------------------------------


def test_an_answer_names_the_deployment_and_goes_to_the_scoring_route(at: Deployed) -> None:
    answer = at.ask({"q": 1})
    assert answer.status_code == 200 and answer.json()["path"] == "/score"
    assert answer.headers["azureml-model-deployment"] == "blue"


def test_a_missing_token_is_401_and_a_principal_without_the_role_403(at: Deployed) -> None:
    assert at.ask(token="").status_code == at.ask(token="nonsense").status_code == 401
    stranger = at.arm.emulator.entra.issue("https://ml.azure.com", client_id=DEPLOYER_CLIENT_ID, object_id="stranger")
    refused = at.ask(token=stranger)
    assert refused.status_code == 403 and "onlineEndpoints/score/action" in refused.text
    role = f"/subscriptions/{SUBSCRIPTION_ID}/providers/Microsoft.Authorization/roleDefinitions"
    properties = {
        "roleDefinitionId": f"{role}/f6c7c914-8db3-469d-8ca1-694a8f32e121",
        "principalId": "stranger",
        "principalType": "User",
    }
    body: dict[str, Any] = {"id": f"{ENDPOINT}/providers/Microsoft.Authorization/roleAssignments/1", "name": "1"}
    body = {**body, "type": "Microsoft.Authorization/roleAssignments", "properties": properties}
    at.arm.emulator.state.put(body["id"], body, parent=ENDPOINT)
    assert at.ask(token=stranger).status_code == 200


def test_no_such_deployment_and_no_traffic_are_404(at: Deployed) -> None:
    assert at.ask(deployment="yellow").status_code == 404
    assert at.traffic() == 200
    assert at.ask().status_code == 404
    assert at.ask(deployment="blue").status_code == 200
    assert at.traffic(blue=100) == 200


@pytest.mark.parametrize("status", [400, 429, 500, 503])
def test_a_containers_error_is_424_with_its_own_status_beside_it(at: Deployed, status: int) -> None:
    answer = at.ask({"status": status})
    assert answer.status_code == 424
    assert answer.headers["ms-azureml-model-error-statuscode"] == str(status)
    assert answer.headers["ms-azureml-model-error-reason"] == "model_error"


def test_a_body_beyond_the_limit_is_413(at: Deployed) -> None:
    assert at.ask({"text": "x" * 1_600_000}).status_code == 413


def test_an_answer_that_takes_longer_than_the_request_timeout_is_408(at: Deployed) -> None:
    assert at.ask({"sleep": 6}).status_code == 408


def test_more_than_twice_the_concurrency_is_429(green: Deployed) -> None:
    settings = {"requestTimeout": "PT20S", "maxConcurrentRequestsPerInstance": 2}
    assert green.deploy("green", requestSettings=settings) == "Succeeded"
    got: list[int] = []

    def ask() -> None:
        got.append(green.ask({"sleep": 1}, deployment="green").status_code)

    threads = [threading.Thread(target=ask) for _ in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [200] * 4 + [429] * 5


def test_a_caller_that_leaves_before_the_answer_begins_holds_no_place(at: Deployed) -> None:
    gateway = at.arm.emulator.gateway
    server = at.arm.emulator.deployments.server(f"{ENDPOINT}/deployments/blue")
    assert server is not None

    async def leave() -> None:
        headers = [(b"host", b"end.eastus2.inference.ml.azure.com"), (b"authorization", f"Bearer {at.token}".encode())]
        scope: dict[str, Any] = {
            "type": "http",
            "method": "POST",
            "path": "/score",
            "query_string": b"",
            "headers": headers,
        }
        scope = {**scope, "scheme": "https", "server": ("x", 443), "http_version": "1.1", "state": {}}
        sent = iter([{"type": "http.request", "body": b"{}"}])

        async def receive() -> Any:
            return next(sent, {"type": "http.disconnect"})

        async def send(message: Any) -> None:
            raise OSError("gone")

        answer = await gateway.handle(Request(scope, receive))
        with pytest.raises((OSError, ClientDisconnect)):
            await answer(scope, receive, send)

    at.arm._portal.call(leave)
    assert server.busy == 0


# -- traffic -----------------------------------------------------------------------------------------------------------


def test_traffic_is_split_by_its_shares(green: Deployed) -> None:
    assert green.traffic(blue=70, green=30) == 200
    said = [green.ask().json()["say"] for _ in range(200)]
    assert 30 <= said.count("green") <= 95


def test_mirrored_requests_reach_the_other_one_and_the_caller_hears_the_first(green: Deployed) -> None:
    assert green.traffic(blue=100, mirror={"green": 50}) == 200
    assert {green.ask().json()["say"] for _ in range(60)} == {"blue"}

    def mirrored() -> float:
        (counts,) = green.metrics("RequestsPerMinute")
        series = [one for one in counts["timeseries"] if one["metadatavalues"][0]["value"] == "green"]
        return float(sum(point["total"] for one in series for point in one["data"]))

    until(lambda: mirrored() >= 10)
    assert green.traffic(blue=100, mirror={"green": 60}) == 400
    assert green.traffic(blue=90, green=10, mirror={"green": 10}) == 400


def test_metrics_tell_status_and_latency_by_deployment(at: Deployed) -> None:
    at.ask({"status": 500})
    counts, latency = at.metrics("RequestsPerMinute,RequestLatency_P95")
    seen = [[label["value"] for label in one["metadatavalues"]] for one in counts["timeseries"]]
    assert ["blue", "4xx", "500"] in seen and ["blue", "2xx", "200"] in seen
    assert all(point["average"] > 0 for one in latency["timeseries"] for point in one["data"])


# -- servers -----------------------------------------------------------------------------------------------------------


def test_a_crash_loop_is_a_failed_deployment_with_its_log(at: Deployed) -> None:
    state = at.deploy("green", environmentVariables={"CRASH": "there is no model"})
    assert state.startswith("Failed: ResourceNotReady: User container has crashed or terminated: exited with code 1")
    assert state.count("there is no model") == 3
    remove(at, "green")


def test_a_killed_container_is_code_137(at: Deployed) -> None:
    assert "exited with code 137" in at.deploy("green", environmentVariables={"KILL": "1"})
    remove(at, "green")


def test_one_that_never_gets_ready_fails_after_its_probes(at: Deployed) -> None:
    probe = {"initialDelay": "PT0S", "period": "PT0.2S", "timeout": "PT1S", "failureThreshold": 30}
    state = at.deploy("green", environmentVariables={"NEVER": "1"}, readinessProbe=probe)
    assert state.startswith("Failed: ResourceNotReady") and "statuscode: 503" in state
    remove(at, "green")


def test_a_route_to_another_port_than_the_containers_finds_nothing(at: Deployed, tmp_path: Path) -> None:
    wrong: dict[str, Any] = {"readinessRoute": {"path": "/ready", "port": 8080}}
    at.environment("wrong-port", {"Dockerfile": DOCKERFILE, "server.py": SERVER}, tmp_path, **wrong)
    probe = {"initialDelay": "PT0S", "period": "PT0.2S", "timeout": "PT1S", "failureThreshold": 5}
    assert "statuscode: 502" in at.deploy("green", environment="wrong-port", readinessProbe=probe)
    remove(at, "green")


def test_a_port_that_only_the_command_names_is_found(at: Deployed, tmp_path: Path) -> None:
    server = "import os, sys\nos.environ.update(HOST=sys.argv[1], PORT=sys.argv[2])\n" + SERVER
    dockerfile = 'COPY server.py ./\nEXPOSE 5001\nCMD ["python", "server.py", "0.0.0.0", "5001"]\n'
    at.environment("named-port", {"Dockerfile": dockerfile, "server.py": server}, tmp_path)
    assert at.deploy("green", environment="named-port") == "Succeeded"
    assert at.ask(deployment="green").status_code == 200
    remove(at, "green")


def test_one_that_exits_is_started_again(green: Deployed) -> None:
    first = green.ask(deployment="green").json()["pid"]
    url = "https://end.eastus2.inference.ml.azure.com/exit"
    assert green.ask(deployment="green", url=url).status_code == 424
    until(lambda: green.ask(deployment="green").status_code == 200)
    assert green.ask(deployment="green").json()["pid"] != first


def test_one_that_fails_its_liveness_probe_is_killed_and_started_again(at: Deployed, tmp_path: Path) -> None:
    flag = tmp_path / "sick"
    assert at.deploy("green", environmentVariables={"FLAG": str(flag)}) == "Succeeded"
    first = at.ask(deployment="green").json()["pid"]
    flag.touch()
    until(lambda: at.ask(deployment="green").status_code == 424)
    flag.unlink()
    until(lambda: at.ask(deployment="green").status_code == 200)
    assert at.ask(deployment="green").json()["pid"] != first
    remove(at, "green")


def test_an_update_serves_on_until_the_new_one_is_ready_and_if_it_never_is(green: Deployed) -> None:
    assert green.traffic(green=100) == 200
    seen, stop = [], threading.Event()

    def load() -> None:
        while not stop.is_set():
            answer = green.ask()
            seen.append((answer.status_code, answer.json()["say"] if answer.status_code == 200 else ""))

    thread = threading.Thread(target=load)
    thread.start()
    assert green.deploy("green", environmentVariables={"SAY": "newer"}) == "Succeeded"
    assert green.deploy("green", environmentVariables={"CRASH": "no"}).startswith("Failed")
    stop.set()
    thread.join()
    assert {status for status, _ in seen} == {200}
    assert [say for _, say in seen][-1] == "newer" and "green" in [say for _, say in seen]


def test_a_deletion_lets_accepted_requests_end(at: Deployed) -> None:
    assert at.deploy("green") == "Succeeded"
    got: list[int] = []
    thread = threading.Thread(target=lambda: got.append(at.ask({"sleep": 2}, deployment="green").status_code))
    thread.start()
    time.sleep(0.5)
    remove(at, "green")
    thread.join()
    assert got == [200]


def test_what_has_traffic_or_a_mirror_is_not_deleted(green: Deployed) -> None:
    assert green.traffic(blue=90, green=10) == 200
    assert green.arm.send("DELETE", f"{ENDPOINT}/deployments/green").status_code == 409
    assert green.traffic(blue=100, mirror={"green": 10}) == 200
    assert green.arm.send("DELETE", f"{ENDPOINT}/deployments/green").status_code == 409


# -- what Azure refuses ------------------------------------------------------------------------------------------------


def test_more_cores_than_the_quota_with_its_reserve_are_refused(at: Deployed) -> None:
    assert at.deploy("green", capacity=41).startswith('400: {"error":{"code":"OutOfQuota"')


def test_an_identity_that_may_not_read_the_model_fails_as_its_initializer_says(at: Deployed) -> None:
    identity = f"{GROUP}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/id-serving"
    at.arm.put(identity, {"location": "eastus2"})
    used = {"type": "UserAssigned", "userAssignedIdentities": {identity: {}}}
    ids = at.arm.emulator.state.get(identity)["properties"]  # type: ignore[index]
    endpoint = at.arm.emulator.state.get(ENDPOINT)
    assert endpoint is not None
    as_it_was = dict(endpoint)
    endpoint["identity"] = {**used, "userAssignedIdentities": {identity: ids}}
    at.arm.emulator.state.put(ENDPOINT, endpoint, parent=WORKSPACE)
    model = f"{WORKSPACE}/models/m/versions/1"
    uri = "https://stw.blob.core.windows.net/images/env"
    at.arm.send("PUT", model, body={"properties": {"modelType": "custom_model", "modelUri": uri}})
    state = at.deploy("green", model=model)
    assert "blobs/read" in state
    log = at.arm.send(
        "POST", f"{ENDPOINT}/deployments/green/getLogs", body={"tail": 50, "containerType": "StorageInitializer"}
    )
    assert "AuthorizationPermissionMismatch" in log.json()["content"]
    at.arm.emulator.state.put(ENDPOINT, as_it_was, parent=WORKSPACE)
    assert at.deploy("green", model=model) == "Succeeded"
    remove(at, "green")


def test_an_mlflow_model_is_served_without_an_environment(at: Deployed, tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import mlflow.pyfunc, sys\n"
        "class Echo(mlflow.pyfunc.PythonModel):\n"
        "    def predict(self, context, model_input, params=None):\n"
        "        return [f'{one}!' for one in list(model_input)]\n"
        "mlflow.pyfunc.save_model(sys.argv[1], python_model=Echo())\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "m")], check=True, capture_output=True)
    for path in (tmp_path / "m").rglob("*"):
        if path.is_file():
            name = path.relative_to(tmp_path).as_posix()
            at.arm.emulator.blobs.add_file("stw", "images", f"ml/{name}", path)
    model = f"{WORKSPACE}/models/ml/versions/1"
    uri = "https://stw.blob.core.windows.net/images/ml/m"
    at.arm.send("PUT", model, body={"properties": {"modelType": "mlflow_model", "modelUri": uri}})
    probe = {"initialDelay": "PT0S", "period": "PT1S", "timeout": "PT1S", "failureThreshold": 60}
    assert at.deploy("green", environment="", model=model, readinessProbe=probe) == "Succeeded"
    assert at.ask({"input_data": ["a", "b"]}, deployment="green").json() == ["a!", "b!"]
    assert at.ask({"inputs": ["a"]}, deployment="green").status_code == 424
    remove(at, "green")
