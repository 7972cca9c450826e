"""The engine for Azure's CPUs: OpenVINO GenAI with 8-bit weights, pages for keys and values, prefixes used again.

What it needs beyond the base: `pip install -r deployment/server/openvino/requirements.txt`, and a model that
openvino_export.py wrote. Greedy text is not the original model's to the letter, which is why the export measures it.
"""

from __future__ import annotations

import json
import logging
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployment.server import machine
from deployment.server.model import LoadedModel, cannot_load, described
from deployment.server.openvino_check import OPENVINO_MODEL, require_approved
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
        pipeline = _pipeline(self.folder, self.threads, slots, gigabytes)
        return OpenVinoEngine(pipeline, self.stop_ids, slots=slots, queue=queue)


def load(folder: Path, *, threads: int | None) -> OpenVinoModel:
    """What the engine will be made of; OpenVINO reads the weights when it starts.

    Raises:
        UserError: OpenVINO GenAI is not installed, or the folder holds no exported model.
    """
    try:
        import openvino_genai  # type: ignore[import-not-found] # noqa: F401
    except ImportError:
        raise UserError(
            "openvino-genai is not installed, and the engine openvino needs it",
            next_command="pip install -r deployment/server/openvino/requirements.txt",
        ) from None
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
    """One thread that adds requests to OpenVINO's pipeline, steps it, and reads what came of it."""

    def __init__(self, pipeline: Any, stop_ids: frozenset[int], *, slots: int = 16, queue: int = 64) -> None:
        self._pipeline, self._stop_ids = pipeline, stop_ids
        self._handles: dict[Row, Any] = {}
        self._requests = 0
        super().__init__(slots, queue)

    def _advance(self) -> None:
        for row in [row for row in self._running if row.cancelled]:
            self._leave(row)
        for row in self._admit():
            self._running.append(row)  # first, so that a failure reaches it too
            self._handles[row] = self._add(row)
        if self._running:
            self._pipeline.step()
            self.steps += 1
        for row in list(self._running):
            if self._read(row):
                self._leave(row)

    def _add(self, row: Row) -> Any:
        import numpy as np
        import openvino as ov  # type: ignore[import-not-found]

        self._requests += 1
        ids = ov.Tensor(np.array([row.prompt], dtype=np.int64))
        return self._pipeline.add_request(self._requests, ids, _generation(row))

    def _read(self, row: Row) -> bool:
        """Give the row the tokens that are there; True if its answer ends with one of them."""
        handle = self._handles[row]
        while handle.can_read():
            for output in handle.read().values():
                if any(row.give(token, self._stop_ids) for token in output.generated_ids):
                    return True
        return False

    def _leave(self, row: Row) -> None:
        self._running.remove(row)
        self._handles.pop(row).cancel()
        if not self._running:
            self._tidy()

    def _tidy(self) -> None:
        """A pipeline gives up a cancelled request, and its pages, in its next step."""
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()

    def _forget(self) -> None:
        handles, self._handles = list(self._handles.values()), {}
        for handle in handles:
            handle.cancel()
        self._tidy()


def _pipeline(folder: Path, threads: int, slots: int, gigabytes: int) -> Any:
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.max_num_seqs = slots
    scheduler.cache_size = gigabytes
    scheduler.enable_prefix_caching = True
    log.info("openvino with %d threads, %d GiB for keys and values", threads, scheduler.cache_size)
    try:
        return openvino_genai.ContinuousBatchingPipeline(
            str(folder), scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads}
        )
    except RuntimeError as error:
        raise cannot_load(folder, error) from None


def cache_gigabytes(free: int | None, useful: int) -> int:
    """Whole GiB for keys and values, at least one: no more than `useful` bytes, nor than a share of the `free` ones."""
    bounds = [useful] if free is None else [useful, int(CACHE_SHARE * free)]
    return max(1, min(bounds) // GIB)


def _generation(row: Row) -> Any:
    """The row's choices as OpenVINO has them. Where an answer ends is decided here, from each token as it comes."""
    import openvino_genai

    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = row.max_tokens
    config.ignore_eos = True
    config.do_sample = not row.choice.greedy
    if config.do_sample:
        config.temperature, config.top_p = row.choice.temperature, max(row.choice.top_p, SMALLEST_TOP_P)
        config.rng_seed = (random.getrandbits(32) if row.choice.seed is None else row.choice.seed) % 2**32
    return config
