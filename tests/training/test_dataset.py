"""The verb: what is written, what is split and what is left out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from infra.cli import UserError
from tests.support.small import FIRST_QUESTIONS, chat, write_jsonl
from training import dataset
from training.dataset import file_hash, main, read_conversations
from training.lengths import in_characters
from training.rows import Conversation
from training.splits import EVAL, Item, Tally, shipped_splits, split_by_hash

SECOND_DOMAIN = FIRST_QUESTIONS.with_name("second-domain.jsonl")


def questions(number: int) -> list[Conversation]:
    return [chat(f"question {one}", "answer") for one in range(number)]


def items(conversations: Sequence[Conversation]) -> list[Item]:
    return [Item(conversation, in_characters(conversation)) for conversation in conversations]


def by_hash(conversations: Sequence[Conversation]) -> tuple[list[Conversation], list[Conversation], Tally]:
    tally = Tally()
    chosen = list(split_by_hash(items(conversations), tally))
    train, held_out = (
        [item.conversation for side, item in chosen if (side == EVAL) is held_out] for held_out in (False, True)
    )
    return train, held_out, tally


def card(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "card.json").read_text())
    return found


def test_rows_lie_in_one_file_only_and_none_is_lost(tmp_path: Path) -> None:
    assert main(["--source", str(FIRST_QUESTIONS), "--out", str(tmp_path)]) == 0
    train, held_out = (read_conversations(tmp_path / name) for name in ("train.jsonl", "eval.jsonl"))
    assert len(train) + len(held_out) == len(read_conversations(FIRST_QUESTIONS))
    assert not [row for row in held_out if row in train]
    assert card(tmp_path)["rows"] == {"train": len(train), "eval": len(held_out)}


def test_two_runs_give_the_same_bytes_in_every_file(tmp_path: Path) -> None:
    for number in ("1", "2"):
        command = [sys.executable, "-m", "training.dataset", "--source", str(FIRST_QUESTIONS)]
        env = {**os.environ, "PYTHONHASHSEED": number}
        subprocess.run([*command, "--out", str(tmp_path / number)], check=True, env=env, capture_output=True)
    one, other = ({path.name: path.read_bytes() for path in (tmp_path / number).iterdir()} for number in "12")
    assert sorted(one) == ["README.md", "card.json", "eval.jsonl", "lengths.png", "train.jsonl"]
    assert one == other


def test_the_files_of_the_local_recipe_have_not_changed(tmp_path: Path) -> None:
    """What `make demo` learns depends on them. Change the hashes with the data, never with the code."""
    main(["--recipe", "local", "--out", str(tmp_path)])
    hashes = card(tmp_path)["hashes"]
    assert hashes == {name: file_hash(tmp_path / name) for name in hashes}
    assert hashes["train.jsonl"].startswith("2bc8532f49b1d745")
    assert hashes["eval.jsonl"].startswith("a2ae6f0fb917439d")


def test_a_row_that_is_added_moves_no_other() -> None:
    rows = questions(200)
    (_, few, _), (_, more, _) = by_hash(rows[:150]), by_hash(rows)
    assert [row for row in more if row in rows[:150]] == few


@pytest.mark.parametrize("number", [2, 3, 5, 10])
def test_even_of_few_rows_one_is_held_out_and_the_others_keep_their_order(number: int) -> None:
    rows = questions(number)
    train, held_out, _ = by_hash(rows)
    assert len(held_out) == 1
    assert train == [row for row in rows if row not in held_out]


def test_repeated_rows_are_dropped_and_counted() -> None:
    rows = questions(30)
    train, held_out, tally = by_hash([*rows, *rows[:7]])
    assert (len(train) + len(held_out), tally.dropped) == (30, 7)


SAME = {
    "white space around a text": chat("  Café? ", "Yes.\n"),
    "line breaks": chat("Café?", "Yes."),
    "composed letters": chat("Cafe\u0301?", "Yes."),
    "an empty system message": chat("Café?", "Yes.", system="  "),
}
DIFFERENT = {
    "upper case": chat("café?", "Yes."),
    "punctuation": chat("Café", "Yes."),
    "inner white space": chat("Café ?", "Yes."),
    "another reply": chat("Café?", "No."),
    "a system message": chat("Café?", "Yes.", system="Be brief."),
    "one turn more": chat("Café?", "Yes.", "Café?", "Yes."),
}


@pytest.mark.parametrize("other", SAME.values(), ids=SAME.keys())
def test_conversations_that_read_the_same_are_one(other: Conversation) -> None:
    assert by_hash([chat("Café?", "Yes."), other])[2].dropped == 1


def test_kinds_of_line_breaks_do_not_tell_conversations_apart() -> None:
    assert by_hash([chat("a\r\nb", "c\rd"), chat("a\nb", "c\nd")])[2].dropped == 1


@pytest.mark.parametrize("other", DIFFERENT.values(), ids=DIFFERENT.keys())
def test_conversations_that_read_differently_are_two(other: Conversation) -> None:
    assert by_hash([chat("Café?", "Yes."), other])[2].dropped == 0


def test_a_row_of_both_shipped_splits_is_judged_by_and_not_trained_on() -> None:
    tally = Tally()
    rows = questions(6)
    train, held_out = [*rows[:4], rows[0], rows[4]], [rows[4], rows[5], rows[5]]
    chosen = list(shipped_splits(items(train), items(held_out), tally))
    assert [item.conversation for side, item in chosen if side == EVAL] == rows[4:6]
    assert [item.conversation for side, item in chosen if side != EVAL] == rows[:4]
    assert dict(tally.duplicates) == {"in_eval": 1, "in_train": 1, "in_both": 1}


@pytest.mark.parametrize(("share", "rows"), [("10%", 4), ("12.5%", 5), ("7", 7), ("1000", 40), ("100%", 40)])
def test_a_share_of_the_rows_is_taken_from_the_beginning(tmp_path: Path, share: str, rows: int) -> None:
    source = write_jsonl(tmp_path / "rows.jsonl", questions(40))
    assert main(["--source", str(source), "--split", share, "--out", str(tmp_path / "out")]) == 0
    taken = [row for name in ("train", "eval") for row in read_conversations(tmp_path / "out" / f"{name}.jsonl")]
    assert sorted(taken, key=questions(40).index) == questions(40)[:rows]
    assert card(tmp_path / "out")["splits"]["train"] == f"rows.jsonl[:{share if '%' not in share else rows}]"


WRONG_USE = {
    "no source": ([], "give --source or --recipe"),
    "no file": (["--source", "nowhere.jsonl"], "there is no file or folder nowhere.jsonl"),
    "no split": (["--split", "x y"], "neither a percentage"),
    "a split of a file": (["--split", "train_gen"], "one file, without a split 'train_gen'"),
    "more than all": (["--split", "101%"], "more than the whole"),
    "no row of a percentage": (["--split", "0.1%"], "leaves none of the 401 rows"),
    "no row": (["--split", "0"], "leaves none of the rows"),
    "a revision of a file": (["--revision", "abc"], "is of a data set on the hub"),
    "an unknown recipe": (["--recipe", "nothing"], "nothing"),
    "no tokenizer": (["--tokenizer", "nowhere"], "no such folder"),
}


@pytest.mark.parametrize(("arguments", "reason"), WRONG_USE.values(), ids=WRONG_USE.keys())
def test_wrong_use_is_one_sentence_and_exit_code_2(tmp_path: Path, arguments: list[str], reason: str) -> None:
    source = [] if {"--source", "--recipe"} & {*arguments} or not arguments else ["--source", str(FIRST_QUESTIONS)]
    with pytest.raises(UserError) as caught:
        main([*source, *arguments, "--out", str(tmp_path / "out")])
    assert caught.value.code == 2
    assert reason in caught.value.message
    assert len(caught.value.message.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("", "is empty: there is no row in it"),
        ('{"messages": 1}\n', "yields 0 rows to train on and 0 to judge by (of 1 rows 1 were left out)"),
        (json.dumps({"messages": chat("a", "b")}), "yields 1 rows to train on and 0 to judge by"),
    ],
)
def test_a_source_that_leaves_a_side_empty_is_one_sentence(tmp_path: Path, lines: str, reason: str) -> None:
    (tmp_path / "rows.jsonl").write_text(lines)
    with pytest.raises(UserError) as caught:
        main(["--source", str(tmp_path / "rows.jsonl"), "--on-bad-row", "drop", "--out", str(tmp_path / "out")])
    assert reason in caught.value.message
    assert caught.value.code == 1
    assert not (tmp_path / "out").exists()


def test_a_dry_run_reports_the_same_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = ["--source", str(FIRST_QUESTIONS), "--out", str(tmp_path / "out"), "--json"]
    main([*source, "--dry-run"])
    assert not (tmp_path / "out").exists()
    foreseen = json.loads(capsys.readouterr().out)
    main(source)
    assert {**foreseen, "data": str(tmp_path / "out")} == json.loads(capsys.readouterr().out)
    assert foreseen["data"] is None


def test_a_dry_run_fails_as_the_run_would(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{\n")
    with pytest.raises(UserError, match="1 of 1 rows"):
        main(["--source", str(tmp_path / "rows.jsonl"), "--dry-run"])


def test_the_json_result_has_the_keys_that_the_documentation_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--source", str(FIRST_QUESTIONS), "--out", str(tmp_path), "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert {key: value for key, value in printed.items() if key != "data"} == card(tmp_path)
    documented = (Path(dataset.__file__).parents[1] / "docs" / "verbs.md").read_text()
    line = next(line for line in documented.splitlines() if line.startswith("| `training.dataset`"))
    assert [key for key in printed if f"`{key}`" not in line] == []


def test_a_recipe_names_source_and_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_jsonl(tmp_path / "rows.jsonl", questions(40))
    recipe = tmp_path / "mine.yaml"
    local = (Path(dataset.__file__).parent / "recipes" / "local.yaml").read_text()
    recipe.write_text(local.replace("training/data/first-questions.jsonl", f"{source}\n  split: 50%"))
    main(["--recipe", str(recipe), "--out", str(tmp_path / "out")])
    assert sum(card(tmp_path / "out")["rows"].values()) == 20
    main(["--recipe", str(recipe), "--source", str(FIRST_QUESTIONS), "--out", str(tmp_path / "other")])
    assert sum(card(tmp_path / "other")["rows"].values()) == 401
    assert "lengths are in characters" in capsys.readouterr().err


def test_long_work_tells_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dataset, "PROGRESS_SECONDS", 0.0)
    main(["--source", str(FIRST_QUESTIONS), "--dry-run", "--json"])
    captured = capsys.readouterr()
    assert f"{FIRST_QUESTIONS}:401: 401 rows read, " in captured.err and "rows/s" in captured.err
    assert json.loads(captured.out)["rows"] == {"train": 381, "eval": 20}


def test_follow_ups_of_the_first_questions_need_their_history() -> None:
    """`When?` stands after many first questions and has many answers."""
    answers = {row[-1]["content"] for row in read_conversations(FIRST_QUESTIONS) if row[-2]["content"] == "When?"}
    assert len(answers) > 20


def test_the_second_domain_has_nothing_in_common_with_the_first() -> None:
    first, second = (read_conversations(path) for path in (FIRST_QUESTIONS, SECOND_DOMAIN))
    assert len(second) >= 60
    texts = {message["content"] for row in first for message in row}
    assert not texts & {message["content"] for row in second for message in row}
    assert by_hash(second)[2].dropped == 0
