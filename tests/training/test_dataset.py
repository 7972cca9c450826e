from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.cli import UserError
from tests.support.small import FIRST_QUESTIONS, chat, write_jsonl
from training.dataset import load_split, main, read_conversations, split_by_hash

GOOD = json.dumps({"messages": chat("Hello!", "Hello!")}).encode()
BAD_ROWS = {
    "not JSON": (b"{", "not JSON"),
    "not UTF-8": (b'{"messages": "\xff"}', "not UTF-8"),
    "no messages": (b"{}", "no `messages`"),
    "not an object": (b"[1]", "no `messages`"),
    "empty list": (b'{"messages": []}', "no `messages`"),
    "no content": (b'{"messages": [{"role": "user"}]}', "message 1 lacks"),
    "unknown role": (b'{"messages": [{"role": "bot", "content": "x"}]}', "unknown role 'bot'"),
    "content no text": (b'{"messages": [{"role": "user", "content": 1}]}', "not text"),
    "empty content": (json.dumps({"messages": chat("Hello!", " ")}).encode(), "message 2 (assistant) is empty"),
    "assistant first": (b'{"messages": [{"role": "assistant", "content": "x"}]}', "message 1 is of the assistant"),
    "user twice": (json.dumps({"messages": [*chat("a"), *chat("b", "c")]}).encode(), "message 2 is of the user"),
    "late system": (
        json.dumps({"messages": [*chat("a", "b"), {"role": "system", "content": "c"}]}).encode(),
        "message 3 is of the system",
    ),
    "user last": (json.dumps({"messages": chat("a", "b", "c")}).encode(), "the last message"),
    "system only": (json.dumps({"messages": chat(system="a")}).encode(), "the last message"),
    "lone surrogate": (rb'{"messages": [{"role": "user", "content": "\ud800"}]}', "lone surrogate"),
}


@pytest.mark.parametrize(("line", "fault"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_a_bad_row_is_named_by_file_and_line_and_nothing_is_written(tmp_path: Path, line: bytes, fault: str) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_bytes(GOOD + b"\n\n" + line + b"\n")
    with pytest.raises(UserError) as caught:
        main(["--source", str(source), "--out", str(tmp_path / "out")])
    assert str(caught.value).startswith(f"{source}:3 ")
    assert fault in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_rows_are_split_the_same_way_each_time_and_lie_in_one_file_only(tmp_path: Path) -> None:
    one, other = (tmp_path / name for name in ("one", "other"))
    for out in (one, other):
        assert main(["--source", str(FIRST_QUESTIONS), "--out", str(out)]) == 0
    assert [(one / name).read_bytes() for name in ("train.jsonl", "eval.jsonl")] == [
        (other / name).read_bytes() for name in ("train.jsonl", "eval.jsonl")
    ]
    train, held_out = (read_conversations(one / name) for name in ("train.jsonl", "eval.jsonl"))
    assert len(train) + len(held_out) == len(FIRST_QUESTIONS.read_text().splitlines())
    assert not [row for row in held_out if row in train]
    assert json.loads((one / "card.json").read_text())["rows"] == {"train": len(train), "eval": len(held_out)}


def test_repeated_rows_are_dropped_and_counted() -> None:
    rows = [chat(f"question {number}", "answer") for number in range(30)]
    split = split_by_hash([*rows, *rows[:7]])
    assert (len(split.train) + len(split.held_out), split.dropped) == (30, 7)


def test_a_row_that_is_added_moves_no_other() -> None:
    rows = [chat(f"question {number}", "answer") for number in range(200)]
    few, more = split_by_hash(rows[:150]), split_by_hash(rows)
    assert [row for row in more.held_out if row in rows[:150]] == few.held_out


@pytest.mark.parametrize(("share", "rows"), [("10%", 4), ("7", 7), ("1000", 40)])
def test_a_share_of_the_rows_is_taken(tmp_path: Path, share: str, rows: int) -> None:
    source = write_jsonl(tmp_path / "rows.jsonl", [chat(f"question {number}", "answer") for number in range(40)])
    split = load_split(str(source), share)
    assert len(split.train) + len(split.held_out) == rows


def test_parquet_rows_are_read(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = [{"messages": chat("Hello!", "Hello!")}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert read_conversations(tmp_path / "rows.parquet") == [chat("Hello!", "Hello!")]


@pytest.mark.parametrize(
    "arguments", [["--source", "nowhere.jsonl"], ["--source", str(FIRST_QUESTIONS), "--split", "x"]]
)
def test_wrong_use_is_exit_code_2(tmp_path: Path, arguments: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        main([*arguments, "--out", str(tmp_path)])
    assert caught.value.code == 2


def test_follow_ups_of_the_first_questions_need_their_history() -> None:
    """`When?` stands after many first questions and has many answers."""
    answers = {row[-1]["content"] for row in read_conversations(FIRST_QUESTIONS) if row[-2]["content"] == "When?"}
    assert len(answers) > 20
