"""What the processes of a job see, in each way that Azure ML passes data, ranks, identities and limits."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from emulator.home import Home
from emulator.runner.process import base_environment
from tests.support.local_azure import LocalAzure, is_gone
from tests.support.raw_jobs import blob, emulator, error_of, log, said, submit, wait

FOLDER = "azureml://datastores/workspaceblobstore/paths"


def _given(kind: str, path: str, mode: str | None = None) -> dict[str, str]:
    return {"jobInputType": kind, "uri": f"{FOLDER}/{path}", **({"mode": mode} if mode else {})}


def _made(kind: str, path: str, mode: str) -> dict[str, str]:
    return {"jobOutputType": kind, "uri": f"{FOLDER}/{path}", "mode": mode}


def _literal(value: str) -> dict[str, str]:
    return {"jobInputType": "literal", "value": value}


def test_each_mode_of_input_gives_the_command_what_azure_gives_it(azure: LocalAzure, workspace: str) -> None:
    blob(azure, workspace, "in/rows.txt", b"a row\n")
    inputs = {
        "file": _given("uri_file", "in/rows.txt", "Download"),
        "folder": _given("uri_folder", "in", "ReadOnlyMount"),
        "direct": _given("uri_file", "in/rows.txt", "Direct"),
        "number": _literal("0.5"),
    }
    names = " ".join(f"{name}=${{{{inputs.{name}}}}}" for name in inputs)
    command = f"for one in {names}; do echo $one; done; cat ${{{{inputs.file}}}} ${{{{inputs.folder}}}}/rows.txt; env"
    job = submit(azure, workspace, "modes", command, inputs=inputs)
    wait(azure, job, "Completed")
    found = said(azure, job)
    assert found["file"].endswith("/rows.txt")
    assert found["direct"].startswith("azureml://subscriptions/") and found["direct"].endswith("/paths/in/rows.txt")
    assert found["number"] == found["AZURE_ML_INPUT_number"] == "0.5"
    assert log(azure, job).count("a row") == 2


def test_a_read_only_mount_is_read_only_and_a_read_write_mount_comes_back(azure: LocalAzure, workspace: str) -> None:
    blob(azure, workspace, "shared/rows.txt", b"old\n")
    inputs = {
        "ro": _given("uri_folder", "shared", "ReadOnlyMount"),
        "rw": _given("uri_folder", "shared", "ReadWriteMount"),
    }
    command = "stat -c ro=%a ${{inputs.ro}}/rows.txt; echo new > ${{inputs.rw}}/more.txt"
    job = submit(azure, workspace, "mounts", command, inputs=inputs)
    wait(azure, job, "Completed")
    assert said(azure, job)["ro"] == "444"
    assert blob(azure, workspace, "shared/more.txt") == b"new\n"


def test_outputs_are_mounted_uploaded_or_left_to_the_job(azure: LocalAzure, workspace: str) -> None:
    blob(azure, workspace, "out/mounted/old.txt", b"old")
    blob(azure, workspace, "out/mounted/pruned.txt", b"old")
    outputs = {
        "mounted": _made("uri_folder", "out/mounted", "ReadWriteMount"),
        "uploaded": _made("uri_folder", "out/uploaded", "Upload"),
        "direct": _made("uri_folder", "out/direct", "Direct"),
        "file": _made("uri_file", "out/one.txt", "ReadWriteMount"),
    }
    command = (
        "ls ${{outputs.mounted}}; rm ${{outputs.mounted}}/pruned.txt; echo a > ${{outputs.mounted}}/new.txt;"
        "ls ${{outputs.uploaded}}; mkdir ${{outputs.uploaded}}/deep; echo b > ${{outputs.uploaded}}/deep/new.txt;"
        "echo direct=${{outputs.direct}}; echo c > ${{outputs.file}}"
    )
    job = submit(azure, workspace, "outputs", command, outputs=outputs)
    wait(azure, job, "Completed")
    assert "old.txt" in log(azure, job)
    assert said(azure, job)["direct"].endswith("/paths/out/direct")
    assert blob(azure, workspace, "out/mounted/new.txt") == b"a\n"
    assert blob(azure, workspace, "out/mounted/old.txt") == b"old"
    assert blob(azure, workspace, "out/mounted/pruned.txt") is None
    assert blob(azure, workspace, "out/uploaded/deep/new.txt") == b"b\n"
    assert blob(azure, workspace, "out/one.txt") == b"c\n"


def test_a_model_of_a_jobs_output_lies_where_the_job_put_it(azure: LocalAzure, workspace: str) -> None:
    outputs = {"model": _made("custom_model", "models/mine", "ReadWriteMount")}
    job = submit(azure, workspace, "makes", "echo {} > ${{outputs.model}}/config.json", outputs=outputs)
    wait(azure, job, "Completed")
    body = {"properties": {"modelUri": "azureml://jobs/makes/outputs/model", "modelType": "custom_model"}}
    made = azure.put(f"{workspace}/models/placed/versions/1", body)
    assert made["properties"]["modelUri"].rstrip("/").endswith("/datastores/workspaceblobstore/paths/models/mine")


def test_ranks_are_numbered_over_nodes_and_each_writes_a_log_of_its_own(azure: LocalAzure, workspace: str) -> None:
    azure.put(
        f"{workspace}/computes/many",
        {
            "location": "eastus2",
            "properties": {
                "computeType": "AmlCompute",
                "properties": {"vmSize": "Standard_DS3_v2", "scaleSettings": {"minNodeCount": 0, "maxNodeCount": 2}},
            },
        },
    )
    job = submit(
        azure,
        workspace,
        "nodes",
        "echo rank $RANK local $LOCAL_RANK node $NODE_RANK of $WORLD_SIZE at $MASTER_ADDR:$MASTER_PORT; pwd > where",
        computeId=f"{workspace}/computes/many",
        resources={"instanceCount": 2},
        distribution={"distributionType": "PyTorch", "processCountPerInstance": 2},
    )
    wait(azure, job, "Completed")
    lines = [line.split(" at ") for line in log(azure, job).splitlines() if line.startswith("rank")]
    assert [line[0] for line in lines] == [f"rank {rank} local {rank % 2} node {rank // 2} of 4" for rank in range(4)]
    assert len({line[1] for line in lines}) == 1
    files = azure.request("GET", f"https://eastus2.api.azureml.ms/history/v1.0{workspace}/runs/nodes/details").json()
    names = [name for name in files["logFiles"] if name.startswith("user_logs/")]
    assert names == [f"user_logs/std_log_process_{rank}.txt" for rank in range(4)]


def test_a_failing_rank_ends_the_others(azure: LocalAzure, workspace: str, tmp_path: Path) -> None:
    spread, marker = {"distributionType": "PyTorch", "processCountPerInstance": 2}, tmp_path / "pid"
    command = f"test $RANK = 0 && echo $$ > {marker} && sleep 300; until test -s {marker}; do sleep 0.1; done; exit 7"
    job = submit(azure, workspace, "halves", command, distribution=spread)
    wait(azure, job, "Failed")
    assert is_gone(_pid(marker))
    assert "status code 7" in error_of(azure, job)


def test_a_job_that_wants_more_nodes_than_its_cluster_has_fails_and_says_so(azure: LocalAzure, workspace: str) -> None:
    job = submit(azure, workspace, "wide", "true", resources={"instanceCount": 2})
    wait(azure, job, "Failed")
    assert "needs 2 nodes; the cluster has at most 1" in error_of(azure, job)


def test_a_cancelled_job_keeps_no_process_not_even_one_with_its_own_session(
    azure: LocalAzure, workspace: str, tmp_path: Path
) -> None:
    marker = tmp_path / "pid"
    command = f"setsid bash -c 'echo $$ > {marker}; trap \"\" TERM; while true; do sleep 1; done' & wait; sleep 300"
    job = submit(azure, workspace, "stubborn", command)
    wait(azure, job, "Running")
    pid = _pid(marker)
    assert azure.request("POST", f"{job}/cancel").status_code == 202
    wait(azure, job, "Canceled")
    assert is_gone(pid)


def test_a_full_cluster_queues_jobs_in_their_order_and_a_queued_one_can_be_cancelled(
    azure: LocalAzure, workspace: str, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    first = submit(azure, workspace, "queue1", f"until test -e {go}; do sleep 0.1; done")
    second, third, fourth = [submit(azure, workspace, f"queue{number}", "true") for number in (2, 3, 4)]
    wait(azure, first, "Running")
    wait(azure, second, "Queued")
    azure.request("POST", f"{third}/cancel")
    wait(azure, third, "Canceled")
    go.touch()
    for job in (first, second, fourth):
        wait(azure, job, "Completed")
    starts = [_history(azure, workspace, job)["startTimeUtc"] for job in (first, second, fourth)]
    assert starts == sorted(starts)


def test_a_failing_job_carries_the_end_of_its_log(azure: LocalAzure, workspace: str) -> None:
    job = submit(azure, workspace, "fails", "echo this is why >&2; exit 3")
    wait(azure, job, "Failed")
    assert "status code 3" in error_of(azure, job) and "this is why" in error_of(azure, job)


def test_a_time_limit_stops_a_job(azure: LocalAzure, workspace: str) -> None:
    job = submit(azure, workspace, "late", "sleep 60", limits={"jobLimitsType": "Command", "timeout": "PT1S"})
    wait(azure, job, "Failed")
    assert "time limit" in error_of(azure, job)


def test_a_preempted_job_gets_a_sigterm_goes_back_to_the_queue_and_finds_what_it_wrote(
    azure: LocalAzure, workspace: str, tmp_path: Path
) -> None:
    marker = tmp_path / "pid"
    script = (
        "cd ${{outputs.out}}; cat checkpoint 2>/dev/null && exit 0;"
        f"trap 'echo step 7 > checkpoint; exit 1' TERM; echo first attempt; echo $$ > {marker};"
        "while true; do sleep 0.1; done"  # whose sleep bash reports as terminated
    )
    outputs = {"out": _made("uri_folder", "preempted", "ReadWriteMount")}
    job = submit(azure, workspace, "spot", script, outputs=outputs)
    wait(azure, job, "Running")
    pid = _pid(marker)
    done = emulator(azure, "preempt", "spot")
    assert (done.returncode, "is in the queue again" in done.stdout) == (0, True), done.stderr
    assert is_gone(pid)
    wait(azure, job, "Completed")
    assert log(azure, job).splitlines() == ["first attempt", "Terminated", "step 7"]


def test_preempting_what_does_not_run_is_one_sentence(azure: LocalAzure, workspace: str) -> None:
    wait(azure, submit(azure, workspace, "over", "true"), "Completed")
    for name, why in (("over", "it is Completed"), ("nobody", "there is no job 'nobody'")):
        done = emulator(azure, "preempt", name)
        assert done.returncode == 1
        assert why in done.stderr and "next: python -m emulator status" in done.stderr


def test_the_run_finds_its_tracking_and_no_credentials_of_the_deployer(azure: LocalAzure, workspace: str) -> None:
    job = submit(azure, workspace, "env", "env", environmentVariables={"MINE": "1"}, experimentName="trial")
    wait(azure, job, "Completed")
    found = said(azure, job)
    assert found["MLFLOW_TRACKING_URI"] == f"azureml://eastus2.api.azureml.ms/mlflow/v1.0{workspace}"
    assert found["MLFLOW_RUN_ID"] == found["AZUREML_RUN_ID"] == "env"
    assert found["MLFLOW_EXPERIMENT_NAME"] == "trial" and found["MLFLOW_EXPERIMENT_ID"].isdigit()
    assert found["MINE"] == "1" and "IDENTITY_ENDPOINT" in found
    assert not [key for key in found if key.startswith(("AZURE_CLIENT", "ARM_", "PULUMI_", "EMULATOR_HOME"))]


def test_jobs_inherit_the_environment_of_the_start_without_the_deployers_credentials(tmp_path: Path) -> None:
    kept = {"UV_CONSTRAINT": "pins.txt", "HF_ENDPOINT": "http://127.0.0.1:1", "PATH": "/bin"}
    withheld = {
        "AZURE_CLIENT_SECRET": "s",
        "ARM_CLIENT_SECRET": "s",
        "PULUMI_CONFIG_PASSPHRASE": "s",
        "EMULATOR_HOME": "h",
    }
    found = base_environment({**kept, **withheld}, Home(tmp_path), 1)
    assert found["UV_CONSTRAINT"] == "pins.txt" and found["HF_ENDPOINT"] == "http://127.0.0.1:1"
    assert not withheld.keys() & found.keys()


def test_a_job_that_names_an_identity_which_its_cluster_lacks_fails(azure: LocalAzure, workspace: str) -> None:
    job = submit(azure, workspace, "who", "env", identity={"identityType": "Managed", "clientId": "nobody"})
    wait(azure, job, "Failed")
    assert "The managed identity 'nobody' is not assigned to the compute" in error_of(azure, job)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"computeId": "/nowhere/computes/none"}, "Unknown compute target 'none'."),
        ({"environmentId": "/nowhere"}, "environmentId"),
        ({"jobType": "Sweep"}, "'Sweep' are not emulated"),
        ({"command": " "}, "no command"),
        ({"inputs": {"x": {"jobInputType": "uri_file", "uri": "azureml://x", "mode": "EvalMount"}}}, "EvalMount"),
        ({"distribution": {"distributionType": "Mpi"}}, "'Mpi' is not emulated"),
        ({"limits": {"jobLimitsType": "Command", "timeout": "5 minutes"}}, "not a duration"),
    ],
)
def test_what_cannot_be_run_is_refused_before_it_is_queued(
    azure: LocalAzure, workspace: str, change: dict[str, object], message: str
) -> None:
    environment = azure.put(f"{workspace}/environments/base/versions/9", {"properties": {"image": "ubuntu:22.04"}})
    body = {"jobType": "Command", "command": "true", "environmentId": environment["id"]}
    whole = {"properties": {**body, "computeId": f"{workspace}/computes/cpu", **change}}
    answer = azure.request("PUT", f"{workspace}/jobs/refused", json=whole)
    assert answer.status_code == 400 and message in answer.json()["error"]["message"]


ASKS_STORAGE = """
import os, sys
from azure.core.exceptions import HttpResponseError
from azure.identity import ManagedIdentityCredential
from azure.storage.blob import ContainerClient
who = ManagedIdentityCredential(client_id=os.environ["DEFAULT_IDENTITY_CLIENT_ID"])
box = ContainerClient(sys.argv[1], "azureml", who, retry_total=0)
for name, ask in (("read", lambda: list(box.list_blobs())), ("write", lambda: box.upload_blob(sys.argv[2], b"x"))):
    try:
        ask()
        print(f"{name}=allowed")
    except HttpResponseError as error:
        print(f"{name}={error.error_code}")
"""


def test_a_jobs_identity_may_do_in_storage_what_its_roles_permit(azure: LocalAzure, workspace: str) -> None:
    group = workspace.split("/providers/")[0]
    store = azure.request("GET", f"{workspace}/datastores/workspaceblobstore").json()["properties"]
    command = (
        f"python - https://{store['accountName']}.blob.core.windows.net $AZUREML_RUN_ID <<'END'\n{ASKS_STORAGE}END"
    )
    refused = "AuthorizationPermissionMismatch"
    first = submit(azure, workspace, "without-role", command)
    wait(azure, first, "Completed")
    assert said(azure, first) == {"read": refused, "write": refused}
    identity = f"{group}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/id-{group.split('/')[-1]}"
    principal = azure.request("GET", identity).json()["properties"]["principalId"]
    reader = "2a2b9908-6ea1-4ae2-8e65-a410df84e7d1"
    wanted = {"principalId": principal, "principalType": "ServicePrincipal"}
    role = f"{'/'.join(group.split('/')[:3])}/providers/Microsoft.Authorization/roleDefinitions/{reader}"
    assignment = f"{group}/providers/Microsoft.Authorization/roleAssignments/99999999-0000-4000-8000-000000000000"
    azure.put(assignment, {"properties": {**wanted, "roleDefinitionId": role}})
    second = submit(azure, workspace, "with-role", command)
    wait(azure, second, "Completed")
    assert azure.request("DELETE", assignment).status_code == 200
    assert said(azure, second) == {"read": "allowed", "write": refused}


def test_a_host_environment_says_what_it_leaves_out(azure: LocalAzure, workspace: str) -> None:
    conda = "dependencies:\n- python=3.10\n- pip\n- pip: [torch==2.4.0]\n"
    image = {"image": "ubuntu:22.04", "condaFile": conda}
    environment = azure.put(f"{workspace}/environments/conda/versions/1", {"properties": image})["id"]
    job = submit(azure, workspace, "host", "true", environmentId=environment)
    wait(azure, job, "Completed")
    files = azure.request("GET", f"https://eastus2.api.azureml.ms/history/v1.0{workspace}/runs/host/details").json()
    written = azure.request("GET", files["logFiles"]["azureml-logs/20_image_build_log.txt"], audience=None).text
    assert "Not installed: pip, setuptools, wheel, torch==2.4.0" in written and "EMULATOR_ENVIRONMENTS=build" in written


def test_logs_follow_a_job_to_its_end(azure: LocalAzure, workspace: str) -> None:
    submit(azure, workspace, "talks", "for i in 1 2 3; do echo line $i; sleep 0.3; done")
    done = emulator(azure, "logs", "-f", "talks")
    assert done.stdout.splitlines() == ["line 1", "line 2", "line 3"] and done.returncode == 0


def _pid(marker: Path) -> int:
    while not marker.exists() or not marker.read_text().strip():
        time.sleep(0.05)
    return int(marker.read_text())


def _history(azure: LocalAzure, workspace: str, job: str) -> dict[str, str]:
    address = f"https://eastus2.api.azureml.ms/history/v1.0{workspace}/runs/{job.split('/')[-1]}"
    found: dict[str, str] = azure.request("GET", address).json()
    return found
