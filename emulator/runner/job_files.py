"""What the nodes of a job see on disk: the snapshot, inputs and outputs in each of their modes, and the logs.

Modes: learn.microsoft.com/azure/machine-learning/how-to-read-write-data-v2. A mounted output is in the storage account
as soon as it is written, so it outlives a node that goes away; an uploaded one gets there when the command has ended.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from emulator.arm.schema import ArmError, Body
from emulator.blobs import Blobs
from emulator.home import Home
from emulator.runner import locations
from emulator.runner.locations import Location
from emulator.state import State

INPUT_MODES = ("readonlymount", "readwritemount", "download", "direct")
OUTPUT_MODES = ("readwritemount", "upload", "direct")


def check_modes(properties: Body) -> None:
    """Raise ArmError 400 for a way of passing data that Azure does not have, or that is not emulated."""
    for kind, allowed in (("inputs", INPUT_MODES), ("outputs", OUTPUT_MODES)):
        for name, value in (properties.get(kind) or {}).items():
            mode = str((value or {}).get("mode") or allowed[0])
            if mode.lower() not in allowed:
                raise ArmError(400, "UserError", f"The mode '{mode}' of {kind}.{name} is not emulated.")


@dataclass(frozen=True)
class JobFiles:
    """The folders of one job. `nodes`: how many machines it runs on; each has its own copy of the snapshot."""

    job_id: str
    properties: Body
    folder: Path
    state: State
    blobs: Blobs
    nodes: int = 1

    @classmethod
    def of(cls, home: Home, state: State, blobs: Blobs, job: Body) -> JobFiles:
        nodes = int((job["properties"].get("resources") or {}).get("instanceCount") or 1)
        return cls(job["id"], job["properties"], home.work / "jobs" / job["name"], state, blobs, nodes)

    @property
    def workspace(self) -> str:
        return "/".join(self.job_id.split("/")[:9])

    @property
    def name(self) -> str:
        return self.job_id.split("/")[-1]

    def code(self, node: int = 0) -> Path:
        return self.folder / "code" / str(node)

    def artifacts(self, path: str) -> Location:
        """A place among the job's own artifacts, where its logs lie too."""
        where = f"ExperimentRun/dcid.{self.name}/{path}"
        return locations.of_datastore(self.state, self.workspace, "workspaceartifactstore", where)

    def lay_out(self) -> tuple[dict[str, str], dict[str, str]]:
        """Bring everything to the nodes; returns what the placeholders of inputs and outputs become."""
        for node in range(self.nodes):
            self.code(node).mkdir(parents=True)
            if self.properties.get("codeId"):
                self._copy(locations.resolve(self.state, self.workspace, self.properties["codeId"]), self.code(node))
        inputs = self.properties.get("inputs") or {}
        return (
            {name: self._input(name, value) for name, value in inputs.items() if value is not None},
            {name: self._output(name) for name in self._outputs()},
        )

    def _copy(self, place: Location, to: Path) -> int:
        return self.blobs.copy_tree(place.account, place.container, place.path, to)

    def _input(self, name: str, value: Body) -> str:
        if str(value.get("jobInputType", "")).lower() == "literal":
            return str(value["value"])
        place = locations.resolve(self.state, self.workspace, value["uri"])
        mode = _mode(value, INPUT_MODES)
        if mode == "direct":
            return locations.absolute(self.workspace, locations.uri_of(self.state, self.workspace, value["uri"]))
        folder = self.folder / "inputs" / name
        target = folder / place.leaf if self.blobs.has(place.account, place.container, place.path) else folder
        if self._copy(place, target) == 0:
            raise ArmError(400, "UserError", f"The input path '{value['uri']}' holds no files.")
        if mode == "readonlymount":
            _set_writable(folder, False)
        return str(target)

    def _outputs(self) -> list[str]:
        return [name for name in self.properties.get("outputs") or {} if name != "default"]

    def _output_uri(self, name: str) -> str:
        return (self.properties["outputs"][name] or {}).get("uri") or locations.output_uri(self.name, name)

    def _output(self, name: str) -> str:
        """A mounted output shows what is there already: a run that goes on finds its checkpoints."""
        uri, mode = self._output_uri(name), _mode(self.properties["outputs"][name], OUTPUT_MODES)
        if mode == "direct":
            return locations.absolute(self.workspace, uri)
        folder = self.folder / "outputs" / name
        is_file = str((self.properties["outputs"][name] or {}).get("jobOutputType", "")).lower() == "uri_file"
        (folder.parent if is_file else folder).mkdir(parents=True, exist_ok=True)
        if mode == "readwritemount":
            self._mount(name, locations.resolve(self.state, self.workspace, uri), folder)
        return str(folder)

    def _mount(self, name: str, place: Location, folder: Path) -> None:
        """Fill a mounted output with what is stored there, and note that: what is gone in the end was deleted."""
        self._copy(place, folder)
        (self.folder / "mounted").mkdir(exist_ok=True)
        (self.folder / "mounted" / name).write_text("\n".join(_files(folder)))

    def save(self, *, ended: bool) -> None:
        """Store what was written. `ended`: by itself; a command that was stopped leaves its mounted outputs alone."""
        for name in self._outputs():
            mode = _mode(self.properties["outputs"][name], OUTPUT_MODES)
            if mode == "readwritemount" or (mode == "upload" and ended):
                place = locations.resolve(self.state, self.workspace, self._output_uri(name))
                self._store(place, self.folder / "outputs" / name)
                self._delete(name, place)
        for name, value in (self.properties.get("inputs") or {}).items():
            if _mode(value, INPUT_MODES) == "readwritemount" and (value or {}).get("uri"):
                self._store(locations.resolve(self.state, self.workspace, value["uri"]), self.folder / "inputs" / name)
        for name in ("outputs", "logs") if ended else ():
            self._store(self.artifacts(name), self.code() / name)

    def _store(self, place: Location, source: Path) -> None:
        if source.is_file():
            self.blobs.add_file(place.account, place.container, place.path.rstrip("/"), source)
            return
        for name in _files(source):
            self.blobs.add_file(place.account, place.container, _join(place, name), source / name)

    def _delete(self, output: str, place: Location) -> None:
        """Delete what the job deleted from a mounted output."""
        noted = self.folder / "mounted" / output
        for name in noted.read_text().splitlines() if noted.exists() else []:
            if not (self.folder / "outputs" / output / name).exists():
                self.blobs.delete(place.account, place.container, _join(place, name))

    # -- logs ----------------------------------------------------------------------------------------------------------

    def log(self, name: str) -> Path:
        """A log that clients read while it grows. What is in it stays: a job that goes on adds to it."""
        path, place = self.folder / "logs" / name, self.artifacts(name)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            self.blobs.copy_tree(place.account, place.container, place.path, path)
            path.touch()
        self.blobs.add_live_file(place.account, place.container, place.path, path)
        return path

    def keep_logs(self) -> None:
        for name in _files(self.folder / "logs"):
            place = self.artifacts(name)
            self.blobs.add_file(place.account, place.container, place.path, self.folder / "logs" / name)

    def remove(self) -> None:
        if self.folder.exists():
            _set_writable(self.folder / "inputs", True)
            shutil.rmtree(self.folder, ignore_errors=True)


def _files(folder: Path) -> list[str]:
    """The files below a folder, by their paths in it."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _join(place: Location, name: str) -> str:
    return f"{place.path.rstrip('/')}/{name}".lstrip("/")


def _mode(value: Body | None, allowed: tuple[str, ...]) -> str:
    return str((value or {}).get("mode") or allowed[0]).lower()


def _set_writable(folder: Path, writable: bool) -> None:
    for path in [folder, *folder.rglob("*")] if folder.exists() else []:
        path.chmod((0o755 if path.is_dir() else 0o644) if writable else (0o555 if path.is_dir() else 0o444))
