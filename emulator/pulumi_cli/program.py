"""Run the Pulumi program in this process, against a monitor of ours."""

from __future__ import annotations

import asyncio
import os
import runpy
import sys
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc  # type: ignore[import-untyped]
import pulumi
from google.protobuf import empty_pb2  # type: ignore[import-untyped]
from pulumi.runtime import config as runtime_config
from pulumi.runtime import mocks, settings
from pulumi.runtime.stack import run_in_stack

from emulator.pulumi_cli.configuration import Entry
from emulator.pulumi_cli.engine import Engine
from emulator.pulumi_cli.errors import CliError
from emulator.pulumi_cli.monitor import Diagnostics, EngineMonitor
from emulator.pulumi_cli.project import Project

PARALLEL = 16  # as many registrations at once as the real engine handles by default


@dataclass(frozen=True)
class Run:
    """How the program is run: its stack, its configuration and where its log lines go."""

    project: Project
    stack: str
    config: Mapping[str, Entry]
    on_line: Callable[[str, str], None]
    debug: bool = False
    parallel: int = PARALLEL


def run(how: Run, monitor: EngineMonitor) -> None:
    """Run the program to its end. Raises CliError if it, or one of its resources, fails."""
    _configure(how, monitor)
    engine = monitor.engine
    try:
        _run_program(how, engine)
    except pulumi.RunError as error:
        raise CliError(str(error)) from None
    except (CliError, grpc.RpcError) as error:
        raise CliError(engine.failures[0] if engine.failures else str(error)) from None
    except Exception as error:  # noqa: BLE001  a program may fail in any way; Pulumi's words for it, and its traceback
        if engine.failures:
            raise CliError(engine.failures[0]) from None
        raise CliError(f"Program failed with an unhandled exception:\n{_own_traceback(error)}") from None
    finally:
        engine.settle()
    if engine.failures:
        raise CliError(engine.failures[0])


def _configure(how: Run, monitor: EngineMonitor) -> None:
    features = set(monitor.GetDeploymentInfo(empty_pb2.Empty()).supportedFeatures)  # type: ignore[no-untyped-call]
    settings.configure(
        mocks.MockSettings(  # type: ignore[no-untyped-call]
            monitor=monitor,
            monitor_features=features,
            engine=Diagnostics(how.on_line, debug=how.debug),
            project=how.project.name,
            stack=how.stack,
            dry_run=monitor.engine.preview,
            organization="organization",
            callbacks=None,
            root_directory=str(how.project.root),
        )
    )
    # A second run in this process starts afresh, whatever an interrupted one left waiting.
    settings.set_root_resource(None)  # type: ignore[arg-type]
    settings.SETTINGS.outputs.clear()
    texts = {key: entry.text for key, entry in how.config.items()}
    runtime_config.set_all_config(texts, [key for key, entry in how.config.items() if entry.secret])


def _run_program(how: Run, engine: Engine) -> None:
    """As Pulumi's language host does: the program's folder is the working directory and the first on sys.path."""
    was, path = os.getcwd(), list(sys.path)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.set_default_executor(ThreadPoolExecutor(how.parallel))
    try:
        os.chdir(how.project.program)
        loop.run_until_complete(run_in_stack(lambda: _execute(how.project)))
    except KeyboardInterrupt:
        engine.stop("interrupted")  # what is in flight ends, and is recorded; nothing more begins
        raise
    finally:
        os.chdir(was)
        sys.path[:] = path
        _cancel_rest(loop)
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        asyncio.set_event_loop(None)


def _cancel_rest(loop: asyncio.AbstractEventLoop) -> None:
    """End what a failed program leaves waiting; collected later, its coroutines would run at any odd moment."""
    rest = asyncio.all_tasks(loop)
    for task in rest:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*rest, return_exceptions=True))


def _execute(project: Project) -> None:
    runpy.run_path(str(project.program), run_name="__main__")


def _own_traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)).rstrip()
