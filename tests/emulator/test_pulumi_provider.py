"""The stand-in for azure-native, asked as the real Pulumi CLI asks it: over Pulumi's provider protocol."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import psutil
import pytest
from google.protobuf import empty_pb2
from pulumi.runtime.proto import provider_pb2 as pb
from pulumi.runtime.proto import provider_pb2_grpc, status_pb2

from emulator.pulumi_provider import changes, wire
from emulator.pulumi_provider.provider import AzureNative
from emulator.pulumi_provider.server import Servicer
from emulator.pulumi_provider.values import UNKNOWN
from tests.support.arm_in_process import SUBSCRIPTION, ArmInProcess
from tests.support.local_azure import ROOT
from tests.support.pulumi_cli import arm as arm

EXECUTABLE = ROOT / "emulator" / "pulumi_provider" / "bin" / "pulumi-resource-azure-native"
ACCOUNT = "urn:pulumi:test::small::a:b:Component$azure-native:storage:StorageAccount::st"
GROUP = "urn:pulumi:test::small::azure-native:resources:ResourceGroup::rg"
COMPUTE = "urn:pulumi:test::small::azure-native:machinelearningservices:Compute::gpu"
INPUTS = {
    "resourceGroupName": "rg",
    "accountName": "stone",
    "location": "eastus2",
    "kind": "StorageV2",
    "sku": {"name": "Standard_LRS"},
}


class Engine:
    """The engine's side: requests of plain values, answers as they come."""

    def __init__(self, port: int) -> None:
        channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)])
        self.stub: Any = provider_pb2_grpc.ResourceProviderStub(channel)

    def check(self, urn: str, news: dict[str, Any], olds: dict[str, Any] | None = None) -> dict[str, Any]:
        answer = self.stub.Check(pb.CheckRequest(urn=urn, news=wire.encode(news), olds=wire.encode(olds or {})))
        return wire.decode(answer.inputs)[0]

    def diff(self, urn: str, olds: dict[str, Any], news: dict[str, Any]) -> Any:
        return self.stub.Diff(pb.DiffRequest(urn=urn, id="x", old_inputs=wire.encode(olds), news=wire.encode(news)))

    def create(self, urn: str, inputs: dict[str, Any], *, preview: bool = False) -> tuple[str, dict[str, Any]]:
        answer = self.stub.Create(pb.CreateRequest(urn=urn, properties=wire.encode(inputs), preview=preview))
        return answer.id, wire.decode(answer.properties)[0]

    def read(self, urn: str, path: str, inputs: dict[str, Any], before: dict[str, Any]) -> Any:
        request = pb.ReadRequest(urn=urn, id=path, inputs=wire.encode(inputs), properties=wire.encode(before))
        return self.stub.Read(request)

    def refusal(self, call: Any) -> Any:
        with pytest.raises(grpc.RpcError) as raised:
            call()
        assert "Traceback" not in raised.value.details() and "\n" not in raised.value.details()
        return raised.value


@pytest.fixture
def engine(arm: ArmInProcess) -> Iterator[Engine]:
    server = grpc.server(ThreadPoolExecutor(4))
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(Servicer(AzureNative()), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield Engine(port)
    server.stop(None)


@pytest.fixture
def group(engine: Engine) -> str:
    return engine.create(GROUP, {"resourceGroupName": "rg", "location": "eastus2"})[0]


# --- check and diff -------------------------------------------------------------------------------------------------


def test_check_names_what_has_no_name_and_keeps_the_name(engine: Engine) -> None:
    inputs = {"resourceGroupName": "rg"}
    made = engine.check(ACCOUNT, inputs)
    assert made["accountName"].startswith("st") and len(made["accountName"]) == 10
    assert engine.check(ACCOUNT, inputs, made) == made
    assert engine.check(COMPUTE, {**inputs, "workspaceName": "w"})["computeName"] == "gpu"  # nested ones keep theirs


def test_check_passes_what_is_not_known_yet(engine: Engine) -> None:
    made = engine.check(ACCOUNT, {"resourceGroupName": UNKNOWN, "tags": {"a": UNKNOWN}})
    assert made["resourceGroupName"] is UNKNOWN and made["tags"]["a"] is UNKNOWN


def test_a_missing_argument_is_named(engine: Engine) -> None:
    assert (
        "lacks the required argument 'resourceGroupName'" in engine.refusal(lambda: engine.check(ACCOUNT, {})).details()
    )


def test_nothing_differs_from_itself(engine: Engine) -> None:
    answer = engine.diff(ACCOUNT, INPUTS, {**INPUTS, "location": "East US 2"})  # ARM knows both spellings
    assert answer.changes == pb.DiffResponse.DIFF_NONE and not answer.detailedDiff


def test_a_diff_names_the_single_properties(engine: Engine) -> None:
    olds = {**INPUTS, "tags": {"a": "1", "cost-center": "x"}}
    news = {**INPUTS, "sku": {"name": "Standard_GRS"}, "tags": {"a": UNKNOWN, "b": "2"}}
    answer = engine.diff(ACCOUNT, olds, news)
    assert {path: one.kind for path, one in answer.detailedDiff.items()} == {
        "sku.name": pb.PropertyDiff.UPDATE,
        "tags.a": pb.PropertyDiff.UPDATE,
        "tags.b": pb.PropertyDiff.ADD,
        'tags["cost-center"]': pb.PropertyDiff.DELETE,
    }
    assert answer.changes == pb.DiffResponse.DIFF_SOME and not answer.replaces


@pytest.mark.parametrize(
    ("urn", "olds", "news", "first"),
    [
        (ACCOUNT, INPUTS, {"location": "westus"}, True),  # a name of the program's own cannot exist twice
        (ACCOUNT, {**INPUTS, "accountName": "st0123abcd"}, {"location": "westus"}, False),  # one of Pulumi's can change
        (ACCOUNT, INPUTS, {"location": "westus", "resourceGroupName": "other"}, False),  # another place
        (ACCOUNT, INPUTS, {"location": "westus", "resourceGroupName": UNKNOWN}, False),
    ],
)
def test_a_replacement_goes_first_where_both_cannot_exist(
    engine: Engine, urn: str, olds: dict[str, Any], news: dict[str, Any], first: bool
) -> None:
    answer = engine.diff(urn, olds, {**olds, **news})
    assert "location" in answer.replaces
    assert answer.detailedDiff["location"].kind == pb.PropertyDiff.UPDATE_REPLACE
    assert answer.deleteBeforeReplace is first


def test_lists_are_compared_item_by_item() -> None:
    assert changes.between({"a": [1, {"b": 1}, 3]}, {"a": [1, {"b": 2}]}) == {"a[1].b": "update", "a[2]": "delete"}


# --- create, update, read, delete -----------------------------------------------------------------------------------


def test_a_preview_promises_neither_id_nor_name_nor_identities(engine: Engine, arm: ArmInProcess) -> None:
    identity = {"type": "UserAssigned", "userAssignedIdentities": ["x"]}
    made = engine.create(ACCOUNT, {**INPUTS, "identity": identity, "tags": {"a": UNKNOWN}}, preview=True)
    assert made == ("", {key: INPUTS[key] for key in ("location", "kind", "sku")} | {"tags": {"a": UNKNOWN}})
    assert arm.requests == []


def test_a_resource_lives_from_create_to_delete(engine: Engine, arm: ArmInProcess, group: str) -> None:
    path, outputs = engine.create(ACCOUNT, INPUTS)
    assert path == f"{group}/providers/Microsoft.Storage/storageAccounts/stone"
    assert outputs["provisioningState"] == "Succeeded" and outputs["sku"]["name"] == "Standard_LRS"
    news = wire.encode({**INPUTS, "tags": {"a": "b"}})
    asked = pb.UpdateRequest(urn=ACCOUNT, id=path, olds=wire.encode(outputs), news=news, preview=True)
    assert wire.decode(engine.stub.Update(asked).properties)[0]["tags"] == {"a": "b"}
    assert "tags" not in arm.only("storageAccounts")
    asked.preview = False
    assert wire.decode(engine.stub.Update(asked).properties)[0]["tags"] == {"a": "b"}
    assert arm.only("storageAccounts")["tags"] == {"a": "b"}
    for _ in range(2):  # gone already is fine
        engine.stub.Delete(pb.DeleteRequest(urn=ACCOUNT, id=path))
    assert engine.read(ACCOUNT, path, INPUTS, outputs).id == ""


def test_read_gives_the_inputs_as_azure_holds_them_now(engine: Engine, arm: ArmInProcess, group: str) -> None:
    inputs = {**INPUTS, "tags": {"a": "1", "b": "2"}}
    path, outputs = engine.create(ACCOUNT, inputs)
    same = engine.read(ACCOUNT, path, inputs, outputs)
    assert wire.decode(same.inputs)[0] == inputs
    body = {"location": "eastus2", "kind": "StorageV2", "sku": {"name": "Standard_LRS"}, "tags": {"a": "9", "c": "3"}}
    arm.put(path, body)
    changed = engine.read(ACCOUNT, path, inputs, outputs)
    assert wire.decode(changed.inputs)[0] == {**inputs, "tags": {"a": "9"}}
    assert wire.decode(changed.properties)[0]["tags"] == {"a": "9", "c": "3"}


def test_identities_that_somebody_took_away_are_seen() -> None:
    before, now = {"/A": {"clientId": "1"}, "/b": {}}, {"/a": {"clientId": "2"}}
    assert changes.followed(["/A", "/b"], before, now) == ["/A"]
    assert changes.followed(["/A"], {"/A": {"clientId": "1"}}, {"/a": {"clientId": "2"}, "/c": {}}) == ["/A", "/c"]


def test_what_azure_refuses_is_one_sentence_and_nothing_is_recorded(engine: Engine, group: str) -> None:
    error = engine.refusal(lambda: engine.create(ACCOUNT, {**INPUTS, "accountName": "Not_A_Name"}))
    assert "AccountName" in error.details()
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION  # UNKNOWN would leave a pending operation behind
    assert (
        "dns:Zone"
        in engine.refusal(lambda: engine.create(GROUP.replace("resources:ResourceGroup", "dns:Zone"), {})).details()
    )


def test_what_azure_began_and_failed_to_finish_is_recorded(
    engine: Engine, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from emulator.pulumi_provider.arm import ArmClient, ArmError

    def fail(*_: Any, **__: Any) -> None:
        raise ArmError(200, "Conflict", "no capacity today")

    monkeypatch.setattr(ArmClient, "put", fail)
    error = engine.refusal(lambda: engine.create(ACCOUNT, INPUTS))
    (packed,) = [value for key, value in error.trailing_metadata() if key == "grpc-status-details-bin"]
    detail = pb.ErrorResourceInitFailed()
    assert status_pb2.Status.FromString(packed).details[0].Unpack(detail)
    assert detail.id.endswith("/storageAccounts/stone") and list(detail.reasons) == ["Conflict: no capacity today"]
    assert wire.decode(detail.inputs)[0] == INPUTS


def test_functions_are_answered(engine: Engine, group: str) -> None:
    def invoke(token: str, **args: Any) -> dict[str, Any]:
        answer = engine.stub.Invoke(pb.InvokeRequest(tok=f"azure-native:{token}", args=wire.encode(args)))
        return wire.decode(getattr(answer, "return"))[0]

    assert invoke("authorization:getClientConfig")["subscriptionId"] == SUBSCRIPTION
    assert invoke("resources:getResourceGroup", resourceGroupName="rg")["id"] == group
    missing = engine.refusal(lambda: invoke("resources:getResourceGroup", resourceGroupName="no"))
    assert "there is no resource" in missing.details()


# --- the executable -------------------------------------------------------------------------------------------------


def test_the_executable_prints_its_port_answers_and_leaves_when_told() -> None:
    process = subprocess.Popen(
        [str(EXECUTABLE), "127.0.0.1:1"],
        env={**os.environ, "EMULATOR_PYTHON": sys.executable},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        engine = Engine(int(process.stdout.readline()))
        assert engine.stub.GetPluginInfo(empty_pb2.Empty(), wait_for_ready=True).version.startswith("3.")
        answer = engine.stub.Configure(pb.ConfigureRequest(acceptSecrets=True))
        assert answer.supportsPreview and not answer.acceptSecrets
        engine.stub.Cancel(empty_pb2.Empty())
        process.send_signal(signal.SIGINT)  # ignored, each command of the real CLI would take five seconds more
        assert process.wait(timeout=4) == 0
        assert process.stdout.read() == ""
    finally:
        process.kill()
        process.wait()


def test_the_executable_leaves_when_its_engine_was_killed() -> None:
    starts_it = f"import subprocess, time; subprocess.Popen([{str(EXECUTABLE)!r}, '127.0.0.1:1']); time.sleep(60)"
    engine = subprocess.Popen(
        [sys.executable, "-c", starts_it],
        env={**os.environ, "EMULATOR_PYTHON": sys.executable},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert engine.stdout is not None
    int(engine.stdout.readline())
    (provider,) = psutil.Process(engine.pid).children()
    engine.kill()
    engine.wait()
    assert psutil.wait_procs([provider], timeout=15) == ([provider], [])
