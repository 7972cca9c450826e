"""What the job notes of itself: rows beside the model, the same rows in MLflow, two pictures, what it ran on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from infra.cli import UserError
from tests.support.jobs import small_job
from tests.support.mlflow_server import serving
from tests.training.test_resume import before_step, killed, terminated
from training import delivery, plots, sft, tracking
from training import recipe as recipes
from training.sft import Job
from training.tracking import read_rows

ROOT = Path(__file__).resolve().parents[2]
# 38 rows: 10 steps an epoch, 20 in all
CHANGES = (
    *("num_train_epochs=2", "per_device_train_batch_size=4", "learning_rate=3e-3"),
    *("logging_steps=1", "save_strategy=steps", "save_steps=3"),
)
STEPS = list(range(1, 21))


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """MLflow's own store in a database, where every job of these tests logs; with the commit that a node is told."""
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("DISABLE_MLFLOW_INTEGRATION", raising=False)
        patched.delenv("MLFLOW_RUN_ID", raising=False)
        patched.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patched.setenv("GIT_COMMIT", "0123456789ab-dirty")
        patched.chdir(folder)
        yield f"sqlite:///{folder}/mlflow.db"


def runs(database: str) -> list[Any]:
    """All runs in the store, the newest first."""
    from mlflow import MlflowClient

    client = MlflowClient(database)
    return list(client.search_runs([one.experiment_id for one in client.search_experiments()]))


def history(database: str, run: Any, metric: str = "loss") -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    found = MlflowClient(database).get_metric_history(run.info.run_id, metric)
    return sorted((one.step, one.value) for one in found)


def noted(job: Job) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in read_rows(job.output / "metrics.jsonl")]


@pytest.fixture(scope="module")
def trained(database: str, tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Job, dict[str, Any]]:
    job = small_job(tmp_path_factory.mktemp("trained"), tiny_model, CHANGES)
    return job, sft.train(job)


@pytest.fixture(scope="module")
def run(database: str, trained: tuple[Job, dict[str, Any]]) -> Any:
    """The trained job's, as MLflow has it."""
    (found,) = runs(database)
    return found


def test_every_row_lies_beside_the_model_and_in_mlflow(
    database: str, trained: tuple[Job, dict[str, Any]], run: Any
) -> None:
    rows = noted(trained[0])
    assert [step for step, _ in rows] == STEPS
    assert history(database, run) == rows
    assert run.info.status == "FINISHED"


def test_rows_tell_speed_tokens_and_memory(trained: tuple[Job, dict[str, Any]]) -> None:
    job, metrics = trained
    rows = read_rows(job.output / "metrics.jsonl")
    assert {"loss", "learning_rate", "grad_norm", "tokens", "tokens_per_second", "memory_gb"} <= set(rows[0])
    assert rows[-1]["tokens"] == metrics["train_tokens"]
    assert [row["tokens"] for row in rows] == sorted(row["tokens"] for row in rows)
    assert all(row["tokens_per_second"] > 0 and 0.1 < row["memory_gb"] < 100 for row in rows)


def test_mlflow_knows_the_recipe_the_lineage_and_the_commit(trained: tuple[Job, dict[str, Any]], run: Any) -> None:
    job = trained[0]
    params, tags = run.data.params, run.data.tags
    assert params["learning_rate"] == "0.003" and params["max_length"] == "256" and params["processes"] == "1"
    assert params.keys() >= {key for section in job.recipe.as_dict().values() for key in section}
    assert tags["recipe"] == "local" and tags["mlflow.source.git.commit"] == "0123456789ab-dirty"
    assert tags["train_hash"] == job.identity["train"] and tags["recipe_hash"] == job.recipe.fingerprint


def test_mlflow_knows_the_end_as_the_metrics_file_does(trained: tuple[Job, dict[str, Any]], run: Any) -> None:
    found, metrics = run.data.metrics, trained[1]
    assert found["eval_loss"] == metrics["eval_loss"] and found["eval_loss_before"] == metrics["eval_loss_before"]
    assert found["final_tokens_per_second"] == metrics["tokens_per_second"]
    assert run.data.tags["approved"] == str(metrics["approved"])


def test_recipe_environment_rows_and_pictures_are_artefacts(
    database: str, trained: tuple[Job, dict[str, Any]], run: Any, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    client, job = MlflowClient(database), trained[0]
    client.download_artifacts(run.info.run_id, "", str(tmp_path))
    for name in ("metrics.jsonl", "metrics.json", "loss.png", "throughput.png", "environment.txt"):
        assert (tmp_path / name).read_bytes() == (job.output / name).read_bytes()
    assert recipes.load(str(tmp_path / "recipe.yaml")).fingerprint == job.recipe.fingerprint
    assert "# commit 0123456789ab-dirty" in (tmp_path / "environment.txt").read_text()
    assert "\ntransformers==" in (tmp_path / "environment.txt").read_text()


def test_the_pictures_can_be_opened_and_are_not_empty(trained: tuple[Job, dict[str, Any]]) -> None:
    from matplotlib.image import imread

    for name in ("loss.png", "throughput.png"):
        pixels = imread(trained[0].output / name)
        assert pixels.shape[:2] == (675, 1200)
        blue = (abs(pixels[:, :, :3] - [0.06, 0.38, 1.0]) < 0.02).all(axis=2)
        assert blue.any(axis=0).sum() > 400, "the curve does not go through the picture"


def test_each_log_is_one_line_and_the_plan_says_where_they_go(
    database: str, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = small_job(tmp_path, tiny_model, (*CHANGES, "max_steps=4", "logging_steps=2", "seed=8"))
    sft.train(job)
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("step ")]
    assert len(lines) == 2 and lines[0].startswith("step 2/4  50%  loss ")
    assert "tokens/s" in lines[0] and "GB" in lines[0] and lines[1].endswith("0 s left")
    assert f"metrics: {job.output / 'metrics.jsonl'} and MLflow at {database}" in captured.err
    assert captured.out == ""


def test_a_run_that_is_interrupted_goes_on_in_the_same_run_with_the_same_rows(
    database: str, trained: tuple[Job, dict[str, Any]], run: Any, tmp_path: Path, tiny_model: Path
) -> None:
    before = {one.info.run_id for one in runs(database)}
    job = small_job(tmp_path, tiny_model, CHANGES)
    for act, fault in ((killed, KeyboardInterrupt), (terminated, UserError)):
        with before_step(5 if act is killed else 13, act), pytest.raises(fault):
            sft.train(job)
        (here,) = (one for one in runs(database) if one.info.run_id not in before)
        assert here.info.status == "KILLED"
    sft.train(job)
    (here,) = (one for one in runs(database) if one.info.run_id not in before)
    assert here.info.status == "FINISHED"
    assert noted(job) == noted(trained[0])
    assert history(database, here) == history(database, run)
    rows = read_rows(job.output / "metrics.jsonl")
    assert [row["tokens"] for row in rows] == sorted(row["tokens"] for row in rows)
    assert rows[-1]["tokens"] == pytest.approx(trained[1]["train_tokens"], rel=0.1)


def test_a_run_that_fails_is_a_failed_run_with_its_rows(database: str, tmp_path: Path, tiny_model: Path) -> None:
    job = small_job(tmp_path, tiny_model, (*CHANGES, "seed=9"))

    def fail(_: Any) -> None:
        raise UserError("it failed")

    with before_step(7, fail), pytest.raises(UserError, match="it failed"):
        sft.train(job)
    newest = runs(database)[0]
    assert newest.info.status == "FAILED"
    assert history(database, newest) == noted(job) and len(noted(job)) == 7
    assert (job.output / "loss.png").is_file()


def test_with_the_server_away_nothing_is_lost_and_the_model_is_whole(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DISABLE_MLFLOW_INTEGRATION", raising=False)
    monkeypatch.setitem(tracking.PATIENCE, "FINISHED", 0.1)
    job = small_job(tmp_path, tiny_model, CHANGES)
    with serving(tmp_path / "artifacts") as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        server.open.clear()
        sft.train(job)
    assert [step for step, _ in noted(job)] == STEPS
    assert (job.output / "complete.json").is_file() and (job.output / "loss.png").is_file()
    assert (
        "has not taken 20 of 20 rows of metrics (no answer): all of it is beside the model" in capsys.readouterr().err
    )


def test_a_picture_that_cannot_be_drawn_costs_no_model(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> list[Path]:
        raise RuntimeError("no fonts")

    monkeypatch.setattr(plots, "draw", fail)
    job = small_job(tmp_path, tiny_model, (*CHANGES, "max_steps=2"))
    assert sft.train(job)["steps"] == 2
    assert "the pictures were not drawn: no fonts" in capsys.readouterr().err


def test_rows_that_cannot_be_written_are_said_and_cost_no_model(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = small_job(tmp_path, tiny_model, (*CHANGES, "max_steps=2"))
    (job.output / "metrics.jsonl").mkdir(parents=True)
    assert sft.train(job)["steps"] == 2
    assert f"cannot write down the metrics in {job.output}: Is a directory" in capsys.readouterr().err


def test_a_row_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert read_rows(tmp_path / "rows") == [{"step": 1}, {"step": 2}]
    assert read_rows(tmp_path / "none") == []


def test_rows_of_another_run_in_the_folder_are_not_continued(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small_job(tmp_path, tiny_model, (*CHANGES, "max_steps=2", "logging_steps=2"))
    job.output.mkdir()
    (job.output / "metrics.jsonl").write_text('{"step": 50, "loss": 1.0, "seconds": 1, "tokens": 1}\n')
    sft.train(job)
    assert [step for step, _ in noted(job)] == [2]


# --- MLflow's own server ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[str]:
    """`mlflow server`, answering; it takes some seconds to start."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder)]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder, start_new_session=True
    )
    url = f"http://127.0.0.1:{port}"
    try:
        while process.poll() is None:
            with contextlib.suppress(requests.RequestException):
                requests.get(f"{url}/health", timeout=2).raise_for_status()
                break
            time.sleep(0.3)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_a_real_server_that_comes_late_and_goes_away_again_has_every_row_in_the_end(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Away before the first step, there for a while, killed in the middle, there again before the end."""
    monkeypatch.delenv("DISABLE_MLFLOW_INTEGRATION", raising=False)
    monkeypatch.setattr(delivery, "PAUSE", 0.1)
    port, folder = _free_port(), tmp_path / "server"
    folder.mkdir()
    url = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    job = small_job(tmp_path, tiny_model, CHANGES)
    up = contextlib.ExitStack()

    def come_and_take_rows(_: Any) -> None:
        up.enter_context(mlflow_server(folder, port))
        while not _taken(url):
            time.sleep(0.2)

    def come(_: Any) -> None:
        up.enter_context(mlflow_server(folder, port))

    with up, _at_steps({4: come_and_take_rows, 8: lambda _: up.close(), 17: come}):
        sft.train(job)
        assert _taken(url) == len(STEPS)
        (run,) = runs(url)
        assert history(url, run) == noted(job) and run.info.status == "FINISHED"
    said = capsys.readouterr().err
    assert said.count("answers again") == 2 and "has not taken" not in said
    assert json.loads((job.output / "complete.json").read_text())


def _taken(url: str) -> int:
    """How many rows the server has of its only run."""
    with contextlib.suppress(Exception):
        found = runs(url)
        return len(history(url, found[0])) if found else 0
    return 0


@contextlib.contextmanager
def _at_steps(acts: dict[int, Any]) -> Iterator[None]:
    from transformers.trainer_callback import DefaultFlowCallback

    def on_step_begin(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        acts.get(state.global_step, lambda _: None)(None)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(DefaultFlowCallback, "on_step_begin", on_step_begin)
        yield


def _free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
