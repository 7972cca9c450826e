"""Text comes in whole characters, and never past a stop string."""

from __future__ import annotations

import itertools

import pytest
import torch

from deployment.server.decoding import Choice, TextStream, next_tokens
from deployment.server.model import LoadedModel


@pytest.mark.parametrize("text", ["Grüße aus Köln, 日本語 und 🎉!", "  two  spaces ", "a", "<|end|> typed by a user"])
def test_the_pieces_are_the_whole_text(loaded: LoadedModel, text: str) -> None:
    ids = loaded.encoder.encode(text, add_special_tokens=False, split_special_tokens=True)
    stream = TextStream(loaded.decoder)
    pieces = [*(stream.push(token) for token in ids), stream.finish()]
    assert "".join(pieces) == loaded.decoder.decode(ids, skip_special_tokens=True)
    assert not any("\ufffd" in piece for piece in pieces)


class Letters:
    """A decoder whose ids are code points."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        return "".join(map(chr, token_ids))


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one END two", ["END"], "one "),
        ("aaab", ["aab"], "a"),
        ("EN but no more", ["END"], "EN but no more"),
        ("ends in EN", ["END"], "ends in EN"),
        ("first second", ["second", "first"], ""),
    ],
)
def test_nothing_of_a_stop_string_comes_out(text: str, stops: list[str], expected: str) -> None:
    stream = TextStream(Letters(), stops)
    out = ""
    for letter in text:
        out += stream.push(ord(letter))
        assert expected.startswith(out)
    assert out + stream.finish() == expected


def test_a_small_top_p_leaves_only_the_best_token() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    assert {next_tokens(logits, [Choice(1.0, 0.01, seed)])[0] for seed in range(20)} == {1}


@pytest.mark.parametrize("temperature", [5e-324, 7.7e-187, 1e-9, 1e-4, 1.0])
@pytest.mark.parametrize("top_p", [5e-324, 1e-46, 1e-9, 1.0])
def test_no_temperature_or_top_p_is_too_small(temperature: float, top_p: float) -> None:
    logits = torch.tensor([[0.0, 30.0, 1.0, -1e4]])
    assert next_tokens(logits, [Choice(temperature, top_p, 1)]) == [1]


def test_sampling_follows_the_probabilities() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2]]))
    choice = Choice(1.0, 1.0, 0)
    drawn = [next_tokens(logits, [choice])[0] for _ in range(3000)]
    for token, share in enumerate([0.5, 0.3, 0.2]):
        assert drawn.count(token) / 3000 == pytest.approx(share, abs=0.04)


def test_rows_choose_for_themselves() -> None:
    logits = torch.tensor([[0.0, 9.0], [9.0, 0.0]])
    choices = [Choice(0.0, 1.0, None), Choice(1.0, 0.5, 1)]
    for pair in itertools.repeat(None, 5):
        assert pair is None
        assert next_tokens(logits, choices) == [1, 0]
