"""The endpoint as its callers see it: its name, its address, and the headers that let one in.

Light on purpose (requests and azure-identity, not azure-ai-ml, which takes seconds to import): every question that the
chat asks goes through here.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from infra.cli import UserError
from infra.outputs import StackOutputs, add_stack_options

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential
    from requests import Response

BASE = "phi"
TAGS = {"project": "finetune-phi"}
"""On every endpoint of ours: what teardown looks for."""
SCORING_SCOPE = "https://ml.azure.com/.default"
ARM = "https://management.azure.com"
ARM_SCOPE = f"{ARM}/.default"
API_VERSION = "2024-04-01"
DEPLOYMENT_HEADER = "azureml-model-deployment"
"""Sends a request to one deployment, whatever the traffic says."""


def endpoint_name(outputs: StackOutputs, app: str = BASE) -> str:
    """`APP-STACK-HHHHH`: at most 32 characters, unique in the region by 5 hex digits of the workspace's id."""
    base = (_slug(app)[:12].strip("-") or BASE) if app[:1].isalpha() else f"app-{_slug(app)[:8]}".strip("-")
    slug = _slug(outputs.stack)[: 32 - len(base) - 7].strip("-")
    digest = hashlib.sha256(f"{outputs.workspace_id.lower()}\0{outputs.stack}".encode()).hexdigest()[:5]
    return "-".join(part for part in (base, slug, digest) if part)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def add_endpoint_options(to: argparse.ArgumentParser) -> None:
    """The options that say which endpoint of which stack a verb works on."""
    add_stack_options(to)
    to.add_argument("--app", default=BASE, metavar="NAME", help=f"what `rollout --source` deployed (default: {BASE})")


@dataclass(frozen=True)
class Endpoint:
    """An endpoint that can be called. `scoring_uri` is where requests go; `key` is set where it was made with keys."""

    name: str
    scoring_uri: str
    credential: TokenCredential
    key: str = field(default="", repr=False)

    def headers(self, deployment: str | None = None) -> dict[str, str]:
        """Headers of one request, with a token that is still valid; `deployment` overrides the traffic.

        Blocks for a moment when the token has to be renewed. Raises UserError if nobody is signed in.
        """
        headers = {"Authorization": f"Bearer {self.key or _token(self.credential, SCORING_SCOPE)}"}
        return {**headers, DEPLOYMENT_HEADER: deployment} if deployment else headers


def connect(outputs: StackOutputs, app: str = BASE) -> Endpoint:
    """The stack's endpoint, its address asked of Azure Resource Manager.

    Raises:
        UserError: nobody is signed in, Azure cannot be reached, or there is no such endpoint.
    """
    from azure.identity import DefaultAzureCredential

    name = endpoint_name(outputs, app)
    credential = DefaultAzureCredential()
    properties = _properties(outputs, name, credential)
    uri = properties.get("scoringUri")
    if not uri:
        raise UserError(
            f"the endpoint {name} has no address yet: it is still being created",
            next_command=f"python -m deployment.status --stack {outputs.stack}",
        )
    key = _key(outputs, name, credential) if str(properties.get("authMode")).lower() == "key" else ""
    return Endpoint(name, str(uri), credential, key)


def _key(outputs: StackOutputs, name: str, credential: TokenCredential) -> str:
    """The first key of an endpoint that was made with keys; it stays in this process."""
    reply = arm(credential, "POST", f"{outputs.workspace_id}/onlineEndpoints/{name}/listKeys")
    if reply.status_code != 200:
        said = f"Azure Resource Manager answers {reply.status_code} for the keys of the endpoint {name}"
        raise UserError(said, next_command="python -m infra.preflight")
    return str(reply.json()["primaryKey"])


def arm(
    credential: TokenCredential, method: str, path: str, query: Mapping[str, str] | None = None, body: Any = None
) -> Response:
    """One request to Azure Resource Manager. Raises UserError where it cannot be reached."""
    import requests

    headers = {"Authorization": f"Bearer {_token(credential, ARM_SCOPE)}"}
    wanted = {"api-version": API_VERSION, **(query or {})}
    try:
        return requests.request(method, f"{ARM}{path}", params=wanted, headers=headers, json=body, timeout=30)
    except requests.RequestException as error:
        raise UserError(f"Azure Resource Manager cannot be reached: {type(error).__name__}") from error


def _properties(outputs: StackOutputs, name: str, credential: TokenCredential) -> dict[str, Any]:
    reply = arm(credential, "GET", f"{outputs.workspace_id}/onlineEndpoints/{name}")
    if reply.status_code == 404:
        raise UserError(
            f"there is no endpoint {name} in the workspace {outputs.workspace}: nothing is deployed",
            next_command=f"make deploy STACK={outputs.stack}",
        )
    if reply.status_code != 200:
        said = f"Azure Resource Manager answers {reply.status_code} for the endpoint {name}"
        raise UserError(said, next_command="python -m infra.preflight")
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
def explained(doing: str, *, next_command: str = "python -m infra.preflight") -> Iterator[None]:
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
