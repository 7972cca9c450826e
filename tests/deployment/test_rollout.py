"""A rollout that fails leaves the endpoint as it was; one that was killed goes on. On a workspace in memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError

from deployment import rollout, smoke
from deployment.endpoint import Endpoint
from deployment.plan import Goal
from deployment.rollout import Rollout
from infra.cli import UserError
from tests.deployment.test_choices import outputs

GOAL = Goal("phi:2", "phi-server:abc", "Standard_E4s_v3")


class Poller:
    """An operation that has ended."""

    def __init__(self, failure: HttpResponseError | None = None) -> None:
        self.failure = failure

    def done(self) -> bool:
        return True

    def result(self) -> None:
        if self.failure:
            raise self.failure


class Workspace:
    """The part of MLClient that a rollout uses; its own `online_endpoints`, `online_deployments`, `environments`."""

    def __init__(self) -> None:
        self.endpoint: Any = None
        self.found: dict[str, Any] = {}
        self.fail_creation = False
        self.online_endpoints = SimpleNamespace(get=self._get, begin_create_or_update=self._put)
        self.online_deployments = SimpleNamespace(
            get=lambda name, endpoint: self.found[name],
            list=lambda endpoint: list(self.found.values()),
            begin_create_or_update=self._create,
            begin_delete=self._delete,
            get_logs=lambda *_, **__: "its last words",
        )
        self.environments = SimpleNamespace(get=lambda name, version: None)

    def serve(self, name: str, model: str) -> None:
        self.endpoint = SimpleNamespace(provisioning_state="Succeeded", traffic={name: 100})
        self.found[name] = self._deployment(name, model)

    def _deployment(self, name: str, model: str) -> Any:
        return SimpleNamespace(
            name=name,
            model=f"azureml:{model}",
            environment=f"azureml:{GOAL.environment}",
            instance_type=GOAL.instance_type,
            provisioning_state="Succeeded",
        )

    def _get(self, name: str) -> Any:
        if self.endpoint is None:
            raise ResourceNotFoundError("no endpoint")
        return self.endpoint

    def _put(self, endpoint: Any) -> Poller:
        traffic = dict(endpoint.traffic or {})
        assert set(traffic) <= set(self.found)
        self.endpoint = SimpleNamespace(provisioning_state="Succeeded", traffic=traffic)
        return Poller()

    def _create(self, deployment: Any) -> Poller:
        self.found[deployment.name] = made = self._deployment(deployment.name, GOAL.model)
        if not self.fail_creation:
            return Poller()
        made.provisioning_state = "Failed"
        return Poller(HttpResponseError("the container crashed\nits log, many lines"))

    def _delete(self, name: str, endpoint: str) -> Poller:
        assert not self.endpoint.traffic.get(name), "a deployment with traffic cannot be deleted"
        del self.found[name]
        return Poller()


@pytest.fixture
def workspace(monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setattr(rollout, "connect", lambda given: Endpoint("e", "https://e/score", cast(Any, None)))
    monkeypatch.setattr(smoke, "check", lambda endpoint, deployment: smoke.Passed(0.1, 5))
    return Workspace()


def roll_out(workspace: Workspace) -> str:
    return Rollout(cast(Any, workspace), outputs(), GOAL, "e").run().name


def test_a_first_rollout_makes_endpoint_and_deployment(workspace: Workspace) -> None:
    assert roll_out(workspace) == "blue"
    assert workspace.endpoint.traffic == {"blue": 100}


def test_a_second_one_replaces_the_first(workspace: Workspace) -> None:
    workspace.serve("blue", "phi:1")
    assert roll_out(workspace) == "green"
    assert (workspace.endpoint.traffic, list(workspace.found)) == ({"green": 100}, ["green"])


def test_a_deployment_that_does_not_come_up_is_shown_and_removed(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace.serve("blue", "phi:1")
    workspace.fail_creation = True
    with pytest.raises(UserError) as failed:
        roll_out(workspace)
    assert str(failed.value).splitlines() == [
        "the deployment green did not come up: the container crashed",
        "  the endpoint is left as it was: blue 100 %",
    ]
    assert "its last words" in capsys.readouterr().err
    assert (workspace.endpoint.traffic, list(workspace.found)) == ({"blue": 100}, ["blue"])


@pytest.mark.parametrize("share", [0, 10])
def test_a_deployment_that_fails_its_smoke_test_loses_its_traffic_and_goes(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, share: int
) -> None:
    workspace.serve("blue", "phi:1")
    workspace.found["green"] = workspace._deployment("green", GOAL.model)
    workspace.endpoint.traffic = {"blue": 100 - share, "green": share}

    def garbage(endpoint: Endpoint, deployment: str) -> smoke.Passed:
        raise smoke.SmokeFailed("the smoke test got an empty answer")

    monkeypatch.setattr(smoke, "check", garbage)
    with pytest.raises(UserError, match="empty answer"):
        roll_out(workspace)
    left = {name: part for name, part in workspace.endpoint.traffic.items() if part}
    assert (left, list(workspace.found)) == ({"blue": 100}, ["blue"])


def test_a_first_rollout_that_fails_names_the_way_to_remove_the_endpoint(workspace: Workspace) -> None:
    workspace.fail_creation = True
    with pytest.raises(UserError, match=r"deployment\.teardown --stack dev"):
        roll_out(workspace)
    assert workspace.found == {}


EMPTY = '{"choices": [{"message": {"content": " "}}], "usage": {"completion_tokens": 1}}'


@pytest.mark.parametrize("body", ["", "{}", '{"choices": []}', EMPTY])
def test_the_smoke_test_takes_only_an_answer(body: str) -> None:
    with pytest.raises(smoke.SmokeFailed):
        smoke._judge(200, body, 0.1)
    with pytest.raises(smoke.SmokeFailed, match="HTTP 500"):
        smoke._judge(500, body, 0.1)
