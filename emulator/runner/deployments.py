"""Deployments as real server processes: image and model laid out, probes followed, crashes restarted."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

import httpx

from emulator.arm.schema import ArmError, Body
from emulator.blobs import Blobs
from emulator.home import Home
from emulator.runner import locations
from emulator.runner.dockerfile import Image, build
from emulator.runner.jobs import parse_duration
from emulator.runner.process import ManagedProcess, base_environment, identity_environment
from emulator.state import State

MOST_CRASHES = 3  # in a row, before a deployment counts as failed
DEPLOYMENT = "Microsoft.MachineLearningServices/workspaces/onlineEndpoints/deployments"


@dataclass
class Server:
    """A deployment's running server."""

    process: ManagedProcess
    port: int
    scoring_path: str


class DeploymentRunner:
    def __init__(self, home: Home, state: State, blobs: Blobs, *, proxy_port: int, admin_port: int) -> None:
        self._home, self._state, self._blobs = home, state, blobs
        self._proxy_port, self._admin_port = proxy_port, admin_port
        self._inherited = dict(os.environ)
        self._servers: dict[str, Server] = {}
        self._supervisors: dict[str, asyncio.Task[None]] = {}

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
        """Bring a deployment up until it is ready. Raises ArmError with the cause after setting it to Failed."""
        await self._stop(deployment_id)
        try:
            deployment = self._state.get(deployment_id)
            assert deployment is not None
            image, env, routes = await asyncio.to_thread(self._lay_out, deployment)
            await self._start_until_ready(deployment, image, env, routes)
        except (ArmError, OSError) as error:
            self._set_state(deployment_id, "Failed")
            await self._stop(deployment_id)
            if isinstance(error, ArmError):
                raise
            raise ArmError(500, "InternalServerError", str(error)) from None
        self._set_state(deployment_id, "Succeeded")

    async def remove(self, deployment_id: str) -> None:
        await self._stop(deployment_id)
        shutil.rmtree(self._folder(deployment_id), ignore_errors=True)
        self._state.delete(deployment_id)

    async def stop(self) -> None:
        await asyncio.gather(*(self._stop(deployment_id) for deployment_id in list(self._servers)))

    async def _stop(self, deployment_id: str) -> None:
        supervisor = self._supervisors.pop(deployment_id.lower(), None)
        if supervisor is not None and supervisor is not asyncio.current_task():
            supervisor.cancel()
        if server := self._servers.pop(deployment_id.lower(), None):
            await server.process.stop()

    def log(self, deployment_id: str, tail: int) -> str:
        path = self._folder(deployment_id) / "log.txt"
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        return "\n".join(lines[-tail:])

    # -- one deployment ------------------------------------------------------------------------------------------------

    def _folder(self, deployment_id: str) -> Path:
        parts = deployment_id.lower().split("/")
        return self._home.work / "deployments" / parts[8] / parts[10] / parts[12]

    def _say(self, deployment_id: str, sentence: str) -> None:
        folder = self._folder(deployment_id)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log.txt").open("a") as log:
            log.write(f"[emulator] {sentence}\n")

    def _lay_out(self, deployment: Body) -> tuple[Image, dict[str, str], Body]:
        """The container's files: the image's scratch folder, the model below its leaf folder, the environment."""
        properties, deployment_id = deployment["properties"], deployment["id"]
        folder, workspace = self._folder(deployment_id), "/".join(deployment_id.split("/")[:9])
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        environment = self._state.get(str(properties.get("environmentId") or ""))
        definition = environment["properties"] if environment else {}
        if not definition.get("build"):
            raise ArmError(
                400,
                "BadArgument",
                "Only deployments whose environment is a build context with a Dockerfile are emulated.",
            )
        context = locations.resolve(self._state, workspace, definition["build"]["contextUri"])
        self._blobs.copy_tree(context.account, context.container, context.path, folder / "context")
        image = build(folder / "context", definition["build"].get("dockerfilePath") or "Dockerfile", folder / "root")
        for command in image.skipped:
            self._say(deployment_id, f"RUN {command} was skipped: the host's own packages stand in")
        model_env = self._lay_out_model(workspace, properties, folder)
        identity = self._identity(deployment_id)
        env = {
            **base_environment(self._inherited, self._home, self._proxy_port),
            **{
                key: self._mapped(image, value) for key, value in image.env.items() if key not in ("PATH", "PYTHONPATH")
            },
            **identity_environment(self._state, self._admin_port, identity),
            **model_env,
            **(properties.get("environmentVariables") or {}),
        }
        return image, env, definition.get("inferenceConfig") or {}

    @staticmethod
    def _mapped(image: Image, value: str) -> str:
        """A path that the image holds becomes its place on the host; any other value stays."""
        return str(image.inside(value)) if value.startswith("/") and image.inside(value).exists() else value

    def _lay_out_model(self, workspace: str, properties: Body, folder: Path) -> dict[str, str]:
        if not properties.get("model"):
            return {}
        asset = properties["model"].removeprefix("azureml:")
        place = locations.resolve(self._state, workspace, asset)
        name, version = asset.split("/")[-3], asset.split("/")[-1]
        base = folder / "azureml-models" / name / version
        if self._blobs.copy_tree(place.account, place.container, place.path, base / place.leaf) == 0:
            raise ArmError(400, "ResourceNotFound", f"The model '{name}:{version}' holds no files.")
        return {"AZUREML_MODEL_DIR": str(base)}

    def _identity(self, deployment_id: str) -> dict[str, str] | None:
        endpoint = self._state.get("/".join(deployment_id.split("/")[:11]))
        for ids in (endpoint or {}).get("identity", {}).get("userAssignedIdentities", {}).values():
            return {"client_id": ids["clientId"], "principal_id": ids["principalId"]}
        return None

    async def _start_until_ready(self, deployment: Body, image: Image, env: dict[str, str], routes: Body) -> None:
        deployment_id = deployment["id"]
        liveness = (routes.get("livenessRoute") or {}).get("path") or "/"
        readiness = (routes.get("readinessRoute") or {}).get("path") or liveness
        scoring = (routes.get("scoringRoute") or {}).get("path") or "/score"
        probe = deployment["properties"]["readinessProbe"]
        patience = (parse_duration(probe["initialDelay"]) or 0) + probe["failureThreshold"] * (
            parse_duration(probe["period"]) or 10
        )
        deadline = asyncio.get_running_loop().time() + patience
        for attempt in range(1, MOST_CRASHES + 1):
            server = await self._start(deployment_id, image, env, scoring)
            code = await self._ready(server, readiness, deadline)
            if code == "ready":
                supervision = self._supervise(deployment_id, image, env, scoring)
                self._supervisors[deployment_id.lower()] = asyncio.create_task(supervision)
                return
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

    async def _start(self, deployment_id: str, image: Image, env: dict[str, str], scoring: str) -> Server:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        own = {**env, "HOST": "127.0.0.1", "PORT": str(port)}
        log = self._folder(deployment_id) / "log.txt"
        process = await ManagedProcess.start(self._state, image.argv, cwd=image.cwd, env=own, log=log)
        server = self._servers[deployment_id.lower()] = Server(process, port, scoring)
        return server

    async def _ready(self, server: Server, path: str, deadline: float) -> str:
        """Wait for a good answer of the readiness probe; returns "ready" or what happened instead."""
        url = f"http://127.0.0.1:{server.port}{path}"
        async with httpx.AsyncClient(trust_env=False, timeout=2) as client:
            while asyncio.get_running_loop().time() < deadline:
                if server.process.returncode is not None:
                    return f"exited with code {await server.process.wait()}"
                try:
                    if (await client.get(url)).status_code == 200:
                        return "ready"
                except httpx.TransportError:
                    pass  # not listening yet
                await asyncio.sleep(0.1)
        return f"did not answer its readiness probe {path} in time"

    async def _supervise(self, deployment_id: str, image: Image, env: dict[str, str], scoring: str) -> None:
        """Start the server again when it exits, as the service restarts a container."""
        while True:
            server = self._servers[deployment_id.lower()]
            code = await server.process.wait()
            self._say(deployment_id, f"the container exited with code {code} and is started again")
            await asyncio.sleep(1)
            await self._start(deployment_id, image, env, scoring)

    def _set_state(self, deployment_id: str, state: str) -> None:
        found = self._state.get(deployment_id)
        if found is not None:
            found["properties"]["provisioningState"] = state
            self._state.put(deployment_id, found, parent="/".join(deployment_id.split("/")[:11]))
