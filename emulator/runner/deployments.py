"""Deployments as real server processes: brought up beside what serves already, probed, restarted, drained.

Probes: learn.microsoft.com/azure/machine-learning/reference-yaml-deployment-managed-online (ProbeSettings). A start-up
is looked at ten times a second here, where Azure waits the probe's period: what may take long is the server, not we.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
import uuid
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx

from emulator.arm.schema import ArmError, Body
from emulator.blobs import Blobs
from emulator.home import Home
from emulator.machinelearning.metrics import Metrics
from emulator.runner.containers import Container, Layout, clear
from emulator.runner.environments import Environments
from emulator.runner.jobs import parse_duration
from emulator.runner.process import ManagedProcess, base_environment, identity_environment
from emulator.state import State

MOST_CRASHES = 3  # in a row, before a deployment counts as failed
GOOD, NOBODY = range(200, 400), 502
LONGEST_DRAIN = 180.0  # seconds; no request takes longer
LONGEST_BACKOFF = 30.0  # seconds between restarts; Kubernetes goes up to five minutes
DEPLOYMENT = "Microsoft.MachineLearningServices/workspaces/onlineEndpoints/deployments"
INITIALIZER, SERVER = "storage-initializer.txt", "log.txt"  # the logs of Azure's two containers


@dataclass
class Server:
    """A deployment's running server. `ready` is what its readiness probe said last; `busy` counts requests in it."""

    container: Container
    process: ManagedProcess
    port: int
    ready: bool = True
    busy: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def enter(self) -> None:
        self.busy += 1
        self.idle.clear()

    def leave(self) -> None:
        self.busy -= 1
        if self.busy == 0:
            self.idle.set()


@dataclass(frozen=True)
class Probe:
    """Seconds and counts of a liveness or readiness probe."""

    delay: float
    period: float
    timeout: float
    failures: int

    @classmethod
    def of(cls, properties: Body, name: str) -> Probe:
        given = properties[name]
        delay, period, timeout = (parse_duration(given[key]) or 0.0 for key in ("initialDelay", "period", "timeout"))
        return cls(delay, max(period, 0.1), max(timeout, 0.1), int(given["failureThreshold"]))

    @property
    def patience(self) -> float:
        return self.delay + self.failures * self.period


class DeploymentRunner:
    def __init__(self, home: Home, state: State, blobs: Blobs, *, proxy_port: int, admin_port: int) -> None:
        self._home, self._state, self._blobs = home, state, blobs
        self._proxy_port, self._admin_port = proxy_port, admin_port
        self._inherited = dict(os.environ)
        self._environments = Environments(home, state, self._inherited)
        self._servers: dict[str, Server] = {}
        self._supervisors: dict[str, asyncio.Task[None]] = {}
        self._client = httpx.AsyncClient(trust_env=False)
        self.measured = Metrics()

    def server(self, deployment_id: str) -> Server | None:
        return self._servers.get(deployment_id.lower())

    def recover(self) -> None:
        """Start the servers again that served when the emulator went away."""
        for deployment in self._state.of_type(DEPLOYMENT):
            if deployment["properties"]["provisioningState"] == "Succeeded":
                self._supervisors[deployment["id"].lower()] = asyncio.create_task(self._resume(deployment["id"]))
            elif deployment["properties"]["provisioningState"] != "Failed":
                self._set_state(deployment["id"], "Failed")

    async def _resume(self, deployment_id: str) -> None:
        with contextlib.suppress(ArmError):  # `create` has written the state and the log; nobody waits for this one
            await self.create(deployment_id)

    async def create(self, deployment_id: str) -> None:
        """Bring a deployment up until it is ready; one that serves already serves on until then, and also if the new
        one does not come up. Raises ArmError with the cause after setting the state to Failed.
        """
        deployment = self._state.get(deployment_id)
        assert deployment is not None
        try:
            container = await self._furnished(deployment_id, await asyncio.to_thread(self._lay_out, deployment))
            server = await self._start_until_ready(deployment, container)
        except (ArmError, OSError) as error:
            self._set_state(deployment_id, "Failed")
            known = error if isinstance(error, ArmError) else ArmError(500, "InternalServerError", str(error))
            event = {"at": time.time(), "code": known.code, "message": known.message}
            self._state.save_record("deployment-failure", deployment_id, event)
            raise known from None
        await self._replace(deployment, server)
        self._set_state(deployment_id, "Succeeded")

    async def _replace(self, deployment: Body, server: Server) -> None:
        deployment_id = deployment["id"]
        old, key = self._forget(deployment_id), deployment_id.lower()
        self._servers[key] = server
        self._supervisors[key] = asyncio.create_task(self._supervise(deployment, server))
        if old is not None:
            await _drain(old)
            clear(_generation(old.container.cwd, self._folder(deployment_id)))

    async def remove(self, deployment_id: str) -> None:
        """No new request reaches it; those in it are answered, then it ends and its files go."""
        if server := self._forget(deployment_id):
            await _drain(server)
        clear(self._folder(deployment_id))
        self._state.delete(deployment_id)

    async def stop(self) -> None:
        servers = [self._forget(deployment_id) for deployment_id in list(self._servers)]
        await asyncio.gather(*(server.process.stop() for server in servers if server))
        await self._client.aclose()

    def _forget(self, deployment_id: str) -> Server | None:
        supervisor = self._supervisors.pop(deployment_id.lower(), None)
        if supervisor is not None and supervisor is not asyncio.current_task():
            supervisor.cancel()
        return self._servers.pop(deployment_id.lower(), None)

    def log(self, deployment_id: str, tail: int, container: str = SERVER) -> str:
        path = self._folder(deployment_id) / container
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        return "\n".join(lines[-tail:])

    # -- one deployment ------------------------------------------------------------------------------------------------

    def _folder(self, deployment_id: str) -> Path:
        parts = deployment_id.lower().split("/")
        return self._home.work / "deployments" / parts[8] / parts[10] / parts[12]

    def _say(self, deployment_id: str, sentence: str, container: str = SERVER) -> None:
        folder = self._folder(deployment_id)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / container).open("a") as log:
            log.write(f"[emulator] {sentence}\n")

    def _lay_out(self, deployment: Body) -> Container:
        """A folder of its own for each attempt: what an earlier one laid out may serve meanwhile."""
        deployment_id = deployment["id"]
        folder = self._folder(deployment_id) / uuid.uuid4().hex[:8]
        layout = Layout(
            self._state,
            self._blobs,
            deployment,
            folder,
            say=partial(self._say, deployment_id, container=INITIALIZER),
            note=partial(self._say, deployment_id),
        )
        base = base_environment(self._inherited, self._home, self._proxy_port)
        return layout.container({**base, **identity_environment(self._state, self._admin_port, layout.identity())})

    async def _furnished(self, deployment_id: str, container: Container) -> Container:
        """With the Python packages of its environment, where they are to be built."""
        if container.packages is None:
            return container
        venv = await self._environments.ready(container.packages, self._folder(deployment_id) / SERVER)
        return container if venv is None else container.within(venv)

    async def _start_until_ready(self, deployment: Body, container: Container) -> Server:
        deployment_id, code = deployment["id"], ""
        readiness = Probe.of(deployment["properties"], "readinessProbe")
        deadline = asyncio.get_running_loop().time() + readiness.patience
        for attempt in range(1, MOST_CRASHES + 1):
            server = await self._start(deployment_id, container)
            try:
                code = await self._await_ready(server, readiness, deadline)
            except BaseException:
                await server.process.stop()
                raise
            if code == "ready":
                return server
            await server.process.stop()
            self._say(deployment_id, f"the container {code} (attempt {attempt} of {MOST_CRASHES})")
            if "exited" not in code:
                break
        tail = self.log(deployment_id, 20)
        raise ArmError(
            400,
            "ResourceNotReady",
            f"User container has crashed or terminated: {code}. Please see troubleshooting guide, available here: "
            f"https://aka.ms/oe-tsg#error-resourcenotready. Log:\n{tail}",
        )

    async def _start(self, deployment_id: str, container: Container) -> Server:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        own = {**container.env, "HOST": "127.0.0.1", "PORT": str(port)}
        log = self._folder(deployment_id) / SERVER
        argv = container.command(port)
        process = await ManagedProcess.start(self._state, argv, cwd=container.cwd, env=own, log=log)
        return Server(container, process, port)

    async def _await_ready(self, server: Server, probe: Probe, deadline: float) -> str:
        """Wait for a good answer of the readiness probe; returns "ready" or what happened instead."""
        said = NOBODY
        while asyncio.get_running_loop().time() < deadline:
            if server.process.returncode is not None:
                return f"exited with code {_exit_code(await server.process.wait())}"
            if (said := await self._probe(server, "readiness", probe.timeout)) in GOOD:
                return "ready"
            await asyncio.sleep(0.1)
        return f"did not become ready in time. Readiness probe failed: HTTP probe failed with statuscode: {said}"

    async def _probe(self, server: Server, route: str, timeout: float) -> int:
        """The status that a probe gets; 502, as from the proxy in front, where nobody listens or answers in time."""
        if not server.container.reaches(route):
            return NOBODY
        try:
            reply = await self._client.get(server.url(server.container.path(route, "/")), timeout=timeout)
        except httpx.TransportError:
            return NOBODY
        return reply.status_code

    async def _supervise(self, deployment: Body, server: Server) -> None:
        """Watch a server that serves: start it again when it exits or no longer lives, take it out when not ready."""
        deployment_id, restarts = deployment["id"], 0
        while True:
            began = asyncio.get_running_loop().time()
            why = await self._watch(deployment, server)
            restarts = 0 if asyncio.get_running_loop().time() - began > 60 else restarts + 1
            server.ready = False
            await server.process.stop(grace=1)
            self._say(deployment_id, f"the container {why} and is started again")
            await asyncio.sleep(min(LONGEST_BACKOFF, 0.5 * 2**restarts))
            server = self._servers[deployment_id.lower()] = await self._start(deployment_id, server.container)
            server.ready = False

    async def _watch(self, deployment: Body, server: Server) -> str:
        """Probe until the container has to be started again; returns why."""
        live = Probe.of(deployment["properties"], "livenessProbe")
        ready = Probe.of(deployment["properties"], "readinessProbe")
        ended = asyncio.ensure_future(server.process.wait())
        alive = asyncio.ensure_future(self._watch_live(server, live))
        readiness = asyncio.ensure_future(self._watch_ready(server, ready))
        try:
            await asyncio.wait([ended, alive], return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                return f"exited with code {_exit_code(ended.result())}"
            return f"was killed. Liveness probe failed: HTTP probe failed with statuscode: {alive.result()}"
        finally:
            for task in (ended, alive, readiness):
                task.cancel()

    async def _watch_live(self, server: Server, probe: Probe) -> int:
        await asyncio.sleep(probe.delay)
        failed, said = 0, NOBODY
        while failed < probe.failures:
            said = await self._probe(server, "liveness", probe.timeout)
            failed = 0 if said in GOOD else failed + 1
            await asyncio.sleep(probe.period)
        return said

    async def _watch_ready(self, server: Server, probe: Probe) -> None:
        failed = 0
        while True:
            if await self._probe(server, "readiness", probe.timeout) in GOOD:
                failed, server.ready = 0, True
            else:
                failed += 1
                server.ready = server.ready and failed < probe.failures
            await asyncio.sleep(probe.period if server.ready else 0.2)

    def _set_state(self, deployment_id: str, state: str) -> None:
        found = self._state.get(deployment_id)
        if found is not None:
            found["properties"]["provisioningState"] = state
            self._state.put(deployment_id, found, parent="/".join(deployment_id.split("/")[:11]))


async def _drain(server: Server) -> None:
    """Let the requests that are in it be answered, then end it."""
    if server.busy:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(server.idle.wait(), LONGEST_DRAIN)
    await server.process.stop()


def _exit_code(code: int) -> int:
    """As a container's: 128 and the signal's number, so 137 for one that was killed, as for want of memory."""
    return code if code >= 0 else 128 - code


def _generation(inside: Path, folder: Path) -> Path:
    """The attempt's folder that a path lies in."""
    return folder / inside.relative_to(folder).parts[0]
