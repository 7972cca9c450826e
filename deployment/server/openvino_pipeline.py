"""OpenVINO's pipeline in a process of its own, for openvino_engine.py: each step is one message there and one back.

The pipeline keeps Python's lock for as long as a step takes (openvino-genai 2026.4: 560 ms for 16 prompts), in which
nobody else in the server would be answered, the health route above all.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

log = logging.getLogger("deployment.server")


@dataclass(frozen=True)
class Asked:
    """A request: its number, its prompt's ids, and how its tokens are chosen (`temperature` None is greedy)."""

    number: int
    prompt: list[int]
    max_tokens: int
    temperature: float | None
    top_p: float
    seed: int


class Pipeline:
    """The other process, seen from the server's.

    Raises:
        RuntimeError: the library cannot load the model, or a step failed.
        SystemExit: the other process is gone; in a thread it ends the thread.
    """

    def __init__(self, folder: Path, *, threads: int, slots: int, gigabytes: int) -> None:
        ours, theirs = socket.socketpair()
        settings = [str(folder), str(threads), str(slots), str(gigabytes)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno()), *settings],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        self._connection = Connection(ours.detach())
        self._receive()

    def step(self, added: Sequence[Asked], gone: Sequence[int]) -> dict[int, list[int]]:
        """Give up the requests `gone`, add new ones, take a step: the new tokens by the request's number.

        A step without any request that is left gives back the memory of those that went.
        """
        try:
            self._connection.send((list(added), list(gone)))
        except OSError:
            self._ended()
        found: dict[int, list[int]] = self._receive()
        return found

    def _receive(self) -> Any:
        try:
            found = self._connection.recv()
        except (EOFError, OSError):
            self._ended()
        if isinstance(found, str):
            raise RuntimeError(found)
        return found

    def _ended(self) -> NoReturn:
        log.error("the process with OpenVINO's pipeline ended with code %d", self._process.wait())
        raise SystemExit(1)

    def close(self) -> None:
        self._connection.close()  # which ends it, after the step that it is in
        self._process.wait()


class Local:
    """The pipeline itself, and the handles of its requests."""

    def __init__(self, folder: str, threads: int, slots: int, gigabytes: int) -> None:
        import openvino_genai  # type: ignore[import-not-found]

        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_seqs = slots
        scheduler.cache_size = gigabytes
        scheduler.enable_prefix_caching = True
        settings = {"INFERENCE_NUM_THREADS": threads}
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", settings)
        self._handles: dict[int, Any] = {}

    def step(self, added: Sequence[Asked], gone: Sequence[int]) -> dict[int, list[int]]:
        for number in gone:
            if handle := self._handles.pop(number, None):  # none where adding it is what failed
                handle.cancel()
        for one in added:
            self._handles[one.number] = self._add(one)
        if not self._handles:  # one that is cancelled is given up, with its pages, in the next step
            while self._pipeline.has_non_finished_requests():
                self._pipeline.step()
            return {}
        self._pipeline.step()
        return {number: _read(handle) for number, handle in self._handles.items()}

    def _add(self, one: Asked) -> Any:
        import numpy as np
        import openvino as ov  # type: ignore[import-not-found]

        return self._pipeline.add_request(
            one.number, ov.Tensor(np.array([one.prompt], dtype=np.int64)), _generation(one)
        )


def _generation(one: Asked) -> Any:
    """The request's choices as OpenVINO has them. Where an answer ends is decided by the engine, token by token."""
    import openvino_genai

    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = one.max_tokens
    config.ignore_eos = True
    config.do_sample = one.temperature is not None
    if one.temperature is not None:
        config.temperature, config.top_p, config.rng_seed = one.temperature, one.top_p, one.seed
    return config


def _read(handle: Any) -> list[int]:
    tokens: list[int] = []
    while handle.can_read():
        for output in handle.read().values():
            tokens += output.generated_ids
    return tokens


def _serve(connection: Connection, make: Sequence[str]) -> None:
    """Steps as long as somebody asks for them, until the other end is closed. A text says what failed."""
    folder, *numbers = make
    try:
        local = Local(folder, *map(int, numbers))
    except RuntimeError as error:
        connection.send(str(error))
        return
    connection.send({})
    while True:
        added, gone = connection.recv()
        try:
            reply: dict[int, list[int]] | str = local.step(added, gone)
        except RuntimeError as error:
            reply = str(error)
        connection.send(reply)


if __name__ == "__main__":
    # signals to the whole group are the server's to answer: accepted requests are still to be finished
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    try:
        _serve(Connection(int(sys.argv[1])), sys.argv[2:])
    except (EOFError, OSError):
        os._exit(0)
