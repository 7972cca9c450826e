"""What has to go before `pulumi destroy` can work, and the proof that everything is gone after it.

Jobs, endpoints and computes that were made in the workspace are not Pulumi's, and they block its deletion. Deleted
workspaces and key vaults are only soft-deleted and keep their names for days, unless they are purged; that is done
before the destroy, while the checkpoint still says what they are called. Each step looks first, so that it may be
repeated.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.arm import Arm, NotSignedIn, Refused, wait
from infra.cli import UserError, say
from infra.holdings import Holdings, group_of, name_of, subscription_of
from infra.outputs import PROJECT, StackOutputs

if TYPE_CHECKING:
    from azure.core.polling import LROPoller

# API versions
ML, VAULTS, LOGS, GROUPS, ROLES = "2024-10-01", "2023-07-01", "2023-09-01", "2021-04-01", "2022-04-01"
ENDED = frozenset({"Completed", "Failed", "Canceled"})
PAYING = frozenset({"AmlCompute", "ComputeInstance"})  # what the workspace runs itself; anything else is only attached
APPEARS = 60
"""Seconds in which a deleted vault shows among the soft-deleted ones; Azure takes a few."""


def sign_in() -> Arm:
    try:
        return Arm.sign_in()
    except NotSignedIn as error:
        first = str(error).splitlines()[0]
        raise UserError(f"nobody is signed in to Azure: {first}", next_command="az login") from None


@dataclass(frozen=True)
class Guests:
    """What was made in a workspace and is not Pulumi's, by whole ARM id."""

    workspace: str
    jobs: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()
    computes: tuple[tuple[str, str], ...] = ()
    """Each with what is done to it, `Delete` or `Detach`: an attached cluster goes on elsewhere."""

    @classmethod
    def of(cls, arm: Arm, workspace: str, declared: tuple[str, ...]) -> Guests | None:
        """Those of a workspace, without the `declared` computes; None if the workspace is gone."""
        if not _lives(arm, workspace):
            return None
        jobs = arm.list(f"{workspace}/jobs", ML, listViewType="All")
        endpoints = [one for kind in ("onlineEndpoints", "batchEndpoints") for one in _listed(arm, workspace, kind)]
        ours = {one.lower() for one in declared}
        strays = [one for one in arm.list(f"{workspace}/computes", ML) if one["id"].lower() not in ours]
        return cls(
            workspace,
            jobs=tuple(one["id"] for one in jobs if one["properties"]["status"] not in ENDED),
            endpoints=tuple(one["id"] for one in endpoints),
            computes=tuple((one["id"], _action(one)) for one in strays),
        )

    @property
    def lines(self) -> list[str]:
        """What would be done, for a reader."""
        return [
            *(f"cancel the job {name_of(one)}" for one in self.jobs),
            *(f"delete the endpoint {name_of(one)}" for one in self.endpoints),
            *(
                f"{action.lower()} the compute {name_of(one)}, which the program did not make"
                for one, action in self.computes
            ),
        ]


def _lives(arm: Arm, workspace: str) -> bool:
    found = arm.find(workspace, ML)
    return found is not None and found["properties"].get("provisioningState") != "SoftDeleted"


def missing(arm: Arm, holdings: Holdings) -> list[str]:
    """The names of groups, workspaces and vaults that are listed and not there."""
    listed = [(GROUPS, holdings.groups), (ML, holdings.workspaces), (VAULTS, holdings.vaults)]
    return [name_of(one) for version, ids in listed for one in ids if arm.find(one, version) is None]


def _listed(arm: Arm, workspace: str, kind: str) -> list[dict[str, Any]]:
    """A collection that a region may not offer."""
    try:
        return arm.list(f"{workspace}/{kind}", ML)
    except Refused as refused:
        if refused.status == 404:
            return []
        raise


def _action(compute: dict[str, Any]) -> str:
    return "Delete" if compute["properties"].get("computeType") in PAYING else "Detach"


# --- before the destroy ---------------------------------------------------------------------------------------------


def empty(arm: Arm, holdings: Holdings, stack: str) -> None:
    """Cancel jobs, delete endpoints and stray computes, purge workspaces, vaults and logs."""
    for workspace in holdings.workspaces:
        guests = Guests.of(arm, workspace, holdings.computes)
        if guests is None:
            say(f"the workspace {name_of(workspace)} is gone already")
        else:
            _cancel(arm, guests.jobs)
            _delete_endpoints(arm, guests, stack)
            _delete_computes(arm, guests)
        _purge_workspace(arm, workspace)
    for vault in holdings.vaults:
        _purge_vault(arm, vault)
    # Else it would be kept for 14 days: learn.microsoft.com/azure/azure-monitor/logs/delete-workspace
    wait(*(arm.begin("DELETE", one, LOGS, force="true") for one in holdings.logs))


def _cancel(arm: Arm, jobs: tuple[str, ...]) -> None:
    begun = []
    for job in jobs:
        say(f"cancelling the job {name_of(job)}")
        begun.append(_cancelled(arm, job))
    wait(*begun)


def _cancelled(arm: Arm, job: str) -> LROPoller[None] | None:
    try:
        return arm.begin("POST", f"{job}/cancel", ML)
    except Refused:
        found = arm.find(job, ML)
        if found is None or found["properties"]["status"] in ENDED:  # it ended by itself in the meantime
            return None
        raise


def _delete_endpoints(arm: Arm, guests: Guests, stack: str) -> None:
    """Ours by the command that is their deletion's one home, which infra does not import; then what others made."""
    if not guests.endpoints:
        return
    say("deleting endpoints")
    with tempfile.TemporaryDirectory() as folder:
        outputs = Path(folder) / "outputs.json"
        outputs.write_text(json.dumps(_outputs(guests.workspace, stack)))
        command = [sys.executable, "-m", "deployment.teardown", "--outputs", str(outputs), "--yes"]
        done = subprocess.run(command, cwd=PROJECT, stdout=sys.stderr)
    if done.returncode != 0:
        raise UserError(
            f"the endpoints were not deleted (exit code {done.returncode}), and they block the rest",
            next_command="repair what it says above, then the same command again",
        )
    left = Guests.of(arm, guests.workspace, ())
    for endpoint in left.endpoints if left else ():
        say(f"deleting the endpoint {name_of(endpoint)}, which was made by hand")
        wait(arm.begin("DELETE", endpoint, ML))


def _outputs(workspace: str, stack: str) -> dict[str, str]:
    """As much of a stack's outputs as an Azure ML client needs."""
    known = {
        "stack": stack,
        "subscription_id": subscription_of(workspace),
        "resource_group": group_of(workspace),
        "workspace": name_of(workspace),
        "workspace_id": workspace,
    }
    return {one.name: known.get(one.name, "") for one in dataclasses.fields(StackOutputs)}


def _delete_computes(arm: Arm, guests: Guests) -> None:
    begun = []
    for compute, action in guests.computes:
        say(f"{'deleting' if action == 'Delete' else 'detaching'} the compute {name_of(compute)}")
        begun.append(arm.begin("DELETE", compute, ML, underlyingResourceAction=action))
    wait(*begun)


def _purge_workspace(arm: Arm, workspace: str) -> None:
    """Delete it for good, also if it is soft-deleted already; its own operation's end is the proof.

    Azure has no list of soft-deleted workspaces, and its command line finds none to purge (azure-cli#33756).
    """
    begun = arm.begin("DELETE", workspace, ML, forceToPurge="true")
    if begun is None:
        return
    say(f"purging the workspace {name_of(workspace)}")
    wait(begun)


def _purge_vault(arm: Arm, vault: str) -> None:
    """Delete a vault and purge it. What may not be purged stays soft-deleted, which `verify` tells."""
    begun = arm.begin("DELETE", vault, VAULTS)
    wait(begun)
    deleted = _soft_deleted(arm, vault, patience=APPEARS if begun else 0)
    if deleted is None or _protected(deleted):
        return
    say(f"purging the key vault {name_of(vault)}")
    try:
        wait(arm.begin("POST", f"{deleted['id']}/purge", VAULTS))
    except Refused as refused:
        if refused.status != 403:
            raise


def _soft_deleted(arm: Arm, vault: str, *, patience: float = 0) -> dict[str, Any] | None:
    """The soft-deleted vault that had this id, if it shows within `patience` seconds."""
    listing = f"/subscriptions/{subscription_of(vault)}/providers/Microsoft.KeyVault/deletedVaults"
    deadline = time.monotonic() + patience
    while True:
        for one in arm.list(listing, VAULTS):
            if one["properties"]["vaultId"].lower() == vault.lower():
                return one
        if time.monotonic() >= deadline:
            return None
        time.sleep(2)


def _protected(deleted: dict[str, Any]) -> bool:
    return bool(deleted["properties"].get("purgeProtectionEnabled"))


# --- after the destroy ----------------------------------------------------------------------------------------------


@dataclass
class Proof:
    """By ARM's own answers: what is `gone`, and which names stay `reserved` until when."""

    gone: list[str] = field(default_factory=list)
    reserved: list[dict[str, str]] = field(default_factory=list)


def verify(arm: Arm, holdings: Holdings, tags: dict[str, str]) -> Proof:
    """Look whether everything is gone, and remove what a cut-off update left without Pulumi's knowledge.

    Raises UserError for anything that is left: a group without the stack's `tags` is not ours to delete.
    """
    proof = Proof()
    for group in holdings.groups:
        _end_group(arm, group, tags)
        proof.gone.append(f"resource group {name_of(group)}")
    for workspace in holdings.workspaces:
        _purge_workspace(arm, workspace)
        if arm.find(workspace, ML) is not None:
            raise UserError(f"the workspace {name_of(workspace)} is left", next_command="the same command again")
        proof.gone.append(f"workspace {name_of(workspace)}, purged")
    for vault in holdings.vaults:
        _prove_vault(arm, vault, proof)
    for assignment in holdings.outside:
        if arm.find(assignment, ROLES) is not None:
            say("deleting a role assignment that was left outside of the resource group")
            wait(arm.begin("DELETE", assignment, ROLES))
        proof.gone.append(f"role assignment on {name_of(assignment.split('/providers/Microsoft.Authorization/')[0])}")
    return proof


def _end_group(arm: Arm, group: str, tags: dict[str, str]) -> None:
    found = arm.find(group, GROUPS)
    if found is None:
        return
    held = found.get("tags") or {}
    if any(held.get(key) != value for key, value in tags.items()):
        raise UserError(
            f"the resource group {name_of(group)} is left{_content(arm, group)}, without the tags of this stack",
            next_command=f"look at it, then: az group delete --name {name_of(group)} "
            f"--subscription {subscription_of(group)}",
        )
    say(f"deleting the resource group {name_of(group)}, which was left{_content(arm, group)}")
    wait(arm.begin("DELETE", group, GROUPS))
    if arm.find(group, GROUPS) is not None:
        raise UserError(
            f"the resource group {name_of(group)} is left{_content(arm, group)}", next_command="the same command again"
        )


def _content(arm: Arm, group: str) -> str:
    left = [one["id"].rsplit("/providers/", 1)[-1] for one in arm.list(f"{group}/resources", GROUPS)]
    return f", with {', '.join(left)}" if left else ", empty"


def _prove_vault(arm: Arm, vault: str, proof: Proof) -> None:
    _purge_vault(arm, vault)
    name, deleted = name_of(vault), _soft_deleted(arm, vault)
    if deleted is None:
        proof.gone.append(f"key vault {name}, purged")
        return
    until = str(deleted["properties"].get("scheduledPurgeDate", "")) or "its purge by Azure"
    if not _protected(deleted):
        raise UserError(
            f"the key vault {name} is soft-deleted and was not purged", next_command=_purge_command(deleted)
        )
    say(f"note: the key vault {name} has purge protection: it costs nothing, and its name is taken until {until}")
    proof.gone.append(f"key vault {name}")
    proof.reserved.append({"name": name, "until": until})


def _purge_command(deleted: dict[str, Any]) -> str:
    return f"az keyvault purge --name {deleted['name']} --location {deleted['properties']['location']}"
