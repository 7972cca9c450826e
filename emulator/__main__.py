"""`python -m emulator`: the local Azure ML's command line."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

from emulator.faults import KINDS as FAULTS
from emulator.home import Home, client_environment, is_alive

START_PATIENCE = 30.0  # seconds


class EmulatorError(Exception):
    """One sentence for the user, with the next command to type."""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m emulator", description="A local Azure ML. State lies in .local/ or $EMULATOR_HOME."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    start = verbs.add_parser("start", help="start it in the background")
    start.add_argument("--port", type=int, default=0, help="the proxy's port (default: the last one, or a free one)")
    serve = verbs.add_parser("serve", help="run it in the foreground")
    serve.add_argument("--port", type=int, default=0)
    for one in (start, serve):
        one.add_argument("--hub", action="store_true", help="also stand in for the model hub (HF_ENDPOINT)")
    verbs.add_parser("stop", help="stop it; its state stays")
    status = verbs.add_parser("status", help="what it holds, and which operations were asked that it does not emulate")
    status.add_argument("--json", action="store_true")
    verbs.add_parser("reset", help="stop it and delete its state")
    logs = verbs.add_parser("logs", help="the log of a job or deployment, or the emulator's own")
    logs.add_argument("name", nargs="?", help="a job's name, or ENDPOINT/DEPLOYMENT")
    logs.add_argument("-f", "--follow", action="store_true", help="print what is added until the job ends")
    requests = verbs.add_parser("requests", help="the requests that clients made")
    requests.add_argument(
        "--match", default="", metavar="TEXT", help="only those whose method, host or path holds TEXT"
    )
    requests.add_argument("--method", default="", help="only this one, such as PUT")
    requests.add_argument("--status", default="", metavar="CODE", help="only this one, such as 404 or 4xx")
    requests.add_argument("--failed", action="store_true", help="only those that were answered with 400 or more")
    requests.add_argument("--last", type=int, default=0, metavar="N", help="only the last N")
    preempt = verbs.add_parser("preempt", help="take a running job's nodes away: it goes back to the queue")
    preempt.add_argument("job", metavar="JOB")
    fault = verbs.add_parser("fault", help="let requests fail, be slow or be cut off; `fault clear` ends it")
    fault.add_argument("kind", choices=(*FAULTS, "clear"))
    fault.add_argument(
        "--match", default="", metavar="TEXT", help="only requests whose method, host or path holds TEXT"
    )
    fault.add_argument("--after", type=int, default=0, metavar="N", help="let the first N through")
    fault.add_argument("--times", type=int, default=0, metavar="N", help="only N times (default: until cleared)")
    fault.add_argument(
        "--seconds", type=float, default=5.0, help="of delay, Retry-After, lifetime or skew (default: 5)"
    )
    fault.add_argument("--status", type=int, default=503, help="of an error (default: 503)")
    fault.add_argument("--code", default="ServiceUnavailable", help="of an error, such as OutOfQuota")
    verbs.add_parser("env", help="print the variables that lead clients to it, as shell exports")
    run = verbs.add_parser("run", help="run a command inside: python -m emulator run -- COMMAND …")
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND …")
    options = parser.parse_args(argv)
    home = Home.default()
    match options.verb:
        case "start":
            return _start(home, options.port, options.hub)
        case "serve":
            return _serve(home, options.port, options.hub)
        case "stop":
            return _stop(home)
        case "status":
            return _status(home, options.json)
        case "reset":
            return _reset(home)
        case "logs":
            return _logs(home, options.name, options.follow)
        case "requests":
            return _requests(home, options)
        case "fault":
            return _fault(home, options)
        case "preempt":
            return _preempt(home, options.job)
        case "env":
            return _env(home)
    return _run(home, options.command)


def _serve(home: Home, port: int, hub: bool) -> int:
    from emulator.server import serve

    try:
        asyncio.run(serve(home, port, hub=hub))
    except OSError as error:
        raise EmulatorError(
            f"cannot listen on port {port}: {error.strerror}\n  next: python -m emulator start   (takes a free port)"
        ) from None
    return 0


def _start(home: Home, port: int, hub: bool) -> int:
    if record := home.running():
        if hub and "hub_port" not in record:
            raise EmulatorError("the emulator runs already, without the hub\n  next: python -m emulator stop")
        print(f"the emulator runs already (process {record['pid']}, port {record['port']}, state in {home.path})")
        return 0
    begun = time.monotonic()
    record = ensure_started(home, port, hub=hub)
    took = time.monotonic() - begun
    print(f"the emulator runs after {took:.1f} s: process {record['pid']}, port {record['port']}, state in {home.path}")
    print("  next: python -m emulator run -- COMMAND")
    return 0


def ensure_started(home: Home, port: int = 0, *, hub: bool = False) -> dict[str, int]:
    """Start the emulator unless it runs; returns its record. Two callers at once start one.

    Raises:
        EmulatorError: it does not come up; its log says why.
    """
    import fcntl

    home.make()
    if hub:
        from emulator.hub import prepare

        prepare(home)
    folder = os.open(home.path, os.O_RDONLY)  # the folder itself is the lock, so no lock file is left
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if record := home.running():
            return record
        process = _spawn(home, port or _last_port(home), *(["--hub"] if hub else []))
        deadline = time.monotonic() + START_PATIENCE
        while time.monotonic() < deadline:
            if record := home.running():
                return record
            if process.poll() is not None:
                raise EmulatorError(_why_not_started(home))
            time.sleep(0.03)
        process.kill()
    finally:
        os.close(folder)
    raise EmulatorError(f"the emulator did not start within {START_PATIENCE:.0f} s\n  next: python -m emulator logs")


def _spawn(home: Home, port: int, *more: str) -> subprocess.Popen[bytes]:
    """The emulator's process, in a session of its own, its words in its log."""
    command = [sys.executable, "-m", "emulator", "serve", "--port", str(port), *more]
    env = {**os.environ, "EMULATOR_HOME": str(home.path)}
    with home.log.open("ab") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=home.path, env=env
        )


def _why_not_started(home: Home) -> str:
    lines = home.log.read_text().strip().splitlines() or ["its process ended without a word"]
    if "next:" in lines[-1]:  # it has said so itself
        return "\n".join(lines[-2:]).removeprefix("error: ")
    return f"the emulator did not start: {lines[-1]}\n  next: python -m emulator logs"


def _last_port(home: Home) -> int:
    """The port of the last run if it is free, so that exported variables stay valid; else one that is likely to be free
    the next time too: below those that the system gives to outgoing connections.
    """
    with contextlib.suppress(OSError, ValueError):
        if _is_free(port := int((home.path / "port").read_text())):
            return port
    return next(filter(_is_free, random.sample(range(20_000, 32_000), 20)), 0)


def _is_free(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _stop(home: Home) -> int:
    record = home.running()
    if record is None:
        left = _kill_leftovers(home)
        print("the emulator is not running" + (f"; ended {left} processes that it had left" if left else ""))
        return 0
    stop(home, record)
    print("the emulator is stopped; its state stays in " + str(home.path))
    return 0


def stop(home: Home, record: dict[str, int]) -> None:
    os.kill(record["pid"], signal.SIGTERM)
    deadline = time.monotonic() + 30
    while is_alive(record["pid"], record["started"]):
        if time.monotonic() > deadline:
            os.kill(record["pid"], signal.SIGKILL)
        time.sleep(0.05)
    _kill_leftovers(home)
    home.endpoint.unlink(missing_ok=True)


def _kill_leftovers(home: Home) -> int:
    if not home.database.exists():
        return 0
    from emulator.runner.process import kill_leftovers
    from emulator.state import State

    state = State(home.database)
    try:
        return kill_leftovers(state)
    finally:
        state.close()


def _running(home: Home) -> dict[str, Any]:
    record = home.running()
    if record is None:
        raise EmulatorError(f"no emulator is running with its state in {home.path}\n  next: python -m emulator start")
    return record


def _status(home: Home, as_json: bool) -> int:
    from emulator import show

    record = _running(home)
    show.status(record, home, _ask(record, "GET", "status"), as_json=as_json)
    return 0


def _ask(record: dict[str, Any], method: str, path: str, **values: Any) -> Any:
    """One request to the running emulator itself. Raises EmulatorError with what it refuses."""
    import requests

    answer = requests.request(method, f"http://127.0.0.1:{record['admin_port']}/{path}", json=values, timeout=30)
    found = answer.json()
    if answer.status_code >= 400:
        raise EmulatorError(f"{found['error']['message']}\n  next: python -m emulator status")
    return found


def _preempt(home: Home, job: str) -> int:
    _ask(_running(home), "POST", "preempt", job=job)
    print(f"the job {job} was sent SIGTERM, then SIGKILL; it is in the queue again")
    return 0


def _fault(home: Home, options: argparse.Namespace) -> int:
    record = _running(home)
    if options.kind == "clear":
        _ask(record, "DELETE", "faults")
        print("all is as it should be again")
        return 0
    names = ("kind", "match", "after", "times", "seconds", "status", "code")
    made = _ask(record, "POST", "faults", **{name: getattr(options, name) for name in names})
    print(f"fault {made['number']}: {made['kind']}\n  next: python -m emulator fault clear")
    return 0


def _reset(home: Home) -> int:
    if record := home.running():
        stop(home, record)
    _kill_leftovers(home)
    for name in ("objects", "work", "pulumi", "pulumi-home", "tls", "environments", "mlflow", "hub", "hub-cache"):
        shutil.rmtree(home.path / name, ignore_errors=True)
    for name in (
        "state.sqlite",
        "state.sqlite-wal",
        "state.sqlite-shm",
        "emulator.log",
        "port",
        "emulator.json",
    ):
        (home.path / name).unlink(missing_ok=True)
    print(f"the emulator's state in {home.path} is gone")
    return 0


def _logs(home: Home, name: str | None, follow: bool) -> int:
    from emulator import show

    if name is None:
        print(home.log.read_text() if home.log.exists() else "", end="")
    elif not show.logs(home, name, follow=follow):
        raise EmulatorError(f"there is no job or deployment {name!r} with a log\n  next: python -m emulator status")
    return 0


def _requests(home: Home, options: argparse.Namespace) -> int:
    from emulator import show

    with show.opened(home) as state:
        if state is None:
            raise EmulatorError(f"there is no emulator in {home.path}\n  next: python -m emulator start")
        given = {key: getattr(options, key) for key in ("match", "method", "status", "failed", "last")}
        show.requests(state, **given)
    return 0


def _env(home: Home) -> int:
    record = _running(home)
    for key, value in client_environment(home, record["port"]).items():
        print(f"export {key}={shlex.quote(value)}")
    return 0


def _run(home: Home, command: list[str]) -> int:
    command = command[1:] if command[:1] == ["--"] else command
    if not command:
        raise EmulatorError("no command to run\n  next: python -m emulator run -- COMMAND …")
    record = ensure_started(home)
    env = {**os.environ, **client_environment(home, record["port"])}
    found = shutil.which(command[0], path=env["PATH"])
    if found is None:
        raise EmulatorError(f"the command {command[0]!r} is not on PATH")
    os.execve(found, command, env)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except EmulatorError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
