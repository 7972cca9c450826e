"""Two processes do what one does: the same weights from the same global batch, one that writes and speaks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from infra.cli import UserError
from tests.support.jobs import small_job
from training import ranks, sft
from training.sft import Job

ROOT = Path(__file__).resolve().parents[2]
CHANGES = ("num_train_epochs=1", "learning_rate=3e-3", "warmup_steps=0", "save_strategy=no", "logging_steps=1")


def _torchrun(job: Job, *changes: str) -> subprocess.CompletedProcess[str]:
    """The job in two processes, as `torchrun` starts them."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
        *("-m", "training.sft", "--recipe", "local", "--model", job.model, "--json"),
        *("--train", str(job.train), "--eval", str(job.eval), "--output", str(job.output)),
        *(word for change in changes for word in ("--set", change)),
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


def _weights(job: Job) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(job.output / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(
    "packed",
    [("max_steps=4",), ("max_steps=2", "packing=true", "max_length=64", "attn_implementation=auto")],
    ids=["padded", "packed"],
)
def test_two_processes_learn_what_one_does(tmp_path: Path, tiny_model: Path, packed: tuple[str, ...]) -> None:
    """The gradients are added up in another order, so that the weights agree closely, not to the last bit.

    The steps are those whose batches are full: of 38 rows, packed 21, eight at a time. In the last step of an epoch
    accelerate deals rows of its beginning to the processes that have none left.
    """
    one = small_job(tmp_path / "one", tiny_model, (*CHANGES, *packed, "per_device_train_batch_size=8"))
    two = small_job(tmp_path / "two", tiny_model, CHANGES)
    metrics = sft.train(one)
    done = _torchrun(two, *CHANGES, *packed, "per_device_train_batch_size=4")
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)["metrics"]
    assert again["steps"] == metrics["steps"]
    assert again["eval_loss_before"] == pytest.approx(metrics["eval_loss_before"], abs=1e-4)
    assert again["eval_loss"] == pytest.approx(metrics["eval_loss"], abs=1e-4)
    assert metrics["eval_gain"] > 1
    assert again["eval_tokens"] == metrics["eval_tokens"]
    base = _weights(Job(one.recipe, one.model, one.train, one.eval, Path(one.model)))
    theirs = _weights(two)
    for name, ours in _weights(one).items():
        moved = float((ours - base[name]).abs().max())
        assert float((ours - theirs[name]).abs().max()) <= 0.01 * moved, name
    # one voice: each line of the plan and of the progress is there once
    lines = done.stderr.splitlines()
    for beginning in ("recipe local", "global batch: 4 rows x 1 accumulated x 2", "step 1/", "saved to"):
        assert sum(line.startswith(beginning) for line in lines) == 1, done.stderr


@pytest.mark.slow
def test_a_fault_of_the_input_is_said_once(tmp_path: Path, tiny_model: Path) -> None:
    job = small_job(tmp_path, tiny_model, CHANGES)
    done = _torchrun(job, *CHANGES, "learning_rte=1")
    assert done.returncode != 0
    assert done.stderr.count("the nearest is `learning_rate`") == 1


def test_values_of_one_process_are_what_they_are() -> None:
    assert ranks.added(1.5, 2.0) == (1.5, 2.0)
    assert ranks.from_first("a") == "a"
    ranks.wait()
    ranks.end()


@pytest.mark.parametrize(
    ("environment", "nodes", "expected"),
    [
        ({}, 1, 1),
        ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, 1, 2),
        ({"WORLD_SIZE": "16"}, 2, 8),
        ({"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "4"}, 2, 4),
    ],
)
def test_the_processes_of_a_node_are_counted(
    environment: dict[str, str], nodes: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert ranks.per_node(nodes) == expected


@pytest.mark.parametrize(
    ("gpus", "environment", "said"),
    [(4, {}, "torchrun --nproc_per_node 4"), (2, {"WORLD_SIZE": "4", "LOCAL_RANK": "2"}, "than it has GPUs")],
)
def test_processes_and_gpus_that_do_not_match_are_refused(
    gpus: int, environment: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said):
        ranks.begin()


def test_only_the_first_process_speaks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    ranks.say("not this")
    monkeypatch.setenv("RANK", "0")
    ranks.say("but this")
    assert capsys.readouterr().err == "but this\n"
