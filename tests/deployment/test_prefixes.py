"""What was computed for an answered conversation is used again: the tokens stay the same, less is computed, memory is
bounded.
"""

from __future__ import annotations

import queue
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
import torch

from deployment.server import transformers_engine
from deployment.server.batcher import Batcher
from deployment.server.decoding import Choice, TextStream
from deployment.server.prefixes import Prefixes
from deployment.server.rows import Event, Row
from deployment.server.transformers_engine import TransformersModel
from tests.deployment.test_batcher import finish, generated

SIZE = 128
"""Of the small model's vocabulary, those that a prompt here is made of."""


class Counted(Batcher):
    """Counts the columns that the model computes."""

    computed = 0

    def _prefill(self, rows: list[Row]) -> None:
        real, model = self._model.forward, cast(Any, self._model)

        def forward(*words: Any, input_ids: torch.Tensor, **named: Any) -> Any:
            self.computed += input_ids.shape[1]
            return real(*words, input_ids=input_ids, **named)

        model.forward = forward
        try:
            super()._prefill(rows)
        finally:
            del model.forward


@pytest.fixture
def engine(loaded: TransformersModel) -> Iterator[Counted]:
    made = Counted(loaded.model, loaded.stop_ids, slots=4, queue=1000, kept=400)
    yield made
    made.close()


def begin(engine: Batcher, loaded: TransformersModel, prompt: Sequence[int], bound: int) -> tuple[Row, Any]:
    events: queue.Queue[Event] = queue.Queue()
    made = Row(prompt, bound, Choice(0.0, 1.0, None), TextStream(loaded.decoder), events.put)
    engine.submit([made])
    return made, events


def answer(engine: Batcher, loaded: TransformersModel, prompt: Sequence[int], bound: int = 8) -> list[int]:
    """The answer's tokens, once the engine has nothing left to do: a row is kept after its caller was told."""
    made, events = begin(engine, loaded, prompt, bound)
    finish(events)
    deadline = time.monotonic() + 20
    while any(engine.load):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return made.generated


def text(dice: random.Random, count: int) -> list[int]:
    return [dice.randrange(40, SIZE) for _ in range(count)]


def test_five_turns_get_the_tokens_of_generate_and_compute_only_what_is_new(
    loaded: TransformersModel, engine: Counted
) -> None:
    dice, prompt = random.Random(1), []
    for turn in range(5):
        prompt += text(dice, 30)
        before = engine.computed
        said = answer(engine, loaded, prompt)
        assert said == generated(loaded, prompt, 8)
        # the last token of the answer before was chosen and never computed upon
        assert engine.computed - before == (30 if turn == 0 else 31)
        prompt += said


def test_conversations_that_go_on_together_and_with_new_ones_get_the_tokens_of_generate(
    loaded: TransformersModel, engine: Counted
) -> None:
    dice = random.Random(2)
    talks = [text(dice, dice.randint(3, 60)) for _ in range(6)]
    for _ in range(6):
        asked = [(talk, *begin(engine, loaded, list(talk), dice.randint(1, 12))) for talk in talks]
        for talk, made, events in asked:
            finish(events)
            assert made.generated == generated(loaded, made.prompt, made.max_tokens)
            talk += made.generated
            if dice.random() < 0.3:  # said again differently: only its beginning is known
                del talk[dice.randint(1, len(talk) - 1) :]
            talk += text(dice, dice.randint(1, 20))
        if dice.random() < 0.5:
            talks[dice.randrange(6)] = text(dice, dice.randint(1, 30))
        time.sleep(dice.random() * 0.02)


def test_the_same_prompt_again_computes_its_last_token_alone(loaded: TransformersModel, engine: Counted) -> None:
    prompt = text(random.Random(3), 50)
    first = answer(engine, loaded, prompt)
    before = engine.computed
    assert answer(engine, loaded, prompt) == first
    assert engine.computed - before == 1


def test_what_is_kept_stays_within_its_bound_and_what_was_used_last_stays_longest(
    loaded: TransformersModel, engine: Counted
) -> None:
    dice = random.Random(4)
    favourite = text(dice, 50)
    answer(engine, loaded, favourite)
    for _ in range(12):
        answer(engine, loaded, [*favourite, *text(dice, 3)], 1)
        answer(engine, loaded, text(dice, 60))
        assert engine._prefixes.tokens <= 400
    before = engine.computed
    answer(engine, loaded, [*favourite, 99])
    assert engine.computed - before == 1
    answer(engine, loaded, text(dice, 450))
    assert 0 < engine._prefixes.tokens <= 400


def test_an_earlier_turn_is_dropped_for_the_later_one(loaded: TransformersModel, engine: Counted) -> None:
    dice = random.Random(5)
    prompt = text(dice, 40)
    for _ in range(3):
        prompt += [*answer(engine, loaded, prompt), *text(dice, 10)]
    assert engine._prefixes.tokens == len(prompt) - 10 - 1
    assert len(engine._prefixes._kept) == 1


def test_after_a_failure_nothing_is_kept(loaded: TransformersModel, engine: Counted) -> None:
    prompt = text(random.Random(6), 40)
    answer(engine, loaded, prompt)
    assert engine._prefixes.tokens > 0
    engine._forget()
    assert engine._prefixes.tokens == 0


def number(place: int) -> Any:
    """Stands for the copy of a row's states: its number."""
    return lambda: place


def test_what_was_used_last_stays_and_what_all_prompts_begin_with_is_no_use() -> None:
    kept = Prefixes(9)
    for place in range(3):
        kept.keep([1, place, place], number(place))
    assert kept.find([1, 0, 0, 5]).length == 3
    assert (kept.find([1, 7, 7]).length, kept.find([1, 7, 7]).states) == (1, 0)  # of those alike the newest
    kept.keep([1, 8, 8], number(3))
    assert {cast(Any, one.states) for one in kept._kept} == {0, 2, 3}


@pytest.mark.parametrize(("free", "kept", "left"), [(100, 25, 75), (10**9, 4096, 10**9 - 4096), (None, 0, None)])
def test_what_is_kept_is_a_part_of_the_cache_and_no_more_than_could_be_used(
    loaded: TransformersModel, monkeypatch: pytest.MonkeyPatch, free: int | None, kept: int, left: int | None
) -> None:
    monkeypatch.setattr(transformers_engine, "cache_room", lambda model: free)
    engine = replace(loaded, context=4096).start(4, 8)
    assert isinstance(engine, Batcher)
    assert (engine._prefixes._room, engine._room) == (kept, left)
    engine.close()
