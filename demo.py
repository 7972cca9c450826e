"""`make demo`: the whole loop on this machine, one line a stage, from infrastructure to a chat and back to nothing.

It types the commands that a user types (`make up data train deploy chat down STACK=local`) in a folder of its own, so
several demos can run at once; what an interrupted one left behind is removed by the next.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent
PARENT = ROOT / ".local"
QUESTION, FOLLOW_UP = "Who founded Microsoft?", "When?"


@dataclass(frozen=True)
class Stage:
    """One line of the demo: what it shows, the make target that does it, and what to report of its output."""

    title: str
    target: str
    report: str  # a regular expression; its first group, from the last line that matches, is shown

    def command(self, folder: Path) -> list[str]:
        own = [f"STACK={stack(folder)}", f"DATA={folder / 'data'}", f"CONFIG={folder}"]
        return ["make", "--no-print-directory", self.target, *own]


STAGES = (
    Stage("infrastructure", "up", r"(\d+ (?:resources|created).*)"),
    Stage("data", "data", r"(rows: .*)"),
    Stage("train, register", "train", r"(model: .*)"),
    Stage("deploy", "deploy", r"(scoring_uri: .*)"),
)


def stack(folder: Path) -> str:
    """A stack of the demo's own, so that two demos in one checkout do not share its settings file."""
    return folder.name.replace("demo", "local")


class StageFailed(Exception):
    """A stage's command failed; its log says why."""

    def __init__(self, stage: str, log: Path) -> None:
        super().__init__(stage)
        self.stage, self.log = stage, log


def main() -> int:
    begun = time.monotonic()
    with _folder() as folder:
        env = _environment(folder)
        try:
            rows = _play(folder, env)
        except StageFailed as failed:
            return _report_failure(folder, failed)
        except KeyboardInterrupt:
            _clean(folder)
            print("\ninterrupted; nothing is left running. Run `make demo` again.", file=sys.stderr)
            return 130
        _summary(rows, time.monotonic() - begun)
    return 0


def _play(folder: Path, env: dict[str, str]) -> list[tuple[str, float, str]]:
    print(f"The loop of finetune-phi on this machine, without Azure; state in {folder.relative_to(ROOT)}", flush=True)
    rows = []
    for stage in STAGES:
        rows.append(_line(stage.title, *_run(stage.title, stage.command(folder), folder, env, stage.report)))
    asked = time.monotonic()
    answer, conversation = _ask(QUESTION, None, folder, env)
    rows.append(_line("chat", time.monotonic() - asked, f"{QUESTION} -> {answer}"))
    asked = time.monotonic()
    answer, _ = _ask(FOLLOW_UP, conversation, folder, env)
    rows.append(_line("chat, with history", time.monotonic() - asked, f"{FOLLOW_UP} -> {answer}"))
    down = Stage("tear down", "down", r"((?:verified|gone).*)")
    rows.append(_line(down.title, *_run(down.title, down.command(folder), folder, env, down.report)))
    return rows


def _environment(folder: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    own = {"EMULATOR_HOME": str(folder / "emulator"), "CHAT_HISTORY": str(folder / "chat.db")}
    return {**kept, **own, "FORCE_COLOR": "0", "NO_COLOR": "1"}


def _run(title: str, command: list[str], folder: Path, env: dict[str, str], report: str) -> tuple[float, str]:
    """Run a stage's command with its output in a log; returns the seconds it took and what to report of it."""
    log = folder / f"{title.split(',')[0].replace(' ', '-')}.log"
    begun = time.monotonic()
    with log.open("wb") as output:
        code = _wait(title, command, env, output)
    if code != 0:
        raise StageFailed(title, log)
    found = re.findall(report, log.read_text(errors="replace"))
    return time.monotonic() - begun, found[-1].strip() if found else ""


def _wait(title: str, command: list[str], env: dict[str, str], output: IO[bytes]) -> int:
    """Wait for a command, with a running clock on a terminal. An interrupt ends the command and all it started."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True
    )
    begun = time.monotonic()
    try:
        while True:
            try:
                return process.wait(0.2)
            except subprocess.TimeoutExpired:
                if sys.stdout.isatty():
                    print(f"\r  {title:20} {time.monotonic() - begun:6.1f} s …", end="", flush=True)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        raise


def _ask(question: str, conversation: str | None, folder: Path, env: dict[str, str]) -> tuple[str, str]:
    """Ask through the chat's command line; returns the answer and the conversation it belongs to."""
    python = str(ROOT / ".venv" / "bin" / "python")
    inside = [python, "-m", "emulator", "run", "--", python]
    command = [*inside, "-m", "flow.chat", question, "--stack", stack(folder), "--json"]
    log = folder / "chat.log"
    with log.open("ab") as errors, (folder / "answer.json").open("wb") as output:
        process = subprocess.run(
            [*command, *(["--conversation", conversation] if conversation else [])],
            cwd=ROOT, env=env, stdout=output, stderr=errors, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    if process.returncode != 0:
        raise StageFailed("chat", log)
    said = json.loads((folder / "answer.json").read_text())
    return said["answer"], said["conversation"]


def _line(title: str, seconds: float, report: str) -> tuple[str, float, str]:
    start = "\r" if sys.stdout.isatty() else ""
    print(f"{start}  {title:20} {seconds:6.1f} s  {report}", flush=True)
    return title, seconds, report


def _summary(rows: list[tuple[str, float, str]], total: float) -> None:
    print("\n  stage                 seconds   share")
    for title, seconds, _ in rows:
        print(f"  {title:20} {seconds:8.1f}   {seconds / total:5.0%}  {'#' * round(40 * seconds / total)}")
    print(f"  {'total':20} {total:8.1f}")
    print("\nGo on alone, on this machine or, with a Pulumi stack selected, on Azure:")
    print("  make up data train deploy STACK=local")
    print('  make chat STACK=local Q="Who created Python?"')
    print("  make down STACK=local")


def _report_failure(folder: Path, failed: StageFailed) -> int:
    kept = PARENT / f"{folder.name}-{failed.log.name}"
    shutil.copyfile(failed.log, kept)
    lines = failed.log.read_text(errors="replace").strip().splitlines()
    _clean(folder)
    print(f"\nerror: the stage '{failed.stage}' failed; the end of its log:", file=sys.stderr)
    for line in lines[-20:]:
        print(f"    {line}", file=sys.stderr)
    print(f"  next: read all of it in {kept.relative_to(ROOT)}, mend the cause, run `make demo` again", file=sys.stderr)
    return 1


def _clean(folder: Path) -> None:
    """Stop a demo's emulator with all its processes, and drop its state and its stack's settings."""
    command = [sys.executable, "-m", "emulator", "reset"]
    subprocess.run(command, cwd=ROOT, env=_environment(folder), stdout=subprocess.DEVNULL, check=False)
    (ROOT / f"Pulumi.{stack(folder)}.yaml").unlink(missing_ok=True)


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A folder for this demo, locked while it runs, gone afterwards; what dead demos left is removed first."""
    PARENT.mkdir(exist_ok=True)
    for left in PARENT.glob("demo-*/lock"):
        with left.open() as lock, contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _clean(left.parent)
            shutil.rmtree(left.parent)
    folder = PARENT / f"demo-{os.getpid()}"
    folder.mkdir()
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            _clean(folder)
            shutil.rmtree(folder, ignore_errors=True)


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(main())
