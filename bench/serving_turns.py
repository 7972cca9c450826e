"""What a conversation's later turns gain by what is kept of earlier ones: the engine `transformers` with and without.

    python -m bench.serving_turns --folder DIR       (one minute; makes the model of bench.serving in DIR)

Two engines on one model take turns with the same conversations: each of so many turns adds a question of 100 tokens and
gets an answer of 32. One thread. What is compared is the time until the first token.
"""

from __future__ import annotations

import argparse
import queue
import random
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from bench.serving_model import save
from infra import cli

if TYPE_CHECKING:
    from deployment.server.batcher import Batcher
    from deployment.server.transformers_engine import TransformersModel

TURNS, QUESTION, ANSWER = 5, 100, 32


def turns(model: TransformersModel, engine: Batcher, seed: int) -> list[tuple[float, tuple[int, ...]]]:
    """(seconds until the first token, the answer's tokens) of each turn of one conversation."""
    from deployment.server.decoding import Choice, TextStream
    from deployment.server.rows import Event, Finished, Row

    dice, prompt, found = random.Random(seed), list[int](), list[tuple[float, tuple[int, ...]]]()
    for _ in range(TURNS):
        prompt = prompt + [dice.randrange(400, 2000) for _ in range(QUESTION)]
        events: queue.Queue[Event] = queue.Queue()
        row = Row(prompt, ANSWER, Choice(0.0, 1.0, None), TextStream(model.decoder), events.put)
        began = time.monotonic()
        engine.submit([row])
        while not isinstance(events.get(timeout=120), Finished):
            pass
        assert row.first_token is not None
        found.append((row.first_token - began, tuple(row.generated)))
        prompt = prompt + row.generated
    return found


def measure(folder: Path, dtype: str, conversations: int) -> str:
    """A Markdown table, a row for each turn."""
    from deployment.server.batcher import Batcher
    from deployment.server.transformers_engine import load

    model = load(folder, dtype=dtype, threads=1)
    without, kept = (Batcher(model.model, frozenset(), kept=tokens) for tokens in (0, 16384))
    runs = [(turns(model, without, seed), turns(model, kept, seed)) for seed in range(conversations)]
    lines = [f"| {dtype}, turn | prompt | without | kept | times | same answers |", "| --- " * 6 + "|"]
    for turn in range(TURNS):
        pairs = [(one[turn], other[turn]) for one, other in runs]
        slow, fast = (median(pair[which][0] for pair in pairs) for which in (0, 1))
        same = sum(one[1] == other[1] for one, other in pairs)
        times = median(one[0] / other[0] for one, other in pairs)
        size = QUESTION * (turn + 1) + ANSWER * turn
        cells = f"{1000 * slow:.0f} ms | {1000 * fast:.0f} ms | {times:.1f} | {same} of {len(pairs)}"
        lines.append(f"| {turn + 1} | {size} | {cells} |")
    without.close()
    kept.close()
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.serving_turns")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--shape", default="134m")
    parser.add_argument("--conversations", type=int, default=7)
    given = parser.parse_args(argv)
    if not (given.folder / "config.json").is_file():
        save(given.folder, given.shape)
    for dtype in ("float32", "bfloat16"):
        print(measure(given.folder, dtype, given.conversations))
    return 0


if __name__ == "__main__":
    cli.run(main)
