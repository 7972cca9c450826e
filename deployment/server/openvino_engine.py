"""The engine for Azure's CPUs: OpenVINO GenAI with 8-bit weights, pages for keys and values, prefixes used again.

What it needs beyond the base: `pip install -r deployment/server/openvino/requirements.txt`, and a model that
openvino_export.py wrote. Greedy text is not the original model's to the letter, which is why the export measures it.
"""

from __future__ import annotations

import json
import logging
import random
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from deployment.server import machine
from deployment.server.model import LoadedModel, cannot_load, described
from deployment.server.openvino_check import OPENVINO_MODEL, require_approved
from deployment.server.openvino_pipeline import Asked, Pipeline
from deployment.server.rows import Row
from deployment.server.worker import Worker
from infra.cli import UserError

log = logging.getLogger("deployment.server")

CACHE_SHARE = 0.4
"""Of the memory that is free once the model is loaded: for keys and values."""
GIB = 2**30
SMALLEST_TOP_P = 1e-4
"""Less leaves only the best token too, until it is 0 in a float, which is refused."""


@dataclass(frozen=True)
class OpenVinoModel(LoadedModel):
    folder: Path
    threads: int
    bytes_per_token: int

    def start(self, slots: int, queue: int) -> OpenVinoEngine:
        gigabytes = cache_gigabytes(machine.free_memory(), slots * self.context * self.bytes_per_token)
        log.info("openvino with %d threads, %d GiB for keys and values", self.threads, gigabytes)
        try:
            pipeline = Pipeline(self.folder, threads=self.threads, slots=slots, gigabytes=gigabytes)
        except RuntimeError as error:
            raise cannot_load(self.folder, error) from None
        return OpenVinoEngine(pipeline, self.stop_ids, slots=slots, queue=queue)


def load(folder: Path, *, threads: int | None) -> OpenVinoModel:
    """What the engine will be made of; OpenVINO reads the weights when it starts.

    Raises:
        UserError: OpenVINO GenAI is not installed, or the folder holds no exported model.
    """
    if find_spec("openvino_genai") is None:
        raise UserError(
            "openvino-genai is not installed, and the engine openvino needs it",
            next_command="pip install -r deployment/server/openvino/requirements.txt",
        )
    if not (folder / OPENVINO_MODEL).is_file():
        raise UserError(
            f"the model in {folder} is not exported for OpenVINO: there is no {OPENVINO_MODEL}",
            next_command=f"python -m deployment.server.openvino_export --model {folder} --eval FILE --out DIR",
        )
    require_approved(folder)
    fields = described(folder)
    threads = threads or machine.cpu_quota()
    return OpenVinoModel(**fields, folder=folder, threads=threads, bytes_per_token=_bytes_per_token(folder))


def _bytes_per_token(folder: Path) -> int:
    """Of keys and values in all layers, 16 bits each."""
    config = json.loads((folder / "config.json").read_text())
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return int(2 * config["num_hidden_layers"] * config["num_key_value_heads"] * size * 2)


class OpenVinoEngine(Worker):
    """The thread that tells OpenVINO's pipeline, step by step, which requests come and go, and takes their tokens."""

    def __init__(self, pipeline: Pipeline, stop_ids: frozenset[int], *, slots: int = 16, queue: int = 64) -> None:
        self._pipeline, self._stop_ids = pipeline, stop_ids
        self._rows: dict[int, Row] = {}
        self._gone: list[int] = []
        self._requests = 0
        super().__init__(slots, queue)

    def close(self) -> None:
        super().close()
        self._pipeline.close()

    def _advance(self) -> None:
        self._leave([number for number, row in self._rows.items() if row.cancelled])
        for number, tokens in self._step(self._added()).items():
            row = self._rows[number]
            if any(row.give(token, self._stop_ids) for token in tokens):
                self._leave([number])
        if not self._rows:
            self._step([])

    def _added(self) -> list[Asked]:
        added = []
        for row in self._admit():
            self._requests += 1
            self._running.append(row)
            self._rows[self._requests] = row  # first, so that a failure reaches it too
            added.append(_asked(self._requests, row))
        return added

    def _step(self, added: list[Asked]) -> dict[int, list[int]]:
        gone, self._gone = self._gone, []
        self.steps += 1
        return self._pipeline.step(added, gone)

    def _leave(self, numbers: list[int]) -> None:
        for number in numbers:
            self._running.remove(self._rows.pop(number))
            self._gone.append(number)

    def _forget(self) -> None:
        """Not asked of a pipeline that may be the one that failed: the next step tells it."""
        self._gone += self._rows
        self._rows.clear()


def cache_gigabytes(free: int | None, useful: int) -> int:
    """Whole GiB for keys and values, at least one: no more than `useful` bytes, nor than a share of the `free` ones."""
    bounds = [useful] if free is None else [useful, int(CACHE_SHARE * free)]
    return max(1, min(bounds) // GIB)


def _asked(number: int, row: Row) -> Asked:
    choice = row.choice
    seed = (random.getrandbits(32) if choice.seed is None else choice.seed) % 2**32
    temperature = None if choice.greedy else choice.temperature
    return Asked(number, list(row.prompt), row.max_tokens, temperature, max(choice.top_p, SMALLEST_TOP_P), seed)
