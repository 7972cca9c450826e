"""Following a job: through faults of the network, the service and the login, to whatever end it has."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from azure.core.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    ResourceNotFoundError,
    ServiceRequestError,
)

from infra.cli import UserError
from tests.support.local_azure import ROOT, LocalAzure
from tests.training.submissions import SUCCEEDS, make_outputs
from training import follow as following
from training import register, runs, submit
from training.follow import follow

OUTPUTS = make_outputs("/subscriptions/s/resourceGroups/g/providers/p/workspaces/w")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(following, "POLL_SECONDS", 0.05)
    monkeypatch.setenv("RUN_RECORDS", str(tmp_path / "runs"))


class FakeLog:
    """A log that yields these texts in turn, then nothing."""

    job, outputs = "j", OUTPUTS

    def __init__(self, *texts: str, fault: str = "out of luck") -> None:
        self._texts, self._fault = iter(texts), fault

    def new_text(self) -> str:
        return next(self._texts, "")

    def fault(self) -> str | None:
        return self._fault


def get(*answers: Any) -> Any:
    """A function that answers these statuses in turn, or raises what is an exception."""
    found = iter(answers)

    def get_job() -> Any:
        answer = next(found)
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(name="j", status=answer, type="command", studio_url="URL")

    return get_job


def log(*texts: str, **more: str) -> Any:
    return FakeLog(*texts, **more)


def refused(status: int, text: str = "no") -> HttpResponseError:
    error = HttpResponseError(message=text) if status != 404 else ResourceNotFoundError(message=text)
    error.status_code = status
    return error


def test_whole_lines_are_printed_and_a_service_that_is_away_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    answers = get("Running", ServiceRequestError("away"), refused(503), refused(429), "Running", "Completed")
    assert follow(answers, log("one\ntw", "", "o\n", "three")).status == "Completed"
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if line.startswith("  ")] == ["  one", "  two", "  three"]
    assert sum("no answer from Azure ML: away" in line for line in said) == 1
    assert sum("answers again" in line for line in said) == 1


def test_an_expired_login_is_said_at_once_and_followed_on_when_it_is_renewed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    expired = ClientAuthenticationError("AzureCliCredential: ERROR: AADSTS70043: The refresh token has expired.")
    assert follow(get("Running", expired, expired, "Completed"), log()).status == "Completed"
    said = capsys.readouterr().err
    assert said.count("AADSTS70043") == 1 and "sign in again in another terminal: az login" in said


def test_a_service_that_stays_away_leaves_the_job_and_says_how_to_return(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "PATIENCE_SECONDS", -1.0)
    with pytest.raises(UserError, match="away") as caught:
        follow(get(ServiceRequestError("away")), log())
    assert caught.value.next_command == "python -m training.submit --attach j --stack local-x"


def test_a_failed_job_is_told_with_its_reason_its_last_lines_and_the_next_command() -> None:
    with pytest.raises(UserError) as caught:
        follow(get("Failed"), log("".join(f"line {number}\n" for number in range(50))))
    text = str(caught.value)
    assert "failed: out of luck" in text
    assert "line 49" in text and "line 30" in text and "line 29" not in text
    assert "submit it again" in text and "--attach j" in text and "URL" in text


def test_azures_reason_is_not_followed_by_the_log_twice() -> None:
    reason = "User process exited with 1. Please check log file 'user_logs/std_log.txt'. Error: line 1\nline 2"
    with pytest.raises(UserError) as caught:
        follow(get("Failed"), log("line 1\nline 2\n", fault=reason))
    assert caught.value.message.count("line 2") == 1


def test_a_job_that_was_cancelled_elsewhere_is_said_to_be() -> None:
    with pytest.raises(UserError, match="has been cancelled") as caught:
        follow(get("Running", "Canceled"), log())
    assert "it wrote no log" in caught.value.message and "out of luck" not in caught.value.message


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (refused(404, "The Resource 'x/workspaces/w/jobs/j' was not found."), "has no job 'j'"),
        (refused(404, "Parent resource 'w' not found."), "the workspace w of the stack local-x is gone"),
        (refused(404, "(ResourceGroupNotFound) Resource group 'g' could not be found."), "is gone"),
        (refused(403, "not yours"), "does not show the job: not yours"),
    ],
)
def test_what_will_not_mend_itself_ends_the_following(error: Exception, said: str) -> None:
    with pytest.raises(UserError, match=said):
        follow(get("Running", error), log())


def test_ctrl_c_leaves_the_job_and_says_how_to_return_and_how_to_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(submit, "follow_to_the_end", interrupted)
    monkeypatch.setattr("infra.client.ml_client", lambda outputs: None)
    (tmp_path / "outputs.json").write_text(json.dumps(OUTPUTS.as_dict()))
    with pytest.raises(UserError, match="the job j goes on") as caught:
        submit.main(["--attach", "j", "--outputs", str(tmp_path / "outputs.json")])
    assert caught.value.code == 130
    assert "--attach j" in str(caught.value) and "az ml job cancel --name j --resource-group g" in str(caught.value)


# --- on the emulator --------------------------------------------------------------------------------------------------


class Line:
    """A wire to the emulator's proxy, which can be cut: connections that are there break, new ones are refused."""

    def __init__(self, port: int) -> None:
        self._there, self._open = port, True
        self._sockets: list[socket.socket] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            if not self._open:
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self._there))
            self._sockets += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    @staticmethod
    def _pump(one: socket.socket, other: socket.socket) -> None:
        try:
            while data := one.recv(65536):
                other.sendall(data)
        except OSError:
            pass
        finally:
            for end in (one, other):
                end.close()

    def cut(self) -> None:
        self._open = False
        for end in self._sockets:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        self._sockets.clear()

    def mend(self) -> None:
        self._open = True

    def close(self) -> None:
        self.cut()
        self._server.close()


@pytest.fixture
def line(azure: LocalAzure, monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    made = Line(azure.record["port"])
    for key, value in azure.env.items():
        monkeypatch.setenv(key, value.replace(f":{azure.record['port']}", f":{made.port}"))
    yield made
    made.close()


def start_job(azure: LocalAzure, workspace: str, name: str, command: str) -> None:
    """A job as `training.submit` would make it, but for its code and inputs."""
    azure.put(f"{workspace}/environments/any/versions/1", {"properties": {"image": "x"}})
    properties = {
        "jobType": "Command",
        "command": command,
        "computeId": f"{workspace}/computes/cpu",
        "environmentId": f"{workspace}/environments/any/versions/1",
        "outputs": {key: {"jobOutputType": "uri_folder"} for key in (register.MODEL_OUTPUT, register.REPORT_OUTPUT)},
        "tags": {register.NAME_TAG: name},
    }
    azure.put(f"{workspace}/jobs/{name}", {"properties": properties})


def attach(workspace: str, job: str, tmp_path: Path) -> int:
    (tmp_path / "outputs.json").write_text(json.dumps(make_outputs(workspace).as_dict()))
    return submit.main(["--attach", job, "--outputs", str(tmp_path / "outputs.json"), "--json"])


def test_a_job_is_followed_over_a_wire_that_is_cut_while_it_runs(
    azure: LocalAzure, workspace: str, line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is cut at the first line of the log and mended when the follower has noticed; only then the job ends."""
    go, said = tmp_path / "go", list[str]()

    def hear(text: str) -> None:
        said.append(text)
        if text == "  line 0":
            line.cut()
        elif "no answer from Azure ML" in text:
            line.mend()
            go.touch()

    monkeypatch.setattr(following, "say", hear)
    lines = "; ".join(f"echo line {number}; sleep 0.05" for number in range(20))
    waiting = f"until [ -e {go} ]; do sleep 0.1; done"
    start_job(azure, workspace, "cut", f"{lines}; {waiting}; {SUCCEEDS.replace('ls ${{inputs.data}} &&', '')}")
    assert attach(workspace, "cut", tmp_path) == 0
    printed = [text for text in said if text.startswith("  line")]
    assert printed == [f"  line {number}" for number in range(20)], "every line once, in order"
    assert sum("no answer from Azure ML" in text for text in said) == 1
    assert sum("answers again" in text for text in said) == 1
    assert runs.records()[0]["model"] == "cut:1"


def test_an_emulator_that_went_away_and_came_back_has_lost_the_job_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    azure = LocalAzure.start(tmp_path / "emulator")
    try:
        workspace = azure.make_workspace()
        start_job(azure, workspace, "lost", "echo begun; sleep 60")
        for key, value in azure.env.items():
            monkeypatch.setenv(key, value)

        def trouble() -> None:
            time.sleep(1.5)
            azure.stop()
            LocalAzure.start(tmp_path / "emulator")

        thread = threading.Thread(target=trouble, daemon=True)
        thread.start()
        with pytest.raises(UserError, match="the job lost has failed: The node that ran the job is gone"):
            attach(workspace, "lost", tmp_path)
        thread.join()
        assert runs.records()[0]["status"] == "Failed"
    finally:
        azure.stop()


def test_an_interrupt_leaves_the_job_running(azure: LocalAzure, workspace: str, tmp_path: Path) -> None:
    start_job(azure, workspace, "left", "echo begun; sleep 60")
    (tmp_path / "outputs.json").write_text(json.dumps(make_outputs(workspace).as_dict()))
    words = ["-m", "training.submit", "--attach", "left", "--outputs", str(tmp_path / "outputs.json")]
    process = subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, env={**azure.env, "RUN_RECORDS": str(tmp_path)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    for text in process.stderr:
        if "begun" in text:
            break
    os.kill(process.pid, signal.SIGINT)
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "no longer following; the job left goes on" in rest and "--attach left" in rest and "Traceback" not in rest
    job = azure.request("GET", f"{workspace}/jobs/left").json()["properties"]
    assert job["status"] == "Running"
    azure.request("POST", f"{workspace}/jobs/left/cancel")


def test_a_login_that_azure_refuses_is_one_sentence_and_the_command_that_renews_it(
    azure: LocalAzure, workspace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from infra.client import ml_client
    from training.azure_faults import azure_faults

    for key, value in {**azure.env, "AZURE_CLIENT_SECRET": "wrong"}.items():
        monkeypatch.setenv(key, value)
    outputs = make_outputs(workspace)
    with pytest.raises(UserError) as caught, azure_faults(outputs, "asking for the cluster"):
        ml_client(outputs).compute.get("cpu")
    assert "does not accept the login (AADSTS7000215: Invalid client secret" in caught.value.message
    assert "\n" not in caught.value.message and str(caught.value.next_command).startswith("az login")


@pytest.mark.parametrize(
    ("error", "said", "command"),
    [
        (ClientAuthenticationError("failed to retrieve a token\nAttempted: …"), "nobody is signed in", "az login"),
        (refused(404, "(ResourceGroupNotFound) Resource group 'g' could not be found."), "is gone", "make up STACK=l"),
        (refused(403, "no role"), "may not do that", "make doctor STACK=l"),
        (refused(400, "first\nsecond"), "submitting failed: first", "make doctor STACK=l"),
        (ServiceRequestError("no route"), "cannot be reached (no route)", "check the network"),
    ],
)
def test_a_refusal_of_azure_is_one_sentence_and_a_command(error: Exception, said: str, command: str) -> None:
    from training.azure_faults import azure_faults

    with pytest.raises(UserError) as caught, azure_faults(OUTPUTS, "submitting"):
        raise error
    assert said in caught.value.message and "\n" not in caught.value.message
    assert str(caught.value.next_command).startswith(command)
