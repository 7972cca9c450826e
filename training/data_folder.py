"""The data folder: five files that appear together or not at all, whatever interrupts their making.

They are written into `.partial` below the folder and moved at the end, the card last: a folder without `card.json` is
not complete. A folder that holds data from another source is left as it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from infra.cli import WRONG_USE, UserError

TRAIN_FILE, EVAL_FILE, HISTOGRAM, README, CARD = "train.jsonl", "eval.jsonl", "lengths.png", "README.md", "card.json"
FILES = (TRAIN_FILE, EVAL_FILE, HISTOGRAM, README, CARD)
PARTIAL = ".partial"


def check_free(out: Path, source: str) -> None:
    """Raises UserError, exit code 2, if `out` holds other data than what was made from `source`."""
    there = [name for name in FILES if (out / name).exists()]
    if not there or (CARD not in there and (out / PARTIAL).is_dir()):  # an interrupted run's remains are made again
        return
    made_from = _source_of(out / CARD)
    if made_from is None:
        found = f"{out / there[0]}, which this command did not make"
    elif Path(made_from).resolve() == Path(source).resolve():
        return
    else:
        found = f"data made from {made_from}, not from {source}"
    raise UserError(
        f"{out} holds {found}: it is left as it is",
        next_command=f"give another --out, or remove them: rm {' '.join(str(out / name) for name in there)}",
        code=WRONG_USE,
    )


def _source_of(card: Path) -> str | None:
    try:
        source = json.loads(card.read_text(encoding="utf-8"))["source"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return source if isinstance(source, str) else None


@contextlib.contextmanager
def making(out: Path) -> Iterator[Path]:
    """A folder to write FILES into; at the end of the block they are moved to `out`, or, if it fails, removed.

    Raises:
        UserError: the folder cannot be written, or another run is writing it.
    """
    was_there = out.is_dir()
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _locked(out):
            partial = out / PARTIAL
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            try:
                yield partial
                _publish(partial, out)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot write the data to {out}: {error.strerror or error}") from None
    finally:
        if not was_there:
            with contextlib.suppress(OSError):  # it is not empty, or was never made
                out.rmdir()


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Nobody else writes the folder. The lock goes with the process, however that ends."""
    import fcntl

    handle = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UserError(
            f"another run is writing data to {out}", next_command="wait for it, or give another --out"
        ) from None
    try:
        yield
    finally:
        os.close(handle)


def _publish(partial: Path, out: Path) -> None:
    """Old and new files never stand side by side: the old card goes first, then the old held-out file; the new card
    comes last. Whoever needs both files finds both old, both new, or one missing."""
    for name in (CARD, EVAL_FILE):
        (out / name).unlink(missing_ok=True)
    for name in FILES:
        (partial / name).replace(out / name)


def file_hash(path: Path) -> str:
    """The SHA-256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
