"""Who may do what with blobs: by a shared access signature, or by a token whose principal has a role.

learn.microsoft.com/azure/storage/blobs/authorize-access-azure-active-directory
"""

from __future__ import annotations

from starlette.requests import Request

from emulator.arm.rights import permits
from emulator.blob_error import BlobError
from emulator.entra import Entra
from emulator.sas import SharedAccess
from emulator.state import State

AUDIENCES = ("https://storage.azure.com",)
STORAGE_ACCOUNT = "Microsoft.Storage/storageAccounts"
BLOB_ACTIONS = f"{STORAGE_ACCOUNT}/blobServices/containers/blobs"
ACTIONS = {"r": "read", "l": "read", "w": "write", "d": "delete"}


class BlobAccess:
    def __init__(self, state: State, shared_access: SharedAccess, entra: Entra) -> None:
        self._state, self._shared_access, self._entra = state, shared_access, entra

    def check(self, request: Request, account: str, container: str, name: str, needed: str) -> None:
        """Raise BlobError 401, 403 or 404 unless one of the operations `needed` (letters as in `sp`) is permitted."""
        if not self._has_account(account):
            raise BlobError(404, "ResourceNotFound", f"The storage account {account!r} does not exist.")
        if "sig" in request.query_params:
            why = self._shared_access.refusal(request.query_params, account, container, name, needed)
            if why is not None:
                code = "AuthorizationPermissionMismatch" if "permission" in why else "AuthenticationFailed"
                raise BlobError(403, code, f"Server failed to authenticate the request. {why}")
            return
        claims = self._entra.check(request.headers.get("authorization", ""), AUDIENCES)
        if claims is None:
            if "authorization" in request.headers:
                raise BlobError(
                    401, "InvalidAuthenticationInfo", "The access token is invalid, expired or for another audience."
                )
            raise BlobError(401, "NoAuthenticationInformation", "Server failed to authenticate the request.")
        self._check_role(str(claims["oid"]), account, needed)

    def _check_role(self, principal: str, account: str, needed: str) -> None:
        """Raise BlobError 403 unless one of the principal's roles permits one of the operations `needed`."""
        found = [one["id"] for one in self._state.of_type(STORAGE_ACCOUNT) if one["name"] == account]
        action = f"{BLOB_ACTIONS}/{ACTIONS[needed[0]]}"
        if not found or not permits(self._state, principal, found[0], action, data=True):
            message = "This request is not authorized to perform this operation using this permission."
            raise BlobError(403, "AuthorizationPermissionMismatch", message)

    def _has_account(self, account: str) -> bool:
        """Whether there is such an account: in the subscription, or one of a registry, which only has containers."""
        accounts = self._state.of_type(STORAGE_ACCOUNT)
        held = any(key.startswith(f"{account}/") for key, _ in self._state.records("container"))
        return held or account in [found["name"] for found in accounts]
