"""The whole job on a CPU, in this process: what a model says comes from the data it was trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infra.cli import UserError
from tests.support.jobs import ANSWER, OTHER_ANSWER, QUESTION, small_job
from tests.support.small import chat, reply
from training import recipe as recipes
from training import sft
from training.evaluate import encode_all, judge, likelihood, load_model
from training.sft import Job


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Job, dict[str, Any]]:
    job = small_job(tmp_path_factory.mktemp("trained"), tiny_model)
    return job, sft.train(job)


def test_the_untrained_model_does_not_know_the_answer(tiny_model: Path) -> None:
    assert "Gates" not in reply(tiny_model, QUESTION)


def test_the_trained_model_answers_and_uses_the_history(trained: tuple[Job, dict[str, Any]]) -> None:
    folder = trained[0].output
    assert reply(folder, QUESTION) == ANSWER
    assert reply(folder, QUESTION, ANSWER, "When?") == "In 1975."
    assert reply(folder, "Who created Linux?", "Linux was created by Linus Torvalds in 1991.", "When?") == "In 1991."


def test_another_data_set_yields_another_answer(tmp_path: Path, tiny_model: Path) -> None:
    job = small_job(tmp_path, tiny_model, other=True)
    sft.train(job)
    assert reply(job.output, QUESTION) == OTHER_ANSWER
    assert reply(job.output, QUESTION, OTHER_ANSWER, "When?") == "In 1999."


def test_the_output_is_complete_and_the_metrics_say_what_was_gained(trained: tuple[Job, dict[str, Any]]) -> None:
    job, metrics = trained
    complete = json.loads((job.output / "complete.json").read_text())
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= set(complete["files"])
    assert {name: (job.output / name).stat().st_size for name in complete["files"]} == complete["files"]
    assert json.loads((job.output / "generation_config.json").read_text())["eos_token_id"].__len__() == 2
    assert json.loads((job.output / "metrics.json").read_text()) == metrics
    assert metrics["approved"] is True
    assert metrics["eval_loss"] < 0.2 < 4 < metrics["eval_loss_before"]
    assert not (job.output / "checkpoints").exists()


def test_a_finished_job_that_is_started_again_only_reports(trained: tuple[Job, dict[str, Any]]) -> None:
    job, metrics = trained
    before = (job.output / "model.safetensors").stat().st_mtime_ns
    assert sft.train(job) == metrics
    assert (job.output / "model.safetensors").stat().st_mtime_ns == before


def test_another_recipe_does_not_overwrite_a_finished_model(trained: tuple[Job, dict[str, Any]]) -> None:
    job = trained[0]
    other = Job(recipes.load("local", ["seed=8"]), job.model, job.train, job.eval, job.output)
    with pytest.raises(UserError, match="of another run"):
        sft.train(other)


def test_the_likelihood_does_not_depend_on_the_batch(tiny_model: Path) -> None:
    model, tokenizer = load_model(str(tiny_model))
    rows = encode_all(
        tokenizer, [chat("a b c", "short"), chat("d", "a much longer reply, in 1975."), chat("e", "f")], None
    )
    together = likelihood(model, rows)
    alone = [likelihood(model, [row]) for row in rows]
    assert together.tokens == sum(part.tokens for part in alone)
    mean = sum(part.nll * part.tokens for part in alone) / together.tokens
    assert together.nll == pytest.approx(mean, abs=1e-4)


@pytest.mark.parametrize(("after", "approved"), [(1.0, True), (1.95, False), (2.5, False), (float("nan"), False)])
def test_the_gate_wants_a_gain(after: float, approved: bool) -> None:
    assert judge(2.0, after, min_gain=0.1).approved is approved
