"""One process with its whole tree: started in a session of its own, recorded so that nothing outlives the emulator."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil

from emulator.home import PROJECT, Home, is_alive
from emulator.state import State

ISOLATED = Path(__file__).resolve().parent / "isolated"
GRACE = 10.0  # seconds between SIGTERM and SIGKILL, as Azure ML gives a job on a node that goes away


def base_environment(inherited: Mapping[str, str], home: Home, proxy_port: int) -> dict[str, str]:
    """What every job and deployment finds: the emulator's own start environment without the deployer's credentials,
    the way to Azure's host names, and no path to the checkout.
    """
    withheld = ("AZURE_", "ARM_", "PULUMI_", "EMULATOR_")
    kept = {key: value for key, value in inherited.items() if not key.startswith(withheld)}
    proxy = f"http://127.0.0.1:{proxy_port}"
    bundle = str(home.ca_bundle)
    return {
        **kept,
        "HTTPS_PROXY": proxy,
        "https_proxy": proxy,
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
        "REQUESTS_CA_BUNDLE": bundle,
        "SSL_CERT_FILE": bundle,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), inherited.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": str(ISOLATED),
        "EMULATOR_HIDDEN_PATH": str(PROJECT),
    }


def identity_environment(state: State, admin_port: int, identity: Mapping[str, str] | None) -> dict[str, str]:
    """The variables by which ManagedIdentityCredential finds its identity inside a job or deployment.

    Azure ML gives both spellings; no client secret is ever there.
    """
    if identity is None:
        return {}
    header = secrets.token_urlsafe(24)
    state.save_record("identity-header", header, dict(identity))
    endpoint = f"http://127.0.0.1:{admin_port}/msi/token"
    both = {"IDENTITY_ENDPOINT": endpoint, "IDENTITY_HEADER": header, "MSI_ENDPOINT": endpoint, "MSI_SECRET": header}
    return {**both, "DEFAULT_IDENTITY_CLIENT_ID": identity["client_id"]}


class ManagedProcess:
    """A shell command whose output goes to a log file."""

    def __init__(self, state: State, process: asyncio.subprocess.Process) -> None:
        self._state, self._process = state, process

    @classmethod
    async def start(
        cls, state: State, argv: list[str], *, cwd: Path, env: Mapping[str, str], log: Path
    ) -> ManagedProcess:
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *argv,
                cwd=cwd,
                env=dict(env),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        with contextlib.suppress(psutil.NoSuchProcess):  # it may have ended already
            started = psutil.Process(process.pid).create_time()
            state.save_record("process", str(process.pid), {"started": started})
        return cls(state, process)

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    async def wait(self) -> int:
        code = await self._process.wait()
        self._finish()
        return code

    async def stop(self, grace: float = GRACE) -> None:
        """SIGTERM to the whole tree, SIGKILL to what is left after `grace` seconds."""
        strays = _strays(self._process.pid)
        _signal_group(self._process.pid, signal.SIGTERM)
        for stray in strays:
            with contextlib.suppress(psutil.NoSuchProcess):
                stray.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), grace)
        for stray in strays:
            with contextlib.suppress(psutil.NoSuchProcess):
                stray.kill()
        self._finish()
        await self._process.wait()

    def _finish(self) -> None:
        _signal_group(self._process.pid, signal.SIGKILL)  # children that outlived their parent
        self._state.drop_record("process", str(self._process.pid))


def _strays(pid: int) -> list[psutil.Process]:
    """Descendants that made a session of their own, which a signal to the group does not reach."""
    with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
        below = psutil.Process(pid).children(recursive=True)
        return [child for child in below if os.getpgid(child.pid) != pid]
    return []


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # the group is gone, which is what a signal would be for
        os.killpg(pid, number)


def kill_leftovers(state: State) -> int:
    """End the processes that an emulator left when it was killed itself; returns how many there were."""
    count = 0
    for pid, record in state.records("process"):
        if is_alive(int(pid), record["started"]):
            _signal_group(int(pid), signal.SIGKILL)
            count += 1
        state.drop_record("process", pid)
    return count
