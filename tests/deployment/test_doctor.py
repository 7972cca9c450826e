"""What the doctor finds in deployments that really fail so: the model that may not be read, answers that take too long,
more requests than fit, a login that is not accepted.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from deployment import doctor, rollout
from deployment.endpoint import connect, endpoint_name
from infra.cli import REFUSED, UserError
from infra.client import ml_client
from infra.outputs import StackOutputs, load_outputs
from tests.support import apps
from tests.support.local_azure import last_json
from tests.support.stack import Stack, stack

QUICK = ("--yes", "--soak", "0.3", "--keep", "0", "--canary", "100", "--ready-within", "0.4")
ASSIGNMENTS = "/providers/Microsoft.Authorization/roleAssignments"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack, this process inside its emulator, and an app `slow` that takes two seconds to answer."""
    with stack(tmp_path_factory.mktemp("doctor"), "local-doctor") as made:
        outside = dict(os.environ)
        os.environ.update(made.azure.env)
        folder = apps.write(made.folder / "slow", "first", seconds=2)
        assert rollout.main(["--source", str(folder), *QUICK, "--outputs", str(made.outputs), "--json"]) == 0
        yield made
        os.environ.clear()
        os.environ.update(outside)


@pytest.fixture
def outputs(served: Stack) -> StackOutputs:
    return load_outputs(file=served.outputs)


def finding(served: Stack, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The one finding of the doctor on the app `slow`, which blocks."""
    capsys.readouterr()
    code = doctor.main(["--app", "slow", "--outputs", str(served.outputs), "--json"])
    seen = last_json(capsys.readouterr().out)
    assert code == REFUSED and seen["blocking"] == 1
    (found,) = seen["findings"]
    return dict(found)


@contextmanager
def settings(outputs: StackOutputs, **changed: int) -> Iterator[None]:
    """The deployment with other request settings, as another tool may have left it; afterwards as it was."""
    ml = ml_client(outputs)
    before = {"request_timeout_ms": 180_000, "max_concurrent_requests_per_instance": 64}
    for wanted in ({**before, **changed}, before):
        deployment = ml.online_deployments.get("blue", endpoint_name(outputs, "slow"))
        for name, value in wanted.items():
            setattr(deployment.request_settings, name, value)
        ml.online_deployments.begin_create_or_update(deployment).result()
        if wanted is not before:
            yield


def test_answers_that_take_longer_than_the_request_timeout(
    served: Stack, outputs: StackOutputs, capsys: pytest.CaptureFixture[str]
) -> None:
    with settings(outputs, request_timeout_ms=1000):
        found = finding(served, capsys)
    assert found["check"] == "request-timeout" and found["what"] == "an answer takes longer than 1 s"


def test_more_requests_than_it_takes_at_once(
    served: Stack, outputs: StackOutputs, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint, over = connect(outputs, "slow"), threading.Event()
    body = {"messages": [{"role": "user", "content": "hello"}]}

    def insist() -> None:
        while not over.is_set():
            requests.post(endpoint.scoring_uri, json=body, headers=endpoint.headers("blue"), timeout=30)

    with settings(outputs, max_concurrent_requests_per_instance=1):
        callers = [threading.Thread(target=insist) for _ in range(6)]
        for caller in callers:
            caller.start()
        try:
            found = finding(served, capsys)
        finally:
            over.set()
            for caller in callers:
                caller.join()
    assert found["check"] == "overload" and "--instance-count more" in found["repair"]


def test_a_login_that_the_endpoint_does_not_accept(served: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    fault = ("-m", "emulator", "fault")
    refuse = ("error", "--status", "401", "--code", "Unauthorized", "--match", "inference.ml.azure.com")
    assert served.azure.run(*fault, *refuse).returncode == 0
    try:
        found = finding(served, capsys)
    finally:
        served.azure.run(*fault, "clear")
    assert found["check"] == "callers-login" and found["repair"] == "az login"


@contextmanager
def without_roles(served: Stack, outputs: StackOutputs, ids: tuple[str, ...]) -> Iterator[None]:
    """The serving identity without these roles, which it gets again afterwards."""
    version = "api-version=2022-04-01"
    group = outputs.workspace_id.split("/providers/")[0]
    who = f"$filter=principalId eq '{outputs.serving_identity_principal_id}'"
    every = served.azure.request("GET", f"{group}{ASSIGNMENTS}?{version}&{who}").json()["value"]
    taken = [one for one in every if one["properties"]["roleDefinitionId"].endswith(ids)]
    assert taken
    for one in taken:
        assert served.azure.request("DELETE", f"{one['id']}?{version}").status_code == 200
    yield
    for one in taken:
        properties = {key: one["properties"][key] for key in ("roleDefinitionId", "principalId", "principalType")}
        served.azure.put(f"{one['id']}?{version}", {"properties": properties})


def test_a_model_that_the_endpoints_identity_may_not_read(
    served: Stack, outputs: StackOutputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from azure.ai.ml.entities import Model

    (tmp_path / "words.txt").write_text("weights")
    tags = {"approved": "true"}
    model = Model(path=str(tmp_path / "words.txt"), name="words", type="custom_model", tags=tags)
    ml_client(outputs).models.create_or_update(model)
    app = apps.write(served.folder / "reader", "first")
    words = ["--source", str(app), "--model", "words:1", *QUICK, "--outputs", str(served.outputs), "--json"]
    with without_roles(served, outputs, doctor.READERS), pytest.raises(UserError) as failed:
        rollout.main(words)
    said = capsys.readouterr().err
    assert "cause: the endpoint's identity may not read the model's blobs: the role Storage Blob Data Reader is" in said
    assert f"make up STACK={outputs.stack}" in str(failed.value.next_command)
    assert rollout.main(words) == 0
