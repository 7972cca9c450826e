"""Folders in the hub's layout, and the hub itself (a stand-in for it, asked by the real client)."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.cli import UserError
from tests.support.hub import COMMIT, Hub, serving
from tests.support.small import FIRST_QUESTIONS, chat, write_jsonl
from training.dataset import main, read_conversations
from training.sources import open_source

NAME = "HuggingFaceH4/ultrachat_200k"
SPLITS = {"train_sft": (2, 100), "test_sft": (1, 40), "train_gen": (1, 60), "test_gen": (1, 30)}  # files, rows in each
ULTRACHAT_CARD = (
    "---\nlicense: mit\nconfigs:\n- config_name: default\n  data_files:\n"
    + "".join(f"  - split: {split}\n    path: data/{split}-*\n" for split in SPLITS)
    + "dataset_info:\n  splits:\n"
    + "".join(
        f"  - name: {split}\n    num_bytes: 1\n    num_examples: {files * rows}\n"
        for split, (files, rows) in SPLITS.items()
    )
    + "---\n# UltraChat 200k\n"
)


def question(split: str, number: int) -> str:
    return f"{split} {number}"


def table(split: str, numbers: range) -> bytes:
    """A Parquet file with ultrachat's columns."""
    import pyarrow
    from pyarrow import parquet

    rows = [
        {
            "prompt": question(split, number),
            "prompt_id": f"{number:064x}",
            "messages": chat(question(split, number), "Yes."),
        }
        for number in numbers
    ]
    made = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), made)
    return made.getvalue()


def ultrachat() -> dict[str, bytes]:
    """A small data set with the file names, columns and card of ultrachat_200k."""
    files = {"README.md": ULTRACHAT_CARD.encode(), ".gitattributes": b""}
    for split, (shards, rows) in SPLITS.items():
        for shard in range(shards):
            name = f"data/{split}-{shard:05d}-of-{shards:05d}-a3ecf92756993583.parquet"
            files[name] = table(split, range(shard * rows, (shard + 1) * rows))
    return files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the data set, as it is downloaded."""
    for name, content in ultrachat().items():
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / name).write_bytes(content)
    return tmp_path / "copy"


def taken(out: Path, name: str) -> list[str]:
    return [row[0]["content"] for row in read_conversations(out / f"{name}.jsonl")]


@pytest.mark.parametrize(
    ("split", "kind", "train", "held_out"),
    [
        (None, "sft", 200, 40),
        ("10%", "sft", 20, 4),
        ("7", "sft", 7, 7),
        ("train_gen", "gen", 60, 30),
        ("train_gen[:10%]", "gen", 6, 3),
        ("train_sft[:150]", "sft", 150, 40),
    ],
)
def test_the_shipped_splits_are_kept(
    folder: Path, tmp_path: Path, split: str | None, kind: str, train: int, held_out: int
) -> None:
    chosen = ["--split", split] if split else []
    assert main(["--source", str(folder), *chosen, "--out", str(tmp_path / "out")]) == 0
    assert taken(tmp_path / "out", "train") == [question(f"train_{kind}", number) for number in range(train)]
    assert taken(tmp_path / "out", "eval") == [question(f"test_{kind}", number) for number in range(held_out)]
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["licence"] == "mit"
    assert card["ignored_keys"] == {"prompt": train + held_out, "prompt_id": train + held_out}
    assert all(len(value) == 64 for value in card["source_hashes"].values())
    assert "license: mit" in (tmp_path / "out" / "README.md").read_text()


def test_a_bad_row_of_a_folder_is_named_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "train.jsonl", [chat("a", "b"), chat("c", "")])
    write_jsonl(tmp_path / "data" / "test.jsonl", [chat("")])
    with pytest.raises(UserError) as caught:
        main(["--source", str(tmp_path / "data"), "--out", str(tmp_path / "out")])
    assert str(caught.value).splitlines()[:3] == [
        f"2 of 3 rows of {tmp_path}/data are no conversations (empty_message 2):",
        f"  {tmp_path}/data/test.jsonl:1: message 1 (user) is empty",
        f"  {tmp_path}/data/train.jsonl:2: message 2 (assistant) is empty",
    ]


def test_files_named_after_splits_need_no_card(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "train.jsonl", [chat("a", "b")])
    write_jsonl(tmp_path / "data" / "validation.jsonl", [chat("c", "d")])
    write_jsonl(tmp_path / "data" / "test.jsonl", [chat("e", "f")])
    main(["--source", str(tmp_path / "data"), "--out", str(tmp_path / "out")])
    assert (taken(tmp_path / "out", "train"), taken(tmp_path / "out", "eval")) == (["a"], ["c"])


def test_a_folder_without_a_split_to_judge_by_is_split_by_hash(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "rows.jsonl", [chat(f"question {number}", "answer") for number in range(30)])
    main(["--source", str(tmp_path / "data"), "--out", str(tmp_path / "out")])
    assert len(taken(tmp_path / "out", "train") + taken(tmp_path / "out", "eval")) == 30


def test_the_data_folder_is_itself_a_source(tmp_path: Path) -> None:
    main(["--source", str(FIRST_QUESTIONS), "--out", str(tmp_path / "one")])
    (tmp_path / "one" / "base-model").mkdir()
    (tmp_path / "one" / "base-model" / "tokenizer.json").write_text("{}")  # which is no data
    main(["--source", str(tmp_path / "one"), "--out", str(tmp_path / "two")])
    for name in ("train.jsonl", "eval.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def remove_a_shard(folder: Path) -> None:
    (folder / "data" / "train_sft-00001-of-00002-a3ecf92756993583.parquet").unlink()


def name_no_split(folder: Path) -> None:
    (folder / "README.md").write_text(ULTRACHAT_CARD.replace("train_sft", "sft").replace("train_gen", "gen"))
    for file in (folder / "data").iterdir():
        file.rename(file.with_name(file.name.replace("train_", "")))


def empty(folder: Path) -> None:
    for file in [*(folder / "data").iterdir(), folder / "README.md", folder / ".gitattributes"]:
        file.unlink()


def break_the_card(folder: Path) -> None:
    (folder / "README.md").write_text("---\nconfigs: [\n---\n")


def only_pictures(folder: Path) -> None:
    empty(folder)
    (folder / "picture.png").write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (remove_a_shard, "is not whole: .* is one of 2 files, and 1 are there"),
        (name_no_split, "has the splits gen, sft, test_gen, test_sft: say which one to train on"),
        (empty, "cannot find the splits of"),
        (break_the_card, "cannot find the splits of"),
        (only_pictures, "holds no file of conversations|is not a file of conversations"),
    ],
)
def test_a_folder_that_cannot_be_used_is_one_sentence(folder: Path, tmp_path: Path, damage: Any, reason: str) -> None:
    damage(folder)
    with pytest.raises(UserError, match=reason) as caught:
        main(["--source", str(folder), "--out", str(tmp_path / "out")])
    assert caught.value.code == 2
    assert not (tmp_path / "out").exists()


def test_a_split_that_is_not_there_is_named_with_those_that_are(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no split 'train'; it has test_gen, test_sft, train_gen, train_sft"):
        main(["--source", str(folder), "--split", "train", "--out", str(tmp_path / "out")])


def test_an_empty_split_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    (folder / "data" / "test_sft-00000-of-00001-a3ecf92756993583.parquet").write_bytes(table("test_sft", range(1)))
    with pytest.raises(UserError, match="leaves none of the 1 rows of test_sft"):
        main(["--source", str(folder), "--split", "50%", "--out", str(tmp_path / "out")])


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with serving(Hub(NAME, ultrachat(), {"license": "mit"})) as served:
        yield served


def run(tmp_path: Path, endpoint: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The verb in a process of its own: the client reads its environment when it is imported."""
    command = [sys.executable, "-m", "training.dataset", "--out", str(tmp_path / "out"), "--json", *arguments]
    own = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""}
    return subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True, check=False)


def test_a_part_of_a_data_set_on_the_hub_needs_the_files_it_is_in_and_no_others(hub: Hub, tmp_path: Path) -> None:
    done = run(tmp_path, hub.url, "--source", NAME, "--split", "10%")
    assert done.returncode == 0, done.stderr
    card = json.loads(done.stdout)
    assert card["rows"] == {"train": 20, "eval": 4}
    assert (card["revision"], card["licence"]) == (COMMIT, "mit")
    assert card["splits"] == {"train": "train_sft[:20]", "eval": "test_sft[:4]"}
    assert card["command"].endswith(f"--source {NAME} --split 10% --revision {COMMIT}")
    assert taken(tmp_path / "out", "train") == [question("train_sft", number) for number in range(20)]
    data = {name for name in hub.downloaded if name.startswith("data/")}
    assert data == {
        "data/train_sft-00000-of-00002-a3ecf92756993583.parquet",
        "data/test_sft-00000-of-00001-a3ecf92756993583.parquet",
    }


def test_a_revision_that_the_hub_does_not_have_is_one_sentence(hub: Hub, tmp_path: Path) -> None:
    done = run(tmp_path, hub.url, "--source", NAME, "--revision", "0badc0de")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"the hub does not give {NAME}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_data_set_that_the_hub_does_not_have_is_one_sentence(hub: Hub, tmp_path: Path) -> None:
    done = run(tmp_path, hub.url, "--source", "nobody/nothing")
    assert done.returncode == 2
    assert "error: the hub does not give nobody/nothing" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_network_there_is_one_sentence_and_the_way_out(tmp_path: Path) -> None:
    done = run(tmp_path, "http://127.0.0.1:9", "--source", NAME)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: cannot reach the hub at http://127.0.0.1:9 for {NAME}: ")
    assert "HF_ENDPOINT" in done.stderr.splitlines()[1]
    assert len(done.stderr.splitlines()) == 2


def test_rows_are_fetched_file_by_file_as_they_are_needed(folder: Path) -> None:
    source = open_source(str(folder))
    rows = source.rows(source.train)
    next(rows)
    (folder / "data" / "train_sft-00001-of-00002-a3ecf92756993583.parquet").unlink()
    with pytest.raises(UserError, match=r"cannot read .*train_sft-00001-of-00002"):
        list(rows)


def test_the_same_percent_of_all_four_splits_is_what_the_second_guides_helper_writes(tmp_path: Path) -> None:
    (tmp_path / "copy" / "data").mkdir(parents=True)
    for name, content in ultrachat().items():
        (tmp_path / "copy" / name).write_bytes(content)
    theirs = {split: files * rows * 5 // 100 for split, (files, rows) in SPLITS.items()}
    for split, folder in (("5%", "sft"), ("train_gen[:5%]", "gen")):
        assert main(["--source", str(tmp_path / "copy"), "--split", split, "--out", str(tmp_path / folder)]) == 0
        for side, name in (("train", f"train_{folder}"), ("eval", f"test_{folder}")):
            expected = [question(name, number) for number in range(theirs[name])]
            assert taken(tmp_path / folder, side) == expected
