"""Blob storage, as far as azure-storage-blob asks: containers, block blobs, ranges, metadata, listing.

Bytes are written to a new file and the name is pointed at it afterwards, so a reader sees a whole blob or none.
Operations: learn.microsoft.com/rest/api/storageservices/blob-service-rest-api.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import threading
import uuid
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from emulator.blob_access import BlobAccess
from emulator.blob_error import BlobError
from emulator.blob_leases import Leases
from emulator.blob_xml import error_text, listing
from emulator.entra import Entra
from emulator.sas import SharedAccess
from emulator.state import State

CHUNK = 1 << 20


class Blobs:
    """The blobs of all storage accounts. Also used in process by the job and deployment runners."""

    def __init__(self, state: State, objects: Path, shared_access: SharedAccess, entra: Entra) -> None:
        self._state, self._objects = state, objects
        self.shared_access, self._leases = shared_access, Leases(state)
        self._access = BlobAccess(state, shared_access, entra)
        self._unmade: dict[str, Callable[[], None]] = {}
        self._making = threading.Lock()

    # -- for the runners -----------------------------------------------------------------------------------------------

    def make_container(self, account: str, container: str) -> None:
        self._state.save_record("container", f"{account}/{container}", {})

    def has_container(self, account: str, container: str) -> bool:
        return self._state.record("container", f"{account}/{container}") is not None

    def when_read(self, account: str, make: Callable[[], None]) -> None:
        """Let `make` fill an account when a runner or a client of a registry first reads it."""
        self._unmade[account] = make

    def made(self, account: str) -> None:
        """Fill an account that waits for that. Blocks: not for the event loop's own thread."""
        with self._making:
            if (make := self._unmade.get(account)) is not None:
                make()
                del self._unmade[account]

    def drop_account(self, account: str) -> None:
        """Forget a storage account that was deleted, with all its containers."""
        for key, _ in self._state.records("container"):
            if key.startswith(f"{account}/"):
                self._drop_container(account, key.split("/", 1)[1])

    def _drop_container(self, account: str, container: str) -> None:
        for name, path, _ in self._state.list_blobs(account, container):
            self._state.drop_blob(account, container, name)
            self._unlink(path)
        self._state.drop_record("container", f"{account}/{container}")

    def _unlink(self, path: Path) -> None:
        if path.is_relative_to(self._objects):  # a live log is its job's own file
            path.unlink(missing_ok=True)

    def add_file(self, account: str, container: str, name: str, source: Path) -> None:
        """Store a copy of a local file."""
        target = self._new_path()
        shutil.copyfile(source, target)
        with target.open("rb") as file:
            digest = hashlib.file_digest(file, "md5").digest()
        self._commit(account, container, name, target, {"md5": base64.b64encode(digest).decode()})

    def add_live_file(self, account: str, container: str, name: str, source: Path) -> None:
        """Point a name at a file that is still growing (a log); reads see what it holds by then."""
        self._commit(account, container, name, source, {"live": True})

    def has(self, account: str, container: str, name: str) -> bool:
        return self._state.blob(account, container, name) is not None

    def signed_uri(self, account: str, container: str, name: str, *, write: bool = False) -> str:
        """An address by which a blob can be read, or also written, without signing in."""
        token = self.shared_access.for_blob(account, container, name, write=write)
        return f"https://{account}.blob.core.windows.net/{container}/{quote(name)}?{token}"

    def delete(self, account: str, container: str, name: str) -> None:
        """Delete a blob, if it is there."""
        if (dropped := self._state.drop_blob(account, container, name)) is not None:
            self._unlink(dropped)

    def list(self, account: str, container: str, prefix: str) -> list[tuple[str, Path]]:
        return [(name, path) for name, path, _ in self._state.list_blobs(account, container, prefix)]

    def copy_tree(self, account: str, container: str, prefix: str, to: Path) -> int:
        """Copy the blobs below `prefix` into a folder (or the blob `prefix` itself to a file); returns how many."""
        self.made(account)
        single = self._state.blob(account, container, prefix)
        if single is not None:
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(single[0], to)
            return 1
        base = prefix.rstrip("/") + "/" if prefix else ""
        found = self.list(account, container, base)
        for name, path in found:
            target = to / name[len(base) :]
            if not target.resolve().is_relative_to(to.resolve()):
                raise BlobError(400, "InvalidUri", f"The blob name {name!r} leads out of its folder.")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        return len(found)

    def _new_path(self) -> Path:
        name = uuid.uuid4().hex
        folder = self._objects / name[:2]
        folder.mkdir(parents=True, exist_ok=True)
        return folder / name

    def _commit(self, account: str, container: str, name: str, path: Path, extra: dict[str, Any]) -> dict[str, Any]:
        now = format_datetime(datetime.now(UTC), usegmt=True)
        body = {"etag": f'"0x{uuid.uuid4().hex[:15].upper()}"', "modified": now, "created": now, "meta": {}, **extra}
        replaced = self._state.save_blob(account, container, name, path, body)
        if replaced is not None:
            self._unlink(replaced)
        return body

    # -- for clients ---------------------------------------------------------------------------------------------------

    async def handle(self, request: Request) -> Response:
        account = request.url.hostname.split(".")[0] if request.url.hostname else ""
        container, _, name = request.scope["path"].lstrip("/").partition("/")
        try:
            response = await self._dispatch(request, account, container, name)
        except BlobError as error:
            body = "" if request.method == "HEAD" else error_text(error)
            response = Response(body, error.status, {"x-ms-error-code": error.code}, "application/xml")
        response.headers["x-ms-version"] = request.headers.get("x-ms-version", "2025-01-05")
        response.headers["x-ms-request-id"] = str(uuid.uuid4())
        return response

    async def _dispatch(self, request: Request, account: str, container: str, name: str) -> Response:
        query, method = request.query_params, request.method
        what = query.get("comp", "") or query.get("restype", "")
        needed = {"GET": "r", "HEAD": "r", "PUT": "wc", "DELETE": "d"}.get(method, "w")
        if what == "list":
            needed = "l"
        self._access.check(request, account, container, name, needed)
        if not name:
            return self._container(request, account, container)
        if not self.has_container(account, container):
            raise BlobError(404, "ContainerNotFound", "The specified container does not exist.")
        if method in ("PUT", "DELETE") and what in ("", "blocklist", "metadata"):
            self._leases.check(request, (account, container, name))
        match method, what:
            case "PUT", "lease":
                self._found(account, container, name)
                return self._leases.operate(request, (account, container, name))
            case "PUT", "":
                return await self._put(request, account, container, name)
            case "PUT", "block":
                return await self._put_block(request, account, container, name)
            case "PUT", "blocklist":
                return await self._put_block_list(request, account, container, name)
            case "PUT", "metadata":
                return self._set_metadata(request, account, container, name)
            case (("GET" | "HEAD"), ("" | "metadata")):
                return self._get(request, account, container, name)
            case "DELETE", "":
                self._found(account, container, name)
                dropped = self._state.drop_blob(account, container, name)
                self._leases.forget((account, container, name))
                if dropped is not None:
                    self._unlink(dropped)
                return Response(status_code=202)
        raise BlobError(400, "UnsupportedQueryParameter", f"{method} with comp={what!r} is not emulated.")

    def _container(self, request: Request, account: str, container: str) -> Response:
        method, comp = request.method, request.query_params.get("comp", "")
        exists = self.has_container(account, container)
        if method == "PUT" and not comp:
            if exists:
                raise BlobError(409, "ContainerAlreadyExists", "The specified container already exists.")
            if not re.fullmatch(r"[a-z0-9](?:-?[a-z0-9]){2,62}", container):
                raise BlobError(400, "InvalidResourceName", "The specified resource name contains invalid characters.")
            self.make_container(account, container)
            return Response(status_code=201, headers={"etag": '"0x1"'})
        if not exists:
            raise BlobError(404, "ContainerNotFound", "The specified container does not exist.")
        if comp == "list":
            found = self._state.list_blobs(account, container, request.query_params.get("prefix", ""))
            return Response(listing(account, container, request.query_params, found), media_type="application/xml")
        if method in ("GET", "HEAD"):
            now = format_datetime(datetime.now(UTC), usegmt=True)
            return Response(headers={"etag": '"0x1"', "last-modified": now, "x-ms-lease-status": "unlocked"})
        if method == "DELETE":
            self._drop_container(account, container)
            return Response(status_code=202)
        raise BlobError(400, "UnsupportedHttpVerb", f"{method} on a container is not emulated.")

    async def _receive(self, request: Request) -> tuple[Path, str]:
        """Write the request's body to a new file; returns it with the base64 MD5 of its bytes."""
        path, digest = self._new_path(), hashlib.md5(usedforsecurity=False)
        expected, received = request.headers.get("content-length"), 0
        try:
            with path.open("wb") as file:
                async for chunk in request.stream():
                    digest.update(chunk)
                    received += len(chunk)
                    file.write(chunk)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        md5 = base64.b64encode(digest.digest()).decode()
        if request.headers.get("content-md5") not in (None, md5) or expected not in (None, str(received)):
            path.unlink(missing_ok=True)
            raise BlobError(400, "Md5Mismatch", "The MD5 value of the received data differs from the one specified.")
        return path, md5

    def _check_conditions(self, request: Request, account: str, container: str, name: str) -> None:
        found = self._state.blob(account, container, name)
        if request.headers.get("if-none-match") == "*" and found is not None:
            raise BlobError(409, "BlobAlreadyExists", "The specified blob already exists.")
        wanted = request.headers.get("if-match")
        if wanted is not None and (found is None or found[1]["etag"] != wanted):
            raise BlobError(
                412, "ConditionNotMet", "The condition specified using HTTP conditional header(s) is not met."
            )

    async def _put(self, request: Request, account: str, container: str, name: str) -> Response:
        kind = request.headers.get("x-ms-blob-type", "")
        if kind != "BlockBlob":
            raise BlobError(400, "InvalidHeaderValue", f"The blob type {kind!r} is not emulated; BlockBlob is.")
        self._check_conditions(request, account, container, name)
        path, md5 = await self._receive(request)
        return self._written(self._commit(account, container, name, path, _properties(request) | {"md5": md5}))

    def _block_path(self, account: str, container: str, name: str, block: str) -> Path:
        digest = hashlib.sha256("\0".join((account, container, name, block)).encode()).hexdigest()
        folder = self._objects / "blocks"
        folder.mkdir(exist_ok=True)
        return folder / digest

    async def _put_block(self, request: Request, account: str, container: str, name: str) -> Response:
        path, md5 = await self._receive(request)
        os.replace(path, self._block_path(account, container, name, request.query_params.get("blockid", "")))
        return Response(status_code=201, headers={"content-md5": md5})

    async def _put_block_list(self, request: Request, account: str, container: str, name: str) -> Response:
        self._check_conditions(request, account, container, name)
        try:
            blocks = [element.text or "" for element in ElementTree.fromstring(await request.body())]
        except ElementTree.ParseError:
            raise BlobError(400, "InvalidXmlDocument", "The specified XML is not syntactically valid.") from None
        parts = [self._block_path(account, container, name, block) for block in blocks]
        if not all(part.exists() for part in parts):
            raise BlobError(400, "InvalidBlockList", "The specified block list is invalid.")
        target = self._new_path()
        with target.open("wb") as file:
            for part in parts:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, file, CHUNK)
        for part in set(parts):
            part.unlink(missing_ok=True)
        return self._written(self._commit(account, container, name, target, _properties(request)))

    def _set_metadata(self, request: Request, account: str, container: str, name: str) -> Response:
        path, body = self._found(account, container, name)
        body |= {"meta": _metadata(request), "etag": f'"0x{uuid.uuid4().hex[:15].upper()}"'}
        self._state.save_blob(account, container, name, path, body)
        return Response(headers={"etag": body["etag"], "last-modified": body["modified"]})

    @staticmethod
    def _written(body: dict[str, Any]) -> Response:
        headers = {"etag": body["etag"], "last-modified": body["modified"], "x-ms-request-server-encrypted": "true"}
        if "md5" in body:
            headers["content-md5"] = body["md5"]
        return Response(status_code=201, headers=headers)

    def _found(self, account: str, container: str, name: str) -> tuple[Path, dict[str, Any]]:
        found = self._state.blob(account, container, name)
        if found is None:
            raise BlobError(404, "BlobNotFound", "The specified blob does not exist.")
        return found

    def _get(self, request: Request, account: str, container: str, name: str) -> Response:
        path, body = self._found(account, container, name)
        size = path.stat().st_size
        headers = {
            "etag": body["etag"],
            "last-modified": body["modified"],
            "accept-ranges": "bytes",
            "content-type": body.get("type") or "application/octet-stream",
            "x-ms-blob-type": "BlockBlob",
            "x-ms-creation-time": body["created"],
            **self._leases.headers((account, container, name)),
            "x-ms-server-encrypted": "true",
            **{f"x-ms-meta-{key}": value for key, value in body["meta"].items()},
        }
        start, end, status = 0, size - 1, 200
        wanted = request.headers.get("x-ms-range") or request.headers.get("range")
        if wanted and (match := re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)):
            start, end, status = int(match[1]), min(int(match[2] or size - 1), size - 1), 206
            if start >= size:
                raise BlobError(
                    416, "InvalidRange", "The range specified is invalid for the current size of the resource."
                )
            headers["content-range"] = f"bytes {start}-{end}/{size}"
        if status == 200 and "md5" in body:
            headers["content-md5"] = body["md5"]
        headers["content-length"] = str(end - start + 1)
        if request.method == "HEAD":
            return Response(status_code=200, headers=headers)
        return StreamingResponse(_read(path, start, end - start + 1), status, headers)


def _metadata(request: Request) -> dict[str, str]:
    return {key[10:]: value for key, value in request.headers.items() if key.startswith("x-ms-meta-")}


def _properties(request: Request) -> dict[str, Any]:
    kind = request.headers.get("x-ms-blob-content-type") or request.headers.get("content-type")
    return {"type": kind, "meta": _metadata(request)}


async def _read(path: Path, start: int, length: int) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while length > 0 and (chunk := file.read(min(CHUNK, length))):
            length -= len(chunk)
            yield chunk
