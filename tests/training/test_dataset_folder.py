"""The data folder is whole or absent, whatever happens while it is made."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from infra.cli import UserError
from tests.support.small import FIRST_QUESTIONS, chat, write_jsonl
from training import data_folder
from training.data_folder import FILES, file_hash, making
from training.dataset import main, read_conversations

SECOND_DOMAIN = FIRST_QUESTIONS.with_name("second-domain.jsonl")


def make(source: Path, out: Path, *more: str) -> int:
    return main(["--source", str(source), "--out", str(out), *more])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_whole_or_absent(out: Path) -> None:
    """With a card everything is there and is what the card says; without one no pair of files can be mistaken."""
    if (out / "card.json").exists():
        card = json.loads((out / "card.json").read_text())
        assert all((out / name).is_file() for name in FILES)
        assert card["hashes"] == {name: file_hash(out / name) for name in ("train.jsonl", "eval.jsonl")}
    elif (out / "eval.jsonl").exists() and (out / "train.jsonl").exists():
        assert not [
            row for row in read_conversations(out / "eval.jsonl") if row in read_conversations(out / "train.jsonl")
        ]


class Interrupted(BaseException):
    """What a killed process does: nothing more."""


@pytest.mark.parametrize("step", range(8))
def test_interrupted_at_any_step_the_folder_is_whole_or_absent_and_the_next_run_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    source, out, reference = tmp_path / "rows.jsonl", tmp_path / "out", tmp_path / "reference"
    write_jsonl(source, [chat(f"question {number}", "answer") for number in range(50)])
    make(source, out)
    write_jsonl(source, [chat(f"question {number}", "answer") for number in range(20, 90)])
    make(source, reference)
    left = step

    def counted(real: Any) -> Any:
        def wrapper(path: Path, *arguments: Any, **options: Any) -> Any:
            nonlocal left
            if path.parent in (out, out / ".partial"):
                left -= 1
                if left < 0:
                    raise Interrupted
            return real(path, *arguments, **options)

        return wrapper

    with monkeypatch.context() as killed:
        killed.setattr(Path, "replace", counted(Path.replace))
        killed.setattr(Path, "unlink", counted(Path.unlink))
        killed.setattr(shutil, "rmtree", lambda *_, **__: None)  # a killed process tidies nothing up
        if step < 7:
            with pytest.raises(Interrupted):
                make(source, out)
        else:
            make(source, out)
    assert_whole_or_absent(out)
    make(source, out)
    assert contents(out) == contents(reference)


def test_other_files_in_the_folder_stay(tmp_path: Path) -> None:
    (tmp_path / "base-model").mkdir()
    (tmp_path / "base-model" / "config.json").write_text("{}")
    make(FIRST_QUESTIONS, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*FILES, "base-model"])


def test_the_same_source_can_be_made_again(tmp_path: Path) -> None:
    make(FIRST_QUESTIONS, tmp_path)
    before = contents(tmp_path)
    make(FIRST_QUESTIONS, tmp_path, "--split", "50")
    assert json.loads((tmp_path / "card.json").read_text())["rows"] == {"train": 45, "eval": 5}
    make(Path(os.path.relpath(FIRST_QUESTIONS)), tmp_path)
    assert contents(tmp_path).keys() == before.keys()


def test_data_from_another_source_are_left_as_they_are(tmp_path: Path) -> None:
    make(FIRST_QUESTIONS, tmp_path)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"holds data made from .*first-questions\.jsonl, not from") as caught:
        make(SECOND_DOMAIN, tmp_path)
    assert caught.value.code == 2
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_the_users_is_never_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"holds {tmp_path / name}, which this command did not make"):
        make(FIRST_QUESTIONS, tmp_path)
    assert contents(tmp_path) == {name: b"mine"}


def test_an_interrupted_run_is_no_reason_to_take_another_sources_data(tmp_path: Path) -> None:
    make(FIRST_QUESTIONS, tmp_path)
    (tmp_path / ".partial").mkdir()
    with pytest.raises(UserError, match="holds data made from"):
        make(SECOND_DOMAIN, tmp_path)


def test_the_data_folder_cannot_be_its_own_source(tmp_path: Path) -> None:
    make(FIRST_QUESTIONS, tmp_path)
    before = contents(tmp_path)
    with pytest.raises(UserError, match="holds data made from"):
        make(tmp_path, tmp_path)
    with pytest.raises(UserError, match="holds data made from"):
        make(tmp_path / "train.jsonl", tmp_path)
    assert contents(tmp_path) == before


def test_a_failed_run_leaves_the_data_that_were_there(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "rows.jsonl", [chat(f"question {number}", "answer") for number in range(50)])
    make(source, tmp_path / "out")
    before = contents(tmp_path / "out")
    with source.open("a") as file:
        file.write("{\n")
    with pytest.raises(UserError, match="1 of 51 rows"):
        make(source, tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_two_runs_do_not_write_one_folder(tmp_path: Path) -> None:
    with making(tmp_path) as partial:
        for name in FILES:
            (partial / name).write_text("of the first run")
        with pytest.raises(UserError, match="another run is writing data to") as caught:
            make(FIRST_QUESTIONS, tmp_path)
    assert caught.value.code == 1
    assert set(contents(tmp_path).values()) == {b"of the first run"}


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out, reason in ((tmp_path / "file" / "out", "Not a directory"), (tmp_path / "file", "File exists")):
        with pytest.raises(UserError, match=f"cannot write the data to {out}: {reason}") as caught:
            make(FIRST_QUESTIONS, out)
        assert caught.value.code == 1


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(data_folder, "_publish", full)
    with pytest.raises(UserError, match=r"cannot write the data to .*: No space left on device"):
        make(FIRST_QUESTIONS, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def peak_memory(source: Path, out: Path) -> int:
    """Bytes that a process needs to make the data of `source` (VmHWM: ru_maxrss counts what the parent had, too)."""
    code = (
        "import re, sys; from training.dataset import main; main(sys.argv[1:]);"
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])"
    )
    command = [sys.executable, "-c", code, "--source", str(source), "--out", str(out)]
    return 1024 * int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for the peak")
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_memory_does_not_grow_with_the_size_of_the_rows(tmp_path: Path, kind: str) -> None:
    import pyarrow
    from pyarrow import parquet

    words = [f"{number:x}" for number in range(70_000)]
    random.Random(1).shuffle(words)
    text = " ".join(words)
    peaks = []
    for rows in (1000, 25_000):  # 8 MB and 200 MB
        source = tmp_path / f"{rows}.{kind}"
        found = [chat(f"question {number}", text[10 * number : 10 * number + 8000]) for number in range(rows)]
        if kind == "jsonl":
            write_jsonl(source, found)
        else:
            table = pyarrow.table({"messages": pyarrow.array(found)})
            parquet.write_table(table, source, row_group_size=1000, compression="none", use_dictionary=False)
        peaks.append(peak_memory(source, tmp_path / f"{rows}"))
    assert peaks[1] - peaks[0] < 40e6


@pytest.mark.slow
def test_killed_at_random_moments_and_run_again_the_data_are_those_of_a_run_in_peace(tmp_path: Path) -> None:
    source = write_jsonl(
        tmp_path / "rows.jsonl",
        [chat(f"question {number} " + "why " * 300, "because " * 300) for number in range(8000)],
    )
    begun = time.monotonic()
    make(source, tmp_path / "reference")
    seconds = time.monotonic() - begun
    chance, out = random.Random(7), tmp_path / "out"
    command = [sys.executable, "-m", "training.dataset", "--source", str(source), "--out", str(out)]
    killed = 0
    for _ in range(25):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(chance.uniform(0.05, 1.2 * seconds + 0.5))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
        assert_whole_or_absent(out)
    assert killed >= 10
    assert make(source, out) == 0
    assert contents(out) == contents(tmp_path / "reference")
