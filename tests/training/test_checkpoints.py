"""A job that is started again goes on where it stopped."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.jobs import small_job
from training import sft
from training.checkpoints import newest_checkpoint


def test_a_killed_job_resumes_to_the_same_weights(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = ("num_train_epochs=2", "save_strategy=steps", "save_steps=3", "per_device_train_batch_size=8")
    whole = small_job(tmp_path / "whole", tiny_model, changes)
    sft.train(whole)
    killed = small_job(tmp_path / "killed", tiny_model, changes)
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
        folder = tmp_path / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        for name in files:
            (folder / name).touch()
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "checkpoint-9"
    assert newest_checkpoint(tmp_path / "nowhere") is None
