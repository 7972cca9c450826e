"""A rollout that fails leaves the endpoint as it was; one that was killed goes on. On a workspace in memory."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError

from deployment import doctor, gate, smoke, steps
from deployment.causes import Evidence
from deployment.creation import Maker
from deployment.endpoint import Endpoint
from deployment.gate import Limits, Measured
from deployment.plan import Goal
from deployment.record import Record
from deployment.rollout import _check, _options
from deployment.smoke import CHAT, MLFLOW, ProbeFailed
from deployment.steps import Patience, Rollout
from infra.cli import REFUSED, UserError
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
        self.silently = False
        self.puts: list[tuple[dict[str, int], dict[str, str], dict[str, int]]] = []
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
        self.endpoint = self._endpoint({name: 100}, {}, {})
        self.found[name] = self._deployment(name, model)

    def _endpoint(self, traffic: dict[str, int], mirror: dict[str, int], tags: dict[str, str]) -> Any:
        return SimpleNamespace(provisioning_state="Succeeded", traffic=traffic, mirror_traffic=mirror, tags=tags)

    def _deployment(self, name: str, model: str) -> Any:
        return SimpleNamespace(
            name=name,
            model=f"azureml:{model}",
            environment=f"azureml:{GOAL.environment}",
            instance_type=GOAL.instance_type,
            instance_count=1,
            provisioning_state="Succeeded",
        )

    def _get(self, name: str) -> Any:
        if self.endpoint is None:
            raise ResourceNotFoundError("no endpoint")
        return self.endpoint

    def _put(self, endpoint: Any) -> Poller:
        traffic = {name: part for name, part in (endpoint.traffic or {}).items() if part}
        mirror = dict(endpoint.mirror_traffic or {})
        assert {*traffic, *mirror} <= set(self.found)
        self.endpoint = self._endpoint(traffic, mirror, dict(endpoint.tags or {}))
        self.puts.append((traffic, self.endpoint.tags, mirror))
        return Poller()

    def _create(self, deployment: Any) -> Poller:
        self.found[deployment.name] = made = self._deployment(deployment.name, GOAL.model)
        if not self.fail_creation:
            return Poller()
        made.provisioning_state = "Failed"
        return Poller() if self.silently else Poller(HttpResponseError("the container crashed\nits log, many lines"))

    def _delete(self, name: str, endpoint: str) -> Poller:
        assert not self.endpoint.traffic.get(name), "a deployment with traffic cannot be deleted"
        del self.found[name]
        return Poller()


@pytest.fixture
def workspace(monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setattr(steps, "connect", lambda given, app: Endpoint("e", "https://e/score", cast(Any, None)))
    monkeypatch.setattr(smoke, "check", lambda endpoint, deployment, question: smoke.Passed(0.1, 5))
    monkeypatch.setattr(smoke, "probe", lambda endpoint, question, deployment: 0.1)
    monkeypatch.setattr(gate, "callers", lambda *_: {})
    monkeypatch.setattr(gate, "INTERVAL", 0.01)
    known = Evidence("dev", "green", server_log="RuntimeError: its last words", error="exited with code 1")
    monkeypatch.setattr(doctor, "examine", lambda *_, **__: known)
    return Workspace()


class Lost(Exception):
    """What the lease raises that was lost."""


class Lease:
    """A lease that is lost after so many checks."""

    def __init__(self, checks: int = 10_000) -> None:
        self.left = checks

    def check(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Lost


def rollout(workspace: Workspace, goal: Goal = GOAL, lease: Lease | None = None, keep: float = 0.0) -> Rollout:
    make = Maker(cast(Any, workspace), outputs(), "e", goal, None)
    return Rollout(make, cast(Any, lease or Lease()), "phi", patience=Patience(0.05, keep))


def roll_out(workspace: Workspace, goal: Goal = GOAL) -> str:
    return rollout(workspace, goal).run().name


def test_a_first_rollout_makes_endpoint_and_deployment(workspace: Workspace) -> None:
    assert roll_out(workspace) == "blue"
    assert workspace.endpoint.traffic == {"blue": 100}


def test_a_second_one_replaces_the_first_and_leaves_no_note(workspace: Workspace) -> None:
    workspace.serve("blue", "phi:1")
    assert roll_out(workspace, replace(GOAL, steps=(10, 100), mirror=20)) == "green"
    assert (workspace.endpoint.traffic, list(workspace.found)) == ({"green": 100}, ["green"])
    assert not {key for key in workspace.endpoint.tags if key.startswith("rollout")}
    assert [put[0] for put in workspace.puts[:3]] == [{"blue": 100}, {"green": 10, "blue": 90}, {"green": 100}]


def test_a_deployment_that_does_not_come_up_is_shown_and_removed(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace.serve("blue", "phi:1")
    workspace.fail_creation = True
    with pytest.raises(UserError) as failed:
        roll_out(workspace)
    assert failed.value.message.splitlines()[0] == "the deployment green did not come up: the container crashed"
    assert "the endpoint is left as it was: blue 100 %" in failed.value.message
    said = capsys.readouterr().err
    assert "--- green, inference-server" in said and "cause: the server crashes when it starts" in said
    assert failed.value.next_command == "python -m deployment.logs --deployment green --stack dev"
    assert (workspace.endpoint.traffic, list(workspace.found)) == ({"blue": 100}, ["blue"])


def test_one_whose_creation_ends_well_and_whose_state_is_failed_did_not_come_up(workspace: Workspace) -> None:
    workspace.serve("blue", "phi:1")
    workspace.fail_creation = workspace.silently = True
    with pytest.raises(UserError, match="did not come up: its state is failed"):
        roll_out(workspace)
    assert list(workspace.found) == ["blue"]


def test_one_that_azure_refuses_at_once_leaves_nothing_to_undo(workspace: Workspace) -> None:
    workspace.serve("blue", "phi:1")

    def refuse(deployment: Any) -> Poller:
        raise HttpResponseError("the name is not allowed\nand much more")

    workspace.online_deployments.begin_create_or_update = refuse
    with pytest.raises(UserError) as refused:
        roll_out(workspace)
    assert refused.value.message == "Azure refused the deployment green: the name is not allowed"
    assert workspace.puts == []


def test_a_change_that_azure_takes_and_does_not_make_is_not_asked_for_again_and_again(workspace: Workspace) -> None:
    workspace.serve("blue", "phi:1")
    workspace.online_endpoints.begin_create_or_update = lambda endpoint: Poller()
    workspace.online_endpoints.get = lambda name: SimpleNamespace(**vars(workspace.endpoint))
    with pytest.raises(UserError, match="nothing has changed in Azure"):
        roll_out(workspace)


@pytest.mark.parametrize("share", [0, 10])
def test_a_deployment_that_fails_its_smoke_test_loses_its_traffic_and_goes(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, share: int
) -> None:
    workspace.serve("blue", "phi:1")
    workspace.found["green"] = workspace._deployment("green", GOAL.model)
    workspace.endpoint.traffic = {"blue": 100 - share, "green": share}

    def garbage(endpoint: Endpoint, deployment: str, question: smoke.Question) -> smoke.Passed:
        raise smoke.SmokeFailed("the smoke test got an empty answer")

    monkeypatch.setattr(smoke, "check", garbage)
    with pytest.raises(UserError, match="empty answer"):
        roll_out(workspace)
    left = {name: part for name, part in workspace.endpoint.traffic.items() if part}
    assert (left, list(workspace.found)) == ({"blue": 100}, ["blue"])


@pytest.mark.parametrize("when", [10, 100])
def test_one_that_gets_worse_is_taken_back_in_one_request_with_its_cause(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, when: int
) -> None:
    workspace.serve("blue", "phi:1")

    def answer(endpoint: Endpoint, question: smoke.Question, deployment: str) -> float:
        if deployment == "green" and workspace.endpoint.traffic.get("green", 0) >= when:
            raise ProbeFailed("HTTP 500 instead of an answer")
        return 0.1

    monkeypatch.setattr(smoke, "probe", answer)
    with pytest.raises(UserError, match="HTTP 500 instead") as refused:
        rollout(workspace, replace(GOAL, steps=(10, 100)), keep=60).run()
    assert refused.value.code == REFUSED
    taken_back = next(put for put in workspace.puts if put[1].get("rollout-returning"))
    assert taken_back[0] == {"blue": 100} and "HTTP 500" in taken_back[1]["rollout-cause"]
    assert (workspace.endpoint.traffic, list(workspace.found)) == ({"blue": 100}, ["blue"])


def test_one_that_fails_while_it_is_mirrored_to_loses_that_in_the_same_request(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.serve("blue", "phi:1")

    def answer(endpoint: Endpoint, question: smoke.Question, deployment: str) -> float:
        if workspace.endpoint.mirror_traffic.get(deployment):
            raise ProbeFailed("HTTP 500 instead of an answer")
        return 0.1

    monkeypatch.setattr(smoke, "probe", answer)
    with pytest.raises(UserError, match="HTTP 500 instead"):
        roll_out(workspace, replace(GOAL, mirror=20))
    assert workspace.puts[0][2] == {"green": 20}
    assert workspace.puts[1][1]["rollout-returning"] == "green" and workspace.puts[1][2] == {}


def test_a_run_after_a_kill_in_the_middle_of_taking_back_ends_it_and_says_why(workspace: Workspace) -> None:
    workspace.serve("blue", "phi:1")
    workspace.found["green"] = workspace._deployment("green", GOAL.model)
    workspace.endpoint.tags = {"rollout-returning": "green", "rollout-cause": "it was slow"}
    with pytest.raises(UserError, match="an earlier rollout had failed, and is undone now: it was slow"):
        roll_out(workspace)
    assert list(workspace.found) == ["blue"]
    assert roll_out(workspace) == "green"


@pytest.mark.parametrize(("command", "passes"), [("true", True), ("test $ROLLOUT_DEPLOYMENT = blue", False)])
def test_the_gates_command_decides_before_there_is_any_traffic_and_speaks_for_itself(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, command: str, passes: bool
) -> None:
    workspace.serve("blue", "phi:1")
    monkeypatch.setattr(doctor, "examine", lambda *_, **__: pytest.fail("the doctor was asked"))
    if passes:
        assert roll_out(workspace, replace(GOAL, gate=command)) == "green"
        return
    with pytest.raises(UserError, match="the gate refused green") as refused:
        roll_out(workspace, replace(GOAL, gate=command))
    assert refused.value.code == REFUSED
    assert all(put[0] == {"blue": 100} for put in workspace.puts)


def test_what_changes_by_itself_is_waited_out_said_once_and_not_for_ever(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(steps, "LOOK_AGAIN", 0.01)
    workspace.serve("blue", "phi:1")
    workspace.endpoint.provisioning_state = "Updating"
    looks = []

    def get(name: str) -> Any:
        looks.append(name)
        if len(looks) == 4:
            workspace.endpoint.provisioning_state = "Succeeded"
        return workspace.endpoint

    workspace.online_endpoints.get = get
    assert roll_out(workspace) == "green"
    assert capsys.readouterr().err.count("wait: the endpoint is updating") == 1
    workspace.found["blue"] = workspace._deployment("blue", "phi:3")
    workspace.found["blue"].provisioning_state = "Deleting"
    monkeypatch.setattr(steps, "WAIT_SECONDS", 0.05)
    with pytest.raises(UserError, match="blue is deleting for more than"):
        roll_out(workspace)


@pytest.mark.parametrize("checks", range(8))
def test_without_the_lease_nothing_is_changed(workspace: Workspace, checks: int) -> None:
    workspace.serve("blue", "phi:1")
    with pytest.raises(Lost):
        rollout(workspace, replace(GOAL, steps=(10, 100)), Lease(checks)).run()
    before = (dict(workspace.endpoint.traffic), list(workspace.found))
    assert checks or before == ({"blue": 100}, ["blue"])
    with pytest.raises(Lost):
        rollout(workspace, GOAL, Lease(0)).run()
    assert (dict(workspace.endpoint.traffic), list(workspace.found)) == before


def test_without_the_lease_nothing_is_taken_back_either(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace.serve("blue", "phi:1")

    def garbage(endpoint: Endpoint, deployment: str, question: smoke.Question) -> smoke.Passed:
        raise smoke.SmokeFailed("an empty answer")

    monkeypatch.setattr(smoke, "check", garbage)
    with pytest.raises(Lost):
        rollout(workspace, GOAL, Lease(2)).run()
    assert workspace.puts == []


def test_a_first_rollout_that_fails_names_the_way_to_remove_the_endpoint(workspace: Workspace) -> None:
    workspace.fail_creation = True
    with pytest.raises(UserError, match=r"deployment\.teardown --stack dev"):
        roll_out(workspace)
    assert workspace.found == {}


EMPTY = '{"choices": [{"message": {"content": " "}}], "usage": {"completion_tokens": 1}}'


@pytest.mark.parametrize("body", ["", "{}", '{"choices": []}', EMPTY])
def test_a_probe_takes_only_an_answer(body: str) -> None:
    with pytest.raises(ProbeFailed):
        smoke.judge(CHAT, 200, body)
    with pytest.raises(ProbeFailed, match="HTTP 500"):
        smoke.judge(CHAT, 500, body)


@pytest.mark.parametrize(("body", "good"), [('["a"]', True), ("[]", False), ("oops", False)])
def test_of_other_servers_any_json_that_is_not_empty_is_an_answer(body: str, good: bool) -> None:
    if good:
        assert smoke.judge(MLFLOW, 200, body) == 0
        return
    with pytest.raises(ProbeFailed):
        smoke.judge(MLFLOW, 200, body)


def measured(good: int, bad: int = 0, seconds: float = 1.0) -> Measured:
    return Measured([seconds] * good, ["HTTP 500"] * bad)


@pytest.mark.parametrize(
    ("new", "old", "passes"),
    [
        (measured(60), measured(60), True),
        (measured(59, 1), measured(60), True),
        (measured(58, 2), measured(60), False),
        (measured(50, 10), measured(50, 10), True),
        (measured(0, 5), measured(5), False),
        (measured(60, seconds=2.2), measured(60), True),
        (measured(60, seconds=2.3), measured(60), False),
        (measured(60, seconds=0.2), measured(60, seconds=0.01), True),
    ],
)
def test_the_gate_asks_for_as_few_failures_and_as_quick_answers_as_beside_it(
    new: Measured, old: Measured, passes: bool
) -> None:
    assert (gate.verdict(new, old, Limits()) is None) is passes


def test_one_with_more_traffic_may_be_slower_but_not_fail() -> None:
    assert gate.verdict(measured(60, seconds=9), measured(60), Limits(), alike=False) is None
    assert gate.verdict(measured(58, 2), measured(60), Limits(), alike=False) is not None


@pytest.mark.parametrize(("traffic", "refused"), [({"blue": 50, "green": 50}, True), ({"green": 100}, False)])
def test_latency_counts_while_the_new_one_has_no_more_traffic_than_the_old(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, traffic: dict[str, int], refused: bool
) -> None:
    workspace.serve("blue", "phi:1")
    workspace.found["green"] = workspace._deployment("green", GOAL.model)
    workspace.endpoint.traffic = traffic
    monkeypatch.setattr(smoke, "probe", lambda endpoint, question, name: 9.0 if name == "green" else 0.1)
    run = rollout(workspace)
    if refused:
        with pytest.raises(UserError, match="its answers take 9"):
            run._soak("green", "blue", time.time())
    else:
        run._soak("green", "blue", time.time())


@pytest.mark.parametrize(
    ("answered", "passes"),
    [({"2xx": 19, "5xx": 0}, True), ({"2xx": 0, "5xx": 19}, True), ({"2xx": 99, "424": 1}, True),
     ({"2xx": 90, "424": 10}, False), ({"2xx": 90, "5xx": 10}, False), ({"2xx": 50, "4xx": 50}, True), ({}, True)],
)  # fmt: skip
def test_what_callers_got_counts_from_twenty_requests_on_and_their_own_faults_do_not(
    answered: dict[str, int], passes: bool
) -> None:
    assert (gate.callers_verdict(answered, Limits()) is None) is passes


def test_of_callers_answers_the_models_own_faults_are_told_from_the_callers() -> None:
    def series(kind: str, model: str, *totals: float | None) -> dict[str, Any]:
        labels = {"statusCodeClass": kind, "modelStatusCode": model}
        named = [{"name": {"value": name}, "value": value} for name, value in labels.items()]
        return {"metadatavalues": named, "data": [{"total": total} for total in totals]}

    found = [series("2xx", "200", 5, None, 2), series("4xx", "500", 3), series("4xx", "400", 4), series("5xx", "", 1)]
    asked: list[str] = []

    def get(path: str, query: dict[str, str]) -> Any:
        asked.append(query["$filter"])
        return {"value": [{"timeseries": found}]}

    assert gate.callers(get, "/e", "green", time.time()) == {"2xx": 7, "424": 3, "4xx": 4, "5xx": 1}
    assert asked[0].startswith("deployment eq 'green'")
    assert gate.callers(lambda path, query: None, "/e", "green", time.time()) == {}


def test_a_time_in_the_tags_that_cannot_be_read_is_over() -> None:
    assert Record.read({"rollout-keep-until": "tomorrow"}).keep_until == 0.0
    assert Record.read({}).keep_until is None


def test_a_long_cause_is_cut_to_what_a_tag_holds() -> None:
    assert Record(cause="x" * 300).write({}) == {"rollout-cause": "x" * 256}


def test_a_hopeless_soak_ends_early() -> None:
    def ask(name: str) -> float:
        if name == "new":
            raise ProbeFailed("HTTP 500")
        return 0.01

    new, _ = gate.soak(ask, "new", "old", until=time.time() + 60, limits=Limits(), check=lambda: None)
    assert new.asked == 3


def test_a_soak_ends_when_the_lease_is_lost() -> None:
    asked: list[str] = []

    def ask(name: str) -> float:
        asked.append(name)
        return 0.01

    with pytest.raises(Lost):
        gate.soak(ask, "new", "old", until=time.time() + 60, limits=Limits(), check=Lease(1).check)
    assert asked == ["new"]


@pytest.mark.parametrize(
    "words",
    [("--canary", "10,50"), ("--canary", "50,10,100"), ("--canary", "x"), ("--canary", "0,100"), ("--engine", "x"),
     ("--mirror", "51"), ("--mirror", "-1"), ("--instance-count", "0"), ("--soak", "-1"),
     ("--source", "x", "--engine", "mlflow")],
)  # fmt: skip
def test_wrong_words_are_wrong_use(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        _check(_options().parse_args(words))
    except UserError as error:
        assert error.code == 2
    except SystemExit as left:
        assert left.code == 2
    else:
        raise AssertionError("it was taken")
