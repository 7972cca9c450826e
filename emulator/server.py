"""The emulator's process: wires the services together and serves them on loopback until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import psutil
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Host, Mount, Route, Router

from emulator.arm.groups import Groups
from emulator.arm.resources import Arm, error_response
from emulator.arm.schema import ArmError
from emulator.arm.soft_deleted import SoftDeleted
from emulator.arm.subscription import Subscription
from emulator.blobs import Blobs
from emulator.entra import Entra
from emulator.faults import Faults
from emulator.gateway import Gateway
from emulator.home import SUBSCRIPTION_ID, Home, hub_environment
from emulator.hub import app as hub_app
from emulator.machinelearning.artifacts import Artifacts
from emulator.machinelearning.assets import Assets
from emulator.machinelearning.computes import Computes
from emulator.machinelearning.connections import Connections
from emulator.machinelearning.endpoints import Endpoints
from emulator.machinelearning.history import History
from emulator.machinelearning.jobs import JOB, Jobs
from emulator.machinelearning.registries import Registries
from emulator.machinelearning.tracking import Tracking
from emulator.machinelearning.workspaces import Workspaces
from emulator.proxy import Certificates, ConnectProxy
from emulator.runner.deployments import DEPLOYMENT, DeploymentRunner
from emulator.runner.jobs import JobRunner
from emulator.runner.process import kill_leftovers
from emulator.sas import SharedAccess
from emulator.shared_key import StorageKeys
from emulator.state import State
from emulator.system_registry.seed import SystemRegistry

Scope = MutableMapping[str, Any]
Asgi = Callable[[Scope, Any, Any], Awaitable[None]]
ALL_METHODS = ["GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "OPTIONS"]


class Emulator:
    """Every service of one emulator, and the ASGI app that finds the right one by the host's name."""

    def __init__(self, home: Home, *, proxy_port: int, admin_port: int) -> None:
        self.state = state = State(home.database)
        kill_leftovers(state)
        self.faults = Faults(state)
        self.entra = entra = Entra(home, state)
        self.blobs = blobs = Blobs(state, home.objects, SharedAccess(home.secrets()["sas_key"]), entra)
        SystemRegistry(home, state, blobs).seed()
        ports = {"proxy_port": proxy_port, "admin_port": admin_port}
        self.jobs = JobRunner(home, state, blobs, entra, **ports)
        self.deployments = DeploymentRunner(home, state, blobs, **ports)
        arm = Arm(state, entra)
        operations = arm.operations
        Groups(arm)
        SoftDeleted(arm)
        Subscription(arm)
        StorageKeys(arm, blobs.shared_access)
        workspaces = Workspaces(arm, operations, blobs)
        Computes(arm, operations)
        Assets(arm, blobs)
        Connections(arm)
        Jobs(arm, operations, self.jobs)
        Endpoints(arm, operations, entra, self.deployments)
        self.gateway = Gateway(state, entra, self.deployments)
        self._connect_deletions(arm)
        self.tracking = Tracking(home, state, entra)
        registries = Registries(arm, operations, blobs, entra)
        services = (registries, History(state, blobs, entra), Artifacts(state, blobs, entra), self.tracking)
        routes = [*workspaces.data_plane_routes, *(route for one in services for route in one.routes)]
        data_plane = Router(routes, default=_unknown)
        management = _all(arm.handle)
        self.app = self._logged(
            Router(
                [
                    Host("management.azure.com", Router([Route("/metadata/endpoints", entra.clouds), management])),
                    Host("login.microsoftonline.com", Router(entra.routes)),
                    Host("{account}.blob.core.windows.net", _all(blobs.handle)),
                    Host("{endpoint}.{region}.inference.ml.azure.com", _all(self.gateway.handle)),
                    Host("{region}.api.azureml.ms", data_plane),
                ],
                default=_unknown,
            )
        )
        self.admin = Starlette(
            routes=[
                Route("/msi/token", entra.managed_identity),
                Route("/status", self.status),
                Route("/preempt", self.preempt, methods=["POST"]),
                Route("/faults", self.add_fault, methods=["POST"]),
                Route("/faults", self.clear_faults, methods=["DELETE"]),
            ]
        )

    def _connect_deletions(self, arm: Arm) -> None:
        kinds = "Microsoft.MachineLearningServices/workspaces"
        running: set[asyncio.Future[None]] = set()

        def later(work: Callable[[str], Awaitable[None]]) -> Callable[[dict[str, Any]], asyncio.Future[None]]:
            def hook(body: dict[str, Any]) -> asyncio.Future[None]:
                task = asyncio.ensure_future(work(body["id"]))
                running.add(task)
                task.add_done_callback(running.discard)
                return task

            return hook

        arm.on_delete("Microsoft.Storage/storageAccounts", lambda body: self.blobs.drop_account(body["name"]))
        arm.on_delete(f"{kinds}/jobs", later(self.jobs.forget))
        arm.on_delete(f"{kinds}/onlineEndpoints/deployments", later(self.deployments.remove))

    async def status(self, request: Request) -> Response:
        kinds: dict[str, int] = {}
        for body in self.state.below(f"/subscriptions/{SUBSCRIPTION_ID}"):
            kinds[body["type"]] = kinds.get(body["type"], 0) + 1
        unknown = sorted({f"{row[1]} {row[2]}{row[3]}" for row in self.state.requests() if row[6] == "not emulated"})
        return JSONResponse(
            {
                "resources": kinds,
                "jobs": [(body["name"], body["properties"]["status"]) for body in self.state.of_type(JOB)],
                "deployments": [
                    (f"{body['id'].split('/')[-3]}/{body['name']}", body["properties"]["provisioningState"])
                    for body in self.state.of_type(DEPLOYMENT)
                ],
                "faults": self.faults.all(),
                "not_emulated": unknown,
            }
        )

    async def preempt(self, request: Request) -> Response:
        """Take a job's nodes away, by its name alone."""
        wanted = str((await request.json()).get("job"))
        found = [body["id"] for body in self.state.of_type(JOB) if body["name"] == wanted]
        try:
            if not found:
                raise ArmError(404, "NotFound", f"there is no job {wanted!r}")
            await self.jobs.preempt(found[0])
        except ArmError as error:
            return error_response(error)
        return JSONResponse({"job": wanted})

    async def add_fault(self, request: Request) -> Response:
        try:
            return JSONResponse(self.faults.add(await request.json()))
        except ValueError as error:
            return error_response(ArmError(400, "BadRequest", str(error)))

    async def clear_faults(self, request: Request) -> Response:
        self.faults.clear()
        return JSONResponse({})

    def _logged(self, inner: Asgi) -> Asgi:
        """Record every request: what did a client ask, and what was it answered?"""

        async def app(scope: Scope, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                return
            started, answered = time.time(), {"status": 500}
            host = next((value.decode() for key, value in scope["headers"] if key == b"host"), "").split(":")[0]

            async def sending(message: MutableMapping[str, Any]) -> None:
                if message["type"] == "http.response.start":
                    answered["status"] = message["status"]
                await send(message)

            scope["state"] = {}
            try:
                if (receiving := await self.faults.apply(scope, receive, sending)) is not None:
                    await inner(scope, receiving, sending)
            except ConnectionResetError:
                pass  # a fault's doing, or the client's; uvicorn closes a connection that is not answered
            finally:
                note = str(scope["state"].get("note", ""))
                took = (time.time() - started) * 1000
                self.state.log_request(started, scope["method"], host, scope["path"], answered["status"], took, note)

        return app

    async def stop(self) -> None:
        await self.jobs.stop()
        await self.deployments.stop()
        await self.gateway.close()
        await self.tracking.close()
        kill_leftovers(self.state)
        self.state.close()


async def _unknown(scope: Scope, receive: Any, send: Any) -> None:
    """An operation, or a whole host of Azure's, that the emulator does not have."""
    scope["state"]["note"] = "not emulated"
    error = ArmError(404, "NotFound", f"The operation {scope['method']} {scope['path']} could not be found.")
    await error_response(error)(scope, receive, send)


def _all(handler: Callable[[Request], Awaitable[Response]]) -> Mount:
    return Mount("/", routes=[Route("/{path:path}", handler, methods=ALL_METHODS)])


def listen(port: int) -> socket.socket:
    """A loopback socket. Raises OSError where the port is in use."""
    # The protocol is named, because asyncio turns Nagle's algorithm off only where it is: 40 ms for each request else.
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind(("127.0.0.1", port))
    except OSError:
        found.close()
        raise
    found.listen(128)
    return found


async def serve(home: Home, port: int, *, hub: bool = False) -> None:
    """Serve until SIGTERM or SIGINT. Writes `emulator.json` when everything listens, and removes it at the end."""
    home.make()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    proxy_socket, tls_socket, admin_socket = listen(port), listen(0), listen(0)
    ports = [found.getsockname()[1] for found in (proxy_socket, tls_socket, admin_socket)]
    servers = []
    if hub:
        hub_socket = listen(0)
        ports.append(hub_socket.getsockname()[1])
        os.environ |= hub_environment(home, ports[3])  # which jobs and deployments inherit
        servers.append((_Server(uvicorn.Config(hub_app(home), **_quiet())), hub_socket))
    certificates = Certificates(home)
    emulator = Emulator(home, proxy_port=ports[0], admin_port=ports[2])
    proxy = ConnectProxy(ports[1])
    tls = _Server(uvicorn.Config(emulator.app, **_quiet()))
    tls.config.load()
    tls.config.ssl = certificates.server_context()
    admin = _Server(uvicorn.Config(emulator.admin, **_quiet()))
    tunnel = await asyncio.start_server(proxy.handle, sock=proxy_socket)
    servers += [(tls, tls_socket), (admin, admin_socket)]
    serving = [asyncio.create_task(server.serve([listening])) for server, listening in servers]
    emulator.jobs.recover()
    emulator.deployments.recover()
    _write_record(home, ports)
    await stopping.wait()
    tunnel.close()
    await emulator.stop()
    proxy.close()
    for server, _ in servers:
        server.should_exit = server.force_exit = True
    await asyncio.gather(*serving)
    home.endpoint.unlink(missing_ok=True)


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: one process, several servers, one way to stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


def _quiet() -> dict[str, Any]:
    """`timeout_keep_alive`: a client's pool must not meet a connection that closes at this moment."""
    quiet = {"log_level": "warning", "access_log": False, "lifespan": "off", "server_header": False}
    return {**quiet, "timeout_keep_alive": 75}


def _write_record(home: Home, ports: list[int]) -> None:
    started = psutil.Process().create_time()
    names = ("port", "tls_port", "admin_port", "hub_port")
    record = {"pid": os.getpid(), "started": started, **dict(zip(names, ports, strict=False))}
    temporary = home.endpoint.with_suffix(".new")
    temporary.write_text(json.dumps(record))
    temporary.replace(home.endpoint)
    (home.path / "port").write_text(str(ports[0]))
