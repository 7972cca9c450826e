"""Which rows are conversations, and how those that are not are named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.cli import UserError
from tests.support.small import chat
from training import row_files
from training.dataset import main, read_conversations
from training.prompt import encode_conversation
from training.row_files import rows_of_file
from training.rows import FAULTS, Row, conversation_of, fault_of

GOOD = json.dumps({"messages": chat("Hello!", "Hello!")}).encode()


def row(*turns: str, system: str | None = None, **more: Any) -> bytes:
    return json.dumps({"messages": chat(*turns, system=system), **more}).encode()


def said(role: Any, content: Any) -> bytes:
    return json.dumps({"messages": [{"role": role, "content": content}]}).encode()


# name: the line, the kind of fault, what the message says
BAD_ROWS = {
    "not JSON": (b"{", "not_json", "not JSON: Expecting property name"),
    "cut short": (GOOD[:-9], "not_json", "not JSON"),
    "two objects": (GOOD + GOOD, "not_json", "Extra data"),
    "nested too deeply": (b"[" * 100_000, "not_json", "recursion"),
    "a number of 5,000 digits": (b'{"a": ' + b"9" * 5000 + b"}", "not_json", "integer string"),
    "NaN": (b'{"messages": [], "score": NaN}', "not_a_number", "it holds NaN"),
    "Infinity": (b'{"score": -Infinity}', "not_a_number", "it holds -Infinity"),
    "not UTF-8": (b'{"messages": "\xff"}', "not_utf8", "not UTF-8 at byte 15"),
    "UTF-16": (GOOD.decode().encode("utf-16"), "not_utf8", "as UTF-16 does"),
    "a surrogate as UTF-8": (b'{"a": "\xed\xa0\x80"}', "not_utf8", "not UTF-8"),
    "byte order mark": (b"\xef\xbb\xbf" + GOOD, "byte_order_mark", "byte order mark"),
    "no messages": (b'{"text": "a"}', "no_conversation", "no `messages`"),
    "only a prompt": (b'{"prompt": "a"}', "no_conversation", "nor `prompt` and `completion`"),
    "not an object": (b"[1]", "no_conversation", "no `messages`"),
    "null": (b"null", "no_conversation", "no `messages`"),
    "empty list": (b'{"messages": []}', "no_conversation", "no `messages`"),
    "messages as text": (b'{"messages": "[]"}', "no_conversation", "no list but a text"),
    "no content": (b'{"messages": [{"role": "user"}]}', "incomplete_message", "message 1 lacks"),
    "a text for a message": (b'{"messages": ["Hello!"]}', "incomplete_message", "message 1 lacks"),
    "unknown role": (said("bot", "x"), "unknown_role", "unknown role 'bot'"),
    "a tool speaks": (row("a", "b")[:-2] + b', {"role": "tool", "content": "c"}]}', "unknown_role", "role 'tool'"),
    "upper case role": (said("User", "x"), "unknown_role", "unknown role 'User'"),
    "a list for a role": (said(["user"], "x"), "unknown_role", "unknown role ['user']"),
    "content in parts": (said("user", [{"type": "text", "text": "x"}]), "nested_content", "nested `content`: a list"),
    "content as object": (said("user", {"text": "x"}), "nested_content", "an object"),
    "content a number": (said("user", 1), "not_text", "not text but a number"),
    "content null": (said("assistant", None), "not_text", "not text but null"),
    "lone surrogate": (rb'{"messages": [{"role": "user", "content": "\ud800"}]}', "half_character", "lone surrogate"),
    "empty reply": (row("Hello!", " \n"), "empty_message", "message 2 (assistant) is empty"),
    "empty question": (row("", "Hello!"), "empty_message", "message 1 (user) is empty"),
    "invisible reply": (row("a", "\u200b\u2060 \u0000\u00a0"), "empty_message", "message 2 (assistant) is empty"),
    "a reply of control tokens": (row("a", " <|end|><|endoftext|>\n</s>"), "only_control_tokens", "message 2"),
    "assistant first": (said("assistant", "x"), "wrong_order", "message 1 is of the assistant"),
    "user twice": (
        json.dumps({"messages": [*chat("a"), *chat("b", "c")]}).encode(),
        "wrong_order",
        "message 2 is of the user, where the assistant should speak",
    ),
    "assistant after system": (
        json.dumps({"messages": [*chat(system="a"), *chat("b", "c")[1:]]}).encode(),
        "wrong_order",
        "message 2 is of the assistant, where the user should speak",
    ),
    "late system": (
        json.dumps({"messages": [*chat("a", "b"), {"role": "system", "content": "c"}]}).encode(),
        "wrong_order",
        "message 3 is of the system",
    ),
    "user last": (row("a", "b", "c"), "no_reply", "the last message"),
    "system only": (row(system="a"), "no_reply", "the last message"),
    "completion of the user": (
        json.dumps({"prompt": "a", "completion": chat("b")}).encode(),
        "wrong_order",
        "message 2 is of the user",
    ),
}


@pytest.mark.parametrize(("line", "kind", "sentence"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_a_bad_row_is_named_by_file_line_and_fault_and_nothing_is_written(
    tmp_path: Path, line: bytes, kind: str, sentence: str
) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_bytes(GOOD + b"\n\n" + line + b"\n" + GOOD + b"\n")
    with pytest.raises(UserError) as caught:
        main(["--source", str(source), "--out", str(tmp_path / "out")])
    summary, named, *_ = str(caught.value).splitlines()
    assert summary == f"1 of 3 rows of {source} are no conversations ({kind} 1):"
    assert named.startswith(f"  {source}:3: ")
    assert sentence in named
    assert caught.value.code == 1
    assert caught.value.next_command is not None and "--on-bad-row drop" in caught.value.next_command
    assert not (tmp_path / "out").exists()


def test_every_kind_of_fault_has_a_row_that_shows_it() -> None:
    elsewhere = {"line_too_long", "too_long"}
    assert {kind for _, kind, _ in BAD_ROWS.values()} == set(FAULTS) - elsewhere


def test_all_bad_rows_are_counted_by_kind_and_the_first_twenty_are_named(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_bytes(b"\n".join([b"{", *[said("bot", "x")] * 30, GOOD, *[row("a", "")] * 4]))
    with pytest.raises(UserError) as caught:
        main(["--source", str(source), "--out", str(tmp_path / "out")])
    lines = str(caught.value).splitlines()
    assert lines[0] == f"35 of 36 rows of {source} are no conversations (unknown_role 30, empty_message 4, not_json 1):"
    assert [line.split(": ")[0].rpartition(":")[2] for line in lines[1:21]] == [str(number) for number in range(1, 21)]
    assert lines[21] == "  and 15 more"


def test_bad_rows_are_dropped_and_counted_if_that_is_asked_for(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    good = [row(f"question {number}", "answer") for number in range(40)]
    source.write_bytes(b"\n".join([*good[:20], b"{", row("a", ""), row("b", ""), *good[20:]]))
    assert main(["--source", str(source), "--on-bad-row", "drop", "--out", str(tmp_path / "out")]) == 0
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert sum(card["rows"].values()) == 40
    assert (card["dropped"], card["faults"]) == (3, {"empty_message": 2, "not_json": 1})
    assert card["bad_rows"][1] == f"{source}:22: message 2 (assistant) is empty"
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "| a message of the user or the assistant without a visible character | 2 |" in readme
    assert f"    {source}:21: it is not JSON" in readme


def test_the_job_refuses_a_file_with_bad_rows_too(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(GOOD + b"\n{\n" + said("bot", "x"))
    with pytest.raises(UserError, match=r"train\.jsonl:3: message 1 has the unknown role"):
        read_conversations(tmp_path / "train.jsonl")


def test_a_file_without_rows_is_empty(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(b"\n \n")
    with pytest.raises(UserError, match=r"train\.jsonl is empty"):
        read_conversations(tmp_path / "train.jsonl")


GOOD_ROWS: dict[str, tuple[dict[str, Any], list[dict[str, str]]]] = {
    "prompt and completion": ({"prompt": "a", "completion": "b"}, chat("a", "b")),
    "lists of messages": (
        {"prompt": chat("a", "b", "c", system="s"), "completion": [{"role": "assistant", "content": "d"}]},
        chat("a", "b", "c", "d", system="s"),
    ),
    "messages beside a prompt": ({"messages": chat("a", "b"), "prompt": "a", "completion": "x"}, chat("a", "b")),
    "messages null": ({"messages": None, "prompt": "a", "completion": "b"}, chat("a", "b")),
    "an empty system message": ({"messages": chat("a", "b", system="")}, chat("a", "b", system="")),
    "emoji and code": ({"messages": chat("😀", "  if x:\n\treturn 1")}, chat("😀", "  if x:\n\treturn 1")),
    "an odd line break": ({"messages": chat("a\u2028b", "c\u0085d")}, chat("a\u2028b", "c\u0085d")),
    "a control token and text": ({"messages": chat("<|end|>", "<|end|> ends it")}, chat("<|end|>", "<|end|> ends it")),
    "a name in a message": ({"messages": [{**chat("a")[0], "name": "Ada"}, *chat("a", "b")[1:]]}, chat("a", "b")),
}


@pytest.mark.parametrize(("values", "conversation"), GOOD_ROWS.values(), ids=GOOD_ROWS.keys())
def test_good_rows_become_conversations_with_their_texts_unchanged(
    tmp_path: Path, values: dict[str, Any], conversation: list[dict[str, str]]
) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(values))
    assert read_conversations(tmp_path / "rows.jsonl") == [conversation]
    other = tmp_path / "rows.jsonl.gz"
    other.write_bytes(gzip.compress(json.dumps(values, ensure_ascii=False).encode()))
    assert read_conversations(other) == [conversation]


def test_keys_that_are_no_part_of_a_conversation_are_left_out_and_counted(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    named = [{"role": "user", "content": "x", "name": "Ada"}, {"role": "assistant", "content": "y", "weight": 0}]
    lines = [row(f"q{number}", "a", prompt_id=number, empty=None) for number in range(9)]
    source.write_bytes(b"\n".join([*lines, json.dumps({"messages": named}).encode()]))
    main(["--source", str(source), "--out", str(tmp_path / "out")])
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["ignored_keys"] == {"messages.name": 1, "messages.weight": 1, "prompt_id": 9}
    lines_written = (tmp_path / "out" / "train.jsonl").read_text() + (tmp_path / "out" / "eval.jsonl").read_text()
    assert "prompt_id" not in lines_written and "Ada" not in lines_written


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text() | st.sampled_from(["user", "assistant", "system"]),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.sampled_from(["messages", "prompt", "completion", "role", "content", "x"]), inner)
    ),
)


@given(json_values)
def test_whatever_a_row_holds_it_has_a_fault_or_can_be_trained_on(values: Any) -> None:
    found = Row("here", values)
    if fault_of(found) is None:
        assert [message["role"] for message in conversation_of(found)][-1] == "assistant"


@given(st.lists(st.text(), min_size=2, max_size=6))
def test_a_conversation_without_fault_can_be_tokenised_and_teaches_something(
    shared_tokenizer: Any, turns: list[str]
) -> None:
    found = Row("here", {"messages": chat(*turns)})
    if fault_of(found) is None:
        _, labels = encode_conversation(shared_tokenizer, conversation_of(found))
        assert any(label != -100 for label in labels)


@pytest.fixture(scope="module")
def shared_tokenizer(tokenizer: Any) -> Any:
    return tokenizer


def test_a_line_without_end_is_one_bad_row_and_is_not_read_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_files, "MAX_LINE", 2**20)
    (tmp_path / "rows.jsonl").write_bytes(b"x" * (5 * 2**20 + 7) + b"\n" + GOOD)
    first, second = rows_of_file(tmp_path / "rows.jsonl")
    assert (first.values.kind, first.place) == ("line_too_long", f"{tmp_path}/rows.jsonl:1")
    assert second.place == f"{tmp_path}/rows.jsonl:2"
    assert fault_of(second) is None


def parquet_file(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def test_parquet_rows_are_read_by_number_and_without_their_other_columns(tmp_path: Path) -> None:
    rows = [{"prompt_id": "x", "messages": chat("a", reply)} for reply in ("b", "", "c")]
    found = list(rows_of_file(parquet_file(tmp_path / "rows.parquet", rows)))
    assert [row.place for row in found] == [f"{tmp_path}/rows.parquet, row {number}" for number in (1, 2, 3)]
    assert found[0] == Row(f"{tmp_path}/rows.parquet, row 1", {"messages": chat("a", "b")}, ("prompt_id",))
    assert [fault and fault.kind for fault in map(fault_of, found)] == [None, "empty_message", None]


def test_parquet_rows_of_prompt_and_completion_are_read(tmp_path: Path) -> None:
    path = parquet_file(tmp_path / "rows.parquet", [{"prompt": "a", "completion": "b", "id": 1}])
    assert read_conversations(path) == [chat("a", "b")]


def test_a_parquet_text_that_is_not_utf8_spoils_its_own_row_only(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    texts = pyarrow.array([b"a", b"\xff", b"c"]).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"prompt": texts, "completion": ["x", "y", "z"]}), tmp_path / "rows.parquet")
    found = [fault_of(row) for row in rows_of_file(tmp_path / "rows.parquet")]
    assert [fault and fault.kind for fault in found] == [None, "not_utf8", None]


def unusable(folder: Path, name: str) -> Path:
    """A file that is wrong as a whole."""
    path = folder / name
    if name == "columns.parquet":
        return parquet_file(path, [{"conversations": [{"from": "human", "value": "a"}]}])
    if name == "cut.parquet":
        path.write_bytes(parquet_file(path, [{"prompt": "a", "completion": "b"}]).read_bytes()[:-20])
    elif name == "cut.jsonl.gz":
        path.write_bytes(gzip.compress(GOOD * 1000)[:-20])
    elif name == "plain.jsonl.gz":
        path.write_bytes(GOOD)
    elif name == "array.json":
        path.write_text("[\n{}\n]")
    elif name == "folder.jsonl":
        path.mkdir()
    elif name == "rows.csv":
        path.write_text("prompt,completion\n")
    return path


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("columns.parquet", "has the columns conversations: neither `messages`"),
        ("cut.parquet", "cannot read"),
        ("cut.jsonl.gz", "cannot read"),
        ("plain.jsonl.gz", "cannot read"),
        ("array.json", "is one JSON array"),
        ("folder.jsonl", "cannot read .*: Is a directory"),
        ("missing.jsonl", "cannot read .*: No such file"),
        ("rows.csv", "is not a file of conversations"),
    ],
)
def test_a_file_that_is_wrong_as_a_whole_is_one_sentence(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        read_conversations(unusable(tmp_path, name))
    assert caught.value.code == 2
    assert len(caught.value.message.splitlines()) == 1
