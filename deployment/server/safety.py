"""The content filter: every message before it is answered, every answer before it is given. Off unless configured.

`CONTENT_SAFETY_ENDPOINT` names an Azure AI Content Safety resource, https://NAME.cognitiveservices.azure.com, which the
server asks as the container's identity (role: Cognitive Services User). Where it cannot be asked, nothing is answered;
`CONTENT_SAFETY_FAIL_OPEN=1` answers all the same and notes it in the log. `CONTENT_SAFETY_SEVERITY` (2, 4 or 6; else 4)
is the severity from which a text is refused.

The request: learn.microsoft.com/rest/api/contentsafety/text-operations/analyze-text. It has not been run against Azure.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from deployment.server.errors import RequestError
from infra.cli import WRONG_USE, UserError

if TYPE_CHECKING:
    import httpx

log = logging.getLogger("deployment.server")

VERSION = "2024-09-01"
SCOPE = "https://cognitiveservices.azure.com/.default"
MOST_CHARACTERS = 10_000
"""In one text, as the service has it."""
OVERLAP = 200
"""Characters that two pieces of a longer text share, so that nothing is only seen in halves."""
WINDOW = 400
"""Characters of a streamed answer that are looked at together, and held back until then."""


@dataclass
class ContentSafety:
    """Asks the service. `token` gives a bearer token for SCOPE, and may block."""

    endpoint: str
    token: Callable[[], str]
    severity: int = 4
    fail_open: bool = False
    seconds: float = 5.0

    @cached_property
    def _client(self) -> httpx.AsyncClient:
        import httpx

        return httpx.AsyncClient(base_url=self.endpoint, timeout=self.seconds)

    async def check(self, texts: Iterable[str], what: str) -> None:
        """Raises RequestError: 400 if a text is refused, 503 if the service cannot be asked and must be."""
        try:
            pieces = [piece for text in texts for piece in pieces_of(text)]
            worst = max(await asyncio.gather(*map(self._severity, pieces)), default=0)
        except Exception as error:  # noqa: BLE001 - whatever keeps the filter from looking, identity and network alike
            log.warning("the content filter could not be asked: %s", type(error).__name__)
            if self.fail_open:
                return
            raise RequestError(
                "the content filter cannot be reached", status=503, code="content_filter_unavailable"
            ) from None
        if worst >= self.severity:
            log.info("the content filter refused %s: severity %d", what, worst)
            raise RequestError(f"the content filter refused {what}", code="content_filter")

    async def _severity(self, text: str) -> int:
        token = await asyncio.to_thread(self.token)
        reply = await self._client.post(
            "/contentsafety/text:analyze",
            params={"api-version": VERSION},
            headers={"Authorization": f"Bearer {token}"},
            json={"text": text},
        )
        reply.raise_for_status()
        return max((int(found["severity"]) for found in reply.json()["categoriesAnalysis"]), default=0)


def pieces_of(text: str) -> Sequence[str]:
    """`text` in pieces that the service takes; none where there is nothing to look at."""
    if not text.strip():
        return []
    step = MOST_CHARACTERS - OVERLAP
    return [text[start : start + MOST_CHARACTERS] for start in range(0, max(len(text) - OVERLAP, 1), step)]


def configured(environ: Mapping[str, str]) -> ContentSafety | None:
    """What the environment asks for. Raises UserError if it cannot be had."""
    endpoint = environ.get("CONTENT_SAFETY_ENDPOINT")
    if not endpoint:
        return None
    severity = environ.get("CONTENT_SAFETY_SEVERITY", "4")
    if severity not in ("2", "4", "6") or not endpoint.startswith("https://"):
        raise UserError(
            f"the content filter cannot be used: its address must begin with https:// (it is {endpoint}), its severity "
            f"must be 2, 4 or 6 (it is {severity})",
            next_command="set CONTENT_SAFETY_ENDPOINT and CONTENT_SAFETY_SEVERITY",
            code=WRONG_USE,
        )
    fail_open = environ.get("CONTENT_SAFETY_FAIL_OPEN") == "1"
    return ContentSafety(endpoint, _token_source(environ), int(severity), fail_open)


def _token_source(environ: Mapping[str, str]) -> Callable[[], str]:
    """Tokens of the container's identity; a user-assigned one needs its client id."""
    try:
        from azure.identity import DefaultAzureCredential
    except ImportError:
        raise UserError("azure-identity is not installed, and the content filter needs it") from None
    client = environ.get("UAI_CLIENT_ID") or environ.get("AZURE_CLIENT_ID")
    credential: Any = DefaultAzureCredential(managed_identity_client_id=client)
    return lambda: str(credential.get_token(SCOPE).token)
