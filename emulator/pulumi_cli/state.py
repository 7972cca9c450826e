"""Stacks on disk: resources, outputs, tags, history, one update at a time, and which stack is selected.

Every write replaces a whole file by a rename, so a process killed at any moment leaves the last complete state.
Secrets are encrypted in it.
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

from emulator.pulumi_cli.errors import NO_STACK, CliError
from emulator.pulumi_cli.project import Project
from emulator.pulumi_cli.secrets import Crypter
from emulator.pulumi_provider.values import SECRET, SIGNATURE


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
    replace_on_changes: list[str] = field(default_factory=list)
    secrets: list[str] = field(default_factory=list)  # which inputs and outputs are secret
    delete: bool = False  # replaced by a new one, its deletion still to be done

    def is_same(self, other: Resource) -> bool:
        """Whether both are the same thing in Azure: a replaced resource has its successor's URN, and another id."""
        return self.urn == other.urn and self.id == other.id

    def needs(self) -> Iterator[str]:
        """URNs of what has to be there as long as this is."""
        yield from (self.parent, self.deleted_with, *self.dependencies)
        for urns in self.property_dependencies.values():
            yield from urns


@dataclass
class Snapshot:
    """Everything that is known about a stack. `pending` holds creations that were begun and not yet recorded."""

    resources: list[Resource] = field(default_factory=list)
    pending: list[Resource] = field(default_factory=list)
    outputs: dict[str, Any] = field(default_factory=dict)
    secret_outputs: list[str] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    encryptionsalt: str = ""

    def live(self, urn: str) -> Resource | None:
        return next((one for one in self.resources if one.urn == urn and not one.delete), None)

    def begun(self, urn: str) -> Resource | None:
        return next((one for one in self.pending if one.urn == urn), None)

    def rename(self, old: str, new: str) -> None:
        """Let a resource be known under another URN, to itself and to all that refer to it."""
        for one in (*self.resources, *self.pending):
            one.urn = new if one.urn == old else one.urn
            one.parent = new if one.parent == old else one.parent
            one.deleted_with = new if one.deleted_with == old else one.deleted_with
            one.dependencies = [new if urn == old else urn for urn in one.dependencies]
            one.property_dependencies = {
                key: [new if urn == old else urn for urn in urns] for key, urns in one.property_dependencies.items()
            }

    # --- as text --------------------------------------------------------------------------------------------------

    def sealed(self, *, in_clear: bool = False) -> dict[str, Any]:
        """For the disk: every secret encrypted, or with `in_clear` only marked."""
        values = dataclasses.asdict(self)
        for bag, secret in _bags(values):
            for key in secret & set(bag):
                text = json.dumps(bag[key])
                bag[key] = {SIGNATURE: SECRET} | (
                    {"plaintext": text} if in_clear else {"ciphertext": self._crypter().encrypt(text)}
                )
        values["encryptionsalt"] = self.encryptionsalt
        return values

    @classmethod
    def opened(cls, values: dict[str, Any]) -> Snapshot:
        """From the disk."""
        known = {one.name for one in dataclasses.fields(cls)}
        made = cls(**{key: value for key, value in values.items() if key in known})
        for bag, secret in _bags(values):
            for key in secret & set(bag):
                sealed = bag[key]
                bag[key] = json.loads(sealed.get("plaintext") or made._crypter().decrypt(sealed["ciphertext"]))
        made.resources = [Resource(**one) for one in values["resources"]]
        made.pending = [Resource(**one) for one in values["pending"]]
        return made

    def _crypter(self) -> Crypter:
        if self.encryptionsalt:
            return Crypter(self.encryptionsalt)
        made = Crypter.new()
        self.encryptionsalt = made.state
        return made


def _bags(values: dict[str, Any]) -> Iterator[tuple[dict[str, Any], set[str]]]:
    """Each set of values of a snapshot, with the keys in it that are secret."""
    yield values["outputs"], set(values["secret_outputs"])
    for one in (*values["resources"], *values["pending"]):
        yield one["inputs"], set(one.get("secrets", ()))
        yield one["outputs"], set(one.get("secrets", ()))


class Stack:
    """A stack's files, and its snapshot while an update runs. `changing` may be called from any thread.

    With `rehearsal` nothing is written: a preview changes the snapshot as the update would, and forgets it.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.name, self.file = name, folder / f"{name}.json"
        self._history, self._lock_file = folder / f"{name}.history", folder / f"{name}.lock"
        self._mutex = threading.RLock()
        self.snapshot = Snapshot()
        self.rehearsal = False

    def exists(self) -> bool:
        return self.file.exists()

    def load(self) -> Snapshot:
        self.snapshot = Snapshot.opened(json.loads(self.file.read_text()))
        return self.snapshot

    @contextlib.contextmanager
    def changing(self) -> Iterator[Snapshot]:
        """Change the snapshot under the lock; it is saved when the block ends."""
        with self._mutex:
            yield self.snapshot
            self.save()

    def save(self) -> None:
        if self.rehearsal:
            return
        with self._mutex:
            write(self.file, json.dumps(self.snapshot.sealed(), indent=1))

    @contextlib.contextmanager
    def update(self) -> Iterator[None]:
        """Hold the stack for one update; the kernel lets it go when the process dies, however it dies."""
        with self._lock_file.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise CliError(
                    f"the stack is currently locked by another update of {self.name!r} (process "
                    f"{file.read().strip()}); wait until it has ended, or stop it: pulumi cancel"
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            self.load()
            yield

    def holder(self) -> int | None:
        """The process that holds the stack for an update, if any."""
        if not self._lock_file.exists():
            return None
        with self._lock_file.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read().strip() or 0) or None
        return None

    def history(self) -> list[dict[str, Any]]:
        """The updates of this stack, newest first."""
        if not self._history.exists():
            return []
        return [json.loads(line) for line in reversed(self._history.read_text().splitlines())]

    def record(self, entry: dict[str, Any]) -> None:
        numbered = {"version": len(self.history()) + 1, **entry}
        with self._history.open("a") as file:
            file.write(json.dumps(numbered) + "\n")

    def rename(self, other: Stack) -> None:
        """Become `other`, whose name every URN takes."""
        with self.update():
            for one in [*self.snapshot.resources, *self.snapshot.pending]:
                if not one.parent:  # the stack itself, whose name ends in its own
                    one.name = one.name.removesuffix(self.name) + other.name
                _, project, kind, _ = one.urn.split("::", 3)
                self.snapshot.rename(one.urn, f"urn:pulumi:{other.name}::{project}::{kind}::{one.name}")
            other.snapshot = self.snapshot
            other.save()
            if self._history.exists():
                self._history.rename(other._history)
            self.remove()

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
            raise CliError("no stack selected; name one: --stack NAME, or pulumi stack select NAME")
        found = Stack(self._folder, chosen)
        if not found.exists():
            raise CliError(f"no stack named '{chosen}' found", code=NO_STACK)
        return found

    def new(self, name: str) -> Stack:
        """A stack that is not there yet."""
        made = Stack(self._folder, _plain(name))
        if made.exists():
            raise CliError(f"stack '{made.name}' already exists")
        self._folder.mkdir(parents=True, exist_ok=True)
        return made

    def create(self, name: str) -> Stack:
        made = self.new(name)
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
        write(self._selection, json.dumps({"stack": name} if name else {}))


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


def write(file: Path, text: str) -> None:
    """Replace a file as a whole, so that no reader and no crash ever sees half of it."""
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    with temporary.open("w") as out:
        out.write(text + "\n")
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(file)
