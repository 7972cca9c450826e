"""Blob storage through azure-storage-blob, and what it must refuse."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from emulator.sas import SharedAccess
from tests.support.local_azure import LocalAzure

STORAGE = "https://storage.azure.com"
ACCOUNT = "https://strgtest.blob.core.windows.net"
CLIENT = """
import json, os
from azure.core.exceptions import HttpResponseError
from azure.identity import DefaultAzureCredential
from azure.storage.blob import BlobServiceClient
small = {"max_block_size": 1 << 20, "max_single_put_size": 1 << 20}
service = BlobServiceClient("https://strgtest.blob.core.windows.net", DefaultAzureCredential(), **small)
box = service.create_container("box")
data = os.urandom(3 << 20)
box.upload_blob("a/big.bin", data, metadata={"kind": "test"})
box.upload_blob("a/ü & <x>.txt", "ünïcode")
box.upload_blob("b.txt", b"")
said = {
    "same": box.download_blob("a/big.bin").readall() == data,
    "range": box.download_blob("a/big.bin", offset=5, length=10).readall() == data[5:15],
    "empty": box.download_blob("b.txt").readall() == b"",
    "text": box.download_blob("a/ü & <x>.txt").readall().decode(),
    "meta": box.get_blob_client("a/big.bin").get_blob_properties().metadata,
    "names": [found.name for found in box.list_blobs()],
    "below": [found.name for found in box.walk_blobs(delimiter="/")],
}
try:
    box.upload_blob("b.txt", b"again")
except HttpResponseError as error:
    said["twice"] = error.error_code
box.delete_blob("b.txt")
said["left"] = [found.name for found in box.list_blobs()]
print(json.dumps(said))
"""


def test_the_real_client_writes_reads_lists_and_deletes(azure: LocalAzure, workspace: str) -> None:
    done = azure.run("-c", CLIENT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == {
        "same": True,
        "range": True,
        "empty": True,
        "text": "ünïcode",
        "meta": {"kind": "test"},
        "names": ["a/big.bin", "a/ü & <x>.txt", "b.txt"],
        "below": ["a/", "b.txt"],
        "twice": "BlobAlreadyExists",
        "left": ["a/big.bin", "a/ü & <x>.txt"],
    }


@pytest.fixture(scope="module")
def shared_access(azure: LocalAzure, workspace: str) -> SharedAccess:
    azure.request("PUT", f"{ACCOUNT}/sealed?restype=container", audience=STORAGE)
    headers = {"x-ms-blob-type": "BlockBlob"}
    azure.request("PUT", f"{ACCOUNT}/sealed/x.txt", audience=STORAGE, headers=headers, data=b"x")
    return SharedAccess(azure.home.secrets()["sas_key"])


def test_a_signature_opens_what_it_names_and_nothing_else(azure: LocalAzure, shared_access: SharedAccess) -> None:
    token = shared_access.for_blob("strgtest", "sealed", "x.txt")
    assert azure.request("GET", f"{ACCOUNT}/sealed/x.txt?{token}", audience=None).content == b"x"
    assert azure.request("GET", f"{ACCOUNT}/sealed/y.txt?{token}", audience=None).status_code == 403
    assert azure.request("DELETE", f"{ACCOUNT}/sealed/x.txt?{token}", audience=None).status_code == 403


def test_a_forged_or_expired_signature_is_refused(azure: LocalAzure, shared_access: SharedAccess) -> None:
    from azure.storage.blob import BlobSasPermissions, generate_blob_sas

    token = shared_access.for_blob("strgtest", "sealed", "x.txt")
    forged = token.replace("sp=r", "sp=rwd")
    assert azure.request("GET", f"{ACCOUNT}/sealed/x.txt?{forged}", audience=None).status_code == 403
    old = generate_blob_sas(
        "strgtest",
        "sealed",
        "x.txt",
        account_key=shared_access.key("strgtest"),
        permission=BlobSasPermissions(read=True),
        expiry=datetime.now(UTC) - timedelta(minutes=1),
    )
    assert azure.request("GET", f"{ACCOUNT}/sealed/x.txt?{old}", audience=None).status_code == 403


def test_no_token_a_wrong_audience_and_a_missing_account_are_refused(azure: LocalAzure, workspace: str) -> None:
    assert azure.request("GET", f"{ACCOUNT}/box/a", audience=None).status_code == 401
    assert azure.request("GET", f"{ACCOUNT}/box/a", audience="https://management.azure.com").status_code == 401
    elsewhere = "https://nosuchaccount.blob.core.windows.net/box/a"
    assert azure.request("GET", elsewhere, audience=STORAGE).status_code == 404


BY_KEY = """
import sys
from azure.core.exceptions import HttpResponseError
from azure.storage.blob import BlobServiceClient
def box(key):
    account = BlobServiceClient("https://strgtest.blob.core.windows.net", key, retry_total=0)
    return account.get_container_client("azureml")
mine = box(sys.argv[1])
mine.upload_blob("by key/ü.txt", b"x" * 5000, metadata={"a": "b"}, overwrite=True)
mine.upload_blob("empty", b"", overwrite=True)
print(mine.download_blob("by key/ü.txt", offset=1, length=2).readall(), [one.name for one in mine.list_blobs("by ")])
try:
    list(box("d3Jvbmc=").list_blobs())
except HttpResponseError as error:
    print(error.status_code, error.error_code.value)
"""


def test_the_real_client_signs_with_the_accounts_key(azure: LocalAzure, workspace: str) -> None:
    group = workspace.split("/providers/")[0]
    account = f"{group}/providers/Microsoft.Storage/storageAccounts/strgtest"
    key = azure.request("POST", f"{account}/listKeys").json()["keys"][0]["value"]
    done = azure.run("-c", BY_KEY, key)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == ["b'xx' ['by key/ü.txt']", "403 AuthenticationFailed"]
