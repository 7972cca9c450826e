"""What goes before `pulumi destroy`, in which order, and how Azure's answers are read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from infra import removal
from infra.arm import Arm, Refused
from infra.cli import UserError
from infra.holdings import Holdings

S = "/subscriptions/s"
GROUP = f"{S}/resourceGroups/rg"
WORKSPACE = f"{GROUP}/providers/Microsoft.MachineLearningServices/workspaces/mlw"
VAULT = f"{GROUP}/providers/Microsoft.KeyVault/vaults/kv"
DELETED = f"{S}/providers/Microsoft.KeyVault/deletedVaults"
REGISTRY = f"{S}/resourceGroups/shared/providers/Microsoft.ContainerRegistry/registries/cr"
ROLE = f"{REGISTRY}/providers/Microsoft.Authorization/roleAssignments/r"
TAGS = {"project": "finetune-phi", "stack": "x"}


def holdings(**held: tuple[str, ...]) -> Holdings:
    nothing: dict[str, Any] = {key: () for key in Holdings.__dataclass_fields__}
    return Holdings(**(nothing | {"resources": 1} | held))


class FakeArm(Arm):
    """Azure by path: `held` is what there is, `calls` what was asked to change, `refuse` what is refused with what."""

    def __init__(self, held: dict[str, Any]) -> None:
        super().__init__(None)
        self.held, self.calls, self.refuse = held, list[str](), dict[str, Refused]()

    def find(self, path: str, api_version: str, **query: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self.held.get(path)
        return found

    def list(self, path: str, api_version: str, **query: str) -> list[dict[str, Any]]:
        found = self.held.get(path, [])
        if isinstance(found, Refused):
            raise found
        return list(found)

    def begin(self, method: str, path: str, api_version: str, **query: str) -> None:
        self.calls.append(" ".join([method, path.rsplit("/providers/", 1)[-1], *query.values()]))
        if path in self.refuse:
            raise self.refuse[path]
        if method == "DELETE":
            self.held.pop(path, None)
            for one in self.held.values():
                if isinstance(one, list):
                    one[:] = [two for two in one if two.get("id") != path]


def job(name: str, status: str) -> dict[str, Any]:
    return {"id": f"{WORKSPACE}/jobs/{name}", "properties": {"status": status}}


def compute(name: str, kind: str) -> dict[str, Any]:
    return {"id": f"{WORKSPACE}/computes/{name}", "properties": {"computeType": kind}}


def endpoint(name: str, kind: str = "onlineEndpoints") -> dict[str, Any]:
    return {"id": f"{WORKSPACE}/{kind}/{name}"}


@pytest.fixture
def used() -> FakeArm:
    """A workspace with a running job, an endpoint, and two computes that the program did not make."""
    return FakeArm(
        {
            WORKSPACE: {"properties": {"provisioningState": "Succeeded"}},
            f"{WORKSPACE}/jobs": [job("done", "Completed"), job("runs", "Running"), job("waits", "Queued")],
            f"{WORKSPACE}/computes": [
                compute("gpu", "AmlCompute"),
                compute("Mine", "ComputeInstance"),
                compute("k8s", "Kubernetes"),
            ],
            f"{WORKSPACE}/onlineEndpoints": [endpoint("chat")],
        }
    )


@pytest.fixture
def teardown(monkeypatch: pytest.MonkeyPatch, used: FakeArm) -> list[dict[str, Any]]:
    """What `deployment.teardown` was called with; it deletes the endpoint `chat`."""
    called: list[dict[str, Any]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        outputs = json.loads(Path(command[command.index("--outputs") + 1]).read_text())
        called.append({"command": command, "outputs": outputs, "calls": list(used.calls)})
        used.held[f"{WORKSPACE}/onlineEndpoints"] = []
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    return called


def test_jobs_end_before_endpoints_and_those_before_computes_and_the_workspace(
    used: FakeArm, teardown: list[dict[str, Any]]
) -> None:
    removal.empty(used, holdings(workspaces=(WORKSPACE,), computes=(f"{WORKSPACE}/computes/GPU",)), "x")
    ml = "Microsoft.MachineLearningServices/workspaces/mlw"
    cancelled = [f"POST {ml}/jobs/runs/cancel", f"POST {ml}/jobs/waits/cancel"]
    assert teardown[0]["calls"] == cancelled
    assert used.calls == [
        *cancelled,
        f"DELETE {ml}/computes/Mine Delete",
        f"DELETE {ml}/computes/k8s Detach",  # the cluster itself is somebody's
        f"DELETE {ml} true",
    ]


def test_teardown_gets_what_a_client_needs_and_no_more(used: FakeArm, teardown: list[dict[str, Any]]) -> None:
    removal.empty(used, holdings(workspaces=(WORKSPACE,)), "x")
    (call,) = teardown
    assert call["command"][:3] == [sys.executable, "-m", "deployment.teardown"] and "--yes" in call["command"]
    known = {key: value for key, value in call["outputs"].items() if value}
    expected = {"stack": "x", "subscription_id": "s", "resource_group": "rg", "workspace": "mlw"}
    assert known == expected | {"workspace_id": WORKSPACE}


def test_endpoints_that_others_made_go_too(used: FakeArm, teardown: list[dict[str, Any]]) -> None:
    used.held[f"{WORKSPACE}/batchEndpoints"] = [endpoint("nightly", "batchEndpoints")]
    removal.empty(used, holdings(workspaces=(WORKSPACE,)), "x")
    assert any(call.endswith("batchEndpoints/nightly") for call in used.calls)


def test_endpoints_that_stay_stop_the_removal(used: FakeArm, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess[bytes]([], 1)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(UserError, match="they block the rest"):
        removal.empty(used, holdings(workspaces=(WORKSPACE,)), "x")
    assert not any(call.startswith("DELETE") for call in used.calls)


def test_a_region_without_batch_endpoints_has_none(used: FakeArm) -> None:
    used.held[f"{WORKSPACE}/batchEndpoints"] = Refused(404, "not here")
    guests = removal.Guests.of(used, WORKSPACE, ())
    assert guests is not None and guests.endpoints == (f"{WORKSPACE}/onlineEndpoints/chat",)
    used.held[f"{WORKSPACE}/batchEndpoints"] = Refused(403, "no")
    with pytest.raises(Refused):
        removal.Guests.of(used, WORKSPACE, ())


def test_a_job_that_ends_by_itself_needs_no_cancelling(used: FakeArm, teardown: list[dict[str, Any]]) -> None:
    used.refuse[f"{WORKSPACE}/jobs/runs/cancel"] = Refused(400, "it has ended")
    used.held[f"{WORKSPACE}/jobs/runs"] = job("runs", "Completed")
    removal.empty(used, holdings(workspaces=(WORKSPACE,)), "x")
    used.held[WORKSPACE] = {"properties": {}}
    used.held[f"{WORKSPACE}/jobs"] = [job("runs", "Running")]
    used.held[f"{WORKSPACE}/jobs/runs"] = job("runs", "Running")
    with pytest.raises(Refused):
        removal.empty(used, holdings(workspaces=(WORKSPACE,)), "x")


@pytest.mark.parametrize("held", [{}, {WORKSPACE: {"properties": {"provisioningState": "SoftDeleted"}}}])
def test_a_deleted_workspace_is_only_purged(held: dict[str, Any]) -> None:
    arm = FakeArm(held)
    removal.empty(arm, holdings(workspaces=(WORKSPACE,)), "x")
    assert arm.calls == ["DELETE Microsoft.MachineLearningServices/workspaces/mlw true"]


def test_what_would_be_done_is_told_by_name(used: FakeArm) -> None:
    guests = removal.Guests.of(used, WORKSPACE, (f"{WORKSPACE}/computes/gpu",))
    assert guests is not None and guests.lines == [
        "cancel the job runs",
        "cancel the job waits",
        "delete the endpoint chat",
        "delete the compute Mine, which the program did not make",
        "detach the compute k8s, which the program did not make",
    ]


# --- key vaults -----------------------------------------------------------------------------------------------------


def deleted_vault(**properties: Any) -> dict[str, Any]:
    place = {"vaultId": VAULT.upper(), "location": "eastus2", **properties}
    return {
        "id": f"{S}/providers/Microsoft.KeyVault/locations/eastus2/deletedVaults/kv",
        "name": "kv",
        "properties": place,
    }


def test_a_vault_that_may_not_be_purged_fails_with_the_command_for_who_may() -> None:
    deleted = deleted_vault()
    arm = FakeArm({DELETED: [deleted]})
    arm.refuse[f"{deleted['id']}/purge"] = Refused(403, "no")
    with pytest.raises(UserError, match="kv is soft-deleted and was not purged") as error:
        removal.verify(arm, holdings(vaults=(VAULT,)), TAGS)
    assert error.value.next_command == "az keyvault purge --name kv --location eastus2"


def test_a_protected_vault_is_not_asked_to_go() -> None:
    arm = FakeArm({DELETED: [deleted_vault(purgeProtectionEnabled=True, scheduledPurgeDate="2027-01-01")]})
    proof = removal.verify(arm, holdings(vaults=(VAULT,)), TAGS)
    assert proof.reserved == [{"name": "kv", "until": "2027-01-01"}]
    assert not any("purge" in call for call in arm.calls)


# --- proof ----------------------------------------------------------------------------------------------------------


def test_what_is_gone_is_listed() -> None:
    held = holdings(groups=(GROUP,), workspaces=(WORKSPACE,), vaults=(VAULT,), assignments=(ROLE, f"{GROUP}/x"))
    proof = removal.verify(FakeArm({}), held, TAGS)
    assert proof.gone == ["resource group rg", "workspace mlw, purged", "key vault kv, purged", "role assignment on cr"]


def test_a_group_that_was_left_goes_if_it_is_ours(capsys: pytest.CaptureFixture[str]) -> None:
    inside = [{"id": f"{GROUP}/providers/Microsoft.Web/sites/stray"}]
    arm = FakeArm({GROUP: {"tags": {**TAGS, "owner": "x"}}, f"{GROUP}/resources": inside})
    assert removal.verify(arm, holdings(groups=(GROUP,)), TAGS).gone == ["resource group rg"]
    assert "was left, with Microsoft.Web/sites/stray" in capsys.readouterr().err


@pytest.mark.parametrize("tags", [None, {}, {"project": "finetune-phi", "stack": "y"}, {"stack": "x"}])
def test_a_group_without_our_tags_is_left_and_fails(tags: dict[str, str] | None) -> None:
    arm = FakeArm({GROUP: {"tags": tags}, f"{GROUP}/resources": [{"id": f"{GROUP}/providers/Microsoft.Web/sites/a"}]})
    with pytest.raises(UserError, match=r"rg is left, with Microsoft\.Web/sites/a, without the tags") as error:
        removal.verify(arm, holdings(groups=(GROUP,)), TAGS)
    assert "az group delete --name rg" in str(error.value) and arm.calls == []


def test_a_workspace_that_stays_fails() -> None:
    arm = FakeArm({WORKSPACE: {"properties": {}}})
    arm.begin = lambda *_, **__: None  # type: ignore[method-assign]
    with pytest.raises(UserError, match="the workspace mlw is left"):
        removal.verify(arm, holdings(workspaces=(WORKSPACE,)), TAGS)


def test_a_role_that_was_left_outside_goes() -> None:
    arm = FakeArm({ROLE: {}})
    removal.verify(arm, holdings(groups=(GROUP,), assignments=(ROLE,)), TAGS)
    assert arm.calls == ["DELETE Microsoft.Authorization/roleAssignments/r"]
