"""What a server's memory is made of: Python's libraries, the weights, the keys and values of 16 conversations.

    python -m bench.serving_memory [--shape 440m]     (some minutes; timings do not matter)

Each server starts twice, with a model of next to no weights and with the one of `--shape`, and is asked by 16 clients
at once. The first shows what its libraries take. Resident memory, of all its processes.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from bench.serving import CONFIGURATIONS, _markdown, _model, _prompt_tokens, _served
from bench.serving_load import NEW_TOKENS, measure
from bench.serving_model import SHAPES
from infra import cli

CLIENTS = 16
WIDTH = {"transformers fp32": 4, "transformers bf16": 2, "openvino int8": 1}
"""Bytes of a weight."""


def resident(name: str, folder: Path) -> tuple[int, int, int]:
    """(bytes when it is ready, bytes after 16 clients were answered, tokens of a prompt)."""
    with _served(name, folder, 1) as target:
        ready, prompt = target.memory(), _prompt_tokens(target)
        return ready, measure(target, CLIENTS, requests=2 * CLIENTS)["memory"], prompt


def row(name: str, shape: str, folder: Path) -> list[str]:
    parameters = {one: int(_model("--folder", str(folder / one / "model"), "--shape", one)) for one in ("tiny", shape)}
    libraries, _, _ = resident(name, folder / "tiny")
    ready, after, prompt = resident(name, folder / shape)
    sizes = SHAPES[shape]
    width = 4 if name.endswith("fp32") else 2  # keys and values of openvino are 16 bits too
    token = 2 * sizes["num_hidden_layers"] * sizes["hidden_size"] * width
    weights, states = parameters[shape] * WIDTH[name], CLIENTS * (prompt + NEW_TOKENS) * token
    needed = weights + states
    numbers = (weights, states, libraries, ready, after)
    ratios = (after / needed, (after - libraries) / needed)
    return [name, *(f"{number / 1e9:.2f}" for number in numbers), *(f"{ratio:.2f}" for ratio in ratios)]


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.serving_memory")
    parser.add_argument("--shape", choices=SHAPES, default="440m")
    given = parser.parse_args(argv)
    can = find_spec("openvino_genai") is not None
    names = [name for name in WIDTH if CONFIGURATIONS[name].engine != "openvino" or can]
    head = ["server", "weights", "keys and values", "libraries", "ready", "after 16 clients", "ratio", "less libraries"]
    with tempfile.TemporaryDirectory(prefix="bench-") as place:
        print(_markdown([head, *(row(name, given.shape, Path(place) / name.split()[-1]) for name in names)]))
    return 0


if __name__ == "__main__":
    cli.run(main)
