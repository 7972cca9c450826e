"""A run that is killed, preempted or fails goes on from its last complete checkpoint to the very same weights."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from infra.cli import UserError
from tests.support.jobs import small_job
from training import sft
from training.checkpoints import fault_of, newest_checkpoint
from training.sft import Job

ROOT = Path(__file__).resolve().parents[2]
# 38 rows: 10 batches, the last step of an epoch is shorter; 5 steps an epoch, 15 in all
CHANGES = (
    "num_train_epochs=3",
    "per_device_train_batch_size=4",
    "gradient_accumulation_steps=2",
    "lr_scheduler_type=cosine",
    "learning_rate=3e-3",
    "save_strategy=steps",
    "save_steps=2",
    "save_total_limit=2",
    "logging_steps=1",
)
STEPS = 15


@contextmanager
def before_step(step: int, act: Any) -> Iterator[None]:
    """Do something in the trainer just before the step after `step` begins."""
    from transformers.trainer_callback import DefaultFlowCallback

    def on_step_begin(self: Any, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == step:
            act(model)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(DefaultFlowCallback, "on_step_begin", on_step_begin)
        yield


def killed(_: Any = None) -> None:
    raise KeyboardInterrupt


def terminated(_: Any = None) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def interrupt(job: Job, step: int) -> None:
    with before_step(step, killed), pytest.raises(KeyboardInterrupt):
        sft.train(job)


def weights(job: Job) -> bytes:
    return (job.output / "model.safetensors").read_bytes()


def checkpoints(job: Job) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in (job.output / "checkpoints").glob("checkpoint-*"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> bytes:
    job = small_job(tmp_path_factory.mktemp("whole"), tiny_model, CHANGES)
    sft.train(job)
    return weights(job)


def test_a_run_killed_by_the_system_goes_on_to_the_same_weights(tmp_path: Path, tiny_model: Path, whole: bytes) -> None:
    job = small_job(tmp_path, tiny_model, CHANGES)
    step = random.randrange(3, STEPS)
    done = _run(job, step, "SIGKILL", CHANGES)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert newest_checkpoint(job.output), f"killed before step {step + 1}"
    sft.train(job)
    assert weights(job) == whole, f"killed before step {step + 1}"


@pytest.mark.parametrize(
    "changes",
    [
        ("optim=adafactor", "gradient_accumulation_steps=3"),
        ("neftune_noise_alpha=5", "per_device_train_batch_size=8", "gradient_accumulation_steps=1"),
        ("packing=true", "attn_implementation=auto", "per_device_train_batch_size=1", "max_length=128"),
        ("save_strategy=epoch", "optim=adamw_torch", "weight_decay=0.1", "warmup_steps=3"),
    ],
    ids=["adafactor", "random noise", "packing", "at epochs"],
)
def test_a_run_interrupted_at_any_step_goes_on_to_the_same_weights(
    tmp_path: Path, tiny_model: Path, changes: tuple[str, ...]
) -> None:
    changes = (*CHANGES, *changes)
    uninterrupted = small_job(tmp_path / "whole", tiny_model, changes)
    steps = sft.train(uninterrupted)["steps"]
    job = small_job(tmp_path / "job", tiny_model, changes)
    at = sorted(random.sample(range(1, steps), 2))
    for step in at:
        interrupt(job, step)
    sft.train(job)
    assert weights(job) == weights(uninterrupted), f"interrupted after steps {at}"


def test_a_preempted_run_saves_the_step_it_is_in_and_leaves_to_be_started_again(
    tmp_path: Path, tiny_model: Path, whole: bytes
) -> None:
    job = small_job(tmp_path, tiny_model, CHANGES)
    before = signal.getsignal(signal.SIGTERM)
    with before_step(6, terminated), pytest.raises(UserError, match="stopped by SIGTERM after step 7 of 15") as stopped:
        sft.train(job)
    assert stopped.value.code == 143
    assert checkpoints(job) == [6, 7]
    assert not (job.output / "complete.json").exists()
    assert not (job.output / "model.safetensors").exists()
    assert signal.getsignal(signal.SIGTERM) == before
    sft.train(job)
    assert weights(job) == whole


def test_a_run_preempted_in_its_last_step_only_evaluates_when_it_is_started_again(
    tmp_path: Path, tiny_model: Path, whole: bytes
) -> None:
    job = small_job(tmp_path, tiny_model, CHANGES)
    with before_step(STEPS - 1, terminated), pytest.raises(UserError, match="after step 15 of 15"):
        sft.train(job)
    sft.train(job)
    assert weights(job) == whole


def test_a_second_sigterm_while_it_saves_does_no_harm(
    tmp_path: Path, tiny_model: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Trainer

    job = small_job(tmp_path, tiny_model, (*CHANGES, "save_steps=100"))
    saved = Trainer._save_rng_state

    def save_rng_state(self: Any, folder: str) -> None:
        terminated()
        saved(self, folder)

    monkeypatch.setattr(Trainer, "_save_rng_state", save_rng_state)
    with before_step(6, terminated), pytest.raises(UserError, match="checkpoint-7 is complete"):
        sft.train(job)
    monkeypatch.undo()
    sft.train(job)
    assert weights(job) == whole


def test_a_run_killed_while_it_saves_goes_on_from_the_checkpoint_before(
    tmp_path: Path, tiny_model: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import Trainer

    job = small_job(tmp_path, tiny_model, (*CHANGES, "save_total_limit=1"))
    saved = Trainer._save_optimizer_and_scheduler

    def half_saved(self: Any, folder: str) -> None:
        saved(self, folder)
        if self.state.global_step == 8:
            os.truncate(Path(folder) / "optimizer.pt", 1000)
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_save_optimizer_and_scheduler", half_saved)
    with pytest.raises(KeyboardInterrupt):
        sft.train(job)
    monkeypatch.undo()
    assert checkpoints(job) == [6, 8]
    sft.train(job)
    assert "checkpoint-8 is not whole" in capsys.readouterr().err
    assert weights(job) == whole


def test_nothing_relies_on_renaming(
    tmp_path: Path, tiny_model: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a mounted container a rename is a copy, during which both names are there in part."""

    def renamed(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    for module, name in ((os, "rename"), (os, "replace"), (os, "renames"), (shutil, "move"), (Path, "rename")):
        monkeypatch.setattr(module, name, renamed)
    job = small_job(tmp_path, tiny_model, CHANGES)
    interrupt(job, 9)
    sft.train(job)
    assert weights(job) == whole


def test_checkpoints_come_by_the_clock_too_and_old_ones_go(tmp_path: Path, tiny_model: Path) -> None:
    changes = (*CHANGES, "save_strategy=epoch", "checkpoint_minutes=0.0000001")
    job = small_job(tmp_path, tiny_model, changes)
    interrupt(job, 4)
    assert checkpoints(job) == [3, 4]
    interrupt(job, 7)
    assert checkpoints(job) == [6, 7]
    assert all(fault_of(path) is None for path in (job.output / "checkpoints").glob("checkpoint-*"))


def test_a_step_that_was_saved_is_not_written_over(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step of an epoch, when the clock or SIGTERM was first."""
    from transformers import Trainer

    written: list[int] = []
    saved = Trainer._save_checkpoint

    def save_checkpoint(self: Any, *args: Any) -> None:
        written.append(self.state.global_step)
        saved(self, *args)

    monkeypatch.setattr(Trainer, "_save_checkpoint", save_checkpoint)
    job = small_job(tmp_path, tiny_model, (*CHANGES, "save_strategy=epoch", "checkpoint_minutes=0.0000001"))
    sft.train(job)
    assert written == list(range(1, STEPS + 1))


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_good_checkpoint(tmp_path: Path, tiny_model: Path) -> None:
    job = small_job(tmp_path, tiny_model, CHANGES)
    with before_step(5, _spoil), pytest.raises(UserError) as stopped:
        sft.train(job)
    assert "is no number any more at step 6 of 15; checkpoint-4 is kept" in stopped.value.message
    assert "--set learning_rate=0.0015" in (stopped.value.next_command or "")
    assert checkpoints(job) == [2, 4]
    assert not (job.output / "complete.json").exists()


def test_weights_that_are_no_numbers_do_not_push_out_a_good_checkpoint(tmp_path: Path, tiny_model: Path) -> None:
    job = small_job(tmp_path, tiny_model, (*CHANGES, "logging_steps=1000", "save_total_limit=1"))
    with before_step(5, _spoil), pytest.raises(UserError, match="a weight is no number any more at step 6"):
        sft.train(job)
    assert checkpoints(job) == [4]


def _spoil(model: Any) -> None:
    import torch

    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))


def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_is_kept(
    tmp_path: Path, tiny_model: Path, whole: bytes
) -> None:
    job = small_job(tmp_path, tiny_model, CHANGES)

    def fill(_: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, unlimited[1]))

    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with before_step(5, fill), pytest.raises(UserError) as stopped:
            sft.train(job)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert "step 6 could not be saved; checkpoint-4 is kept" in stopped.value.message
    assert "run the same command again" in (stopped.value.next_command or "")
    assert checkpoints(job) == [2, 4]
    sft.train(job)
    assert weights(job) == whole


def test_too_little_room_is_said_before_the_first_step(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small_job(tmp_path, tiny_model, CHANGES)
    # 2.7 MB of weights, as much twice for Adam; two are kept while a third is written
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 0, 20_000_000))
    with pytest.raises(UserError, match=r"has room for 20.0 MB, and this run needs about 26.6 MB: 3 checkpoint"):
        sft.train(job)
    assert checkpoints(job) == []


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ((), "--set per_device_train_batch_size=2 --set gradient_accumulation_steps=4"),
        (("per_device_train_batch_size=1",), "--set gradient_checkpointing=true"),
    ],
)
def test_exhausted_memory_is_one_sentence_with_what_to_change(
    tmp_path: Path, tiny_model: Path, changes: tuple[str, ...], advice: str
) -> None:
    import torch

    job = small_job(tmp_path, tiny_model, (*CHANGES, *changes))
    with before_step(5, lambda _: torch.empty(10**15)), pytest.raises(UserError) as stopped:
        sft.train(job)
    assert "out of memory at step 6 of" in stopped.value.message
    assert "checkpoint-4 is kept" in stopped.value.message
    assert advice in (stopped.value.next_command or "")


def test_an_error_that_is_not_foreseen_is_not_disguised(tmp_path: Path, tiny_model: Path) -> None:
    def fails(_: Any) -> None:
        raise RuntimeError("a bug")

    job = small_job(tmp_path, tiny_model, CHANGES)
    with before_step(5, fails), pytest.raises(RuntimeError, match="a bug"):
        sft.train(job)


def test_a_run_may_save_and_log_otherwise_when_it_goes_on(tmp_path: Path, tiny_model: Path, whole: bytes) -> None:
    job = small_job(tmp_path, tiny_model, CHANGES)
    interrupt(job, 7)
    again = small_job(tmp_path, tiny_model, (*CHANGES, "save_steps=5", "logging_steps=3", "save_total_limit=1"))
    sft.train(again)
    assert weights(again) == whole


def test_another_learning_rate_does_not_go_on_from_the_checkpoint(tmp_path: Path, tiny_model: Path) -> None:
    job = small_job(tmp_path, tiny_model, CHANGES)
    interrupt(job, 7)
    other = small_job(tmp_path, tiny_model, (*CHANGES, "learning_rate=1e-3"))
    with pytest.raises(UserError, match=r"checkpoint-6 of another run, .* learning_rate \(0.003 there, 0.001 here\)"):
        sft.train(other)


@pytest.mark.slow
def test_two_processes_killed_and_preempted_go_on_to_the_same_weights(tmp_path: Path, tiny_model: Path) -> None:
    """SIGTERM reaches the processes one by one: here only the second one, and both save the same step."""
    uninterrupted, job = (small_job(tmp_path / name, tiny_model, CHANGES) for name in ("whole", "job"))
    assert _run(uninterrupted, 1000, "SIGKILL", CHANGES, processes=2).returncode == 0
    step = random.randrange(3, 5)
    assert _run(job, step, "SIGKILL", CHANGES, processes=2).returncode != 0
    assert newest_checkpoint(job.output), f"killed before step {step + 1}"
    stopped = _run(job, "5:1", "SIGTERM", CHANGES, processes=2)
    assert stopped.returncode != 0
    assert "stopped by SIGTERM after step 6 of 9" in stopped.stderr
    files = json.loads((job.output / "checkpoints" / "checkpoint-6" / "complete.json").read_text())["files"]
    assert {"rng_state_0.pth", "rng_state_1.pth", "optimizer.pt"} <= set(files)
    alone = _run(job, 1000, "SIGKILL", CHANGES)
    assert "the number of processes (2 there, 1 here)" in alone.stderr
    ended = _run(job, 1000, "SIGKILL", CHANGES, processes=2)
    assert ended.returncode == 0, ended.stderr
    assert weights(job) == weights(uninterrupted), f"killed before step {step + 1}"


def _run(
    job: Job, step: int | str, number: str, changes: tuple[str, ...], processes: int = 1
) -> subprocess.CompletedProcess[str]:
    """The job as a process of its own, which sends itself a signal (tests/support/killed.py)."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [
        *launcher,
        *("-m", "tests.support.killed", str(step), number, "--recipe", "local"),
        *("--train", str(job.train), "--eval", str(job.eval), "--model", job.model, "--output", str(job.output)),
        *(word for change in changes for word in ("--set", change)),
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
