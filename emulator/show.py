"""What an emulator shows of itself: status, logs, requests. Reads its state, so that it also works after a stop."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from emulator.home import Home
from emulator.state import State

TERMINAL = ("Completed", "Failed", "Canceled")
FOLLOW_EVERY = 0.3  # seconds
ML = "microsoft.machinelearningservices/workspaces"


@contextlib.contextmanager
def opened(home: Home) -> Iterator[State | None]:
    """The emulator's state, or None where there is none yet."""
    if not home.database.exists():
        yield None
        return
    state = State(home.database)
    try:
        yield state
    finally:
        state.close()


def status(record: dict[str, Any], home: Home, found: dict[str, Any], *, as_json: bool) -> None:
    """`found`: what the running emulator said of itself."""
    if as_json:
        print(json.dumps({**record, "home": str(home.path), **found}))
        return
    print(f"running: process {record['pid']}, proxy on 127.0.0.1:{record['port']}, state in {home.path}")
    for kind, count in found["resources"].items():
        print(f"  {count:4d}  {kind}")
    for kind, rows in (("job", found["jobs"]), ("deployment", found["deployments"])):
        for name, what in rows:
            print(f"  {kind:10s}  {name:40s}  {what}")
    for fault in found["faults"]:
        print(f"  fault {fault['number']}: {fault['kind']} {fault['match']!r}, {fault['seen']} requests seen")
    for asked in found["not_emulated"]:
        print(f"  not emulated: {asked}")


def requests(state: State, *, match: str, method: str, status: str, failed: bool, last: int) -> None:
    """Print the requests that fit, oldest first; `status` may be 404 or 4xx, `last` 0 is all of them."""
    rows = [row for row in state.requests() if _fits(row, match.lower(), method.upper(), status, failed)]
    for at, verb, host, path, code, ms, note in rows[-last:] if last else rows:
        when = datetime.fromtimestamp(at).strftime("%H:%M:%S")
        print(f"{when} {verb:6s} {code} {ms:7.1f} ms  {host}{path}{'  (' + note + ')' if note else ''}")


def _fits(row: tuple[Any, ...], match: str, method: str, status: str, failed: bool) -> bool:
    _, verb, host, path, code, _, note = row
    if status and not all(wanted in ("x", have) for wanted, have in zip(status.lower(), str(code), strict=False)):
        return False
    if failed and code < 400:
        return False
    return method in ("", verb) and match in f"{verb} {host}{path} {note}".lower()


def logs(home: Home, name: str, *, follow: bool) -> bool:
    """Print the logs of a job or of ENDPOINT/DEPLOYMENT, with `follow` until it ends; False if there is none."""
    read: dict[str, int] = {}
    found = False
    while True:
        ended = not follow or _is_over(home, name)  # asked first: what is written until then is printed below
        paths = _paths(home, name)
        found = found or bool(paths)
        for title, path in paths:
            _print_new(title, path, read, titled=len(paths) > 1)
        if ended or not found:
            return found
        time.sleep(FOLLOW_EVERY)


def _print_new(title: str, path: Path, read: dict[str, int], *, titled: bool) -> None:
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:  # it moves when its job ends
        file.seek(read.get(title, 0))
        new = file.read()
        if new:
            if titled:
                print(f"== {title} ==")
            print(new.decode(errors="replace"), end="", flush=True)
        read[title] = read.get(title, 0) + len(new)


def _paths(home: Home, name: str) -> list[tuple[str, Path]]:
    """The logs by their titles: what the job's processes wrote, or else what happened before they began."""
    if "/" in name:
        return [(name, path) for path in (home.work / "deployments").glob(f"*/{name.lower()}/log.txt")]
    prefix = f"ExperimentRun/dcid.{name}/"
    with opened(home) as state:
        accounts = state.of_type("Microsoft.Storage/storageAccounts") if state else []
        blobs = [row for one in accounts for row in (state.list_blobs(one["name"], "azureml", prefix) if state else [])]
    logs = [(blob[len(prefix) :], path) for blob, path, _ in blobs]
    own = [(title, path) for title, path in logs if title.startswith(("user_logs/", "logs/azureml/"))]
    written = any(path.exists() and path.stat().st_size for _, path in own)
    return own if written else [(title, path) for title, path in logs if title.startswith("azureml-logs/")] + own


def _is_over(home: Home, name: str) -> bool:
    if "/" in name:
        return not list((home.work / "deployments").glob(f"*/{name.lower()}"))
    with opened(home) as state:
        jobs = state.of_type(f"{ML}/jobs") if state else []
    return all(job["properties"]["status"] in TERMINAL for job in jobs if job["name"] == name)
