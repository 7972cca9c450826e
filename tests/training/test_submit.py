from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infra.cli import UserError
from infra.outputs import StackOutputs
from tests.support.small import chat, write_jsonl
from training import recipe as recipes
from training import submit
from training.submit import find_base_model, follow, make_plan, snapshot

OUTPUTS = StackOutputs(**dict.fromkeys(StackOutputs.__dataclass_fields__, "x"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with two files and something that looks like a base model."""
    (tmp_path / "base-model").mkdir()
    (tmp_path / "base-model" / "config.json").write_text("{}")
    for name in ("train.jsonl", "eval.jsonl"):
        write_jsonl(tmp_path / name, [chat("Hello!", "Hello!")])
    return tmp_path


def test_missing_data_is_found_before_anything_else_and_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"python -m training\.dataset") as caught:
        make_plan(recipes.load("local"), OUTPUTS, tmp_path)
    assert caught.value.code == 2


def test_a_missing_base_model_names_the_command_that_makes_it(data: Path) -> None:
    (data / "base-model" / "config.json").unlink()
    with pytest.raises(UserError, match=r"python -m training\.small_model"):
        make_plan(recipes.load("local"), OUTPUTS, data)


def test_the_base_model_is_a_folder_of_the_data_or_a_name_on_the_hub(data: Path) -> None:
    assert find_base_model(recipes.load("local"), data) == data / "base-model"
    assert find_base_model(recipes.load("phi-3.5-mini"), data) == "microsoft/Phi-3.5-mini-instruct"


def test_a_dry_run_says_what_would_be_submitted(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = tmp_path / "outputs.json"
    outputs.write_text(json.dumps(OUTPUTS.as_dict()))
    arguments = ["--recipe", "local", "--data", str(data), "--outputs", str(outputs), "--dry-run", "--json"]
    assert submit.main(arguments) == 0
    said = json.loads(capsys.readouterr().out)
    assert "--model ${{inputs.base_model}}" in said["command"]
    assert all(isinstance(value, str) for value in said["tags"].values())
    assert said["tags"]["registered_name"] == "phi-local"


def test_the_job_starts_from_its_snapshot_alone() -> None:
    """A module that the snapshot lacks is an ImportError, as on the node (the editable install is out of reach)."""
    with snapshot(recipes.load("local", ["seed=11"])) as folder:
        code = (
            "import sys; sys.meta_path[:] = [finder for finder in sys.meta_path if 'ditable' not in repr(finder)];"
            "import training.sft, training.recipe as r, importlib.util as u;"
            f"assert training.__file__.startswith({str(folder)!r});"
            "assert u.find_spec('infra.outputs') is None;"
            "assert r.load('training/recipes/local.yaml').sft['seed'] == 11"
        )
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, check=True)


class FakeLog:
    """A log that yields these texts in turn, then nothing."""

    job = "j"

    def __init__(self, *texts: str) -> None:
        self._texts = iter(texts)

    def new_text(self) -> str:
        return next(self._texts, "")

    def fault(self) -> str | None:
        return "out of luck"


def _statuses(*statuses: Any) -> Iterator[Any]:
    for status in statuses:
        yield status if isinstance(status, Exception) else SimpleNamespace(name="j", status=status, studio_url="URL")


def _get(jobs: Iterator[Any]) -> Any:
    def get() -> Any:
        job = next(jobs)
        if isinstance(job, Exception):
            raise job
        return job

    return get


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "POLL_SECONDS", 0.0)


def test_the_follower_prints_whole_lines_and_outlives_a_service_that_is_away(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from azure.core.exceptions import ServiceRequestError

    jobs = _statuses("Running", ServiceRequestError("away"), "Running", "Completed")
    log: Any = FakeLog("one\ntw", "", "o\n", "three")
    assert follow(_get(jobs), log).status == "Completed"
    printed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("  ")]
    assert printed == ["  one", "  two", "  three"]


def test_a_failed_job_is_told_with_its_reason_its_last_lines_and_the_next_command() -> None:
    log: Any = FakeLog("".join(f"line {number}\n" for number in range(50)))
    with pytest.raises(UserError) as caught:
        follow(_get(_statuses("Failed")), log)
    text = str(caught.value)
    assert "out of luck" in text
    assert "line 49" in text and "line 30" in text and "line 29" not in text
    assert "next: " in text


def test_a_service_that_stays_away_leaves_the_job_and_says_how_to_return(monkeypatch: pytest.MonkeyPatch) -> None:
    from azure.core.exceptions import ServiceRequestError

    monkeypatch.setattr(submit, "PATIENCE_SECONDS", -1.0)
    log: Any = FakeLog()
    with pytest.raises(UserError, match="--attach j"):
        follow(_get(_statuses(ServiceRequestError("away"))), log)


def test_ctrl_c_leaves_the_job_and_says_how_to_return(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(submit, "follow_and_register", interrupted)
    monkeypatch.setattr("infra.client.ml_client", lambda outputs: None)
    outputs = tmp_path / "outputs.json"
    outputs.write_text(json.dumps(OUTPUTS.as_dict()))
    with pytest.raises(UserError, match="--attach j") as caught:
        submit.main(["--attach", "j", "--outputs", str(outputs)])
    assert caught.value.code == 130
