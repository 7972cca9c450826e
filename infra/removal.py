"""What has to go before `pulumi destroy` can work, and the proof that everything is gone after it.

Endpoints, jobs and computes that were made in the workspace are not Pulumi's, and they block its deletion. A deleted
workspace is only soft-deleted, and keeps its name for 14 days, unless it is purged while it still can be found.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from infra.cli import UserError, say
from infra.outputs import PROJECT, StackOutputs

if TYPE_CHECKING:
    from azure.ai.ml import MLClient

ARM = "https://management.azure.com"
ENDED = frozenset({"Completed", "Failed", "Canceled"})


def empty_workspace(outputs: StackOutputs) -> None:
    """Delete endpoints, cancel jobs, delete stray computes, purge the workspace."""
    if not _exists(outputs.workspace_id, "2025-12-01"):
        say(f"the workspace {outputs.workspace} is gone already")
        return
    _delete_endpoints(outputs)
    from infra.client import ml_client

    client = ml_client(outputs)
    with contextlib.redirect_stdout(sys.stderr):  # azure-ai-ml prints its progress where our result goes
        _cancel_jobs(client)
        _delete_stray_computes(client, keep=outputs.compute)
        say(f"purging the workspace {outputs.workspace}")
        client.workspaces.begin_delete(
            outputs.workspace, delete_dependent_resources=False, permanently_delete=True
        ).result()


def _delete_endpoints(outputs: StackOutputs) -> None:
    """As a command: deletion of endpoints has its one home in `deployment`, which infra does not import."""
    say("deleting endpoints")
    command = [sys.executable, "-m", "deployment.teardown", "--stack", outputs.stack, "--yes"]
    done = subprocess.run(command, cwd=PROJECT, stdout=sys.stderr)
    if done.returncode != 0:
        raise UserError(
            f"the endpoints were not deleted (exit code {done.returncode}), and they block the rest; nothing else "
            "was removed",
            next_command=f"python -m deployment.teardown --stack {outputs.stack}",
        )


def _cancel_jobs(client: MLClient) -> None:
    running = [job for job in client.jobs.list() if job.status not in ENDED]
    for job in running:
        say(f"cancelling the job {job.name} ({job.status})")
    for poller in [client.jobs.begin_cancel(str(job.name)) for job in running]:
        poller.result()


def _delete_stray_computes(client: MLClient, *, keep: str) -> None:
    """The program's own cluster stays for `pulumi destroy`; anything else would block the workspace's deletion."""
    stray = [str(compute.name) for compute in client.compute.list() if compute.name != keep]
    for name in stray:
        say(f"deleting the compute {name}, which the program did not make")
    for poller in [client.compute.begin_delete(name) for name in stray]:
        poller.result()


def verify_gone(outputs: StackOutputs) -> list[str]:
    """What is gone, by ARM's own answer. Raises UserError if anything is left."""
    group = f"/subscriptions/{outputs.subscription_id}/resourceGroups/{outputs.resource_group}"
    if _exists(group, "2024-03-01"):
        left = [one["id"].rsplit("/providers/", 1)[-1] for one in _list(f"{group}/resources", "2021-04-01")]
        raise UserError(
            f"the resource group {outputs.resource_group} is left"
            + (f", with {', '.join(left)}" if left else ", though it is empty"),
            next_command=f"make down STACK={outputs.stack}",
        )
    gone = [f"resource group {outputs.resource_group}"]
    if _exists(outputs.workspace_id, "2025-12-01"):
        raise UserError(f"the workspace {outputs.workspace} is left", next_command=f"make down STACK={outputs.stack}")
    gone.append(f"workspace {outputs.workspace}")
    deleted = f"/subscriptions/{outputs.subscription_id}/providers/Microsoft.KeyVault/deletedVaults"
    if outputs.key_vault in [one["name"] for one in _list(deleted, "2024-11-01")]:
        say(f"note: the key vault {outputs.key_vault} is soft-deleted for 7 days, free of charge; its name is taken")
    return gone


def _exists(path: str, api_version: str) -> bool:
    answer = _get(path, api_version)
    if answer.status_code in (200, 404):
        return bool(answer.status_code == 200)
    raise UserError(f"ARM did not say whether {path} exists: HTTP {answer.status_code} {answer.text[:200]}")


def _list(path: str, api_version: str) -> list[dict[str, Any]]:
    answer = _get(path, api_version)
    return list(answer.json().get("value", [])) if answer.status_code == 200 else []


def _get(path: str, api_version: str) -> Any:
    import requests
    from azure.core.exceptions import ClientAuthenticationError
    from azure.identity import DefaultAzureCredential

    try:
        token = DefaultAzureCredential().get_token(f"{ARM}/.default").token
        return requests.get(
            f"{ARM}{path}?api-version={api_version}", headers={"Authorization": f"Bearer {token}"}, timeout=60
        )
    except ClientAuthenticationError:
        raise UserError("nobody is signed in to Azure", next_command="az login") from None
    except requests.RequestException as error:
        raise UserError(f"ARM cannot be reached: {error}", next_command="check the network and the proxy") from None
