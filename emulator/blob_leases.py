"""Leases on blobs: acquire, renew, change, release, break, and the writes that they keep others from.

learn.microsoft.com/rest/api/storageservices/lease-blob
"""

from __future__ import annotations

import hashlib
import time
import uuid
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from emulator.blob_error import BlobError
from emulator.state import State

INFINITE = -1
SHORTEST, LONGEST = 15, 60  # seconds
Lease = dict[str, Any]


class Leases:
    """A lease is `id`, `duration` in seconds or -1, and `until`, a time since the epoch or None for an infinite one."""

    def __init__(self, state: State) -> None:
        self._state = state

    def operate(self, request: Request, blob: tuple[str, str, str]) -> Response:
        """`PUT …?comp=lease` on a blob that exists."""
        action = request.headers.get("x-ms-lease-action", "").lower()
        if action == "acquire":
            return self._acquire(request, blob)
        if action == "break":
            return self._break(request, blob)
        held, given = self._read(blob), request.headers.get("x-ms-lease-id", "")
        if held is None:
            raise BlobError(409, "LeaseNotPresentWithLeaseOperation", "There is currently no lease on the blob.")
        if held["id"] != given or (action == "renew" and held.get("broken")):
            raise _mismatch("Lease")
        match action:
            case "renew":
                self._save(blob, given, held["duration"])
            case "change":
                given = request.headers.get("x-ms-proposed-lease-id", "")
                self._save(blob, given, held["duration"])
            case "release":
                self._state.drop_record("lease", _key(blob))
            case _:
                raise BlobError(400, "InvalidHeaderValue", "The value of x-ms-lease-action is not one of a lease.")
        return Response(status_code=200, headers={"x-ms-lease-id": given})

    def _acquire(self, request: Request, blob: tuple[str, str, str]) -> Response:
        duration = int(request.headers.get("x-ms-lease-duration", "0"))
        if duration != INFINITE and not SHORTEST <= duration <= LONGEST:
            raise BlobError(400, "InvalidHeaderValue", "x-ms-lease-duration is 15 to 60 seconds, or -1.")
        wanted, held = request.headers.get("x-ms-proposed-lease-id") or str(uuid.uuid4()), self._read(blob)
        if _is_active(held) and held is not None and (held["id"] != wanted or held.get("broken")):
            raise BlobError(409, "LeaseAlreadyPresent", "There is already a lease present.")
        self._save(blob, wanted, duration)
        return Response(status_code=201, headers={"x-ms-lease-id": wanted})

    def _break(self, request: Request, blob: tuple[str, str, str]) -> Response:
        held = self._read(blob)
        if held is None:
            raise BlobError(409, "LeaseNotPresentWithLeaseOperation", "There is currently no lease on the blob.")
        left = 0.0 if held["until"] is None else max(0.0, held["until"] - time.time())
        if (period := request.headers.get("x-ms-lease-break-period")) is not None:
            left = float(period) if held["until"] is None else min(left, float(period))
        self._state.save_record("lease", _key(blob), {**held, "until": time.time() + left, "broken": True})
        return Response(status_code=202, headers={"x-ms-lease-time": str(round(left))})

    def check(self, request: Request, blob: tuple[str, str, str]) -> None:
        """Raise BlobError if a write or a deletion does not name the lease that the blob is under."""
        held, given = self._read(blob), request.headers.get("x-ms-lease-id")
        if not _is_active(held):
            if given is not None:
                raise BlobError(412, "LeaseNotPresentWithBlobOperation", "There is currently no lease on the blob.")
        elif given is None:
            message = "There is currently a lease on the blob and no lease ID was specified in the request."
            raise BlobError(412, "LeaseIdMissing", message)
        elif held is not None and held["id"] != given:
            raise _mismatch("Blob")

    def forget(self, blob: tuple[str, str, str]) -> None:
        """The blob is gone, and its lease with it."""
        self._state.drop_record("lease", _key(blob))

    def headers(self, blob: tuple[str, str, str]) -> dict[str, str]:
        """What a read of the blob says of its lease."""
        held = self._read(blob)
        if held is None:
            return {"x-ms-lease-status": "unlocked", "x-ms-lease-state": "available"}
        if not _is_active(held):
            return {"x-ms-lease-status": "unlocked", "x-ms-lease-state": "broken" if held.get("broken") else "expired"}
        kind = "infinite" if held["until"] is None else "fixed"
        state = "breaking" if held.get("broken") else "leased"
        return {"x-ms-lease-status": "locked", "x-ms-lease-state": state, "x-ms-lease-duration": kind}

    def _read(self, blob: tuple[str, str, str]) -> Lease | None:
        return self._state.record("lease", _key(blob))

    def _save(self, blob: tuple[str, str, str], lease: str, duration: int) -> None:
        until = None if duration == INFINITE else time.time() + duration
        self._state.save_record("lease", _key(blob), {"id": lease, "duration": duration, "until": until})


def _is_active(held: Lease | None) -> bool:
    return held is not None and (held["until"] is None or held["until"] > time.time())


def _key(blob: tuple[str, str, str]) -> str:
    """Records are kept without regard to case, which blob names have."""
    return hashlib.sha256("\0".join(blob).encode()).hexdigest()


def _mismatch(operation: str) -> BlobError:
    message = f"The lease ID specified did not match the lease ID for the {operation.lower()} operation."
    status = 409 if operation == "Lease" else 412
    return BlobError(status, f"LeaseIdMismatchWith{operation}Operation", message)
