"""Azure Resource Manager, for the little that needs neither azure-ai-ml nor a management library.

Reading, and the deletions that `infra.removal` makes. Retries, tokens and long-running operations are azure-core's.
"""

from __future__ import annotations

import base64
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from infra.cli import UserError

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential
    from azure.core.pipeline.transport import HttpTransport
    from azure.core.polling import LROPoller

ARM = "https://management.azure.com"
PATIENCE = 3600
"""Seconds for one operation; Azure keeps its own record of it for about as long."""


class NotSignedIn(Exception):
    """No credential of DefaultAzureCredential's chain gave a token; the text says which were tried."""


class Refused(Exception):
    """ARM answered something other than 200, or an operation failed; `status` is the last answer's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Arm:
    """Who is signed in. `claims` are the token's own: `tid`, the tenant, and `oid`, who asks."""

    client: Any
    claims: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def sign_in(cls) -> Arm:
        """Raises NotSignedIn."""
        import logging

        from azure.core.exceptions import ClientAuthenticationError
        from azure.identity import DefaultAzureCredential

        logging.getLogger("azure.identity").setLevel(logging.CRITICAL)  # it logs every credential that it tries
        credential = DefaultAzureCredential()
        try:
            token = credential.get_token(f"{ARM}/.default").token
        except ClientAuthenticationError as error:
            raise NotSignedIn(error.message.strip()) from None
        return cls(pipeline(credential), _claims(token))

    # --- reading ----------------------------------------------------------------------------------------------------

    def get(self, path: str, api_version: str, **query: str) -> dict[str, Any]:
        """One resource. Raises Refused, or UserError where nothing answers."""
        return self._get(f"{ARM}{path}", {"api-version": api_version, **query})

    def find(self, path: str, api_version: str, **query: str) -> dict[str, Any] | None:
        """One resource, or None where there is none."""
        try:
            return self.get(path, api_version, **query)
        except Refused as refused:
            if refused.status == 404:
                return None
            raise

    def list(self, path: str, api_version: str, **query: str) -> list[dict[str, Any]]:
        """All pages of a collection."""
        page = self.get(path, api_version, **query)
        found = list(page.get("value", []))
        while link := page.get("nextLink"):
            page = self._get(str(link), {})
            found += page.get("value", [])
        return found

    def _get(self, url: str, query: dict[str, str]) -> dict[str, Any]:
        answer = self._send("GET", url, query).http_response
        if answer.status_code != 200:
            raise Refused(answer.status_code, _message(answer.text(), answer.status_code))
        body: dict[str, Any] = answer.json()
        return body

    # --- changing ---------------------------------------------------------------------------------------------------

    def begin(self, method: str, path: str, api_version: str, **query: str) -> LROPoller[None] | None:
        """Begin a deletion or an action that takes its time; None where there is nothing to begin it on."""
        from azure.core.polling import LROPoller
        from azure.mgmt.core.polling.arm_polling import ARMPolling

        response = self._send(method, f"{ARM}{path}", {"api-version": api_version, **query})
        answer = response.http_response
        if answer.status_code in (204, 404):
            return None
        if answer.status_code not in (200, 201, 202):
            raise Refused(answer.status_code, _message(answer.text(), answer.status_code))
        between_polls = ARMPolling(timeout=5)  # seconds, where Azure names none
        return LROPoller(self.client, response, lambda _: None, between_polls)

    def _send(self, method: str, url: str, query: dict[str, str]) -> Any:
        from azure.core.exceptions import ClientAuthenticationError, ServiceRequestError, ServiceResponseError
        from azure.core.rest import HttpRequest

        try:
            return self.client.send_request(HttpRequest(method, url, params=query), _return_pipeline_response=True)
        except (ServiceRequestError, ServiceResponseError) as error:
            raise UserError(
                f"Azure Resource Manager cannot be reached: {error.message}",
                next_command="check the network and the proxy",
            ) from None
        except ClientAuthenticationError as error:
            raise UserError(f"Azure gave no token: {error.message.splitlines()[0]}", next_command="az login") from None


def wait(*begun: LROPoller[None] | None) -> None:
    """Wait for operations to end, by Azure's own record of them. Raises Refused for one that fails."""
    from azure.core.exceptions import AzureError, HttpResponseError

    deadline = time.monotonic() + PATIENCE
    for poller in begun:
        if poller is None:
            continue
        try:
            poller.result(timeout=max(1.0, deadline - time.monotonic()))
        except HttpResponseError as error:
            raise Refused(error.status_code or 0, error.message) from None
        except AzureError as error:
            raise UserError(f"the operation could not be followed: {error.message}") from None
        if not poller.done():
            raise UserError(f"Azure has not ended the operation after {PATIENCE // 60} minutes, and still works on it")


def pipeline(credential: TokenCredential, transport: HttpTransport[Any, Any] | None = None) -> Any:
    """azure-core's client of ARM; it tries again where Azure is busy, and renews the token."""
    from azure.core.pipeline.policies import BearerTokenCredentialPolicy, RequestIdPolicy, RetryPolicy
    from azure.mgmt.core import ARMPipelineClient

    signed = BearerTokenCredentialPolicy(credential, f"{ARM}/.default")
    policies = [RequestIdPolicy(), RetryPolicy(retry_total=4), signed]  # polling repeats the first request's id
    more = {} if transport is None else {"transport": transport}
    return ARMPipelineClient(ARM, policies=policies, **more)


def _claims(token: str) -> dict[str, Any]:
    """A token's claims, unchecked: they are shown and compared, and nothing is decided by them."""
    try:
        middle = token.split(".")[1]
        found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4)))
    except (IndexError, ValueError):
        return {}
    return found


def _message(text: str, status: int) -> str:
    try:
        error = json.loads(text)["error"]
        return f"{error['code']}: {error['message']}"
    except (ValueError, KeyError, TypeError):
        return f"HTTP {status} {text[:200]}".strip()
