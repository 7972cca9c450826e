"""A job's log, read while it is written, over Azure ML's run history.

Our own follower, because azure-ai-ml's `jobs.stream` loses the job with the log: it polls the history service and
raises at the first fault of either (in 1.35 it cannot sign the log's address at all). Here the status comes from the
job itself, and a log that cannot be read for a while is read later from where it was left.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import requests

from infra.outputs import StackOutputs

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential


class Log(Protocol):
    """What is followed: the log of one job, or of a pipeline's steps."""

    outputs: StackOutputs
    job: str

    def new_text(self) -> str: ...

    def fault(self) -> str | None: ...


MANAGEMENT = "https://management.azure.com"
WORKSPACE_API = "2024-10-01"
TIMEOUT_SECONDS = 20


@dataclass
class JobLog:
    """The main log of one job; remembers how far it was read, in bytes."""

    outputs: StackOutputs
    credential: TokenCredential
    job: str
    offset: int = 0
    history: str | None = None
    """The base address of the workspace's run history, once it is known."""
    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")(errors="replace")
    )

    def new_text(self) -> str:
        """What was written since the last call; empty if nothing was, or the log cannot be read just now."""
        try:
            address = self._address()
            return self._decoder.decode(self._read_from_offset(address)) if address else ""
        except requests.RequestException:
            return ""

    def fault(self) -> str | None:
        """The reason that Azure ML gives for a job's failure, if it gives one."""
        try:
            error = self._details().get("error") or {}
        except requests.RequestException:
            return None
        message = (error.get("error") or error).get("message")
        return str(message) if message else None

    def children(self) -> list[dict[str, Any]]:
        """The runs below this one, which a pipeline has. Raises requests.RequestException."""
        found: list[dict[str, Any]] = self._run("children").get("value") or []
        return found

    def _address(self) -> str | None:
        """The address of the main log with its signature, renewed each time; None while there is no log."""
        files: dict[str, str] = self._details().get("logFiles") or {}
        # one process writes std_log.txt, several write std_log_process_0.txt, …_1.txt, of which the first tells it
        names = sorted(name for name in files if name.startswith("user_logs/std_log"))
        return files[names[0]] if names else None

    def _read_from_offset(self, address: str) -> bytes:
        answer = requests.get(address, headers={"Range": f"bytes={self.offset}-"}, timeout=TIMEOUT_SECONDS)
        if answer.status_code in (404, 416):  # not written yet; nothing new
            return b""
        answer.raise_for_status()
        new = answer.content if answer.status_code == 206 else answer.content[self.offset :]
        self.offset += len(new)
        return new

    def _details(self) -> dict[str, Any]:
        return self._run("details")

    def _run(self, what: str) -> dict[str, Any]:
        if self.history is None:
            self.history = self._find_history()
        address = f"{self.history}/history/v1.0{self.outputs.workspace_id}/runs/{self.job}/{what}"
        return self._get(address, scope="https://ml.azure.com/.default")

    def _find_history(self) -> str:
        """The base address of the workspace's data plane, which its discovery address tells (`api`)."""
        workspace = self._get(
            f"{MANAGEMENT}{self.outputs.workspace_id}?api-version={WORKSPACE_API}", scope=f"{MANAGEMENT}/.default"
        )
        found = self._get(workspace["properties"]["discoveryUrl"], scope="https://ml.azure.com/.default")
        return str(found["api"]).rstrip("/")

    def _get(self, address: str, *, scope: str) -> dict[str, Any]:
        from azure.core.exceptions import AzureError

        try:
            token = self.credential.get_token(scope).token
        except AzureError as error:
            raise requests.ConnectionError(f"no token: {error}") from None
        answer = requests.get(address, headers={"Authorization": f"Bearer {token}"}, timeout=TIMEOUT_SECONDS)
        answer.raise_for_status()
        values: dict[str, Any] = answer.json()
        return values
