"""What a client was told is done stays done, whenever the emulator is killed; and many clients at once are served."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests

from emulator.home import SUBSCRIPTION_ID
from tests.support.local_azure import ARM, LocalAzure
from tests.support.raw_jobs import STORAGE, submit, wait

pytestmark = pytest.mark.slow
KILLS = 20


class Writer(threading.Thread):
    """Makes groups and blobs until it is refused; remembers what it was told is there."""

    def __init__(self, azure: LocalAzure, workspace: str, number: int) -> None:
        super().__init__()
        self.azure, self.number = azure, number
        store = azure.request("GET", f"{workspace}/datastores/workspaceblobstore").json()["properties"]
        self.box = f"https://{store['accountName']}.blob.core.windows.net/{store['containerName']}"
        self.tokens = azure.token(ARM), azure.token(STORAGE)
        self.groups: list[str] = []
        self.blobs: dict[str, str] = {}

    def run(self) -> None:
        try:
            for count in range(10_000):
                self._write(f"k{self.number}-{count}")
        except requests.RequestException:
            pass  # killed

    def _write(self, name: str) -> None:
        group = f"/subscriptions/{SUBSCRIPTION_ID}/resourceGroups/{name}"
        if self._put(f"{ARM}{group}", self.tokens[0], json={"location": "eastus2"}) == 201:
            self.groups.append(group)
        data = random.Random(name).randbytes(200_000)
        if self._put(f"{self.box}/{name}", self.tokens[1], data=data) == 201:
            self.blobs[f"{self.box}/{name}"] = hashlib.sha256(data).hexdigest()

    def _put(self, url: str, token: str, **body: object) -> int:
        headers = {"x-ms-blob-type": "BlockBlob"}
        return self.azure.request(
            "PUT", url, audience=None, headers={**headers, "Authorization": f"Bearer {token}"}, **body
        ).status_code


def test_nothing_that_was_acknowledged_is_lost_by_kills_at_random_moments(tmp_path: Path) -> None:
    dice, azure = random.Random(1), LocalAzure.start(tmp_path)
    workspace = azure.make_workspace()
    groups, blobs = [], dict[str, str]()
    for number in range(KILLS):
        writer = Writer(azure, workspace, number)
        submit(azure, workspace, f"job{number}", "sleep 300")
        writer.start()
        time.sleep(dice.uniform(0.1, 1.5))
        os.kill(azure.record["pid"], signal.SIGKILL)
        writer.join()
        groups += writer.groups
        blobs |= writer.blobs
        while azure.home.running():
            time.sleep(0.02)
        azure = LocalAzure.start(tmp_path)
        assert wait(azure, f"{workspace}/jobs/job{number}", "Failed")
    for group in groups:
        assert azure.request("GET", group).status_code == 200
    for blob, digest in blobs.items():
        found = azure.request("GET", blob, audience=STORAGE)
        assert hashlib.sha256(found.content).hexdigest() == digest
    azure.stop()
    print(f"\n{KILLS} kills: {len(groups)} groups and {len(blobs)} blobs were acknowledged, and are there")


def test_fifty_jobs_queue_and_two_hundred_requests_at_once_are_answered(azure: LocalAzure, workspace: str) -> None:
    token = azure.token(ARM)

    def ask(number: int) -> tuple[int, float]:
        begun = time.perf_counter()
        headers = {"Authorization": f"Bearer {token}"}
        return azure.request("GET", workspace, audience=None, headers=headers).status_code, time.perf_counter() - begun

    jobs = [submit(azure, workspace, f"many{number}", "true") for number in range(50)]
    with ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(ask, range(200)))
    assert {status for status, _ in answers} == {200}
    for job in jobs:
        wait(azure, job, "Completed")


def test_the_bars_are_measured(tmp_path: Path) -> None:
    """Prints the figures; a busy machine decides nothing here."""
    begun = time.perf_counter()
    azure = LocalAzure.start(tmp_path)
    started = time.perf_counter() - begun
    workspace = azure.make_workspace()
    idle = psutil.Process(azure.record["pid"]).memory_info().rss / 1e6
    session, token = azure._session(), azure.token(ARM)
    times = []
    for _ in range(300):
        begun = time.perf_counter()
        session.get(f"{ARM}{workspace}", headers={"Authorization": f"Bearer {token}"}).raise_for_status()
        times.append(time.perf_counter() - begun)
    up, down = _transfer(azure, workspace, tmp_path)
    azure.stop()
    median = sorted(times)[150] * 1000
    print(f"\nstart {started:.2f} s, idle {idle:.0f} MB, GET {median:.2f} ms (median of 300)", end="")
    print(f", 512 MB up {512 / up:.0f} MB/s, down {512 / down:.0f} MB/s; load {os.getloadavg()[0]:.1f}")


TRANSFER = """
import sys, time
from azure.identity import DefaultAzureCredential
from azure.storage.blob import BlobServiceClient
account = BlobServiceClient(sys.argv[1], DefaultAzureCredential())
box, data = account.get_container_client("azureml"), bytes(512 << 20)
box.upload_blob("small", b"x"); begun = time.perf_counter()
box.upload_blob("big", data, max_concurrency=4); up = time.perf_counter() - begun
begun = time.perf_counter()
assert len(box.download_blob("big", max_concurrency=4).readall()) == len(data)
print(up, time.perf_counter() - begun)
"""


def _transfer(azure: LocalAzure, workspace: str, folder: Path) -> tuple[float, float]:
    (folder / "transfer.py").write_text(TRANSFER)
    store = azure.request("GET", f"{workspace}/datastores/workspaceblobstore").json()["properties"]
    done = azure.run(str(folder / "transfer.py"), f"https://{store['accountName']}.blob.core.windows.net")
    up, down = done.stdout.split()
    return float(up), float(down)
