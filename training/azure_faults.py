"""Azure's refusals as one sentence and the next command to type."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from infra.cli import UserError
from infra.outputs import StackOutputs

LOGIN = "az login   (or renew the credential that AZURE_* names), then run the same command again"


@contextlib.contextmanager
def azure_faults(outputs: StackOutputs, doing: str) -> Iterator[None]:
    """Turn what Azure's clients raise inside into a UserError. `doing` completes `… failed`: "submitting the job"."""
    from azure.ai.ml.exceptions import MlException
    from azure.core.exceptions import AzureError

    try:
        yield
    except (AzureError, MlException) as error:
        raise explained(error, outputs, doing) from None


def explained(error: Exception, outputs: StackOutputs, doing: str) -> UserError:
    """The sentence for an exception of azure-core or azure-ai-ml."""
    from azure.core.exceptions import (
        ClientAuthenticationError,
        HttpResponseError,
        ResourceNotFoundError,
        ServiceRequestError,
        ServiceResponseError,
    )

    if isinstance(error, ClientAuthenticationError):
        return UserError(f"{doing} failed: {login_fault(error)}", next_command=LOGIN)
    if isinstance(error, ResourceNotFoundError) and is_workspace_gone(error, outputs):
        return UserError(
            f"{doing} failed: the workspace {outputs.workspace} of the stack {outputs.stack} is gone",
            next_command=f"make up STACK={outputs.stack}",
        )
    if isinstance(error, ServiceRequestError | ServiceResponseError):
        return UserError(
            f"{doing} failed: Azure cannot be reached ({first_line(error)})",
            next_command="check the network, then run the same command again",
        )
    if isinstance(error, HttpResponseError) and error.status_code == 403:
        return UserError(
            f"{doing} failed: this login may not do that, or may only minutes after `make up` ({first_line(error)})",
            next_command=f"make doctor STACK={outputs.stack}",
        )
    return UserError(f"{doing} failed: {first_line(error)}", next_command=f"make doctor STACK={outputs.stack}")


def login_fault(error: Exception) -> str:
    """Why no token was given: what Entra says of the login, or that there is none among all that were tried."""
    if getattr(error, "status_code", None) == 401:  # there is a token, which the service refuses
        return f"Azure does not accept the token ({first_line(error)}); a wrong clock on this machine is one cause"
    said = re.search(r"AADSTS\d+:[^\n]*?(?=\s*Trace ID|\n|$)", str(error))
    return f"Azure does not accept the login ({said[0]})" if said else "nobody is signed in to Azure"


def is_workspace_gone(error: Exception, outputs: StackOutputs) -> bool:
    """Whether a 404 is about the workspace or what holds it, and not about something in it."""
    text = str(error)
    above = ("ResourceGroupNotFound", "SubscriptionNotFound", f"workspaces/{outputs.workspace}' ")
    return any(one in text for one in (*above, f"Parent resource '{outputs.workspace}'"))


def first_line(error: Exception) -> str:
    """What an exception says first, without the object that some of them print along."""
    text = str(getattr(error, "message", "") or error).strip()
    return text.splitlines()[0].strip() if text else type(error).__name__
