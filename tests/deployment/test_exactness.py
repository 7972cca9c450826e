"""The long proofs of the engine: 200 prompts against `model.generate`, 10,000 cancels, a small cache."""

from __future__ import annotations

import queue
import random
import time
from pathlib import Path
from typing import Any

import pytest

from deployment.server.batcher import Batcher
from deployment.server.rows import Event, QueueFull, Row
from deployment.server.transformers_engine import TransformersModel, load
from tests.deployment.test_batcher import WORDS, finish, generated, row
from training.small_model import make_small_model


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> TransformersModel:
    """The demo's shape: 4 layers of 256."""
    folder = tmp_path_factory.mktemp("models") / "larger"
    make_small_model(folder, [" ".join(WORDS), "Grüße aus Köln"], seed=5)
    return load(folder, dtype="float32", threads=1)


def prompts(dice: random.Random, count: int) -> list[tuple[str, int]]:
    return [(" ".join(dice.choices(WORDS, k=dice.randint(1, 120))), dice.randint(1, 60)) for _ in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize(("room", "kept"), [(None, 0), (900, 0), (900, 3000)])
def test_200_prompts_get_exactly_the_tokens_of_generate_among_joins_and_cancels(
    larger: TransformersModel, room: int | None, kept: int
) -> None:
    dice = random.Random(11)
    engine = Batcher(larger.model, larger.stop_ids, slots=8, queue=1000, room=room, kept=kept)
    asked: list[tuple[Row, queue.Queue[Event], int]] = []
    noise: list[Row] = []
    for text, bound in prompts(dice, 200):
        made, events = row(larger, text, bound)
        engine.submit([made])
        asked.append((made, events, bound))
        if dice.random() < 0.5:
            noise.append(row(larger, text[::-1], 60)[0])
            engine.submit([noise[-1]])
        if noise and dice.random() < 0.6:
            noise.pop(dice.randrange(len(noise))).cancel()
        time.sleep(dice.random() * 0.05)
    for _, events, _ in asked:
        finish(events)
    engine.close()
    same = [made.generated == generated(larger, made.prompt, bound) for made, _, bound in asked]
    print(f"{sum(same)} of {len(same)} as model.generate, {engine.steps} steps")
    assert all(same)


@pytest.mark.slow
def test_ten_thousand_random_cancels_leave_nothing_behind(loaded: TransformersModel) -> None:
    dice = random.Random(3)
    engine = Batcher(loaded.model, loaded.stop_ids, slots=16, queue=64)
    live: list[Row] = []
    cancelled = 0
    while cancelled < 10_000:
        made, _ = row(loaded, " ".join(dice.choices(WORDS, k=dice.randint(1, 30))), dice.randint(1, 200))
        try:
            engine.submit([made])
            live.append(made)
        except QueueFull:
            pass
        if dice.random() < 0.01:
            time.sleep(0.05)
        while len(live) > dice.randint(0, 70):
            live.pop(dice.randrange(len(live))).cancel()
            cancelled += 1
    for one in live:
        one.cancel()
    deadline = time.monotonic() + 20
    while any(engine.load):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    print(f"{cancelled} cancelled, {engine.steps} steps")
    assert engine._cache is None
    made, events = row(loaded, "hello", 12)
    engine.submit([made])
    finish(events)
    engine.close()
    assert made.generated == generated(loaded, made.prompt, 12)


def test_rows_that_would_not_fit_the_cache_wait_for_their_turn(loaded: TransformersModel) -> None:
    engine = Batcher(loaded.model, loaded.stop_ids, slots=8, queue=64, room=100)
    most = 0
    real = engine._fits

    def watched(newcomers: Any) -> bool:
        nonlocal most
        fits = real(newcomers)
        everyone = [*engine._running, *newcomers]
        if fits and len(everyone) > 1:
            most = max(most, len(everyone) * max(len(one.prompt) + one.max_tokens for one in everyone))
        return fits

    engine._fits = watched  # type: ignore[method-assign]
    told = [row(loaded, word * size, 20) for word in WORDS for size in (1, 3, 30)]
    engine.submit([made for made, _ in told])
    for made, events in told:
        finish(events)
        assert made.generated == generated(loaded, made.prompt, 20)
    engine.close()
    assert 0 < most <= 100


def test_a_buffer_never_has_room_for_many_rows_of_the_longest_length(loaded: TransformersModel) -> None:
    """Many short rows, then a long one: the buffers must not become the product of both."""
    import torch

    from deployment.server.cache import ROOM, Batch
    from deployment.server.prefixes import Known

    with torch.inference_mode():
        batch, _ = Batch.prefill(loaded.model, [[5, 6, 7]] * 12, [Known()] * 12)
        for _ in range(10):
            batch.drop(0)
        long, _ = Batch.prefill(loaded.model, [list(range(20, 320))], [Known()])
        batch.join(long)
    assert batch.row_capacity == 3
    assert batch.column_capacity <= 300 + ROOM
    assert batch.lengths == [3, 3, 300]


def test_the_default_dtype_follows_the_cpu(tmp_path: Path) -> None:
    from deployment.server.machine import bfloat16_flag

    info = tmp_path / "cpuinfo"
    info.write_text("processor: 0\nflags\t\t: fpu avx2 avx512_bf16\n")
    assert bfloat16_flag(info) == "avx512_bf16"
    info.write_text("flags\t\t: fpu avx2 avx512f\n")
    assert bfloat16_flag(info) is None
    assert bfloat16_flag(tmp_path / "nothing") is None
