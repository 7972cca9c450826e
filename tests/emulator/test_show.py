"""What an emulator shows of itself: status, and what clients asked."""

from __future__ import annotations

import json

from tests.support.local_azure import LocalAzure
from tests.support.raw_jobs import emulator, submit, wait


def test_status_names_jobs_with_their_states_and_what_was_asked_that_is_not_emulated(
    azure: LocalAzure, workspace: str
) -> None:
    wait(azure, submit(azure, workspace, "shown", "true"), "Completed")
    for path in (f"{workspace}/batchEndpoints/b", f"{workspace}/schedules"):
        answer = azure.request("GET", path)
        assert answer.status_code == 404 and set(answer.json()["error"]) >= {"code", "message"}
    found = emulator(azure, "status").stdout
    assert [line.split() for line in found.splitlines() if " shown " in line] == [["job", "shown", "Completed"]]
    assert f"not emulated: GET management.azure.com{workspace}/batchEndpoints/b" in found
    as_json = json.loads(emulator(azure, "status", "--json").stdout)
    assert ["shown", "Completed"] in as_json["jobs"] and as_json["port"] == azure.record["port"]


def test_requests_are_chosen_by_method_status_and_path(azure: LocalAzure) -> None:
    group = f"/subscriptions/{azure.env['AZURE_SUBSCRIPTION_ID']}/resourceGroups/rg-asked"
    assert azure.request("GET", group).status_code == 404
    azure.put(group, {"location": "eastus2"})
    assert azure.request("GET", group).status_code == 200

    def asked(*words: str) -> list[list[str]]:
        lines = emulator(azure, "requests", "--match", "rg-asked", *words).stdout.splitlines()
        return [line.split()[1:3] for line in lines]

    assert asked() == [["GET", "404"], ["PUT", "201"], ["GET", "200"]]
    assert asked("--method", "put") == [["PUT", "201"]]
    assert asked("--status", "4xx") == asked("--failed") == [["GET", "404"]]
    assert asked("--last", "1") == [["GET", "200"]]


def test_a_fault_is_said_and_taken_back(azure: LocalAzure) -> None:
    assert emulator(azure, "fault", "throttle", "--match", "nothing-like-it", "--times", "2").returncode == 0
    assert "throttle 'nothing-like-it', 0 requests seen" in emulator(azure, "status").stdout
    assert emulator(azure, "fault", "clear").returncode == 0
    assert "throttle" not in emulator(azure, "status").stdout


def test_a_log_that_is_not_there_is_one_sentence(azure: LocalAzure) -> None:
    done = emulator(azure, "logs", "nobody")
    assert done.returncode == 1 and "there is no job or deployment 'nobody' with a log" in done.stderr
