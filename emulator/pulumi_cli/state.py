"""Stacks on disk: resources, outputs, history, one update at a time, and which stack is selected.

Every write replaces a whole file by a rename, so a process killed at any moment leaves the last complete state.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from emulator.pulumi_cli.errors import CliError
from emulator.pulumi_cli.project import Project


@dataclass
class Resource:
    """One resource of a stack, as the last operation left it. A component has no id."""

    urn: str
    type: str
    name: str
    custom: bool
    id: str = ""
    parent: str = ""
    inputs: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)
    dependencies: list[str] = field(default_factory=list)
    property_dependencies: dict[str, list[str]] = field(default_factory=dict)
    protect: bool = False
    retain_on_delete: bool = False
    deleted_with: str = ""
    delete: bool = False  # replaced by a new one, its deletion still to be done


@dataclass
class Snapshot:
    """Everything that is known about a stack. `pending` holds creations that were begun and not yet recorded."""

    resources: list[Resource] = field(default_factory=list)
    pending: list[Resource] = field(default_factory=list)
    outputs: dict[str, Any] = field(default_factory=dict)
    secret_outputs: list[str] = field(default_factory=list)

    def live(self, urn: str) -> Resource | None:
        return next((one for one in self.resources if one.urn == urn and not one.delete), None)


class Stack:
    """A stack's files, and its snapshot while an update runs. `save` may be called from any thread."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name, self.file = name, folder / f"{name}.json"
        self._history, self._lock_file = folder / f"{name}.history", folder / f"{name}.lock"
        self._mutex = threading.RLock()
        self.snapshot = Snapshot()

    def exists(self) -> bool:
        return self.file.exists()

    def load(self) -> Snapshot:
        values = json.loads(self.file.read_text())
        self.snapshot = Snapshot(
            [Resource(**one) for one in values["resources"]],
            [Resource(**one) for one in values["pending"]],
            values["outputs"],
            values["secret_outputs"],
        )
        return self.snapshot

    @contextlib.contextmanager
    def changing(self) -> Iterator[Snapshot]:
        """Change the snapshot under the lock; it is saved when the block ends."""
        with self._mutex:
            yield self.snapshot
            self.save()

    def save(self) -> None:
        with self._mutex:
            _write(self.file, json.dumps(dataclasses.asdict(self.snapshot), indent=1))

    @contextlib.contextmanager
    def update(self) -> Iterator[None]:
        """Hold the stack for one update; the kernel lets it go when the process dies, however it dies."""
        with self._lock_file.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip()
                raise CliError(
                    f"the stack is currently locked by another update of {self.name!r} (process {holder}); "
                    "wait until it has ended"
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            self.load()
            yield

    def history(self) -> list[dict[str, Any]]:
        """The updates of this stack, newest first."""
        if not self._history.exists():
            return []
        return [json.loads(line) for line in reversed(self._history.read_text().splitlines())]

    def record(self, entry: dict[str, Any]) -> None:
        numbered = {"version": len(self.history()) + 1, **entry}
        with self._history.open("a") as file:
            file.write(json.dumps(numbered) + "\n")

    def remove(self) -> None:
        for file in (self._history, self._lock_file, self.file):
            file.unlink(missing_ok=True)


class Backend:
    """The stacks of one project in the folder that PULUMI_BACKEND_URL names, and the selection in PULUMI_HOME."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self._folder = _backend_folder() / "in-process" / project.name
        home = Path(os.environ.get("PULUMI_HOME") or Path.home() / ".pulumi")
        place = hashlib.sha1(str(project.root / "Pulumi.yaml").encode()).hexdigest()
        self._selection = home / "workspaces" / f"{project.name}-{place}-workspace.json"

    def names(self) -> list[str]:
        return sorted(file.stem for file in self._folder.glob("*.json"))

    def stack(self, name: str | None) -> Stack:
        """The named stack, else the selected one."""
        chosen = _plain(name) if name else self.selected()
        if chosen is None:
            raise CliError("no stack is selected; name one: --stack NAME, or pulumi stack select NAME")
        found = Stack(self._folder, chosen)
        if not found.exists():
            raise CliError(f"no stack named '{chosen}' found")
        return found

    def create(self, name: str) -> Stack:
        made = Stack(self._folder, _plain(name))
        if made.exists():
            raise CliError(f"stack '{made.name}' already exists")
        self._folder.mkdir(parents=True, exist_ok=True)
        made.save()
        return made

    def selected(self) -> str | None:
        try:
            name = json.loads(self._selection.read_text()).get("stack")
        except (OSError, ValueError):
            return None
        return name if isinstance(name, str) else None

    def select(self, name: str | None) -> None:
        self._selection.parent.mkdir(parents=True, exist_ok=True)
        _write(self._selection, json.dumps({"stack": name} if name else {}))


def _backend_folder() -> Path:
    url = urlparse(os.environ.get("PULUMI_BACKEND_URL", ""))
    if url.scheme != "file":
        raise CliError(
            "PULUMI_BACKEND_URL must be file://FOLDER here; run the command inside `python -m emulator run --`"
        )
    return Path(unquote(url.netloc + url.path)).expanduser()


def _plain(name: str) -> str:
    """A stack's own name: the folder backend knows `organization/project/stack` too."""
    plain = name.rsplit("/", 1)[-1]
    if not plain or not all(letter.isalnum() or letter in "-_." for letter in plain):
        raise CliError(f"a stack's name has only letters, digits, '-', '_' and '.', which {name!r} has not")
    return plain


def _write(file: Path, text: str) -> None:
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    with temporary.open("w") as out:
        out.write(text + "\n")
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(file)
