"""A checkpoint counts only whole, and only for the run that it belongs to."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from infra.cli import UserError
from training.checkpoints import (
    claim_output,
    complete_checkpoint,
    fault_of,
    finished_metrics,
    keep_newest,
    mark_complete,
    newest_checkpoint,
    resume_point,
)

IDENTITY = {"recipe": "f1", "train": "t1", "eval": "e1", "base_model": "b1"}
RECIPE = {"model": {"lora": ("a",)}, "training": {"learning_rate": 1e-3, "seed": 7}}


def checkpoint(output: Path, step: int, *, whole: bool = True) -> Path:
    """A folder such as the trainer writes, with its marker if it is whole."""
    folder = output / "checkpoints" / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"w" * 1000)
    (folder / "trainer_state.json").write_text("{}")
    if whole:
        complete_checkpoint(folder)
    return folder


def test_the_newest_complete_checkpoint_wins(tmp_path: Path) -> None:
    for step, whole in ((9, True), (10, True), (8, True), (100, False)):
        checkpoint(tmp_path, step, whole=whole)
    assert resume_point(tmp_path) == tmp_path / "checkpoints" / "checkpoint-10"
    assert resume_point(tmp_path / "nowhere") is None


def test_a_truncated_file_makes_a_checkpoint_skipped_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = checkpoint(tmp_path, 3), checkpoint(tmp_path, 6)
    (bad / "model.safetensors").write_bytes(b"w" * 999)
    assert resume_point(tmp_path) == good
    assert "checkpoint-6 is not whole (model.safetensors has 999 of 1,000 bytes)" in capsys.readouterr().err
    assert not bad.exists()


@pytest.mark.parametrize("lost", ["model.safetensors", "trainer_state.json", "complete.json"])
def test_a_missing_file_makes_a_checkpoint_skipped(tmp_path: Path, lost: str) -> None:
    good = checkpoint(tmp_path, 3)
    (checkpoint(tmp_path, 6) / lost).unlink()
    assert resume_point(tmp_path) == good


@pytest.mark.parametrize("written", [0, 1, 20])
def test_a_marker_that_was_cut_short_does_not_count(tmp_path: Path, written: int) -> None:
    good, bad = checkpoint(tmp_path, 3), checkpoint(tmp_path, 6)
    os.truncate(bad / "complete.json", written)
    assert resume_point(tmp_path) == good


def test_a_folder_that_cannot_be_read_just_now_is_not_taken_for_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint(tmp_path, 3)

    def fails(self: Path, **_: object) -> str:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_text", fails)
        with pytest.raises(OSError, match="Input/output"):
            resume_point(tmp_path)
    assert resume_point(tmp_path) == folder


def test_the_marker_is_written_after_every_other_file_was_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint(tmp_path, 3, whole=False)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        complete_checkpoint(folder)
    assert fault_of(folder) is not None


def test_only_complete_checkpoints_count_towards_the_limit(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        checkpoint(tmp_path, step, whole=step != 4)
    keep_newest(tmp_path, 2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "checkpoint-2",
        "checkpoint-3",
        "checkpoint-4",
    ]
    keep_newest(tmp_path, None)
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "checkpoint-3"


def test_a_removal_that_is_cut_short_leaves_nothing_that_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = checkpoint(tmp_path, 1), checkpoint(tmp_path, 2)

    def killed(_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            keep_newest(tmp_path, 1)
    assert fault_of(old) is not None
    assert fault_of(new) is None


@pytest.mark.parametrize(
    ("identity", "recipe", "processes", "named"),
    [
        ({"train": "t2"}, RECIPE, "1", "the training data"),
        ({"eval": "e2"}, RECIPE, "1", "the held-out data"),
        ({"base_model": "b2"}, RECIPE, "1", "the base model"),
        ({}, RECIPE, "2", "the number of processes (1 there, 2 here)"),
        (
            {"recipe": "f2"},
            {**RECIPE, "training": {"learning_rate": 2e-3, "seed": 7}},
            "1",
            "differs in learning_rate (0.001 there, 0.002 here);",
        ),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_by_what_differs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    identity: dict[str, str],
    recipe: dict[str, object],
    processes: str,
    named: str,
) -> None:
    claim_output(tmp_path, IDENTITY, RECIPE)
    folder = checkpoint(tmp_path, 3)
    monkeypatch.setenv("WORLD_SIZE", processes)
    with pytest.raises(UserError) as refused:
        claim_output(tmp_path, {**IDENTITY, **identity}, recipe)
    assert named in refused.value.message
    assert refused.value.code == 2
    assert fault_of(folder) is None


def test_the_same_run_may_claim_its_folder_again(tmp_path: Path) -> None:
    claim_output(tmp_path, IDENTITY, RECIPE)
    checkpoint(tmp_path, 3)
    claim_output(tmp_path, IDENTITY, RECIPE)


def test_a_folder_without_a_whole_checkpoint_can_be_taken_over(tmp_path: Path) -> None:
    claim_output(tmp_path, IDENTITY, RECIPE)
    checkpoint(tmp_path, 3, whole=False)
    claim_output(tmp_path, {**IDENTITY, "recipe": "f2"}, RECIPE)
    assert resume_point(tmp_path) is None


def test_checkpoints_without_a_record_of_their_run_are_left_alone(tmp_path: Path) -> None:
    claim_output(tmp_path, IDENTITY, RECIPE)
    checkpoint(tmp_path, 3)
    os.truncate(tmp_path / "checkpoints" / "run.json", 10)
    with pytest.raises(UserError, match="is damaged"):
        claim_output(tmp_path, IDENTITY, RECIPE)


def test_a_finished_model_is_reported_and_another_runs_is_refused(tmp_path: Path) -> None:
    claim_output(tmp_path, IDENTITY, RECIPE)
    (tmp_path / "model.safetensors").write_bytes(b"w" * 1000)
    mark_complete(tmp_path, IDENTITY, {"eval_loss": 1.0})
    assert finished_metrics(tmp_path, IDENTITY) == {"eval_loss": 1.0}
    other = {**IDENTITY, "train": "t2"}
    assert finished_metrics(tmp_path, other) is None
    with pytest.raises(UserError, match="the finished model of another run, which differs in the training data"):
        claim_output(tmp_path, other, RECIPE)


@pytest.mark.parametrize("name", ["model.safetensors", "complete.json", "metrics.json"])
def test_a_finished_model_that_is_damaged_is_trained_again(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"w" * 1000)
    mark_complete(tmp_path, IDENTITY, {"eval_loss": 1.0})
    os.truncate(tmp_path / name, 5)
    assert finished_metrics(tmp_path, IDENTITY) is None
    claim_output(tmp_path, IDENTITY, RECIPE)
    assert "is damaged" in capsys.readouterr().err
    assert not (tmp_path / "complete.json").exists()


def test_an_output_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to the output folder"):
        claim_output(tmp_path / "file" / "model", IDENTITY, RECIPE)


def test_the_marker_of_a_model_leaves_the_checkpoints_out(tmp_path: Path) -> None:
    claim_output(tmp_path, IDENTITY, RECIPE)
    checkpoint(tmp_path, 3)
    mark_complete(tmp_path, IDENTITY, {})
    assert list(json.loads((tmp_path / "complete.json").read_text())["files"]) == ["metrics.json"]
    assert not (tmp_path / "checkpoints").exists()
