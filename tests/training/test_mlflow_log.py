"""A run's metrics reach MLflow whatever the server does, or it is said that they did not."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from tests.support.mlflow_server import Server, serving
from training import delivery, mlflow_log
from training.delivery import Delivery, without_secrets
from training.mlflow_log import Described, Ending, MlflowLog

LONG = 60.0
"""Seconds of patience, in tests where all that there is to wait for comes at once."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Asked without delays."""
    for name in ("FIRST_WAIT", "LONGEST_WAIT", "LAST_WAIT", "PAUSE"):
        monkeypatch.setattr(delivery, name, 0.02)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.delenv("DISABLE_MLFLOW_INTEGRATION", raising=False)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    with serving(tmp_path / "artifacts") as made:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", made.url)
        yield made


def row(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "time": 1000.0 + step, "loss": 10.0 - step, **more}


def log(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> MlflowLog:
    """The log of a run as it is when the process starts."""
    where = mlflow_log.load()
    assert where
    values: dict[str, Any] = {"name": "local-abc", "identity": {"train": "1"}, "params": {"seed": 7}, "tags": {}}
    described = Described(**{**values, "texts": {"recipe.yaml": "model:\n"}, **changes})
    return MlflowLog(described, rows, folder / "mlflow.json", where)


def ending(status: str = "FINISHED", **metrics: Any) -> Ending:
    return Ending(status, metrics, [])


def until(happened: Any) -> None:
    """Wait for the thread that delivers; a test that waits in vain ends by its time limit."""
    tick = Event()
    for _ in range(3000):
        if happened():
            return
        tick.wait(0.02)
    raise AssertionError("it did not happen")


def test_all_that_is_known_of_a_run_arrives(tmp_path: Path, server: Server) -> None:
    picture = tmp_path / "loss.png"
    picture.write_bytes(b"png")
    rows = [row(1), row(2, learning_rate=0.5)]
    made = log(tmp_path, rows, tags={"recipe": "local"}, params={"seed": 7, "bf16": None})
    made.close(Ending("FINISHED", {"eval_loss": 1.5, "approved": True, "reason": "better"}, [picture]), LONG)
    run = server.run
    assert run.metrics == {"loss": [(1, 9.0), (2, 8.0)], "learning_rate": [(2, 0.5)], "eval_loss": [(2, 1.5)]}
    assert run.params == {"seed": "7", "bf16": "None"}
    assert run.tags == {"recipe": "local", "approved": "True", "reason": "better"}
    assert run.status == "FINISHED"
    stored = {path.name: path.read_bytes() for path in (tmp_path / "artifacts" / "run1").rglob("*") if path.is_file()}
    assert stored == {"recipe.yaml": b"model:\n", "loss.png": b"png"}


def test_mlflow_prints_nothing(tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """Not even addresses: stdout is for the result of the verb."""
    log(tmp_path, [row(1)]).close(ending(), LONG)
    captured = capsys.readouterr()
    assert server.run.status == "FINISHED" and captured.out + captured.err == ""


def test_rows_arrive_while_the_run_goes_on(tmp_path: Path, server: Server) -> None:
    rows: list[dict[str, Any]] = []
    made = log(tmp_path, rows)
    made.delivery.start()
    for step in (1, 2):
        rows.append(row(step))
        made.delivery.wake()
        until(lambda step=step: (step, 10.0 - step) in server.run.metrics.get("loss", []) if server.runs else False)
    made.close(ending(), LONG)
    assert server.run.metrics["loss"] == [(1, 9.0), (2, 8.0)]


@pytest.mark.parametrize("fault", [503, 500, 429, 401])
def test_what_a_server_refuses_for_a_while_arrives_when_it_works_again(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str], fault: int
) -> None:
    server.fault = (fault, {"error_code": "TEMPORARILY_UNAVAILABLE", "message": "later"})
    rows = [row(1)]
    made = log(tmp_path, rows)
    made.delivery.start()
    until(lambda: len(server.asked) > 3)
    rows.append(row(2))
    server.fault = None
    made.close(ending(), LONG)
    assert server.run.metrics["loss"] == [(1, 9.0), (2, 8.0)] and server.run.status == "FINISHED"
    said = capsys.readouterr().err.splitlines()
    assert [("does not answer" in line, "answers again" in line) for line in said] == [(True, False), (False, True)]


def test_nobody_waits_for_a_server_that_hangs(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.open.clear()
    rows = [row(1)]
    made = log(tmp_path, rows)
    made.delivery.start()
    until(lambda: server.asked)
    rows.append(row(2))
    made.delivery.wake()
    made.close(ending(), 0.1)
    assert not server.open.is_set(), "the server still hangs, and the run is over"
    assert "has not taken 2 of 2 rows of metrics (no answer): all of it is beside the model" in capsys.readouterr().err


def test_a_server_that_is_away_is_named_with_what_it_has_not_taken(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    made = log(tmp_path, [row(1)])
    made.close(ending(), 0.3)
    said = capsys.readouterr().err
    assert "MLflow at http://127.0.0.1:9 has not taken 1 of 1 rows of metrics" in said and "refused" in said


def test_a_run_that_goes_on_adds_to_the_same_run_what_it_lacks(tmp_path: Path, server: Server) -> None:
    log(tmp_path, [row(1), row(2)]).close(ending("KILLED"), LONG)
    assert server.run.status == "KILLED"
    log(tmp_path, [row(1), row(2), row(3)]).close(ending(), LONG)
    assert server.run.metrics["loss"] == [(1, 9.0), (2, 8.0), (3, 7.0)]
    assert server.run.status == "FINISHED"


def test_a_short_row_does_not_overtake_a_long_one(tmp_path: Path, server: Server) -> None:
    """Five long rows are more than a request may hold, four and the short one are not."""
    long = {f"m{number}": 1.0 for number in range(49)}
    log(tmp_path, [*(row(step, **long) for step in range(1, 6)), row(6)]).close(ending(), LONG)
    assert [step for step, _ in server.run.metrics["loss"]] == [1, 2, 3, 4, 5, 6]


def test_a_run_that_goes_on_with_fewer_logs_loses_none(tmp_path: Path, server: Server) -> None:
    """Twelve steps were taken one by one; it goes on from a checkpoint after the tenth, logging every fifth."""
    log(tmp_path, [row(step) for step in range(1, 13)]).close(ending("KILLED"), LONG)
    log(tmp_path, [*(row(step) for step in range(1, 11)), row(15), row(20)]).close(ending(), LONG)
    assert [step for step, _ in server.run.metrics["loss"]] == [*range(1, 13), 15, 20]


def test_another_run_in_the_same_folder_is_another_run(tmp_path: Path, server: Server) -> None:
    log(tmp_path, [row(1)]).close(ending("KILLED"), LONG)
    log(tmp_path, [row(1)], identity={"train": "2"}).close(ending(), LONG)
    assert [run.status for run in server.runs.values()] == ["KILLED", "FINISHED"]
    assert [run.metrics["loss"] for run in server.runs.values()] == [[(1, 9.0)], [(1, 9.0)]]


def test_a_run_that_was_deleted_in_mlflow_is_begun_anew_with_all_its_rows(tmp_path: Path, server: Server) -> None:
    log(tmp_path, [row(1)]).close(ending("KILLED"), LONG)
    server.runs.clear()
    log(tmp_path, [row(1), row(2)]).close(ending(), LONG)
    assert [step for step, _ in server.run.metrics["loss"]] == [1, 2]


def test_azure_mls_own_run_is_used_and_neither_begun_nor_ended(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "job-1")
    log(tmp_path, [row(1)]).close(ending(eval_loss=1.0), LONG)
    assert list(server.runs) == ["job-1"] and server.run.metrics["eval_loss"] == [(1, 1.0)]
    assert server.run.status == "RUNNING"
    assert not [path for path in server.asked if path.endswith(("create", "update"))]


def test_azure_mls_limits_are_kept_and_what_is_left_out_is_said(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server refuses what exceeds them."""
    rows = [row(step, **{f"m{number}": 1.0 for number in range(60)}) for step in range(1, 31)]
    made = log(tmp_path, rows, params={f"p{number}": "x" * 400 for number in range(230)})
    made.close(ending(), LONG)
    run = server.run
    assert len(run.params) == 200 and set(map(len, run.params.values())) == {250}
    assert len(run.metrics) == 50 and all(len(values) == 30 for values in run.metrics.values())
    said = capsys.readouterr().err.splitlines()
    names = [line for line in said if "is beside the model alone: MLflow has 50 names" in line]
    assert len(names) == 11, "61 names, each left out one said once"
    assert [line for line in said if line not in names] == [
        "30 parameters are beside the model alone: MLflow has 200 of a run"
    ]


def test_what_is_refused_for_good_is_said_once_and_the_rest_arrives(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if body.get("params"):
            return 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "Changing param values is not allowed"}
        return taken(body)

    taken = server._runs_log_batch
    monkeypatch.setattr(server, "_runs_log_batch", refuse)
    log(tmp_path, [row(1)]).close(ending(), LONG)
    assert server.run.metrics["loss"] == [(1, 9.0)] and server.run.status == "FINISHED"
    said = capsys.readouterr().err
    assert said.count("refused") == 1 and "Changing param values is not allowed" in said


def test_what_is_no_number_is_no_metric(tmp_path: Path, server: Server) -> None:
    rows = [row(1, grad_norm=None, word="x", flag=True)]
    log(tmp_path, rows).close(ending(forgetting=None), LONG)
    assert set(server.run.metrics) == {"loss"}


def test_a_value_of_the_whole_run_does_not_follow_those_of_its_rows(tmp_path: Path, server: Server) -> None:
    rows = [row(1, tokens_per_second=10.0)]
    log(tmp_path, rows).close(ending(tokens_per_second=8.0), LONG)
    assert server.run.metrics["tokens_per_second"] == [(1, 10.0)]
    assert server.run.metrics["final_tokens_per_second"] == [(1, 8.0)]


@pytest.mark.parametrize(
    "address",
    ["http://me:hush@{host}", "http://me:hu@hush@127.0.0.1:9", "nosuch://me:hush@host/db", "nosuch://me:hu/hush@host"],
)
def test_the_secrets_in_an_address_are_never_printed(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], address: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address.format(host=server.url.removeprefix("http://")))
    server.fault = (401, {"error_code": "UNAUTHENTICATED", "message": f"{address} was not accepted"})
    log(tmp_path, [row(1)]).close(ending(), 0.3)
    captured = capsys.readouterr()
    assert "has not taken" in captured.err
    assert "hush" not in captured.err + captured.out


def test_a_password_reaches_the_server_that_it_is_for(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url.replace("//", "//me:hush@"))
    log(tmp_path, [row(1)]).close(ending(), LONG)
    assert server.run.metrics["loss"] and server.authorizations == {"Basic bWU6aHVzaA=="}
    assert "hush" not in (tmp_path / "mlflow.json").read_text()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("sqlite:////data/m.db", "sqlite:////data/m.db"),
        ("https://me:hush@host/mlflow", "https://host/mlflow"),
        ("cannot parse 'https://host/x?token=hush'", "cannot parse 'https://host/x"),
        ("is it there? yes", "is it there? yes"),
    ],
)
def test_only_what_may_be_secret_is_taken_out(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, True),
        ({"AZUREML_RUN_ID": "job-1"}, False),
        ({"AZUREML_RUN_ID": "job-1", "MLFLOW_TRACKING_URI": "azureml://x"}, True),
        ({"MLFLOW_TRACKING_URI": "http://x", "DISABLE_MLFLOW_INTEGRATION": "true"}, False),
    ],
)
def test_a_job_logs_where_there_is_an_mlflow(
    environment: dict[str, str], wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AZUREML_RUN_ID", "MLFLOW_TRACKING_URI", "DISABLE_MLFLOW_INTEGRATION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert mlflow_log.wanted() is wanted


def test_a_workspaces_long_address_is_shown_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = "/subscriptions/s/resourceGroups/g/providers/Microsoft.MachineLearningServices/workspaces/mlw-1"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"azureml://eastus2.api.azureml.ms/mlflow/v1.0{workspace}?x=y")
    assert mlflow_log.load() == "azureml://…/mlw-1"


def test_without_mlflow_installed_there_is_nowhere_to_log_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert mlflow_log.load() is None


def test_a_delivery_that_is_started_twice_or_after_its_end_works_once() -> None:
    delivered: list[int] = []
    made = Delivery(lambda: delivered.append(1), "nowhere")
    made.start()
    made.start()
    until(lambda: delivered)
    assert made.finish(LONG)
    made.start()
    assert len(delivered) <= 2


def test_a_delivery_rests_while_there_is_nothing_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "PAUSE", 0.0)
    delivered: list[int] = []
    made = Delivery(lambda: delivered.append(1), "nowhere")
    made.start()
    made.wake()
    until(lambda: len(delivered) == 2)
    Event().wait(0.3)
    assert len(delivered) == 2


def test_a_delivery_that_fails_rests_between_its_tries_at_the_end_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "LAST_WAIT", LONG)
    tries: list[int] = []

    def fail() -> None:
        tries.append(1)
        raise ValueError("no")

    made = Delivery(fail, "nowhere")
    assert not made.finish(0.3)
    assert len(tries) <= 2 and made.fault == "no"


def test_mlflows_own_retries_do_not_hold_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    mlflow_log.load()
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"
