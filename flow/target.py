"""Which endpoint the chat asks, and as whom: from the stack's outputs and the environment, never from a file of keys.

In a container of ours in Azure the outputs come in STACK_OUTPUTS_JSON, and its managed identity (AZURE_CLIENT_ID) may
call the endpoint but not look into the workspace: there the endpoint's address follows from its name.
"""

from __future__ import annotations

import getpass
import json
import os
from pathlib import Path

from deployment import endpoint
from flow.conversation import Endpoint
from infra.cli import WRONG_USE, UserError
from infra.outputs import StackOutputs, load_outputs


def outputs_here(stack: str | None = None, file: Path | None = None) -> StackOutputs:
    """The stack's outputs: STACK_OUTPUTS_JSON where nothing else is named, else as every verb finds them."""
    given = os.environ.get("STACK_OUTPUTS_JSON")
    if not given or stack or file:
        return load_outputs(stack=stack, file=file)
    try:
        values = dict(json.loads(given))
    except (ValueError, TypeError):
        raise UserError("STACK_OUTPUTS_JSON does not hold one JSON object", code=WRONG_USE) from None
    return StackOutputs.parse(values, source="STACK_OUTPUTS_JSON")


def endpoint_of(outputs: StackOutputs) -> Endpoint:
    """The stack's endpoint, with tokens from DefaultAzureCredential or with its key.

    CHAT_ENDPOINT names another scoring address, CHAT_ENDPOINT_KEY a key for it.
    """
    address, key = os.environ.get("CHAT_ENDPOINT"), os.environ.get("CHAT_ENDPOINT_KEY", "")
    name = endpoint.endpoint_name(outputs)
    if not address and os.environ.get("STACK_OUTPUTS_JSON"):
        address = f"https://{name}.{outputs.location}.inference.ml.azure.com/score"
    if not address:
        found = endpoint.connect(outputs)
        return Endpoint(found.scoring_uri, found.headers)
    if not address.startswith(("https://", "http://")):
        raise UserError(f"CHAT_ENDPOINT is {address!r}, and not an address that begins with https://", code=WRONG_USE)
    if key:
        return Endpoint(address, lambda: {"Authorization": f"Bearer {key}"})
    from azure.identity import DefaultAzureCredential

    return Endpoint(address, endpoint.Endpoint(name, address, DefaultAzureCredential()).headers)


def user_here() -> str:
    """Whose conversations these are: $CHAT_USER, else the name that this machine knows the caller by."""
    if given := os.environ.get("CHAT_USER"):
        return given
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without a user database
        return "user"
