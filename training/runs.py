"""Runs: which jobs of the workspace belong to the same run, and a record of each job that was submitted from here.

A run is what learns the same from the same (`Submission.key`); its jobs are its attempts, named
`RECIPE-KEY-1`, `-2` … in turn. An attempt that did not finish is continued by the next: its model output is mounted at
the same place of the datastore, where the checkpoints lie, and the job goes on from the newest complete one. The
workspace alone is asked, so another machine finds the same.

`.runs/JOB.json` (or in the folder that RUN_RECORDS names) says what was submitted, for a reader; nothing depends on it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.cli import UserError, say
from infra.outputs import PROJECT
from training.register import MODEL_OUTPUT
from training.submission import Submission, job_name

if TYPE_CHECKING:
    from azure.ai.ml import MLClient
    from azure.ai.ml.entities import Job

FINISHED = ("Completed", "Failed", "Canceled")
PLACE_TAG = "output_of"
"""The job whose model output a run writes to: the first of the attempts that continue one another."""


@dataclass(frozen=True)
class Attempt:
    """What a submission comes to: the job `name`, to be made, or that `is_there`, perhaps `is_done`.

    `place`: the job at whose model output it writes, itself for a new run. `why`: a sentence on a job that was there.
    """

    name: str
    place: str
    is_there: bool = False
    is_done: bool = False
    why: str = ""

    @property
    def output(self) -> str | None:
        """Where the model output is mounted; None is Azure ML's default, which the first attempt takes.

        The default is documented: learn.microsoft.com/azure/machine-learning/how-to-read-write-data-v2.
        """
        if self.place == self.name:
            return None
        return f"azureml://datastores/workspaceblobstore/paths/azureml/{self.place}/{MODEL_OUTPUT}/"


def next_attempt(client: MLClient, made: Submission[Any], *, fresh: bool) -> Attempt:
    """Follow, continue or begin: by the newest attempt that the workspace has of this run."""
    number, job = _newest(client, made)
    name = job_name(made, number + 1)
    if job is None or fresh:
        return Attempt(name, name)
    tags, was = dict(job.tags or {}), str(job.name)
    if job.status not in FINISHED:
        return Attempt(was, was, is_there=True, why=f"the job {was} of the same run is {job.status}: following it")
    if job.status == "Completed":
        if tags.get("code_hash") == made.code_hash:
            return Attempt(was, was, True, True, why=f"the job {was} has done the same run with the same code")
        return Attempt(name, name, why=f"the job {was} has done the same run with other code")
    place = tags.get(PLACE_TAG, was)
    how = "failed" if job.status == "Failed" else "was cancelled"
    if not made.resumes:
        return Attempt(
            name, name, why=f"the job {was} of the same run {how}: beginning anew, a pipeline does not resume"
        )
    return Attempt(name, place, why=f"the job {was} of the same run {how}: going on from its newest checkpoint, if any")


def _newest(client: MLClient, made: Submission[Any]) -> tuple[int, Job | None]:
    """The newest attempt and its number; 0 and None if there is none."""
    from azure.core.exceptions import ResourceNotFoundError

    number, newest = 0, None
    while True:
        try:
            newest = client.jobs.get(job_name(made, number + 1))
        except ResourceNotFoundError:
            return number, newest
        number += 1


# --- records --------------------------------------------------------------------------------------------------------


def folder() -> Path:
    return Path(os.environ.get("RUN_RECORDS") or PROJECT / ".runs")


def record(job: str, values: Mapping[str, Any]) -> None:
    """Add to a job's record. One that cannot be written costs a note, not the job."""
    path = folder() / f"{job}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        known = json.loads(path.read_text()) if path.is_file() else {"job": job}
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps({**known, **values}, indent=2) + "\n")
        temporary.replace(path)
    except (OSError, ValueError) as error:
        say(f"note: the record {path} cannot be written: {error}")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def records() -> list[dict[str, Any]]:
    """Every record, the newest last. Raises UserError for one that is damaged."""
    found = []
    for path in folder().glob("*.json"):
        try:
            found.append(dict(json.loads(path.read_text())))
        except (OSError, ValueError, TypeError):
            raise UserError(f"the run record {path} is damaged", next_command=f"rm {path}") from None
    return sorted(found, key=lambda one: str(one.get("submitted", "")))


def table(found: list[dict[str, Any]]) -> str:
    """The records for a reader: one line each, with the status that was seen last."""
    if not found:
        return f"no job was submitted from here (no records in {folder()})"
    heads = ("submitted", "stack", "job", "status", "model")
    rows = [heads, *(tuple(str(one.get(head) or "-") for head in heads) for one in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines)
