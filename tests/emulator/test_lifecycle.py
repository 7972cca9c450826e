"""Start, stop, side by side, killed: the emulator's own life."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from emulator.home import SUBSCRIPTION_ID, is_alive
from tests.support.local_azure import ROOT, LocalAzure, is_gone


def emulator(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "EMULATOR_HOME": str(home)}
    command = [sys.executable, "-m", "emulator", *words]
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_it_starts_once_and_stops_leaving_no_process_and_no_port(tmp_path: Path) -> None:
    assert emulator(tmp_path, "start").returncode == 0
    assert "runs already" in emulator(tmp_path, "start").stdout
    azure = LocalAzure.start(tmp_path)
    record = azure.record
    assert emulator(tmp_path, "stop").returncode == 0
    assert not is_alive(record["pid"], record["started"])
    for port in (record["port"], record["tls_port"], record["admin_port"]):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
    assert "not running" in emulator(tmp_path, "stop").stdout


def test_a_port_in_use_is_one_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = emulator(tmp_path, "start", "--port", str(port))
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: cannot listen on port {port}: ")
    assert "next: python -m emulator start" in done.stderr and "Traceback" not in done.stderr


def test_asking_an_emulator_that_does_not_run_names_the_command(tmp_path: Path) -> None:
    for verb in ("status", "env"):
        done = emulator(tmp_path, verb)
        assert done.returncode == 1
        assert "no emulator is running" in done.stderr and "next: python -m emulator start" in done.stderr


def test_two_run_side_by_side_and_know_nothing_of_each_other(tmp_path: Path) -> None:
    one, two = LocalAzure.start(tmp_path / "one"), LocalAzure.start(tmp_path / "two")
    try:
        group = f"/subscriptions/{SUBSCRIPTION_ID}/resourceGroups/only-in-one"
        one.put(group, {"location": "eastus2"})
        assert one.request("GET", group).status_code == 200
        assert two.request("GET", group).status_code == 404
        stolen = one.token("https://management.azure.com")
        answer = two.request("GET", group, audience=None, headers={"Authorization": f"Bearer {stolen}"})
        assert answer.status_code == 401
    finally:
        one.stop()
        two.stop()


def test_state_survives_a_kill_and_the_killed_ones_jobs_are_ended_and_marked(tmp_path: Path) -> None:
    azure = LocalAzure.start(tmp_path)
    workspace = azure.make_workspace()
    environment = azure.put(f"{workspace}/environments/e/versions/1", {"properties": {"image": "x"}})["id"]
    compute = f"{workspace}/computes/cpu"
    marker = tmp_path / "pid"
    body = {"jobType": "Command", "command": f"echo $$ > {marker}; sleep 300", "environmentId": environment}
    azure.put(f"{workspace}/jobs/j", {"properties": {**body, "computeId": compute}})
    while not marker.exists() or not marker.read_text().strip():
        time.sleep(0.05)
    os.kill(azure.record["pid"], signal.SIGKILL)
    while azure.home.running():
        time.sleep(0.05)
    again = LocalAzure.start(tmp_path)
    try:
        assert again.request("GET", compute).status_code == 200
        assert again.request("GET", f"{workspace}/jobs/j").json()["properties"]["status"] == "Failed"
        assert is_gone(int(marker.read_text()))
    finally:
        again.stop()


def test_reset_forgets_everything(tmp_path: Path) -> None:
    azure = LocalAzure.start(tmp_path)
    group = f"/subscriptions/{SUBSCRIPTION_ID}/resourceGroups/gone"
    azure.put(group, {"location": "eastus2"})
    assert emulator(tmp_path, "reset").returncode == 0
    assert list(tmp_path.iterdir()) == []
    again = LocalAzure.start(tmp_path)
    try:
        assert again.request("GET", group).status_code == 404
    finally:
        again.stop()


def test_secrets_are_readable_by_the_user_alone(azure: LocalAzure) -> None:
    for name in ("secrets.json", "ca.key"):
        assert (azure.home.path / "tls" / name).stat().st_mode & 0o077 == 0
    assert azure.home.path.stat().st_mode & 0o077 == 0, "the state holds keys"


def test_hosts_that_are_not_azures_pass_through(azure: LocalAzure) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        with socket.create_connection(("127.0.0.1", azure.record["port"])) as client:
            client.sendall(f"CONNECT localhost:{server.getsockname()[1]} HTTP/1.1\r\n\r\n".encode())
            assert client.recv(100).startswith(b"HTTP/1.1 200")
            far, _ = server.accept()
            client.sendall(b"ping")
            assert far.recv(4) == b"ping"
            far.close()


def test_azures_own_hosts_are_never_reached(azure: LocalAzure) -> None:
    answer = azure.request("GET", "https://prices.azure.com/api/retail/prices", audience=None)
    assert answer.status_code == 404
