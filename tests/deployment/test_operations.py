"""The verbs against the emulator, with small servers of real processes: who holds the endpoint, what is refused, what a
deployment that fails is found to have, and how one goes back.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deployment import access, doctor, load, lock, logs, rollback, rollout, smoke, status, teardown
from infra.cli import REFUSED, UserError
from infra.client import ml_client
from infra.outputs import StackOutputs, load_outputs
from tests.support import apps
from tests.support.local_azure import last_json
from tests.support.stack import Stack, stack

QUICK = ("--yes", "--soak", "0.3", "--keep", "0", "--canary", "50,100", "--ready-within", "0.4")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack, and this process inside its emulator: the verbs are called, not started."""
    with stack(tmp_path_factory.mktemp("operations"), "local-operations") as made:
        outside = dict(os.environ)
        os.environ.update(made.azure.env)
        yield made
        os.environ.clear()
        os.environ.update(outside)


@pytest.fixture
def verb(served: Stack, capsys: pytest.CaptureFixture[str]) -> Any:
    """Call a verb's main; its JSON result, or the UserError that it raised, and what it said."""

    def call(module: Any, *words: str) -> tuple[Any, str]:
        capsys.readouterr()
        try:
            code = module.main([*words, "--outputs", str(served.outputs), "--json"])
        except UserError as error:
            return error, capsys.readouterr().err
        said = capsys.readouterr()
        return {**last_json(said.out), "code": code}, said.err

    return call


@pytest.fixture
def outputs(served: Stack) -> StackOutputs:
    return load_outputs(file=served.outputs)


@pytest.fixture(scope="module")
def app(served: Stack) -> Path:
    """The folder of a server that is rolled out already."""
    folder = apps.write(served.folder / "app", "first")
    rollout.main(["--source", str(folder), *QUICK, "--outputs", str(served.outputs), "--json"])
    return folder


# -- who holds it ------------------------------------------------------------------------------------------------------


def test_a_second_rollout_is_refused_while_the_first_lives(
    outputs: StackOutputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "SECONDS", 15)
    with lock.held(outputs, "held", "a rollout of phi:1") as lease:
        began = time.monotonic()
        with (
            pytest.raises(UserError, match="is being changed by a rollout of phi:1 on") as refused,
            lock.held(outputs, "held", "another"),
        ):
            pass
        assert refused.value.code == REFUSED
        assert time.monotonic() - began < 12
        lease.check()
    with lock.held(outputs, "held", "the next one"):
        pass


def test_after_a_kill_the_next_one_waits_one_period_and_goes_on(
    outputs: StackOutputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "SECONDS", 15)
    blob = lock._blob(outputs, "killed")
    blob.acquire_lease(15)
    began = time.monotonic()
    with lock.held(outputs, "killed", "the next one"):
        assert 8 < time.monotonic() - began < 40


def test_a_lease_that_somebody_broke_stops_the_one_who_held_it(
    outputs: StackOutputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    from azure.storage.blob import BlobLeaseClient

    monkeypatch.setattr(lock, "SECONDS", 15)
    with lock.held(outputs, "broken", "a rollout") as lease:
        BlobLeaseClient(lock._blob(outputs, "broken")).break_lease(0)
        deadline = time.monotonic() + 14
        with pytest.raises(UserError, match="the lease on the endpoint was lost"):
            while time.monotonic() < deadline:
                lease.check()
                time.sleep(0.1)


# -- the way of a good one ---------------------------------------------------------------------------------------------


def test_a_dry_run_says_steps_price_and_quota_and_changes_nothing(verb: Any, app: Path) -> None:
    before, _ = verb(status, "--app", "app")
    apps.write(app, "planned")
    planned, said = verb(rollout, "--source", str(app), "--dry-run", "--instance-count", "10")
    assert planned["state"] == "planned" and planned["steps"][0].startswith("create the deployment")
    assert planned["quota"] == {"family": "standardESv3Family", "needed": 48, "used": 0, "limit": 200}
    assert "48 cores of standardESv3Family with the 20 % reserve" in said and "10 × Standard_E4s_v3" in said
    assert verb(status, "--app", "app")[0] == before


def test_a_rollout_can_be_rolled_back_and_repeated(verb: Any, app: Path) -> None:
    leader = verb(status, "--app", "app")[0]["deployment"]
    apps.write(app, "second")
    keep = [*QUICK[:4], "0.02", *QUICK[5:]]
    rolled, _ = verb(rollout, "--source", str(app), *keep)
    assert rolled["deployment"] != leader and rolled["traffic"] == {rolled["deployment"]: 100}
    gone, _ = verb(rollback, "--app", "app")
    assert isinstance(gone, UserError) and "nothing to go back to" in gone.message
    again, _ = verb(rollout, "--source", str(app), *QUICK)
    assert again["state"] == "unchanged"


def test_with_traces_the_new_one_knows_the_stacks_application_insights_and_nobody_reads_its_key(
    verb: Any, outputs: StackOutputs, app: Path
) -> None:
    apps.write(app, "traced")
    rolled, said = verb(rollout, "--source", str(app), *QUICK, "--traces")
    ml = ml_client(outputs)
    made = ml.online_deployments.get(rolled["deployment"], rolled["endpoint"])
    insights = ml.workspaces.get(outputs.workspace).application_insights
    address = dict(made.environment_variables)["APPLICATIONINSIGHTS_CONNECTION_STRING"]
    assert insights.endswith(outputs.application_insights)
    assert address.startswith("InstrumentationKey=") and "IngestionEndpoint=https://" in address
    assert address not in said + json.dumps(rolled)


def test_while_the_old_one_is_kept_warm_a_rollback_returns_to_it(verb: Any, app: Path, served: Stack) -> None:
    old = verb(status, "--app", "app")[0]["deployment"]
    apps.write(app, "regretted")
    words = ["-m", "tests.support.killed_rollout", "before Keep 1", "--source", str(app), *QUICK[:4], "9", *QUICK[5:]]
    killed = served.azure.run(*words, "--outputs", str(served.outputs))
    assert killed.returncode == -9, killed.stderr
    seen, _ = verb(status, "--app", "app")
    assert seen["deployment"] != old and f"{old} is kept warm for 9 more minutes" in seen["rollout"]
    back, _ = verb(rollback, "--app", "app")
    assert back["traffic"] == {old: 100} and back["state"] == "rolled back"
    assert "was rolled back" in verb(status, "--app", "app")[0]["rollout"]
    apps.write(app, "after it")
    assert verb(rollout, "--source", str(app), *QUICK)[0]["state"] == "serving"
    assert len(verb(status, "--app", "app")[0]["deployments"]) == 1


def test_smoke_logs_and_load_speak_to_it(verb: Any, app: Path, tmp_path: Path) -> None:
    assert verb(smoke, "--app", "app")[0]["completion_tokens"] == 3
    assert "listening" in verb(logs, "--app", "app")[0]["log"]
    loaded, _ = verb(load, "--app", "app", "--rate", "20", "--seconds", "2", "--out", str(tmp_path))
    assert loaded["failed"] == 0 and loaded["requests"] > 20 and loaded["latency_ms"]["p99"] > 0
    assert (tmp_path / "load.png").stat().st_size > 5000
    assert json.loads((tmp_path / "load.json").read_text())["requests"] == loaded["requests"]


def test_the_doctor_finds_nothing_where_all_is_well(verb: Any, app: Path) -> None:
    found, _ = verb(doctor, "--app", "app")
    assert found["blocking"] == 0 and [one["check"] for one in found["findings"]] == ["serving"]


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_what_has_no_room_in_the_quota_is_refused_before_anything_is_made(verb: Any, app: Path) -> None:
    before, _ = verb(status, "--app", "app")
    apps.write(app, "too many")
    refused, _ = verb(rollout, "--source", str(app), *QUICK, "--instance-count", "60")
    assert isinstance(refused, UserError) and "288 cores of standardESv3Family with the 20 % reserve" in refused.message
    assert verb(status, "--app", "app")[0] == before


@pytest.mark.parametrize(
    ("change", "says"),
    [({"serving_identity_id": "/x/other"}, "an endpoint's identity cannot be changed"), ({}, "lets callers in by")],
)
def test_what_an_endpoint_keeps_for_life_is_compared_first(
    verb: Any, app: Path, served: Stack, tmp_path: Path, change: dict[str, str], says: str
) -> None:
    apps.write(app, "other")
    outputs = tmp_path / "outputs.json"
    outputs.write_text(json.dumps({**json.loads(served.outputs.read_text()), **change}))
    words = ["--source", str(app), *QUICK, "--outputs", str(outputs), *(() if change else ("--auth", "key"))]
    with pytest.raises(UserError, match=says):
        rollout.main(words)


@pytest.mark.parametrize(
    ("dockerfile", "says"),
    [(None, "has no Dockerfile"), ("FROM x\n", "names no port"), ("EXPOSE 1\nEXPOSE 2\n", "names 2 ports")],
)
def test_a_folder_that_cannot_be_deployed_is_wrong_use(
    verb: Any, tmp_path: Path, dockerfile: str | None, says: str
) -> None:
    if dockerfile:
        (tmp_path / "Dockerfile").write_text(dockerfile)
    refused, _ = verb(rollout, "--source", str(tmp_path), *QUICK)
    assert isinstance(refused, UserError) and says in refused.message and refused.code == 2


# -- what is found -----------------------------------------------------------------------------------------------------

WRONG_PORT = apps.DOCKERFILE.replace("EXPOSE 5001", "EXPOSE 8080")


@pytest.mark.parametrize(
    ("kind", "dockerfile", "cause"),
    [
        ("crash", apps.DOCKERFILE, "the server crashes when it starts: RuntimeError: this version crashes"),
        ("killed", apps.DOCKERFILE, "the container was killed for want of memory"),
        ("no model", apps.DOCKERFILE, "is not where the server looks for it: error: no config.json"),
        ("never ready", apps.DOCKERFILE, "the server runs, and does not become ready"),
        ("good", WRONG_PORT, "nobody answers the probes on port 8080"),
        ("garbage", apps.DOCKERFILE, "the server runs, and does not answer as it should"),
        ("good", "FROM x\nCOPY nothing ./\nEXPOSE 5001\n", "the server's image could not be built"),
    ],
)
def test_the_cause_of_a_failed_rollout_is_named_with_what_to_type(
    verb: Any, served: Stack, app: Path, kind: str, dockerfile: str, cause: str
) -> None:
    before, _ = verb(status, "--app", "app")
    apps.write(app, f"{kind} {len(dockerfile)}", kind, dockerfile=dockerfile)
    words = [*QUICK[:-1], "0.2"]
    failed, said = verb(rollout, "--source", str(app), *words)
    assert isinstance(failed, UserError) and failed.code == 1
    assert cause in said.replace("\n", " "), said
    assert failed.next_command and f"next: {failed.next_command}" in said
    after, _ = verb(status, "--app", "app")
    assert after["traffic"] == before["traffic"] and len(after["deployments"]) == 1


def test_a_missing_role_is_named_before_any_log_is_read(verb: Any, served: Stack, outputs: StackOutputs) -> None:
    assignments = served.azure.request(
        "GET",
        f"{outputs.workspace_id.split('/providers/')[0]}/providers/Microsoft.Authorization/roleAssignments?"
        f"api-version=2022-04-01&$filter=principalId eq '{outputs.serving_identity_principal_id}'",
    ).json()["value"]
    pulls = [one for one in assignments if one["properties"]["roleDefinitionId"].endswith(doctor.PULLERS)]
    for one in pulls:
        assert served.azure.request("DELETE", f"{one['id']}?api-version=2022-04-01").status_code == 200
    other = apps.write(served.folder / "unpulled", "first")
    failed, said = verb(rollout, "--source", str(other), *QUICK)
    for one in pulls:
        properties = {key: one["properties"][key] for key in ("roleDefinitionId", "principalId", "principalType")}
        served.azure.put(f"{one['id']}?api-version=2022-04-01", {"properties": properties})
    assert isinstance(failed, UserError)
    assert "cause: the endpoint's identity may not pull the image: the role AcrPull is missing" in said
    assert f"make up STACK={outputs.stack}" in str(failed.next_command)


# -- MLflow models without code ----------------------------------------------------------------------------------------

ECHO = """
import sys
import mlflow.pyfunc
class Echo(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return [f"{one}!" for one in list(model_input)]
mlflow.pyfunc.save_model(sys.argv[1], python_model=Echo())
"""


@pytest.mark.slow
def test_an_mlflow_model_is_rolled_out_without_code_of_ours(verb: Any, outputs: StackOutputs, tmp_path: Path) -> None:
    from azure.ai.ml.entities import Model

    subprocess.run([sys.executable, "-c", ECHO, str(tmp_path / "echo")], check=True, capture_output=True)
    refused, _ = verb(rollout, "--engine", "mlflow", *QUICK)
    assert isinstance(refused, UserError) and "no model is registered" in refused.message
    tags = {"approved": "true"}
    model = Model(path=str(tmp_path / "echo"), name="echo", type="mlflow_model", tags=tags)
    ml_client(outputs).models.create_or_update(model)
    rolled, said = verb(rollout, "--engine", "mlflow", *QUICK[:-1], "2")
    assert not isinstance(rolled, UserError), said
    assert rolled["model"] == "echo:1" and rolled["traffic"] == {"blue": 100}
    body = tmp_path / "body.json"
    body.write_text(json.dumps({"input_data": ["hello"]}))
    assert verb(smoke, "--body", str(body))[0]["state"] == "passed"
    assert verb(status)[0]["deployments"]["blue"]["environment"] is None
    asked, _ = verb(smoke)
    assert isinstance(asked, UserError), "an MLflow model speaks no chat"


# -- callers, keys, and the end ----------------------------------------------------------------------------------------


def test_a_caller_gets_a_role_on_the_endpoint_and_loses_it_again(
    verb: Any, served: Stack, app: Path, outputs: StackOutputs
) -> None:
    import jwt
    import requests

    caller = "11111111-2222-3333-4444-555555555555"
    key = served.azure.home.secrets()["token_key"]
    claims = jwt.decode(served.azure.token("https://ml.azure.com"), options={"verify_signature": False})
    token = jwt.encode({**claims, "oid": caller, "sub": caller}, key, algorithm="HS256")
    uri = verb(status, "--app", "app")[0]["scoring_uri"]

    def ask() -> int:
        headers = {"Authorization": f"Bearer {token}"}
        return requests.post(uri, json={"messages": []}, headers=headers, timeout=30).status_code

    assert verb(access, "--app", "app")[0]["callers"] == [] and ask() == 403
    allowed, _ = verb(access, "--app", "app", "--allow", caller, "--type", "User")
    assert allowed["callers"] == [{"principal": caller, "type": "User"}] and allowed["state"] == "changed"
    assert verb(access, "--app", "app", "--allow", caller, "--type", "User")[0]["state"] == "unchanged"
    assert ask() == 200
    assert verb(access, "--app", "app", "--withdraw", caller)[0]["callers"] == [] and ask() == 403
    wrong, _ = verb(access, "--app", "app", "--allow", "somebody")
    assert isinstance(wrong, UserError) and wrong.code == 2


def test_an_endpoint_with_keys_is_asked_with_a_key_that_nobody_sees(verb: Any, served: Stack) -> None:
    other = apps.write(served.folder / "keyed", "first")
    rolled, said = verb(rollout, "--source", str(other), *QUICK, "--auth", "key")
    assert rolled["state"] == "serving"
    endpoint = f"{served.workspace}/onlineEndpoints/{rolled['endpoint']}"
    keys = served.azure.request("POST", f"{endpoint}/listKeys?api-version=2024-04-01").json()
    asked, more = verb(smoke, "--app", "keyed")
    assert asked["state"] == "passed"
    assert all(key not in text for key in keys.values() for text in (said, more, json.dumps(rolled), json.dumps(asked)))


def test_teardown_removes_every_endpoint_of_ours_and_verifies_it(verb: Any, served: Stack, app: Path) -> None:
    there = served.azure.request("GET", f"{served.workspace}/onlineEndpoints?api-version=2024-04-01").json()["value"]
    torn, said = verb(teardown, "--yes")
    assert torn["state"] == "gone" and "gone, verified" in said
    assert sorted(torn["deleted"]) == sorted(one["name"] for one in there) != []
    found = served.azure.request("GET", f"{served.workspace}/onlineEndpoints?api-version=2024-04-01").json()["value"]
    assert found == []
    missing, _ = verb(status, "--app", "app")
    assert isinstance(missing, UserError) and "nothing is deployed" in missing.message
