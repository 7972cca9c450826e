"""The product's own stages, each under the faults of `python -m emulator fault`: a stage ends well, or says in one
sentence why not and what to type, and given again without the fault it ends well. docs/emulator.md has the outcome.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.local_azure import ROOT, LocalAzure, last_json
from tests.support.raw_jobs import emulator

pytestmark = pytest.mark.slow
STACK = "local-faults"
HASTE = ("--set", "num_train_epochs=1", "--set", "gate_min_gain=0.1")
ENDS_WELL = ""
FINAL = ("Completed", "Failed", "Canceled")


@dataclass
class Bad:
    """A stack on an emulator that can be made to fail."""

    azure: LocalAzure
    folder: Path
    workspace: str

    def verb(self, module: str, *words: str, stack: str = STACK) -> subprocess.CompletedProcess[str]:
        history = str(self.folder / "chat.db")
        return self.azure.run("-m", module, *words, "--stack", stack, CHAT_HISTORY=history, timeout=900)

    def under(self, fault: str, module: str, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a verb with a fault, written as on the command line, and take the fault back."""
        made = emulator(self.azure, "fault", *fault.split())
        assert made.returncode == 0, made.stderr
        try:
            return self.verb(module, *words, **more)
        finally:
            assert emulator(self.azure, "fault", "clear").returncode == 0

    def submit(self, *words: str) -> tuple[str, ...]:
        data = str(self.folder / "data")
        return ("training.submit", "--recipe", "local", "--data", data, "--json", *HASTE, *words)

    def jobs(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.azure.request("GET", f"{self.workspace}/jobs").json()["value"]
        return found

    def cancel_all(self) -> None:
        for job in self.jobs():
            if job["properties"]["status"] not in FINAL:
                self.azure.request("POST", f"{job['id']}/cancel")


def check(done: subprocess.CompletedProcess[str], expected: str) -> None:
    """It ended well, or with the sentence expected, the next command and no traceback."""
    print(f"exit code {done.returncode}: {' | '.join(done.stderr.strip().splitlines()[-2:])[-260:]}")
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    if expected == ENDS_WELL:
        assert done.returncode == 0, done.stderr[-3000:]
        return
    assert done.returncode == 1, done.stderr[-3000:]
    assert re.search(rf"error: .*{expected}", done.stderr), done.stderr[-3000:]
    assert "next: " in done.stderr


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bad]:
    folder = tmp_path_factory.mktemp("faults")
    azure = LocalAzure.start(folder / "emulator")
    up = azure.run("-m", "infra.environment", "up", "--stack", STACK, "--yes", "--json", "--config", str(folder))
    assert up.returncode == 0, up.stderr
    data = folder / "data"
    assert azure.run("-m", "training.dataset", "--recipe", "local", "--out", str(data)).returncode == 0
    model = ("--out", str(data / "base-model"), "--corpus", str(data / "train.jsonl"))
    assert azure.run("-m", "training.small_model", *model).returncode == 0
    yield Bad(azure, folder, last_json(up.stdout)["workspace_id"])
    azure.stop()
    for path in ROOT.glob(f"Pulumi.{STACK}*.yaml"):
        path.unlink()


# --- up ---------------------------------------------------------------------------------------------------------------

UP = {
    "throttled": ("throttle --match PUT --times 3 --seconds 1", ENDS_WELL),
    "unavailable twice": ("error --match management.azure.com --times 2 --after 4", ENDS_WELL),
    "slow operations": ("operations --seconds 4", ENDS_WELL),
    "quota": ("error --match /computes/ --status 400 --code OutOfQuota", "gpu-cluster: OutOfQuota"),
    "broken": ("error --match /registries/ --status 500 --code InternalServerError", "InternalServerError"),
    "clock": ("clock --seconds 7200", "AuthenticationFailed"),
}


@pytest.mark.parametrize("what", UP)
def test_up(bad: Bad, what: str) -> None:
    fault, expected = UP[what]
    words = ("infra.environment", "up", "--yes", "--json", "--config", str(bad.folder))
    stack = f"{STACK}-{list(UP).index(what)}"
    check(bad.under(fault, *words, stack=stack), expected)
    if expected != ENDS_WELL:
        check(bad.verb(*words, stack=stack), ENDS_WELL)
    bad.verb("infra.environment", "down", "--yes", "--config", str(bad.folder), stack=stack)


# --- submit -----------------------------------------------------------------------------------------------------------

SUBMIT = {
    "throttled": ("throttle --match /jobs/ --times 3 --seconds 1", ENDS_WELL),
    "unavailable twice": ("error --match /jobs/ --times 2", ENDS_WELL),
    "upload cut off": ("drop --match .blob.core --times 2", ENDS_WELL),
    "slow": ("slow --match /datastores/ --seconds 3 --times 3", ENDS_WELL),
    "quota": ("error --match /jobs/ --status 400 --code OutOfQuota", "OutOfQuota"),
    "broken": ("error --match /codes/ --status 500 --code InternalServerError", "submitting the job failed"),
    "no rights at storage": ("error --match .blob.core --status 403 --code AuthorizationFailure", "may not do that"),
    "late roles": ("roles --seconds 100000", "permission|may not do that"),
    "clock": ("clock --seconds 7200", "a wrong clock on this machine"),
}


@pytest.mark.parametrize("what", SUBMIT)
def test_submit(bad: Bad, what: str) -> None:
    fault, expected = SUBMIT[what]
    before, words = len(bad.jobs()), bad.submit("--set", f"seed={list(SUBMIT).index(what) + 1}", "--detach")
    check(bad.under(fault, *words), expected)
    if expected != ENDS_WELL:
        assert len(bad.jobs()) == before
        check(bad.verb(*words), ENDS_WELL)
    assert len(bad.jobs()) == before + 1
    bad.cancel_all()


# --- following a job --------------------------------------------------------------------------------------------------

FOLLOW = {
    "unavailable while it runs": ("error --match /history/ --times 4 --after 2", ENDS_WELL),
    "throttled while it registers": ("throttle --match /models/ --times 3 --seconds 1", ENDS_WELL),
    "tokens live 20 seconds": ("token-lifetime --seconds 20", ENDS_WELL),
    "image cannot be built": ("image-build", "image"),
}


@pytest.mark.parametrize("what", FOLLOW)
def test_follow(bad: Bad, what: str) -> None:
    fault, expected = FOLLOW[what]
    words = bad.submit("--fresh")
    check(bad.under(fault, *words), expected)


def test_a_preempted_job_goes_on_and_is_registered(bad: Bad) -> None:
    words = [sys.executable, "-m", *bad.submit("--fresh"), "--stack", STACK]
    pipe = subprocess.PIPE
    running = subprocess.Popen(words, env=bad.azure.env, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)
    while not (found := [job for job in bad.jobs() if job["properties"]["status"] == "Running"]):
        assert running.poll() is None
        time.sleep(0.2)
    time.sleep(4)
    taken = emulator(bad.azure, "preempt", found[0]["name"])
    output, said = running.communicate(timeout=900)
    assert taken.returncode == 0 and running.returncode == 0, said[-3000:]
    assert last_json(output)["model"]


# --- rollout ----------------------------------------------------------------------------------------------------------

ROLLOUT = {
    "throttled": ("throttle --match /onlineendpoints --times 3 --seconds 1", ENDS_WELL),
    "unavailable twice": ("error --match /onlineendpoints --times 2 --after 3", ENDS_WELL),
    "slow operations": ("operations --seconds 4", ENDS_WELL),
    "quota": ("error --match /deployments/ --status 400 --code OutOfQuota", "OutOfQuota|quota"),
    "clock": ("clock --seconds 7200", "."),
}


@pytest.fixture(scope="module")
def trained(bad: Bad) -> None:
    check(bad.verb(*bad.submit()), ENDS_WELL)


@pytest.mark.parametrize("what", ROLLOUT)
def test_rollout(bad: Bad, trained: None, what: str) -> None:
    fault, expected = ROLLOUT[what]
    words = ("deployment.rollout", "--yes", "--json", "--soak", "3", "--keep", "0")
    check(bad.under(fault, *words), expected)
    if expected != ENDS_WELL:
        check(bad.verb(*words), ENDS_WELL)
    check(bad.verb("deployment.teardown", "--yes"), ENDS_WELL)


# --- chat -------------------------------------------------------------------------------------------------------------

CHAT = {
    "throttled": ("throttle --match .inference. --times 2 --seconds 1", ENDS_WELL),
    "unavailable once": ("error --match .inference. --times 1", ENDS_WELL),
    "slow": ("slow --match .inference. --seconds 3", ENDS_WELL),
    "cut off once": ("drop --match .inference. --times 1", "."),
    "broken": ("error --match .inference. --status 500", "."),
    "throttled for good": ("throttle --match .inference. --seconds 1", "."),
    "clock": ("clock --seconds 7200", "."),
}


@pytest.fixture(scope="module")
def served(bad: Bad, trained: None) -> None:
    check(bad.verb("deployment.rollout", "--yes", "--json", "--soak", "3", "--keep", "0"), ENDS_WELL)


@pytest.mark.parametrize("what", CHAT)
def test_chat(bad: Bad, served: None, what: str) -> None:
    fault, expected = CHAT[what]
    check(bad.under(fault, "flow.chat", "Who founded Apple?", "--json"), expected)
    if expected != ENDS_WELL:
        check(bad.verb("flow.chat", "Who founded Apple?", "--json"), ENDS_WELL)
