"""`python -m deployment.server --model DIR`: serve one model over HTTP."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from deployment.server import engines
from infra import cli

if TYPE_CHECKING:
    from deployment.server.connections import Server
    from deployment.server.serving import Serving


def options(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    made = cli.Parser(prog="python -m deployment.server", description="Serve one model over HTTP.")
    made.add_argument("--model", type=Path, metavar="DIR", help="the model (default: found under $AZUREML_MODEL_DIR)")
    made.add_argument("--host", default=environ.get("HOST", "127.0.0.1"), help="default: $HOST or 127.0.0.1")
    made.add_argument("--port", type=int, default=environ.get("PORT", "5001"), help="default: $PORT or 5001")
    made.add_argument("--slots", type=int, default=16, help="requests that decode together (default: 16)")
    made.add_argument("--queue", type=int, default=64, help="requests that may wait; more get 429 (default: 64)")
    made.add_argument("--threads", type=int, help="CPU threads of the engine (default: the CPUs of the container)")
    made.add_argument(
        "--engine",
        choices=("auto", *engines.NAMES),
        default=environ.get("ENGINE", "auto"),
        help="default: $ENGINE, else by what the model's folder holds",
    )
    made.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of the transformers engine; default: bfloat16 on a GPU and on a CPU that computes in it, else float32",
    )
    return made


def main(argv: list[str]) -> int:
    given = options(os.environ).parse_args(argv)
    signal.signal(signal.SIGTERM, _leave)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each request, which ours has already

    from deployment.server.model import find_model

    folder = find_model(given.model)
    listener = _listen(given.host, given.port)

    from deployment.server import safety, traces
    from deployment.server.app import create_app
    from deployment.server.connections import Server
    from deployment.server.serving import Serving

    serving, spans = Serving(safety=safety.configured(os.environ)), traces.configured(os.environ)
    server = Server(create_app(serving, spans), serving)
    failed: list[cli.UserError] = []
    # /health must answer while the model loads, or the platform kills a container that is only slow to start
    threading.Thread(target=_load, args=(given, folder, serving, server, failed), daemon=True).start()
    try:
        server.run(sockets=[listener])
    finally:
        if spans is not None:
            spans.close()
    if serving.is_dead:
        failed.append(cli.UserError("the engine ended by itself; what it said last is above"))
    if serving.engine is not None:
        serving.engine.close()
    if failed:
        raise failed[0]
    return 0 if serving.engine is not None else cli.FAILED


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket. Raises UserError if the port cannot be had."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise cli.UserError(
            f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}",
            next_command="python -m deployment.server --port ANOTHER_PORT …",
        ) from None
    return listener


def _leave(number: int, frame: object) -> None:
    """SIGTERM outside of uvicorn's own handling; uvicorn raises it once more after it has drained."""
    sys.exit(0)


def _load(
    given: argparse.Namespace, folder: Path, serving: Serving, server: Server, failed: list[cli.UserError]
) -> None:
    """Load the model beside the running server; a model that cannot be loaded ends the server."""
    log = logging.getLogger("deployment.server")
    began = time.monotonic()
    try:
        engine, reason = engines.choose(given.engine, folder)
        log.info("engine=%s: %s", engine, reason)
        loaded = engines.load(engine, folder, dtype=given.dtype, threads=given.threads)
        serving.start(loaded, slots=given.slots, queue=given.queue)
    except cli.UserError as error:
        failed.append(error)
    else:
        log.info("ready model=%s context=%d seconds=%.1f", loaded.name, loaded.context, time.monotonic() - began)
        return
    finally:
        if serving.engine is None:
            server.should_exit = True


if __name__ == "__main__":
    cli.run(main)
