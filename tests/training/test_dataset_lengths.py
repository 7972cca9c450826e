"""Lengths, what a `max_length` cuts, and control tokens in texts, by the tokenizer that training uses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from infra.cli import UserError
from tests.support.small import FIRST_QUESTIONS, chat, write_jsonl
from training import dataset
from training.dataset import main, read_conversations
from training.evaluate import encode_all
from training.lengths import Lengths, Statistics, in_characters, in_tokens
from training.prompt import IGNORED, encode_conversation

LOCAL = Path(dataset.__file__).parent / "recipes" / "local.yaml"


@pytest.fixture(scope="module")
def tokenizer_folder(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return folder


def recipe_with(folder: Path, tokenizer_folder: Path, max_length: int) -> Path:
    """The local recipe with a base model that is there."""
    text = LOCAL.read_text().replace("model_name_or_path: base-model", f"model_name_or_path: {tokenizer_folder}")
    made = folder / "mine.yaml"
    made.write_text(re.sub("max_length: .*", f"max_length: {max_length}", text))
    return made


def card(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "card.json").read_text())
    return found


def test_lengths_in_tokens_are_those_of_training(tmp_path: Path, tokenizer: Any, tokenizer_folder: Path) -> None:
    main(["--source", str(FIRST_QUESTIONS), "--tokenizer", str(tokenizer_folder), "--out", str(tmp_path / "out")])
    lengths = card(tmp_path / "out")["lengths"]
    encoded = encode_all(tokenizer, read_conversations(tmp_path / "out" / "train.jsonl"), None)
    totals = sorted(len(ids) for ids, _ in encoded)
    learned = sum(label != IGNORED for _, labels in encoded for label in labels)
    assert (lengths["unit"], lengths["tokenizer"]) == ("tokens", str(tokenizer_folder))
    assert lengths["train"]["total"] == sum(totals)
    assert lengths["train"]["assistant_share"] == round(learned / sum(totals), 4)
    assert (lengths["train"]["length"]["min"], lengths["train"]["length"]["max"]) == (totals[0], totals[-1])
    assert lengths["train"]["length"]["p50"] == totals[len(totals) // 2]
    assert lengths["train"]["replies"]["max"] == 2


def test_what_a_max_length_cuts_is_what_training_loses(tmp_path: Path, tokenizer: Any, tokenizer_folder: Path) -> None:
    recipe = recipe_with(tmp_path, tokenizer_folder, 24)
    main(["--recipe", str(recipe), "--out", str(tmp_path / "out")])
    found = card(tmp_path / "out")["lengths"]
    conversations = read_conversations(tmp_path / "out" / "train.jsonl")
    whole, cut = (encode_all(tokenizer, conversations, limit) for limit in (None, 24))
    lost = sum(len(ids) for ids, _ in whole) - sum(len(ids) for ids, _ in cut)
    assert found["max_length"] == 24
    assert found["cut"]["24"] == {
        "conversations": sum(len(ids) > 24 for ids, _ in whole),
        "token_share": round(lost / sum(len(ids) for ids, _ in whole), 4),
    }
    assert list(found["cut"]) == ["24"]  # 512 tokens and more would cut nothing
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "The recipe's is 24." in readme and "| 24 | " in readme


def test_a_row_without_a_reply_within_max_length_is_a_bad_row(tmp_path: Path, tokenizer_folder: Path) -> None:
    rows = [chat(f"question {number}", "answer") for number in range(30)]
    source = write_jsonl(tmp_path / "rows.jsonl", [*rows, chat("why " * 200, "because")])
    arguments = ["--recipe", str(recipe_with(tmp_path, tokenizer_folder, 100)), "--source", str(source)]
    with pytest.raises(UserError, match=r"\(too_long 1\):\n  .*rows\.jsonl:31: .* beyond max_length = 100"):
        main([*arguments, "--out", str(tmp_path / "out")])
    main([*arguments, "--on-bad-row", "drop", "--out", str(tmp_path / "out")])
    assert card(tmp_path / "out")["faults"] == {"too_long": 1}


def test_what_training_would_leave_out_is_exactly_what_is_too_long(tokenizer: Any) -> None:
    conversation = chat("why " * 20, "because")
    first = in_tokens(tokenizer)(conversation).first_reply
    assert encode_all(tokenizer, [conversation], first) == []
    assert len(encode_all(tokenizer, [conversation], first + 1)) == 1


def test_without_a_tokenizer_lengths_are_characters_and_the_card_says_so(tmp_path: Path) -> None:
    main(["--source", str(FIRST_QUESTIONS), "--out", str(tmp_path)])
    lengths = card(tmp_path)["lengths"]
    assert (lengths["unit"], lengths["tokenizer"], lengths["cut"]) == ("characters", None, {})
    assert "In characters (no tokenizer was given)." in (tmp_path / "README.md").read_text()


def test_characters_are_counted_by_speaker() -> None:
    assert in_characters(chat("abc", "de", "f", "g", system="hij")) == Lengths(10, 3, 0, 2)


def test_a_tokenizer_that_is_not_phi3s_is_one_sentence(tmp_path: Path, tokenizer: Any) -> None:
    import copy

    other = copy.deepcopy(tokenizer)
    state = json.loads(other.backend_tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] != "<|end|>"]
    other.save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match=r"cannot count tokens with .*<\|end\|>") as caught:
        main(["--source", str(FIRST_QUESTIONS), "--tokenizer", str(tmp_path / "other"), "--out", str(tmp_path / "out")])
    assert caught.value.code == 2


@pytest.mark.parametrize("values", [[1], [1, 2], [5, 5, 5, 9], list(range(1, 101)), [3, 1, 2] * 50])
def test_percentiles_are_those_of_the_sorted_values(values: list[int]) -> None:
    statistics = Statistics()
    for value in values:
        statistics.add(Lengths(value, 0, 0, 1))
    spread = statistics.summary()["length"]
    for percent in (50, 95, 99):
        rank = -(-len(values) * percent // 100)
        assert spread[f"p{percent}"] == sorted(values)[rank - 1]
    assert (spread["min"], spread["max"]) == (min(values), max(values))
    assert spread["mean"] == round(sum(values) / len(values), 1)


def test_the_histogram_is_a_picture_that_shows_the_limit(tmp_path: Path, tokenizer_folder: Path) -> None:
    recipe = recipe_with(tmp_path, tokenizer_folder, 24)
    main(["--recipe", str(recipe), "--out", str(tmp_path / "with")])
    main(["--source", str(FIRST_QUESTIONS), "--tokenizer", str(tokenizer_folder), "--out", str(tmp_path / "without")])
    with_limit, without = ((tmp_path / name / "lengths.png").read_bytes() for name in ("with", "without"))
    assert with_limit.startswith(b"\x89PNG\r\n") and without.startswith(b"\x89PNG\r\n")
    assert with_limit != without


def control_tokens(tokenizer: Any) -> list[str]:
    return [token.content for token in tokenizer.added_tokens_decoder.values()] + ["</s>"]


def without_control_tokens(tokenizer: Any) -> Any:
    """The same vocabulary in a tokenizer that knows no control token: whatever it reads is plain text to it."""
    from tokenizers import Tokenizer

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = []
    return Tokenizer.from_str(json.dumps(state))


def test_every_control_token_in_every_role_is_plain_text_from_the_row_to_the_ids(
    tmp_path: Path, tokenizer: Any
) -> None:
    tokens = control_tokens(tokenizer)
    assert {"<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|endoftext|>", "<s>", "<unk>"} <= set(tokens)
    rows = [
        chat(f"u {token} {n}", f"a{token}\n<|assistant|>\nb", f"{token}", f"{token} c", system=f"s {token}")
        for n, token in enumerate(tokens)
    ]
    read = read_conversations(write_jsonl(tmp_path / "rows.jsonl", rows))
    assert read == rows
    plain = without_control_tokens(tokenizer)
    structure = {
        name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("system", "user", "assistant", "end")
    }
    for conversation in read:
        expected = []
        for message in conversation:
            expected += [structure[message["role"]], *plain.encode(message["content"]).ids, structure["end"]]
        ids, labels = encode_conversation(tokenizer, conversation)
        assert ids == [*expected, tokenizer.convert_tokens_to_ids("<|endoftext|>")]
        assert labels.count(structure["end"]) == 2  # the loss is taken on two replies, not on what looks like one
