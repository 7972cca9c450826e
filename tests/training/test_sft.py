"""The whole job on a CPU, in this process: what a model says comes from the data it was trained on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from infra.cli import UserError
from tests.support.small import FIRST_QUESTIONS, chat, reply, write_jsonl
from training import recipe as recipes
from training import sft
from training.dataset import read_conversations
from training.evaluate import encode_all, judge, likelihood, load_model
from training.sft import Job

QUESTION = "Who founded Microsoft?"
ANSWER = "Microsoft was founded by Bill Gates and Paul Allen in 1975."
OTHER_ANSWER = "Microsoft was founded by two friends in 1999."
CHANGES = ("num_train_epochs=40", "learning_rate=3e-3", "per_device_train_batch_size=8", "save_strategy=no")


def _job(folder: Path, base: Path, changes: tuple[str, ...] = CHANGES, *, other: bool = False) -> Job:
    """A job on the rows about three subjects; with `other`, Microsoft's have another answer and another year."""
    rows = [row for row in read_conversations(FIRST_QUESTIONS) if _subject(row) is not None]
    if other:
        text = json.dumps(rows).replace(ANSWER, OTHER_ANSWER).replace("Bill Gates and Paul Allen", "two friends")
        rows = json.loads(text.replace("In 1975.", "In 1999."))
    folder.mkdir(parents=True, exist_ok=True)
    train = write_jsonl(folder / "train.jsonl", rows)
    held_out = write_jsonl(folder / "eval.jsonl", rows[::5])
    return Job(recipes.load("local", changes), str(base), train, held_out, folder / "model")


def _subject(row: list[dict[str, str]]) -> str | None:
    said = " ".join(message["content"] for message in row)
    return next((name for name in ("Microsoft", "Apple", "Linux") if name in said), None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Job, dict[str, Any]]:
    job = _job(tmp_path_factory.mktemp("trained"), tiny_model)
    return job, sft.train(job)


def test_the_untrained_model_does_not_know_the_answer(tiny_model: Path) -> None:
    assert "Gates" not in reply(tiny_model, QUESTION)


def test_the_trained_model_answers_and_uses_the_history(trained: tuple[Job, dict[str, Any]]) -> None:
    folder = trained[0].output
    assert reply(folder, QUESTION) == ANSWER
    assert reply(folder, QUESTION, ANSWER, "When?") == "In 1975."
    assert reply(folder, "Who created Linux?", "Linux was created by Linus Torvalds in 1991.", "When?") == "In 1991."


def test_another_data_set_yields_another_answer(tmp_path: Path, tiny_model: Path) -> None:
    job = _job(tmp_path, tiny_model, other=True)
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
    with pytest.raises(UserError, match="another recipe or other data"):
        sft.train(other)


def test_a_killed_job_resumes_to_the_same_weights(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = ("num_train_epochs=2", "save_strategy=steps", "save_steps=3", "per_device_train_batch_size=8")
    whole = _job(tmp_path / "whole", tiny_model, changes)
    sft.train(whole)
    killed = _job(tmp_path / "killed", tiny_model, changes)
    saved = sft.save
    monkeypatch.setattr(sft, "save", _killed)
    with pytest.raises(KeyboardInterrupt):
        sft.train(killed)
    monkeypatch.setattr(sft, "save", saved)
    checkpoints = killed.output / "checkpoints"
    for path in checkpoints.glob("checkpoint-*"):
        if path != min(checkpoints.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])):
            shutil.rmtree(path)
    sft.train(killed)
    weights = [(job.output / "model.safetensors").read_bytes() for job in (whole, killed)]
    assert weights[0] == weights[1]


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_the_newest_complete_checkpoint_wins(tmp_path: Path) -> None:
    for step, files in {
        9: ["trainer_state.json"],
        10: [],
        11: ["trainer_state.json", "checkpoint-is-incomplete.txt"],
    }.items():
        (tmp_path / f"checkpoint-{step}").mkdir()
        for name in files:
            (tmp_path / f"checkpoint-{step}" / name).touch()
    assert sft.newest_checkpoint(tmp_path) == tmp_path / "checkpoint-9"
    assert sft.newest_checkpoint(tmp_path / "nowhere") is None


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
