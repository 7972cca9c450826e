"""Azure Resource Manager, read only: the few GETs that need neither azure-ai-ml nor a management library."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from typing import Any

from infra.cli import UserError

ARM = "https://management.azure.com"


class NotSignedIn(Exception):
    """No credential of DefaultAzureCredential's chain gave a token; the text says which were tried."""


class Refused(Exception):
    """ARM answered something other than 200; `status` is what."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Arm:
    """A reader with a token. `claims` are the token's own: `tid`, the tenant, and `oid`, who asks."""

    token: str
    claims: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def sign_in(cls) -> Arm:
        """Raises NotSignedIn."""
        import logging

        from azure.core.exceptions import ClientAuthenticationError
        from azure.identity import DefaultAzureCredential

        logging.getLogger("azure.identity").setLevel(logging.CRITICAL)  # it logs every credential that it tries
        try:
            token = DefaultAzureCredential().get_token(f"{ARM}/.default").token
        except ClientAuthenticationError as error:
            raise NotSignedIn(error.message.strip().splitlines()[0]) from None
        return cls(token, _claims(token))

    def get(self, path: str, api_version: str, **query: str) -> dict[str, Any]:
        """One resource. Raises Refused, or UserError where nothing answers."""
        return self._get(f"{ARM}{path}", {"api-version": api_version, **query})

    def list(self, path: str, api_version: str, **query: str) -> list[dict[str, Any]]:
        """All pages of a collection."""
        page = self.get(path, api_version, **query)
        found = list(page.get("value", []))
        while link := page.get("nextLink"):
            page = self._get(str(link), {})
            found += page.get("value", [])
        return found

    def _get(self, url: str, query: dict[str, str]) -> dict[str, Any]:
        import requests

        try:
            answer = requests.get(url, params=query, headers={"Authorization": f"Bearer {self.token}"}, timeout=60)
        except requests.RequestException as error:
            raise UserError(
                f"Azure Resource Manager cannot be reached: {error}", next_command="check the network and the proxy"
            ) from None
        if answer.status_code != 200:
            raise Refused(answer.status_code, _message(answer.text, answer.status_code))
        body: dict[str, Any] = answer.json()
        return body


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
