"""The flow of flow.dag.yaml as an ASGI app: promptflow-core's own server, without the development kit around it.

Of what it answers, app.py uses only /score and /swagger.json: its page loads fonts from elsewhere and does not stream.
It leaves with Prompt flow (docs/promptflow-sunset.md).
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

from starlette.types import ASGIApp, Receive, Scope, Send

FOLDER = Path(__file__).resolve().parent


def prompt_flow_app() -> ASGIApp:
    """Loads the flow, its tool included, in about a second. Sets the process's environment as promptflow wants it."""
    os.environ["PROMPTFLOW_PROJECT_PATH"] = str(FOLDER)
    # Its log has eight lines a request, and in those of errors what was asked; the answer's status tells the caller.
    os.environ["PF_LOGGING_LEVEL"] = "CRITICAL"
    without_development_kit()
    from promptflow.core._serving.app import create_app  # type: ignore[import-untyped]

    # A provider of our own, of no connections: the default one opens a data base in the home directory.
    made = create_app(engine="fastapi", connection_provider=list, flow_file_path=str(FOLDER / "flow.dag.yaml"))
    return cast(ASGIApp, made)


def without_development_kit() -> None:
    """Let this process have promptflow-core alone, as where nothing but it is installed.

    `promptflow/__init__.py` belongs to the development kit and imports it whole: five seconds, and the exporter of
    Azure Monitor, which then asks settings.sdk.monitor.azure.com for its settings, telemetry switched off or not.
    """
    if "promptflow" in sys.modules:
        return
    found = importlib.util.find_spec("promptflow")
    if found is not None and found.submodule_search_locations:
        bare = types.ModuleType("promptflow")
        bare.__path__ = list(found.submodule_search_locations)
        sys.modules["promptflow"] = bare
        sys.modules["promptflow._sdk"] = None  # type: ignore[assignment]  # an import of it fails, and it is done without


class LateFlow:
    """The flow's app, loaded in a thread while the server already answers; who asks it earlier waits for it."""

    def __init__(self) -> None:
        self._loading = ThreadPoolExecutor(1, "prompt-flow").submit(prompt_flow_app)

    @property
    def ready(self) -> bool:
        return self._loading.done() and self._loading.exception() is None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = await asyncio.wrap_future(self._loading)
        await app(scope, receive, send)
