"""The evaluation: one figure whatever the batches and the packing, honest intervals, replies that are looked at."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from infra.cli import REFUSED, UserError
from tests.support.small import FIRST_QUESTIONS, chat, write_jsonl
from training import evaluate, samples
from training import likelihood as measuring
from training.dataset import read_conversations
from training.evaluate import encode_all, likelihood, load_model
from training.gate import Limits
from training.likelihood import Likelihood, gain, interval
from training.prompt import IGNORED
from training.samples import Prompt, Reply


@pytest.fixture(scope="module")
def small(tiny_model: Path) -> tuple[Any, Any]:
    return load_model(str(tiny_model))


@pytest.fixture(scope="module")
def rows(small: tuple[Any, Any]) -> list[Any]:
    return encode_all(small[1], read_conversations(FIRST_QUESTIONS)[:40:4], None)


@pytest.mark.parametrize("batch_tokens", [1, 100, 10_000])
def test_the_likelihood_does_not_depend_on_the_batches(
    small: tuple[Any, Any], rows: list[Any], batch_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [likelihood(small[0], [row]) for row in rows]
    monkeypatch.setattr(measuring, "BATCH_TOKENS", batch_tokens)
    found = likelihood(small[0], rows)
    assert found.nll == pytest.approx(sum(one.nll * one.tokens for one in alone) / found.tokens, abs=1e-5)
    assert [tokens for _, tokens in found.parts] == [one.tokens for one in alone]
    assert [nats for nats, _ in found.parts] == pytest.approx([one.nll * one.tokens for one in alone], abs=1e-3)


def test_tokens_count_alike_not_conversations(small: tuple[Any, Any]) -> None:
    short, long = encode_all(small[1], [chat("a", "b"), chat("c", "in 1975 " * 30)], None)
    found = [likelihood(small[0], part) for part in ([short], [long], [short, long])]
    assert found[0].tokens < found[1].tokens / 10
    assert abs(found[2].nll - found[1].nll) < abs(found[2].nll - found[0].nll)
    assert found[2].tokens == sum(label != IGNORED for _, labels in (short, long) for label in labels[1:])


def test_a_document_is_as_likely_packed_as_alone(tiny_model: Path, rows: list[Any]) -> None:
    import torch

    from training import attention

    attention.register()
    model, _ = load_model(str(tiny_model), attn_implementation=attention.VARLEN)
    model.train(False)
    borders = [0]
    for ids, _ in rows:
        borders.append(borders[-1] + len(ids))
    packed = torch.tensor([[token for ids, _ in rows for token in ids]])
    positions = torch.tensor([[place for ids, _ in rows for place in range(len(ids))]])
    with torch.no_grad():
        logits = model(input_ids=packed, position_ids=positions, use_cache=False).logits[0]
    found = likelihood(model, rows)
    for number, (_, labels) in enumerate(rows):
        own = logits[borders[number] : borders[number + 1] - 1]
        nats = torch.nn.functional.cross_entropy(
            own, torch.tensor(labels[1:]), ignore_index=IGNORED, reduction="sum"
        ).item()
        assert nats / found.parts[number][1] == pytest.approx(found.parts[number][0] / found.parts[number][1], abs=1e-4)


def test_the_interval_holds_the_true_mean_about_nineteen_times_in_twenty() -> None:
    source = random.Random(0)
    inside = 0
    for _ in range(200):
        parts = [(count * source.gauss(2.0, 0.5), count) for count in (source.randint(5, 50) for _ in range(60))]
        low, high = interval(Likelihood.of(parts))
        inside += low <= 2.0 <= high
    assert 180 <= inside <= 198


def test_the_interval_is_the_same_each_time_and_wider_for_fewer_conversations() -> None:
    parts = [(10 * value, 10) for value in (1.0, 2.0, 3.0, 1.5, 2.5)]
    low, high = interval(Likelihood.of(parts))
    assert (low, high) == interval(Likelihood.of(parts))
    wide, narrow = high - low, interval(Likelihood.of(parts * 20))
    assert narrow[1] - narrow[0] < wide / 3


def test_a_gain_that_is_the_same_everywhere_is_certain_however_hard_the_conversations() -> None:
    before = Likelihood.of([(100.0, 10), (10.0, 10), (55.0, 10)])
    after = Likelihood.of([(99.0, 10), (9.0, 10), (54.0, 10)])
    assert gain(before, after).nats == pytest.approx(0.1)
    assert gain(before, after).error == pytest.approx(0, abs=1e-9)


def test_one_conversation_says_nothing_about_others() -> None:
    assert gain(Likelihood.of([(9.0, 3)]), Likelihood.of([(3.0, 3)])).error == math.inf


def test_models_of_other_tokenizers_are_not_compared() -> None:
    with pytest.raises(ValueError, match="the same conversations"):
        gain(Likelihood.of([(9.0, 3), (1.0, 2)]), Likelihood.of([(9.0, 4), (1.0, 2)]))


@pytest.mark.parametrize(
    ("ids", "share"), [([], 1.0), ([1, 2], 1.0), ([1, 2, 3], 1.0), ([1, 1, 1, 1], 0.5), ([1, 2, 3, 1, 2, 3], 0.75)]
)
def test_distinct_3_is_the_share_of_different_trigrams(ids: list[int], share: float) -> None:
    assert samples.distinct_3(ids) == share


@pytest.mark.parametrize(
    ("text", "ids", "fault"),
    [
        ("", [], "empty"),
        (" \n", [5, 6], "empty"),
        ("la la la", [7] * 3, None),  # short
        ("la " * 20, [7] * 20, "repetitive"),
        ("ab ab " * 8, [7, 8] * 16, "repetitive"),
        ("prose", list(range(40)), None),
        ("| a | b |", [1, 2, 3, 4] * 3 + list(range(20, 40)), None),
    ],
)
def test_empty_and_looping_replies_are_degenerate(text: str, ids: list[int], fault: str | None) -> None:
    assert Reply(text, len(ids), True, samples.distinct_3(ids)).fault == fault


def test_replies_are_greedy_and_those_of_a_prompt_alone(small: tuple[Any, Any]) -> None:
    prompts = [Prompt(tuple(chat(text)), "") for text in ("Who founded Microsoft?", "When?", "Who are you, in a word?")]
    together = samples.replies(*small, prompts)
    assert together == [samples.replies(*small, [prompt])[0] for prompt in prompts]
    assert all(reply.tokens == samples.NEW_TOKENS for reply in together if not reply.stopped)


def test_a_reply_ends_before_its_stop_token(small: tuple[Any, Any]) -> None:
    end = small[1].convert_tokens_to_ids("<|end|>")
    said = small[1].encode("In 1975.", add_special_tokens=False)
    reply = samples._reply(small[1], [*said, end, *said])
    assert (reply.text.strip(), reply.tokens, reply.stopped) == ("In 1975.", len(said), True)
    assert not samples._reply(small[1], said).stopped


def test_prompts_are_spread_over_the_file_and_short_where_there_are_short_ones() -> None:
    conversations = [chat(f"question {n}", f"answer {n}", "more", "and more") for n in range(100)]
    found = samples.prompts_of(conversations, 4)
    assert [prompt.messages[0]["content"] for prompt in found] == [f"question {n}" for n in (0, 25, 50, 75)]
    assert found[1].reference == "answer 25"
    long = [chat("long " * 1000, "yes"), *conversations[:2]]
    assert [prompt.reference for prompt in samples.prompts_of(long, 9)] == ["answer 0", "answer 1"]
    assert len(samples.prompts_of(long[:1])) == 1


def test_the_table_of_samples_cannot_be_broken_by_a_reply() -> None:
    prompt = Prompt(tuple(chat("a | b\nc")), "<b>d</b>")
    lines = samples.as_markdown([prompt], [Reply("x|y", 3, False, 1.0)], [Reply("", 0, True, 1.0)]).splitlines()
    row = lines[-1].replace("\\|", "")
    assert row.count("|") == 5
    assert "cut off" in row and "empty" in row and "&lt;b>" in row


def test_the_verb_writes_what_it_measured_and_refuses_a_model_that_is_no_better(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = write_jsonl(tmp_path / "eval.jsonl", read_conversations(FIRST_QUESTIONS)[:6])
    second = write_jsonl(tmp_path / "second.jsonl", [chat("1 + 1?", "2"), chat("2 + 2?", "4")])
    words = ["--model", str(tiny_model), "--baseline", str(tiny_model), "--eval", str(held_out)]
    code = evaluate.main([*words, "--second-domain", str(second), "--out", str(tmp_path / "out"), "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert code == REFUSED and printed["approved"] is False
    assert {"gain", "certainty"} <= set(printed["failed"])
    metrics = printed["metrics"]
    assert metrics["forgetting"] == 0 and metrics["second_conversations"] == 2 and metrics["samples"] == 6
    assert metrics["eval_loss_low"] < metrics["eval_loss"] < metrics["eval_loss_high"]
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(metrics["eval_loss"]), rel=1e-4)
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written == {**metrics, "approved": False, "reason": printed["reason"]}
    assert len(json.loads((tmp_path / "out" / "samples.json").read_text())) == 6
    assert "| prompt | before | after | reference |" in (tmp_path / "out" / "samples.md").read_text()
    assert (tmp_path / "out" / "evaluation.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_baseline_there_are_figures_and_no_approval(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = write_jsonl(tmp_path / "eval.jsonl", [chat("a", "b")])
    words = ["--model", str(tiny_model), "--eval", str(held_out), "--recipe", "local", "--json"]
    assert evaluate.main(words) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["approved"] is False and "second_loss" not in printed["metrics"]
    assert printed["metrics"]["eval_loss"] == printed["metrics"]["eval_loss_low"]


def test_the_gate_is_that_of_the_recipe_that_lies_with_the_model(tmp_path: Path) -> None:
    from training import recipe as recipes

    (tmp_path / "recipe.yaml").write_text(recipes.load("local", ["gate_min_gain=0.5"]).as_yaml())
    parser = evaluate._parser()
    words = ["--model", str(tmp_path), "--eval", "x"]
    assert evaluate._limits(parser.parse_args(words)) == Limits(0.5, None)
    assert evaluate._limits(parser.parse_args([*words, "--min-gain", "0.25"])) == Limits(0.25, None)
    assert evaluate._limits(parser.parse_args(["--model", "elsewhere", "--eval", "x"])) == Limits(0.02, 0.05)


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "out").write_text("a file")
    held_out = write_jsonl(tmp_path / "eval.jsonl", [chat("a", "b")])
    words = ["--model", str(tiny_model), "--eval", str(held_out), "--recipe", "local", "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match="cannot write the evaluation"):
        evaluate.main(words)


def test_what_was_measured_before_survives_a_restart() -> None:
    from training.job_evaluation import noted, recalled

    reply = Reply("yes", 1, True, 1.0)
    found = evaluate.Measured(Likelihood.of([(1.5, 3), (2.5, 2)]), None, (reply,))
    assert recalled(json.loads(json.dumps(noted(found)))) == found
