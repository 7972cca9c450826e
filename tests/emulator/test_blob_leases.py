"""Leases through azure-storage-blob, against the emulator."""

from __future__ import annotations

import pytest

from tests.support.local_azure import LocalAzure, last_json

CLIENT = """
import json, time, uuid
from azure.core.exceptions import HttpResponseError
from azure.identity import DefaultAzureCredential
from azure.storage.blob import BlobServiceClient
service = BlobServiceClient("https://strgtest.blob.core.windows.net", DefaultAzureCredential())
box = service.get_container_client("leases")
box.create_container()
blob, said = box.get_blob_client("Lock"), {}
def refused(call):
    try:
        call()
    except HttpResponseError as error:
        return [error.status_code, error.error_code]
blob.upload_blob(b"")
said["missing"] = refused(lambda: box.get_blob_client("none").acquire_lease(15))
said["duration"] = refused(lambda: blob.acquire_lease(14))
first = blob.acquire_lease(15)
said["held"] = [blob.get_blob_properties().lease.state, blob.get_blob_properties().lease.status]
said["second"] = refused(lambda: blob.acquire_lease(60))
said["other_name"] = refused(lambda: box.upload_blob("lock", b"") and None)
said["write"] = refused(lambda: blob.set_blob_metadata({"a": "b"}))
said["overwrite"] = refused(lambda: blob.upload_blob(b"x", overwrite=True))
said["delete"] = refused(lambda: blob.delete_blob())
said["wrong"] = refused(lambda: blob.set_blob_metadata({"a": "b"}, lease=str(uuid.uuid4())))
blob.set_blob_metadata({"a": "b"}, lease=first)
said["meta"] = blob.get_blob_properties().metadata
time.sleep(8)
first.renew()
time.sleep(8)
said["renewed"] = refused(lambda: blob.acquire_lease(15))
time.sleep(8)
said["expired"] = blob.get_blob_properties().lease.state
said["stale_write"] = refused(lambda: blob.set_blob_metadata({"c": "d"}, lease=first))
second = blob.acquire_lease(60)
said["lost"] = refused(first.renew)
said["break"] = second.break_lease(0)
said["broken"] = [blob.get_blob_properties().lease.state, refused(second.renew)]
third = blob.acquire_lease(-1)
said["infinite"] = blob.get_blob_properties().lease.duration
third.release()
said["released"] = blob.get_blob_properties().lease.state
blob.delete_blob()
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said(azure: LocalAzure, workspace: str) -> dict[str, object]:
    done = azure.run("-c", CLIENT)
    assert done.returncode == 0, done.stderr
    return last_json(done.stdout)


def test_a_lease_keeps_others_from_leasing_and_writing(said: dict[str, object]) -> None:
    assert said["held"] == ["leased", "locked"]
    assert said["second"] == [409, "LeaseAlreadyPresent"]
    assert said["write"] == said["overwrite"] == said["delete"] == [412, "LeaseIdMissing"]
    assert said["wrong"] == [412, "LeaseIdMismatchWithBlobOperation"]


def test_its_holder_writes_and_another_blob_is_free(said: dict[str, object]) -> None:
    assert said["meta"] == {"a": "b"}
    assert said["other_name"] is None


def test_it_lasts_as_long_as_it_is_renewed_and_not_longer(said: dict[str, object]) -> None:
    assert said["renewed"] == [409, "LeaseAlreadyPresent"]
    assert said["expired"] == "expired"
    assert said["stale_write"] == [412, "LeaseNotPresentWithBlobOperation"]
    assert said["lost"] == [409, "LeaseIdMismatchWithLeaseOperation"]


def test_it_can_be_broken_and_released(said: dict[str, object]) -> None:
    assert said["break"] == 0
    assert said["broken"] == ["broken", [409, "LeaseIdMismatchWithLeaseOperation"]]
    assert said["infinite"] == "infinite"
    assert said["released"] == "available"


def test_only_existing_blobs_and_whole_durations_are_leased(said: dict[str, object]) -> None:
    assert said["missing"] == [404, "BlobNotFound"]
    assert said["duration"] == [400, "InvalidHeaderValue"]
