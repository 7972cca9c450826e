"""What a run leaves in its output folder, and how another start of it goes on from there.

    OUTPUT/checkpoints/run.json         whose checkpoints these are
    OUTPUT/checkpoints/checkpoint-N     the trainer's own, after N optimizer steps; its complete.json is written last
    OUTPUT/complete.json                written last: a folder without it is not a finished model

The folder may be a blob container that is mounted. A rename there is a copy file by file, which a node that goes away
leaves half done, and what was written arrives when it is flushed. So nothing here is renamed: a marker with the name
and size of every file is written when all of them are flushed, and a folder counts only if it agrees with its marker.
Several processes may share the folder; the first one writes and decides, and tells the others.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from infra.cli import WRONG_USE, UserError, say
from training.ranks import is_first, processes

CHECKPOINTS = "checkpoints"
RUN_FILE = "run.json"
METRICS_FILE = "metrics.json"
COMPLETE_FILE = "complete.json"
WHAT = {
    "train": "the training data",
    "eval": "the held-out data",
    "base_model": "the base model",
}

# what a mounted file system answers that knows no flushing
CANNOT_FLUSH = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


def step_of(checkpoint: Path | None) -> int:
    """The number of optimizer steps behind a checkpoint; 0 without one."""
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0


def finished_metrics(output: Path, identity: Mapping[str, str]) -> dict[str, Any] | None:
    """The metrics of a finished run of the same identity in the output folder, else None."""
    if not (output / COMPLETE_FILE).is_file() or fault_of(output) or _marker(output)["run"] != identity:
        return None
    metrics: dict[str, Any] = json.loads((output / METRICS_FILE).read_text())
    return metrics


def claim_output(output: Path, identity: Mapping[str, str], recipe: Mapping[str, Any] | None = None) -> None:
    """Make the output folder this run's. A model there that is damaged is trained again.

    Args:
        identity: what must be equal, with the number of processes, for a run to go on from another's checkpoint.
        recipe: the recipe's sections, to name what differs where `identity["recipe"]` does.

    Raises:
        UserError: it holds another run's work, or cannot be written.
    """
    if not is_first():
        return
    settings = {key: value for section in (recipe or {}).values() for key, value in section.items()}
    run = {"identity": {**identity, "processes": str(processes())}, "settings": settings}
    try:
        _refuse_finished(output, identity)
        found = _refuse_checkpoints(output, run)
        if not found or found["identity"] != run["identity"]:
            (output / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
            _write(output / CHECKPOINTS / RUN_FILE, run)
    except OSError as error:
        raise UserError(
            f"cannot write to the output folder {output}: {error.strerror}", next_command="give another --output"
        ) from None


def _refuse_finished(output: Path, identity: Mapping[str, str]) -> None:
    """Raise UserError if another run's finished model is here; forget the marker of one that is damaged."""
    marker = output / COMPLETE_FILE
    if not marker.is_file():
        return
    if fault := fault_of(output):
        say(f"the model in {output} is damaged ({fault}): training it again")
        marker.unlink()
        return
    differs = difference({"identity": _marker(output)["run"]}, {"identity": identity})
    raise _other_run(output, "the finished model", differs)


def _refuse_checkpoints(output: Path, run: Mapping[str, Any]) -> dict[str, Any] | None:
    """Whose checkpoints are here, if that is on record. Raise UserError if there are complete ones of another run."""
    found = _read_run(output)
    newest = newest_checkpoint(output)
    if newest and found is None:
        raise UserError(
            f"{output / CHECKPOINTS / RUN_FILE} is damaged: nothing says whose checkpoints these are",
            next_command=f"rm -r {output / CHECKPOINTS}",
        )
    if newest and found and found["identity"] != run["identity"]:
        raise _other_run(output, f"{newest.name}", difference(found, run))
    return found


def _read_run(output: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads((output / CHECKPOINTS / RUN_FILE).read_text())
    except (FileNotFoundError, ValueError):
        return None
    return found if "identity" in found else None


def _other_run(output: Path, work: str, differs: str) -> UserError:
    return UserError(
        f"{output} holds {work} of another run, which differs in {differs}; it is left as it is",
        next_command="give another --output, or remove that folder",
        code=WRONG_USE,
    )


def difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """In what two runs differ: three settings at most, by their values; files by what they are."""
    there, here = found["identity"], wanted["identity"]
    words = [what for key, what in WHAT.items() if there.get(key) != here.get(key)]
    if there.get("recipe") != here.get("recipe"):
        changed = _changed(found.get("settings", {}), wanted.get("settings", {}))
        more = [f"{len(changed) - 3} more keys"] if len(changed) > 3 else []
        words = [*changed[:3], *more, *words] if changed else ["the recipe", *words]
    if "processes" in there and there["processes"] != here.get("processes"):
        words += [f"the number of processes ({there['processes']} there, {here.get('processes')} here)"]
    return ", ".join(words)


def _changed(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    here = json.loads(json.dumps(here))  # tuples become lists, as in the file
    keys = [key for key in {**there, **here} if there.get(key) != here.get(key)]
    return [f"{key} ({there.get(key)} there, {here.get(key)} here)" for key in keys]


def resume_point(output: Path) -> Path | None:
    """The newest complete checkpoint, or None: the same answer for every process.

    A checkpoint that was cut short or damaged is removed, with a sentence: its steps are trained again.
    """
    found = None
    if is_first():
        drop_incomplete(output)
        found = newest_checkpoint(output)
    return _from_first(found)


def newest_checkpoint(output: Path) -> Path | None:
    """The newest complete checkpoint that this process sees."""
    return next((path for path in reversed(_checkpoints(output)) if not fault_of(path)), None)


def drop_incomplete(output: Path) -> None:
    """Remove every checkpoint that is not whole, and say so."""
    for path in _checkpoints(output):
        if fault := fault_of(path):
            say(f"{path.name} is not whole ({fault}): it is skipped and removed")
            shutil.rmtree(path)


def complete_checkpoint(folder: Path) -> None:
    """Flush a checkpoint's files and write its marker. Every process calls it, after its last write. Raises OSError."""
    sizes: dict[str, int] = {}
    for seen in _from_all(_flushed(folder.rglob("*"), folder)):
        # the largest: another node than the writer's may not see all of a file yet
        sizes |= {name: max(size, sizes.get(name, 0)) for name, size in seen.items()}
    if is_first():
        _write(folder / COMPLETE_FILE, {"files": sizes})


def keep_newest(output: Path, limit: int | None) -> None:
    """Remove all but the newest `limit` complete checkpoints; None keeps all."""
    if limit is None or not is_first():
        return
    for path in [path for path in _checkpoints(output) if not fault_of(path)][:-limit]:
        (path / COMPLETE_FILE).unlink()  # first: a removal that is cut short leaves nothing that looks whole
        shutil.rmtree(path)


def mark_complete(output: Path, identity: Mapping[str, str], metrics: Mapping[str, Any]) -> None:
    """Write the metrics, the marker last, then drop the checkpoints. Raises OSError."""
    _write(output / METRICS_FILE, metrics)
    paths = (path for path in output.rglob("*") if CHECKPOINTS not in path.relative_to(output).parts)
    _write(output / COMPLETE_FILE, {"run": identity, "files": _flushed(paths, output)})
    shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)


def fault_of(folder: Path) -> str | None:
    """Why a folder is not whole by its marker; None if it is.

    Raises:
        OSError: the folder cannot be read just now, which says nothing about it.
    """
    try:
        files = _marker(folder)["files"]
    except FileNotFoundError:
        return "it was not finished"
    except (ValueError, KeyError, TypeError):
        return f"its {COMPLETE_FILE} was cut short"
    for name, size in files.items():
        try:
            found = (folder / name).stat().st_size
        except FileNotFoundError:
            return f"{name} is missing"
        if found != size:
            return f"{name} has {found:,} of {size:,} bytes"
    return None


def _marker(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / COMPLETE_FILE).read_text())
    return found


def _checkpoints(output: Path) -> list[Path]:
    """All of them, whole or not, the oldest first."""
    paths = (output / CHECKPOINTS).glob("checkpoint-*")
    return sorted((path for path in paths if path.name.rpartition("-")[2].isdigit()), key=step_of)


def _write(path: Path, values: Mapping[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(values, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def _flushed(paths: Iterable[Path], folder: Path) -> dict[str, int]:
    """Name and size in bytes of each file among `paths`, now that they have reached the disk."""
    sizes = {}
    for path in sorted(path for path in paths if path.is_file() and path.name != COMPLETE_FILE):
        with path.open("rb") as file:
            try:
                os.fsync(file.fileno())
            except OSError as error:
                if error.errno not in CANNOT_FLUSH:
                    raise
            sizes[path.relative_to(folder).as_posix()] = os.fstat(file.fileno()).st_size
    return sizes


def _from_all(value: dict[str, int]) -> list[dict[str, int]]:
    """What each process gives, for all of them; waits until every process is here."""
    if processes() == 1:
        return [value]
    from torch import distributed

    values: list[dict[str, int]] = [{} for _ in range(processes())]
    distributed.all_gather_object(values, value)
    return values


def _from_first(value: Path | None) -> Path | None:
    """What the first process gives, for all of them."""
    if processes() == 1:
        return value
    from torch import distributed

    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]
