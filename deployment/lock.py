"""One rollout at a time: a lease on a blob of the stack's storage account, renewed for as long as the rollout runs.

An endpoint cannot be changed "only if nobody else has" (its PUT knows no If-Match), so whoever changes it holds this
lease first. A killed rollout's lease runs out by itself after one period; one that lives shows a pulse in the blob's
metadata, by which the second comer knows at once that waiting is of no use.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from infra.cli import REFUSED, UserError, say
from infra.outputs import StackOutputs

if TYPE_CHECKING:
    from azure.storage.blob import BlobClient, BlobLeaseClient

CONTAINER = "finetune-phi-locks"
SECONDS = 60
"""The longest lease that ends by itself: learn.microsoft.com/rest/api/storageservices/lease-blob"""


class Lease:
    """A lease that is held; `check` before every change."""

    def __init__(self, blob: BlobClient, lease: BlobLeaseClient, about: str) -> None:
        self._blob, self._lease, self._about = blob, lease, about
        self._renewed, self._lost, self._released = time.monotonic(), False, threading.Event()
        self._pulse()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises UserError if the lease may have run out: then somebody else may be changing the endpoint."""
        if self._lost or time.monotonic() - self._renewed > SECONDS - 5:
            raise UserError(
                "the lease on the endpoint was lost, as the storage account could not be reached for too long; nothing "
                "was changed since",
                next_command="run the same command again",
            )

    def _keep(self) -> None:
        from azure.core.exceptions import AzureError, HttpResponseError

        while not self._released.wait(SECONDS / 6):
            began = time.monotonic()
            try:
                self._lease.renew(timeout=10)
                self._renewed = began
                self._pulse()
            except HttpResponseError as error:
                self._lost = self._lost or error.status_code in (404, 409, 412)
            except AzureError:
                continue  # `check` counts how long it has been

    def _pulse(self) -> None:
        own = {"about": self._about, "host": platform.node(), "pid": str(os.getpid()), "pulse": str(time.time())}
        since = datetime.now(UTC).isoformat("T", "seconds")
        self._blob.set_blob_metadata({**own, "at": since}, lease=self._lease)

    def release(self) -> None:
        from azure.core.exceptions import AzureError

        self._released.set()
        self._thread.join()
        try:
            self._lease.release()
        except AzureError:
            say("note: the lease on the endpoint could not be given back; it runs out within a minute")


@contextmanager
def held(outputs: StackOutputs, endpoint: str, about: str) -> Iterator[Lease]:
    """Hold the endpoint's lease; `about` tells others what is under way.

    Raises:
        UserError: exit code 3 if another one holds it and lives; else if the storage account cannot be used.
    """
    from azure.core.exceptions import AzureError

    from deployment.endpoint import first_line

    try:
        blob = _blob(outputs, endpoint)
        lease = Lease(blob, _acquire(blob, endpoint), about)
    except AzureError as error:
        raise UserError(
            f"the lease on the endpoint {endpoint} cannot be had from the storage account "
            f"{outputs.storage_account}: {first_line(error)}",
            next_command=f"make doctor STACK={outputs.stack}   (it needs the role Storage Blob Data Contributor)",
        ) from error
    try:
        yield lease
    finally:
        lease.release()


def _blob(outputs: StackOutputs, endpoint: str) -> BlobClient:
    """The blob that is leased, made where it is missing."""
    from azure.core.exceptions import HttpResponseError, ResourceExistsError
    from azure.identity import DefaultAzureCredential
    from azure.storage.blob import BlobServiceClient

    address = f"https://{outputs.storage_account}.blob.core.windows.net"
    box = BlobServiceClient(address, DefaultAzureCredential()).get_container_client(CONTAINER)
    with suppress(ResourceExistsError):
        box.create_container()
    blob = box.get_blob_client(f"{endpoint}.lock")
    try:
        blob.upload_blob(b"", overwrite=False)
    except HttpResponseError as error:
        if error.status_code not in (409, 412):  # it is there; it is there and leased
            raise
    return blob


def _acquire(blob: BlobClient, endpoint: str) -> BlobLeaseClient:
    """A new lease. One that is held is waited for, for one period, as long as its holder shows no pulse."""
    from azure.core.exceptions import HttpResponseError

    first: dict[str, str] | None = None
    deadline = time.monotonic() + SECONDS + 15
    while True:
        try:
            return blob.acquire_lease(SECONDS)
        except HttpResponseError as error:
            if error.status_code != 409:  # LeaseAlreadyPresent
                raise
        holder = dict(blob.get_blob_properties().metadata or {})
        if first is None:
            first = holder
            say(f"  the endpoint {endpoint} is held by {_who(holder)}; waiting whether that still lives")
        if holder.get("pulse") != first.get("pulse") or time.monotonic() > deadline:
            raise UserError(
                f"the endpoint {endpoint} is being changed by {_who(holder)}",
                next_command="wait for it to end, then run the same command again",
                code=REFUSED,
            )
        time.sleep(1)


def _who(holder: dict[str, str]) -> str:
    about, host = holder.get("about", "another command"), holder.get("host", "?")
    return f"{about} on {host} (process {holder.get('pid', '?')}, last seen {holder.get('at', '?')})"
