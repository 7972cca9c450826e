"""Storage accounts by their keys: handed out over Azure Resource Manager, and requests that are signed with one.

learn.microsoft.com/rest/api/storagerp/storage-accounts/list-keys and
learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from emulator.arm.ids import ResourceId
from emulator.arm.resources import Arm
from emulator.sas import SharedAccess

SIGNED = (
    *("content-encoding", "content-language", "content-length", "content-md5", "content-type", "date"),
    *("if-modified-since", "if-match", "if-none-match", "if-unmodified-since", "range"),
)


class StorageKeys:
    def __init__(self, arm: Arm, shared_access: SharedAccess) -> None:
        self._arm, self._shared_access = arm, shared_access
        arm.on("POST", "Microsoft.Storage/storageAccounts/listKeys", self.list)

    async def list(self, request: Request, rid: ResourceId) -> Response:
        """One key under both names: nothing here renews one while the other serves."""
        account = self._arm.existing(rid.action[0])["name"]
        key = {"value": self._shared_access.key(account), "permissions": "FULL"}
        return JSONResponse({"keys": [{"keyName": name, **key} for name in ("key1", "key2")]})


def signature(request: Request, account: str, key: str) -> str:
    """What `Authorization: SharedKey ACCOUNT:SIGNATURE` has to say for this request."""
    headers = {name: request.headers.get(name, "") for name in SIGNED}
    if headers["content-length"] == "0":
        headers["content-length"] = ""
    own = sorted((name, value) for name, value in request.headers.items() if name.startswith("x-ms-"))
    path = request.scope["raw_path"].decode().split("?")[0]
    query = sorted((name.lower(), unquote(value)) for name, value in request.query_params.multi_items())
    text = "\n".join([request.method, *headers.values(), *(f"{name}:{value}" for name, value in own)])
    text += f"\n/{account}{path}" + "".join(f"\n{name}:{value}" for name, value in query)
    digest = hmac.new(base64.b64decode(key), text.encode(), hashlib.sha256).digest()
    return base64.b64encode(digest).decode()
