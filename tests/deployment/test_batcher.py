"""The engine: the same text as `model.generate`, whoever else is in the batch; slots come free."""

from __future__ import annotations

import queue
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any, cast

import pytest
import torch

from deployment.server.batcher import Batcher
from deployment.server.decoding import Choice, TextStream
from deployment.server.rows import EngineStopped, Event, Failed, Finished, QueueFull, Row, Text
from deployment.server.transformers_engine import TransformersModel
from training.prompt import encode_prompt

WORDS = ("who", "founded", "microsoft", "the", "capital", "of", "france", "spider", "legs", "hello", "paris", "1975")


@pytest.fixture
def engine(loaded: TransformersModel) -> Iterator[Batcher]:
    made = Batcher(loaded.model, loaded.stop_ids, slots=4, queue=64)
    yield made
    made.close()


def row(
    loaded: TransformersModel,
    text: str,
    max_tokens: int = 16,
    *,
    temperature: float = 0.0,
    seed: int | None = None,
    stops: Sequence[str] = (),
) -> tuple[Row, queue.Queue[Event]]:
    events: queue.Queue[Event] = queue.Queue()
    prompt = encode_prompt(loaded.encoder, [{"role": "user", "content": text}])
    choice = Choice(temperature, 0.9, seed)
    return Row(prompt, max_tokens, choice, TextStream(loaded.decoder, stops), events.put), events


def finish(events: queue.Queue[Event]) -> tuple[str, Finished]:
    text = ""
    while not isinstance(event := events.get(timeout=20), Finished):
        assert isinstance(event, Text), event
        text += event.text
    return text, event


def generated(loaded: TransformersModel, prompt: Sequence[int], max_tokens: int) -> list[int]:
    with torch.inference_mode():
        output = cast(Any, loaded.model).generate(
            torch.tensor([list(prompt)]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=max_tokens,
            do_sample=False,
        )
    return list(output[0, len(prompt) :].tolist())


def test_greedy_text_is_that_of_generate_when_requests_join_and_leave_at_random(
    loaded: TransformersModel, engine: Batcher
) -> None:
    dice = random.Random(7)
    asked = [(" ".join(dice.choices(WORDS, k=dice.randint(1, 40))), dice.randint(1, 30)) for _ in range(40)]
    rows = []
    for text, bound in asked:
        made, events = row(loaded, text, bound)
        engine.submit([made])
        rows.append((made, events))
        noise, _ = row(loaded, text[::-1], 30)
        engine.submit([noise])
        time.sleep(dice.random() * 0.02)
        noise.cancel()
    for (made, events), (_, bound) in zip(rows, asked, strict=True):
        text, end = finish(events)
        expected = generated(loaded, made.prompt, bound)
        assert made.generated == expected
        whole = loaded.decoder.decode(expected, skip_special_tokens=True)
        assert text == whole or "\ufffd" in whole  # how bytes that are no text are shown depends on where they are cut
        assert end.completion_tokens == len(expected)


def test_a_seed_gives_the_same_text_alone_and_in_company(loaded: TransformersModel, engine: Batcher) -> None:
    alone, events = row(loaded, "hello", temperature=1.0, seed=3)
    engine.submit([alone])
    finish(events)
    company = [row(loaded, word, temperature=1.0, seed=3 if word == "hello" else None) for word in ("a", "hello", "b")]
    engine.submit([made for made, _ in company])
    for _, events in company:
        finish(events)
    assert company[1][0].generated == alone.generated
    assert company[0][0].generated != alone.generated


def test_a_stop_string_cuts_the_text_and_ends_the_row(loaded: TransformersModel, engine: Batcher) -> None:
    free, events = row(loaded, "hello", 24)
    engine.submit([free])
    text, _ = finish(events)
    stop = text[len(text) // 2 : len(text) // 2 + 4]
    cut, events = row(loaded, "hello", 24, stops=[stop])
    engine.submit([cut])
    short, end = finish(events)
    assert short == text[: text.index(stop)]
    assert end.reason == "stop"
    assert len(cut.generated) < len(free.generated)


def test_stop_ids_end_a_row_and_give_no_text(loaded: TransformersModel) -> None:
    made, events = row(loaded, "hello", 24)
    expected = generated(loaded, made.prompt, 24)
    engine = Batcher(loaded.model, frozenset([expected[5]]))
    engine.submit([made])
    text, end = finish(events)
    engine.close()
    first = expected.index(expected[5])
    assert (end.reason, end.completion_tokens) == ("stop", first + 1)
    whole = loaded.decoder.decode(expected[:first], skip_special_tokens=True)
    assert text == whole or "\ufffd" in whole


def test_a_thousand_random_cancels_leave_nothing_behind(loaded: TransformersModel, engine: Batcher) -> None:
    dice = random.Random(3)
    live: list[Row] = []
    for number in range(1000):
        made, _ = row(loaded, dice.choice(WORDS), 50)
        live.append(made)
        try:
            engine.submit([made])
        except QueueFull:
            for other in live:
                other.cancel()
            live.clear()
        if live and number % 3:
            live.pop(dice.randrange(len(live))).cancel()
    for other in live:
        other.cancel()
    deadline = time.monotonic() + 10
    while any(engine.load):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    made, events = row(loaded, "hello", 4)
    engine.submit([made])
    assert finish(events)[1].completion_tokens == 4


def test_a_row_that_was_cancelled_while_it_waited_costs_no_pass(loaded: TransformersModel) -> None:
    engine = Batcher(loaded.model, loaded.stop_ids, slots=1)
    first, events = row(loaded, "hello", 40)
    second, _ = row(loaded, "hello", 40)
    engine.submit([first, second])
    second.cancel()
    finish(events)
    engine.close()
    assert (len(first.generated), engine.steps) == (40, 40)
    assert second.generated == []


def test_a_full_queue_refuses_all_rows_of_a_request(loaded: TransformersModel) -> None:
    engine = Batcher(loaded.model, loaded.stop_ids, slots=1, queue=2)
    rows = [row(loaded, "hello", 200)[0] for _ in range(4)]
    with pytest.raises(QueueFull):
        engine.submit(rows)
    assert engine.load == (0, 0)
    engine.submit(rows[:2])
    engine.close()


def test_a_failing_batch_is_told_and_the_engine_goes_on(
    loaded: TransformersModel, engine: Batcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(loaded.model, "forward", _out_of_memory)
        made, events = row(loaded, "hello")
        engine.submit([made])
        assert isinstance(events.get(timeout=10), Failed)
    made, events = row(loaded, "hello")
    engine.submit([made])
    finish(events)


def _out_of_memory(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("no memory")


def test_closing_tells_everyone_and_takes_no_more(loaded: TransformersModel) -> None:
    engine = Batcher(loaded.model, loaded.stop_ids, slots=1)
    told = [row(loaded, "hello", 2000) for _ in range(3)]
    engine.submit([made for made, _ in told])
    engine.close()
    for _, events in told:
        while not isinstance(event := events.get(timeout=5), Failed):
            assert isinstance(event, Text)
    assert not engine.alive
    with pytest.raises(EngineStopped):
        engine.submit([told[0][0]])
