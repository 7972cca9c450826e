"""Shared access signatures: made with azure-storage-blob's own functions, checked by computing them again.

String-to-sign formats: learn.microsoft.com/rest/api/storageservices/create-service-sas and .../create-account-sas,
version 2020-12-06 and later.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from azure.storage.blob import (
    BlobSasPermissions,
    ContainerSasPermissions,
    ResourceTypes,
    generate_account_sas,
    generate_blob_sas,
    generate_container_sas,
)

from emulator.home import TENANT_ID

LIFETIME = timedelta(hours=1)


class SharedAccess:
    """Signatures for every storage account of one emulator; each account has a key derived from one secret."""

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()

    def key(self, account: str) -> str:
        """The account's key (base64), as the portal would show it."""
        return base64.b64encode(hmac.new(self._secret, account.encode(), hashlib.sha512).digest()).decode()

    def for_account(self, account: str) -> str:
        """As Azure ML hands it out: with a question mark first, and in this order, on which clients have come to rely
        (azure-ai-ml 1.35 takes it for a key and cannot decode it).
        """
        kinds, may = ResourceTypes(container=True, object=True), "rcuwdl"
        made = generate_account_sas(account, self.key(account), kinds, may, datetime.now(UTC) + LIFETIME)
        parts = dict(part.split("=", 1) for part in made.split("&"))
        return "?" + "&".join(f"{name}={parts[name]}" for name in ("sv", "sig", "se", "srt", "ss", "sp"))

    def for_container(self, account: str, container: str) -> str:
        allowed = ContainerSasPermissions(read=True, write=True, delete=True, list=True, add=True, create=True)
        expiry = datetime.now(UTC) + LIFETIME
        key = self._delegated(account)
        return _delegation(
            generate_container_sas(account, container, key, permission=allowed, expiry=expiry, protocol="https")
        )

    def for_blob(self, account: str, container: str, name: str, *, write: bool = False) -> str:
        expiry = datetime.now(UTC) + LIFETIME
        allowed = BlobSasPermissions(read=True, write=write, create=write)
        key = self._delegated(account)
        return _delegation(
            generate_blob_sas(
                account, container, name, account_key=key, permission=allowed, expiry=expiry, protocol="https"
            )
        )

    def _delegated(self, account: str) -> str:
        """What Azure ML signs with for others: a key of its own identity's, valid where account keys are not."""
        return self.key(f"{account} delegated")

    def refusal(
        self, query: Mapping[str, str], account: str, container: str, name: str, needed: str, at: datetime
    ) -> str | None:
        """Why this signature does not allow, at this time, an operation that needs one of the letters `needed`; None
        if it does.
        """
        if not hmac.compare_digest(self._expected(query, account, container, name), query.get("sig", "")):
            return "Signature did not match."
        if not _time(query.get("st", "1970-01-01")) <= at <= _time(query.get("se", "")):
            return "Signature not valid in the specified time frame."
        if not set(needed) & set(query.get("sp", "")):
            return "This request is not authorized to perform this operation using this permission."
        return None

    def _expected(self, query: Mapping[str, str], account: str, container: str, name: str) -> str:
        def get(*keys: str) -> list[str]:
            return [query.get(key, "") for key in keys]

        if "ss" in query:
            lines = [account, *get("sp", "ss", "srt", "st", "se", "sip", "spr", "sv", "ses"), ""]
        else:
            resource = f"/blob/{account}/{container}" + (f"/{name}" if query.get("sr") == "b" else "")
            lines = [*get("sp", "st", "se"), resource]
            lines += get("si", "sip", "spr", "sv", "sr", "snapshot", "ses", "rscc", "rscd", "rsce", "rscl", "rsct")
        key = self._delegated(account) if is_delegated(query) else self.key(account)
        digest = hmac.new(base64.b64decode(key), "\n".join(lines).encode(), hashlib.sha256).digest()
        return base64.b64encode(digest).decode()


def is_delegated(query: Mapping[str, str]) -> bool:
    """Whether an identity stands behind a signature, and not the account's key."""
    return "skoid" in query


def _delegation(token: str) -> str:
    return f"{token}&skoid={uuid.uuid4()}&sktid={TENANT_ID}&sks=b"


def _time(text: str) -> datetime:
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)
