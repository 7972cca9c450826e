"""A small ARM client: sign in, send, retry what is temporary, follow long-running operations."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import requests

MANAGEMENT = "https://management.azure.com"
LOGIN = "https://login.microsoftonline.com"
_TEMPORARY = frozenset({429, 500, 502, 503, 504})
_ATTEMPTS = 4
_LONGEST_WAIT = 20.0  # a Retry-After of minutes would make Ctrl-C and tests wait for it


class ArmError(Exception):
    """ARM refused a request, or a long-running operation failed."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.status, self.code, self.message = status, code, message

    @property
    def begun(self) -> bool:
        """ARM took the request, and its long-running operation failed."""
        return self.status == 200

    @property
    def refused(self) -> bool:
        """ARM did not take the request: nothing has changed."""
        return 400 <= self.status < 500


@dataclass(frozen=True)
class Credentials:
    """A service principal and the subscription that it works on."""

    tenant_id: str
    client_id: str
    client_secret: str = field(repr=False)
    subscription_id: str

    @classmethod
    def from_environment(cls) -> Credentials:
        """The credentials in ARM_*, which azure-native reads. Raises ArmError naming the variable that is missing."""
        return cls(
            _variable("ARM_TENANT_ID"),
            _variable("ARM_CLIENT_ID"),
            _variable("ARM_CLIENT_SECRET"),
            _variable("ARM_SUBSCRIPTION_ID"),
        )


def _variable(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise ArmError(0, "NotSignedIn", f"{name} is not set; run the command inside `python -m emulator run --`")
    return value


class ArmClient:
    """Requests to ARM as one service principal. Safe to share between threads."""

    def __init__(self, credentials: Credentials | None = None) -> None:
        self.credentials = credentials or Credentials.from_environment()
        self._session = requests.Session()
        self._lock = threading.Lock()
        self._token, self._expires = "", 0.0

    def send(
        self,
        method: str,
        url: str,
        *,
        body: Any = None,
        form: Mapping[str, str] | None = None,
        token: str | None = None,
    ) -> requests.Response:
        """The one place where a request leaves."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return self._session.request(method, url, json=body, data=form, headers=headers, timeout=60)

    def token(self) -> str:
        """An access token for ARM, renewed a minute before it ends."""
        with self._lock:
            if time.time() > self._expires - 60:
                who = self.credentials
                answer = self.send(
                    "POST",
                    f"{LOGIN}/{who.tenant_id}/oauth2/v2.0/token",
                    form={
                        "grant_type": "client_credentials",
                        "client_id": who.client_id,
                        "client_secret": who.client_secret,
                        "scope": f"{MANAGEMENT}/.default",
                    },
                )
                if answer.status_code != 200:
                    raise _error(answer)
                values = answer.json()
                self._token, self._expires = values["access_token"], time.time() + float(values["expires_in"])
            return self._token

    def get(self, path: str, api_version: str) -> dict[str, Any] | None:
        """The resource at `path`, or None where there is none."""
        answer = self._request("GET", _url(path, api_version))
        if answer.status_code == 404:
            return None
        return _json(answer)

    def put(self, path: str, api_version: str, body: Any) -> dict[str, Any]:
        """Create or update, wait until it is done, and read the result."""
        answer = self._request("PUT", _url(path, api_version), body)
        done = _json(answer)
        self._finish(answer, path, api_version)
        return self.get(path, api_version) or done

    def delete(self, path: str, api_version: str) -> None:
        """Delete and wait until it is gone; what is gone already is fine."""
        answer = self._request("DELETE", _url(path, api_version))
        if answer.status_code == 404:
            return
        if answer.status_code >= 400:
            raise _error(answer)
        self._finish(answer, path, api_version, deleting=True)

    def _request(self, method: str, url: str, body: Any = None) -> requests.Response:
        for attempt in range(_ATTEMPTS):
            answer = self.send(method, url, body=body, token=self.token())
            if answer.status_code not in _TEMPORARY or attempt == _ATTEMPTS - 1:
                break
            time.sleep(_retry_after(answer, default=0.5 * 2**attempt))
        return answer

    def _finish(self, answer: requests.Response, path: str, api_version: str, *, deleting: bool = False) -> None:
        """Follow a long-running operation to its end, by whichever way ARM announces it.

        https://learn.microsoft.com/azure/azure-resource-manager/management/async-operations
        """
        if operation := answer.headers.get("Azure-AsyncOperation"):
            self._follow_operation(operation, answer)
        elif answer.status_code == 202 and (location := answer.headers.get("Location")):
            while answer.status_code == 202:
                time.sleep(_retry_after(answer))
                answer = self._request("GET", location)
            if answer.status_code >= 400 and not (deleting and answer.status_code == 404):
                raise _error(answer)
        elif not deleting:
            self._follow_state(path, api_version, answer)

    def _follow_operation(self, url: str, answer: requests.Response) -> None:
        while True:
            time.sleep(_retry_after(answer))
            answer = self._request("GET", url)
            values = _json(answer)
            status = values.get("status", "Succeeded")
            if status == "Succeeded":
                return
            if status in ("Failed", "Canceled"):
                problem = values.get("error") or {}
                raise ArmError(200, problem.get("code", status), problem.get("message", f"the operation {status}"))

    def _follow_state(self, path: str, api_version: str, answer: requests.Response) -> None:
        while _state(answer) not in (None, "Succeeded"):
            if _state(answer) in ("Failed", "Canceled"):
                raise ArmError(200, str(_state(answer)), f"the provisioning of {path} ended as {_state(answer)}")
            time.sleep(_retry_after(answer))
            answer = self._request("GET", _url(path, api_version))


def _url(path: str, api_version: str) -> str:
    return f"{MANAGEMENT}{path}?api-version={api_version}"


def _state(answer: requests.Response) -> str | None:
    values = _json(answer)
    properties = values.get("properties")
    return properties.get("provisioningState") if isinstance(properties, dict) else None


def _retry_after(answer: requests.Response, default: float = 0.2) -> float:
    try:
        return min(float(answer.headers.get("Retry-After", default)), _LONGEST_WAIT)
    except ValueError:  # an HTTP date, which ARM does not send in practice
        return default


def _json(answer: requests.Response) -> dict[str, Any]:
    if answer.status_code >= 400:
        raise _error(answer)
    if not answer.content:
        return {}
    values = answer.json()
    return values if isinstance(values, dict) else {}


def _error(answer: requests.Response) -> ArmError:
    """ARM's error body `{"error": {"code", "message"}}`, or Entra's `{"error": "...", "error_description": ...}`."""
    try:
        values = answer.json()
    except ValueError:
        return ArmError(answer.status_code, f"HTTP {answer.status_code}", answer.text[:300] or str(answer.reason))
    problem = values.get("error", values) if isinstance(values, dict) else {}
    if isinstance(problem, str):
        return ArmError(answer.status_code, problem, str(values.get("error_description", "")))
    return ArmError(answer.status_code, problem.get("code", "Unknown"), problem.get("message", "no message"))
