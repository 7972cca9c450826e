"""`kill -9` of the emulator in the middle of the whole loop: what a client was told is done is there afterwards,
and the same commands, given again, end well.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.support.local_azure import ROOT, LocalAzure, last_json
from tests.support.raw_jobs import STORAGE

STACK = "local-kills"
HASTE = ("--set", "num_train_epochs=1", "--set", "gate_min_gain=0.1")
ARM_HOST = "management.azure.com"
TRIES = 8  # a rollout that was cut off holds its lease for a minute


@dataclass(frozen=True)
class Stage:
    """A command of the loop, how often the emulator is killed under it, and in how many seconds at most."""

    words: tuple[str, ...]
    kills: int
    within: float
    anew: tuple[str, ...] = ()  # besides, so that there is something to kill each time
    undo: tuple[str, ...] = ()  # first, for the same reason


@dataclass
class Loop:
    folder: Path
    azure: LocalAzure
    dice: random.Random
    kills: int = 0
    survived: int = 0
    told: list[str] = field(default_factory=list)

    @property
    def stages(self) -> dict[str, Stage]:
        data, settings = str(self.folder / "data"), str(self.folder)
        up = ("infra.environment", "up", "--yes", "--json", "--config", settings)
        train = ("training.submit", "--recipe", "local", "--data", data, "--json", *HASTE)
        deploy = ("deployment.rollout", "--yes", "--json", "--soak", "3", "--keep", "0")
        chat = ("flow.chat", "Who founded Apple?", "--json")
        return {
            "up": Stage(up, 5, 8),
            "train": Stage(train, 6, 30, ("--fresh",)),
            "deploy": Stage(deploy, 6, 30, undo=("deployment.teardown", "--yes")),
            "chat": Stage(chat, 3, 5),
        }

    def begin(self, stage: Stage, *more: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", *stage.words, *more, "--stack", STACK]
        env = {**self.azure.env, "CHAT_HISTORY": str(self.folder / "chat.db")}
        pipe = subprocess.PIPE
        return subprocess.Popen(words, env=env, cwd=ROOT, stdout=pipe, stderr=pipe, stdin=subprocess.DEVNULL, text=True)

    def kill_under(self, name: str, stage: Stage) -> None:
        """Run the command, kill the emulator under it, start it again, and let the command end as it may."""
        if stage.undo:
            self.finish(Stage(stage.undo, 0, 0))
        running, after = self.begin(stage, *stage.anew), self.dice.uniform(0.5, stage.within)
        with_time = time.monotonic() + after
        while time.monotonic() < with_time and running.poll() is None:
            time.sleep(0.02)
        os.kill(self.azure.record["pid"], signal.SIGKILL)
        while self.azure.home.running():
            time.sleep(0.02)
        self.azure = LocalAzure.start(self.azure.home.path)
        _, words = running.communicate(timeout=600)
        self.kills += 1
        self.survived += running.returncode == 0
        last = [line for line in words.strip().splitlines() if line][-2:]
        self.told.append(f"{name} after {after:.1f} s: exit code {running.returncode}; {' | '.join(last)[:230]}")
        assert running.returncode in (0, 1, 3), words[-2000:]
        assert running.returncode == 0 or "error:" in words, words[-2000:]
        assert name == "up" or "Traceback" not in words, words[-3000:]  # Pulumi shows its program's
        self.check_nothing_lost()

    def finish(self, stage: Stage) -> str:
        """The command, without a kill, until it ends well."""
        for _ in range(TRIES):
            done = self.begin(stage)
            output, words = done.communicate(timeout=900)
            if done.returncode == 0:
                return output
            time.sleep(12)
        raise AssertionError(words[-3000:])

    def check_nothing_lost(self) -> None:
        resources, blobs = acknowledged(self.azure.home.database)
        for path in resources:
            assert self.azure.request("GET", path).status_code == 200, path
        for address in blobs:
            answer = self.azure.request("HEAD", address, audience=STORAGE, headers={"x-ms-version": "2025-01-05"})
            assert answer.status_code == 200, address


def acknowledged(database: Path) -> tuple[set[str], set[str]]:
    """What clients were told is there, by the emulator's record of its answers: resources, and addresses of blobs."""
    resources, blobs = set[str](), set[str]()
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as held:
        rows = held.execute("SELECT method, host, path, status FROM requests ORDER BY at").fetchall()
    for method, host, path, status in rows:
        if method == "PUT" and host == ARM_HOST and status in (200, 201):
            resources.add(path)
        elif method == "DELETE" and host == ARM_HOST and status < 300:
            resources = {one for one in resources if not f"{one}/".lower().startswith(f"{path}/".lower())}
        elif ".blob." in host and path.count("/") > 1 and method == "PUT" and status == 201:
            blobs.add(f"https://{host}{quote(path)}")
        elif ".blob." in host and method == "DELETE" and status < 300:
            blobs.discard(f"https://{host}{quote(path)}")
    return resources, blobs


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    made = Loop(tmp_path, LocalAzure.start(tmp_path / "emulator"), random.Random(int(os.environ.get("SEED", "7"))))
    run, data = made.azure.run, tmp_path / "data"
    assert run("-m", "training.dataset", "--recipe", "local", "--out", str(data)).returncode == 0
    model = ("--out", str(data / "base-model"), "--corpus", str(data / "train.jsonl"))
    assert run("-m", "training.small_model", *model).returncode == 0
    yield made
    made.azure.stop()
    (ROOT / f"Pulumi.{STACK}.yaml").unlink(missing_ok=True)


@pytest.mark.slow
def test_the_loop_outlives_twenty_kills_and_loses_nothing_that_was_told(loop: Loop) -> None:
    answers = {}
    for name, stage in loop.stages.items():
        for _ in range(stage.kills):
            loop.kill_under(name, stage)
        answers[name] = last_json(loop.finish(stage))
        loop.check_nothing_lost()
    assert answers["train"]["status"] == "Completed" and answers["chat"]["answer"]
    served = answers["deploy"]
    assert served["traffic"] == {served["deployment"]: 100}
    resources, blobs = acknowledged(loop.azure.home.database)
    print("", *loop.told, sep="\n")
    print(f"{loop.kills} kills, {loop.survived} of which the command did not notice in the end;", end=" ")
    print(f"{len(resources)} resources and {len(blobs)} blobs that clients were told of are there")
