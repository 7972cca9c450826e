"""Environments that are really used, on a running emulator: a job runs and an endpoint serves when everything goes.

And what is killed half-way, at many moments, is brought to its end by the same command.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from emulator.home import SUBSCRIPTION_ID
from emulator.state import State
from tests.support.local_azure import ROOT, LocalAzure, last_json

BRANCH, STACK = "feat/life", "feat-life-d05a"
SERVER = """
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self): self.send_response(200); self.end_headers(); self.wfile.write(b"ok")
http.server.HTTPServer((os.environ["HOST"], int(os.environ["PORT"])), Handler).serve_forever()
"""
DOCKERFILE = """
FROM python:3.11-slim
WORKDIR /app
COPY server.py ./
ENV HOST=0.0.0.0 PORT=5001
CMD ["python", "server.py"]
"""
USE = """
import sys
from pathlib import Path
from azure.ai.ml import MLClient, command
from azure.ai.ml.entities import (
    AmlCompute, BuildContext, Environment, ManagedOnlineDeployment, ManagedOnlineEndpoint
)
from azure.identity import DefaultAzureCredential

context, workspace = sys.argv[1], sys.argv[2].split("/")
ml = MLClient(DefaultAzureCredential(), workspace[2], workspace[4], workspace[8], enable_telemetry=False)
route = {"port": 5001, "path": "/"}
image = ml.environments.create_or_update(Environment(
    name="server", build=BuildContext(path=context),
    inference_config={"liveness_route": route, "readiness_route": route, "scoring_route": route},
))
for name, tags in (("phi-life", {"project": "finetune-phi"}), ("by-hand", {})):
    wanted = ManagedOnlineEndpoint(name=name, auth_mode="key", tags=tags)
    endpoint = ml.online_endpoints.begin_create_or_update(wanted).result()
    ml.online_deployments.begin_create_or_update(ManagedOnlineDeployment(
        name="blue", endpoint_name=name, environment=image.id, instance_type="Standard_F4s_v2", instance_count=1
    )).result()
    endpoint.traffic = {"blue": 100}
    ml.online_endpoints.begin_create_or_update(endpoint).result()
ml.compute.begin_create_or_update(AmlCompute(name="stray", size="Standard_DS3_v2", max_instances=1)).result()
ml.jobs.create_or_update(command(
    command="sleep 900", environment=Environment(name="base", image="ubuntu:22.04"), compute="gpu-cluster"
))
"""


@dataclass
class Life:
    """A project of its own beside a running emulator."""

    azure: LocalAzure
    project: Path
    env: dict[str, str]
    kept: frozenset[str] = frozenset()

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "infra.environment", *words, "--branch", BRANCH, "--yes", "--json"]

    def start(self, *words: str) -> subprocess.Popen[str]:
        """A verb in a session of its own, as a terminal or a CI job starts it."""
        pipe = subprocess.PIPE
        return subprocess.Popen(
            self.command(*words), cwd=self.project, env=self.env, stdout=pipe, stderr=pipe, text=True,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def done(self, *words: str) -> dict[str, Any]:
        """The result of a verb that must succeed, as soon as no killed one's pulumi holds the stack any more."""
        for _ in range(60):
            process = self.start(*words)
            out, err = process.communicate(timeout=300)
            if "another update" not in err:
                break
            holder = re.search(r"\(pid (\d+)\)", err)
            if holder and not psutil.pid_exists(int(holder[1])):
                unlock(self)
            time.sleep(1)
        assert process.returncode == 0, err
        return last_json(out)

    def pulumi(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["pulumi", *words], cwd=self.project, env=self.env, capture_output=True, text=True)

    def use(self, workspace: str) -> None:
        """A job that runs, an endpoint of ours and one of somebody else that serve, a compute made by hand."""
        context = self.project / "context"
        context.mkdir(exist_ok=True)
        (context / "server.py").write_text(SERVER)
        (context / "Dockerfile").write_text(DOCKERFILE)
        words = [sys.executable, "-c", USE, str(context), workspace]
        done = subprocess.run(words, cwd=self.project, env=self.env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        deadline = time.monotonic() + 30
        while len(self.processes()) < 3 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(self.processes()) >= 3

    def processes(self) -> list[int]:
        """What runs in the emulator's work folders: jobs and servers."""
        found = psutil.process_iter(["cwd", "status"])
        work = str(self.azure.home.work)
        return [one.pid for one in found if str(one.info["cwd"]).startswith(work) and one.info["status"] != "zombie"]

    def soft_deleted(self) -> frozenset[str]:
        state = State(self.azure.home.database)
        try:
            return frozenset(key for key, _ in state.records("soft-deleted"))
        finally:
            state.close()

    def assert_nothing_is_left(self) -> None:
        state = State(self.azure.home.database)
        try:
            assert [one["id"] for one in state.below(f"/subscriptions/{SUBSCRIPTION_ID}")] == []
        finally:
            state.close()
        assert self.soft_deleted() == self.kept
        deadline = time.monotonic() + 10
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert self.processes() == []
        assert json.loads(self.pulumi("stack", "ls", "--json").stdout) == []
        assert sorted(path.name for path in self.project.glob("*Pulumi.*")) == ["Pulumi.dev.yaml", "Pulumi.yaml"]
        assert not (self.project / "config.json").exists()


@pytest.fixture(scope="module", params=["the local pulumi", "the real pulumi"])
def life(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    real = shutil.which("pulumi")
    if request.param == "the real pulumi" and real is None:
        pytest.skip("no Pulumi CLI is on PATH: the local one alone was tested")
    folder = tmp_path_factory.mktemp("life")
    project = folder / "project"
    project.mkdir()
    for name in ("Pulumi.yaml", "Pulumi.dev.yaml"):
        shutil.copy(ROOT / name, project)
    for name in ("infra", "deployment"):
        shutil.copytree(ROOT / name, project / name)
    (project / ".venv").symlink_to(ROOT / ".venv")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "the local pulumi" and real is not None:
            elsewhere = [one for one in os.environ["PATH"].split(os.pathsep) if not (Path(one) / "pulumi").exists()]
            patch.setenv("PATH", os.pathsep.join(elsewhere))
        azure = LocalAzure.start(folder / "emulator")
    yield Life(azure, project, {**azure.env, "PYTHONPATH": str(project)})
    azure.stop()


def interrupted(process: subprocess.Popen[str], seconds: float, number: int, *, alone: bool) -> int:
    """End a verb after a while with a signal, for it `alone` or for all that it started; its exit code."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        (os.kill if alone else os.killpg)(process.pid, number)
    process.communicate(timeout=300)
    return process.returncode


def moments(first: float, last: float, count: int) -> list[float]:
    return [first + (last - first) * number / (count - 1) for number in range(count)]


def unlock(life: Life) -> None:
    """As the message says: the real Pulumi keeps the lock of an update that was killed."""
    life.pulumi("cancel", "--yes", "--stack", STACK)


@pytest.mark.slow
def test_a_plain_destroy_of_a_used_environment_succeeds_the_first_time(life: Life) -> None:
    made = life.done("up")
    life.use(made["workspace_id"])
    done = life.pulumi("destroy", "--yes", "--stack", made["stack"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert life.azure.request("GET", made["workspace_id"].split("/providers/")[0]).status_code == 404
    deadline = time.monotonic() + 10
    while life.processes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert life.processes() == []
    assert life.done("down")["gone"] == [f"stack {STACK}", f"Pulumi.{STACK}.yaml"]
    life.kept = life.soft_deleted()  # as a plain destroy leaves them; the tests that follow look for more


@pytest.mark.slow
def test_down_of_a_used_environment_leaves_nothing(life: Life) -> None:
    life.use(life.done("up")["workspace_id"])
    gone = life.done("down")["gone"]
    assert gone[-2:] == [f"stack {STACK}", f"Pulumi.{STACK}.yaml"]
    life.assert_nothing_is_left()


@pytest.mark.slow
@pytest.mark.parametrize("alone", [False, True], ids=["with its pulumi", "alone"])
def test_a_killed_up_is_brought_to_its_end_by_another(life: Life, alone: bool) -> None:
    for seconds in moments(1.5, 7.0, 6):
        code = interrupted(life.start("up"), seconds, signal.SIGKILL, alone=alone)
        unlock(life)
        if code == 0:
            break
    made = life.done("up")
    assert life.azure.request("GET", made["workspace_id"]).status_code == 200
    life.done("down")
    life.assert_nothing_is_left()


@pytest.mark.slow
def test_down_removes_what_a_killed_up_had_begun(life: Life) -> None:
    for seconds in moments(2.0, 6.0, 5):
        interrupted(life.start("up"), seconds, signal.SIGKILL, alone=False)
        unlock(life)
        life.done("down")
        life.assert_nothing_is_left()


@pytest.mark.slow
@pytest.mark.parametrize("alone", [False, True], ids=["with its pulumi", "alone"])
def test_a_killed_down_is_brought_to_its_end_by_another(life: Life, alone: bool) -> None:
    life.use(life.done("up")["workspace_id"])
    for seconds in moments(1.0, 10.0, 8):
        code = interrupted(life.start("down"), seconds, signal.SIGKILL, alone=alone)
        unlock(life)
        if code == 0:
            break
    life.done("down")
    life.assert_nothing_is_left()


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["up", "down"])
def test_ctrl_c_ends_with_130_and_the_stack_can_be_used(life: Life, verb: str) -> None:
    if verb == "down":
        life.done("up")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
    process = life.start(verb)
    assert process.stderr is not None
    for line in process.stderr:
        if "Updating" in line or "RoleAssignment" in line or "purging" in line or "wrote" in line:
            os.killpg(process.pid, signal.SIGINT)
            break
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130 and "next:" in err and "Traceback" not in err.split("error:")[-1]
    life.done("down")  # without a word to Pulumi about its lock
    life.assert_nothing_is_left()
