"""Who may do what with blobs: by the account's key, a signature, or a token whose principal has a role.

learn.microsoft.com/azure/storage/blobs/authorize-access-azure-active-directory
"""

from __future__ import annotations

import hmac
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime

from starlette.requests import Request

from emulator.arm.rights import permits
from emulator.blob_error import BlobError
from emulator.entra import Entra
from emulator.faults import clock
from emulator.sas import SharedAccess, is_delegated
from emulator.shared_key import signature
from emulator.state import State

AUDIENCES = ("https://storage.azure.com",)
STORAGE_ACCOUNT = "Microsoft.Storage/storageAccounts"
BLOB_ACTIONS = f"{STORAGE_ACCOUNT}/blobServices/containers/blobs"
OLDEST = 15 * 60  # seconds that a signed request is good for
NEVER = datetime.fromtimestamp(0, UTC)
ACTIONS = {"r": "read", "l": "read", "w": "write", "d": "delete"}


class BlobAccess:
    def __init__(self, state: State, shared_access: SharedAccess, entra: Entra) -> None:
        self._state, self._shared_access, self._entra = state, shared_access, entra

    def check(self, request: Request, account: str, container: str, name: str, needed: str) -> None:
        """Raise BlobError 401, 403 or 404 unless one of the operations `needed` (letters as in `sp`) is permitted."""
        if not self._has_account(account):
            raise BlobError(404, "ResourceNotFound", f"The storage account {account!r} does not exist.")
        authorization = request.headers.get("authorization", "")
        by_key = authorization.startswith("SharedKey ")
        by_signature = "sig" in request.query_params
        if (by_key or (by_signature and not is_delegated(request.query_params))) and not self._takes_keys(account):
            message = "Key based authentication is not permitted on this storage account."
            raise BlobError(403, "KeyBasedAuthenticationNotPermitted", message)
        if by_key:
            self._check_signed(request, account, authorization)
            return
        if by_signature:
            at = datetime.fromtimestamp(clock(self._state), UTC)
            why = self._shared_access.refusal(request.query_params, account, container, name, needed, at)
            if why is not None:
                code = "AuthorizationPermissionMismatch" if "permission" in why else "AuthenticationFailed"
                raise BlobError(403, code, f"Server failed to authenticate the request. {why}")
            return
        claims = self._entra.check(authorization, AUDIENCES)
        if claims is None:
            if "authorization" in request.headers:
                raise BlobError(
                    401, "InvalidAuthenticationInfo", "The access token is invalid, expired or for another audience."
                )
            raise BlobError(401, "NoAuthenticationInformation", "Server failed to authenticate the request.")
        self._check_role(str(claims["oid"]), account, needed)

    def _check_signed(self, request: Request, account: str, authorization: str) -> None:
        """Raise BlobError 403 unless a request is signed with the account's key, and not long ago."""
        wanted = f"SharedKey {account}:{signature(request, account, self._shared_access.key(account))}"
        if not hmac.compare_digest(authorization, wanted):
            raise BlobError(403, "AuthenticationFailed", "Server failed to authenticate the request.")
        said = parsedate_to_datetime(request.headers.get("x-ms-date") or format_datetime(NEVER)).timestamp()
        if abs(clock(self._state) - said) > OLDEST:
            raise BlobError(403, "AuthenticationFailed", "Request date header too old.")

    def _check_role(self, principal: str, account: str, needed: str) -> None:
        """Raise BlobError 403 unless one of the principal's roles permits one of the operations `needed`."""
        found = [one["id"] for one in self._state.of_type(STORAGE_ACCOUNT) if one["name"] == account]
        action = f"{BLOB_ACTIONS}/{ACTIONS[needed[0]]}"
        if not found or not permits(self._state, principal, found[0], action, data=True):
            message = "This request is not authorized to perform this operation using this permission."
            raise BlobError(403, "AuthorizationPermissionMismatch", message)

    def _takes_keys(self, account: str) -> bool:
        held = [one for one in self._state.of_type(STORAGE_ACCOUNT) if one["name"] == account]
        return all(one["properties"].get("allowSharedKeyAccess") is not False for one in held)

    def _has_account(self, account: str) -> bool:
        """Whether there is such an account: in the subscription, or one of a registry, which only has containers."""
        accounts = self._state.of_type(STORAGE_ACCOUNT)
        held = any(key.startswith(f"{account}/") for key, _ in self._state.records("container"))
        return held or account in [found["name"] for found in accounts]
