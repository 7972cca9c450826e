"""The endpoint as its callers see it: its name, its address, and the headers that let one in.

Light on purpose (requests and azure-identity, not azure-ai-ml, which takes seconds to import): every question that the
chat asks goes through here.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra.cli import UserError
from infra.outputs import StackOutputs

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential

BASE = "phi"
TAGS = {"project": "finetune-phi"}
"""On every endpoint of ours: what teardown looks for."""
SCORING_SCOPE = "https://ml.azure.com/.default"
ARM = "https://management.azure.com"
ARM_SCOPE = f"{ARM}/.default"
API_VERSION = "2024-04-01"
DEPLOYMENT_HEADER = "azureml-model-deployment"
"""Sends a request to one deployment, whatever the traffic says."""


def endpoint_name(outputs: StackOutputs) -> str:
    """`phi-STACK-HHHHH`: at most 32 characters, unique in the region by 5 hex digits of the workspace's id."""
    slug = re.sub(r"[^a-z0-9]+", "-", outputs.stack.lower()).strip("-")[:21].strip("-")
    digest = hashlib.sha256(f"{outputs.workspace_id.lower()}\0{outputs.stack}".encode()).hexdigest()[:5]
    return "-".join(part for part in (BASE, slug, digest) if part)


@dataclass(frozen=True)
class Endpoint:
    """An endpoint that can be called. `scoring_uri` is where requests go."""

    name: str
    scoring_uri: str
    credential: TokenCredential

    def headers(self, deployment: str | None = None) -> dict[str, str]:
        """Headers of one request, with a token that is still valid; `deployment` overrides the traffic.

        Blocks for a moment when the token has to be renewed. Raises UserError if nobody is signed in.
        """
        headers = {"Authorization": f"Bearer {_token(self.credential, SCORING_SCOPE)}"}
        return {**headers, DEPLOYMENT_HEADER: deployment} if deployment else headers


def connect(outputs: StackOutputs) -> Endpoint:
    """The stack's endpoint, its address asked of Azure Resource Manager.

    Raises:
        UserError: nobody is signed in, Azure cannot be reached, or there is no such endpoint.
    """
    from azure.identity import DefaultAzureCredential

    name = endpoint_name(outputs)
    credential = DefaultAzureCredential()
    uri = _properties(outputs, name, credential).get("scoringUri")
    if not uri:
        raise UserError(
            f"the endpoint {name} has no address yet: it is still being created",
            next_command=f"python -m deployment.status --stack {outputs.stack}",
        )
    return Endpoint(name, str(uri), credential)


def _properties(outputs: StackOutputs, name: str, credential: TokenCredential) -> dict[str, Any]:
    import requests

    url = f"{ARM}{outputs.workspace_id}/onlineEndpoints/{name}"
    headers = {"Authorization": f"Bearer {_token(credential, ARM_SCOPE)}"}
    try:
        reply = requests.get(url, params={"api-version": API_VERSION}, headers=headers, timeout=30)
    except requests.RequestException as error:
        raise UserError(f"Azure Resource Manager cannot be reached: {type(error).__name__}") from error
    if reply.status_code == 404:
        raise UserError(
            f"there is no endpoint {name} in the workspace {outputs.workspace}: nothing is deployed",
            next_command=f"make deploy STACK={outputs.stack}",
        )
    if reply.status_code != 200:
        raise UserError(f"Azure Resource Manager answers {reply.status_code} for the endpoint {name}")
    return dict(reply.json()["properties"])


def _token(credential: TokenCredential, scope: str) -> str:
    from azure.core.exceptions import ClientAuthenticationError

    try:
        return credential.get_token(scope).token
    except ClientAuthenticationError as error:
        raise UserError(
            f"no token for {scope.removesuffix('/.default')}: {first_line(error)}", next_command="az login"
        ) from error


@contextmanager
def without_dots() -> Iterator[None]:
    """Swallows what azure-ai-ml prints on stdout, a dot for every poll: stdout is the result's."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


@contextmanager
def explained(doing: str, *, next_command: str | None = None) -> Iterator[None]:
    """Turns an error of Azure's clients, while `doing` something, into a UserError of one sentence."""
    from azure.core.exceptions import AzureError

    try:
        yield
    except AzureError as error:
        raise UserError(f"{doing} failed: {first_line(error)}", next_command=next_command) from error


def first_line(error: BaseException) -> str:
    """What an error of Azure says, without the log and the codes that follow it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
