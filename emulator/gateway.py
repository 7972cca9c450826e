"""The inference gateway: who may ask, which deployment answers, how many at once and how long.

Status codes: learn.microsoft.com/azure/machine-learning/how-to-troubleshoot-online-endpoints (HTTP status codes). A
container's status other than 200 reaches the caller as 424, with the container's own in a header.
"""

from __future__ import annotations

import asyncio
import hmac
import random
import time
from contextlib import AsyncExitStack, suppress

import httpx
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from emulator.arm.rights import SCORE, permits
from emulator.arm.schema import Body
from emulator.entra import Entra
from emulator.machinelearning.endpoints import ENDPOINT
from emulator.runner.deployments import DeploymentRunner, Server
from emulator.runner.jobs import parse_duration
from emulator.state import State

HOP_BY_HOP = {
    "connection",
    "keep-alive",
    "transfer-encoding",
    "te",
    "upgrade",
    "host",
    "content-length",
    "authorization",
}
LONGEST = 180.0  # seconds; no request setting of a managed endpoint goes beyond it
LARGEST = 1_500_000  # bytes of a request's body
REASON, STATUS = "ms-azureml-model-error-reason", "ms-azureml-model-error-statuscode"


class Gateway:
    def __init__(self, state: State, entra: Entra, runner: DeploymentRunner) -> None:
        self._state, self._entra, self._runner = state, entra, runner
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
        self._client = httpx.AsyncClient(trust_env=False, limits=limits, timeout=None)
        self._slots: dict[str, asyncio.Semaphore] = {}
        self._mirrored: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        for task in self._mirrored:
            task.cancel()
        await self._client.aclose()

    async def handle(self, request: Request) -> Response:
        name, location, *_ = (request.url.hostname or "").split(".")
        found = [e for e in self._state.of_type(ENDPOINT) if e["name"].lower() == name and e["location"] == location]
        if not found:
            return PlainTextResponse("The endpoint does not exist.", 404)
        endpoint = found[0]
        if refused := self._refusal(endpoint, request.headers.get("authorization", "")):
            return refused
        wanted = request.headers.get("azureml-model-deployment")
        deployment = self._choose(endpoint, wanted)
        if deployment is None:
            message = f"Specified deployment could not be found: {wanted}." if wanted else "No valid deployments."
            return PlainTextResponse(f"{message} Please check that the endpoint has traffic.", 404)
        try:
            body = await _body(request)
        except ClientDisconnect:
            return Response(status_code=499)
        if body is None:
            return PlainTextResponse("The request payload is too large.", 413)
        if wanted is None:
            self._mirror(request, endpoint, body)
        return await self._forward(request, endpoint, deployment, body)

    # -- who ----------------------------------------------------------------------------------------------------------

    def _refusal(self, endpoint: Body, authorization: str) -> Response | None:
        """401 without a good key or token, 403 for a token whose principal may not score."""
        bad = PlainTextResponse("The key or token is missing, expired or not valid for this endpoint.", 401)
        if endpoint["properties"]["authMode"].lower() == "key":
            keys = self._state.record("endpoint-keys", endpoint["id"]) or {}
            given = authorization.removeprefix("Bearer ")
            return None if any(hmac.compare_digest(given.encode(), key.encode()) for key in keys.values()) else bad
        if endpoint["properties"]["authMode"].lower() == "amltoken":
            own = self._entra.check(authorization, ("azureml",)) or {}
            return None if own.get("endpointName") == endpoint["name"] else bad
        claims = self._entra.check(authorization, ("https://ml.azure.com",))
        if claims is None:
            return bad
        if permits(self._state, str(claims.get("oid")), endpoint["id"], SCORE):
            return None
        return PlainTextResponse(f"The principal does not have permission to perform the action {SCORE}.", 403)

    # -- where to -----------------------------------------------------------------------------------------------------

    def _choose(self, endpoint: Body, wanted: str | None) -> Body | None:
        if wanted is not None:
            return self._state.get(f"{endpoint['id']}/deployments/{wanted}")
        shares = {name: share for name, share in endpoint["properties"]["traffic"].items() if share}
        if not shares:
            return None
        name = random.choices(list(shares), list(shares.values()))[0]
        return self._state.get(f"{endpoint['id']}/deployments/{name}")

    def _mirror(self, request: Request, endpoint: Body, body: bytes) -> None:
        """Send a copy of some requests to the mirrored deployment; nobody waits for its answers."""
        for name, share in endpoint["properties"]["mirrorTraffic"].items():
            copy = self._state.get(f"{endpoint['id']}/deployments/{name}")
            if copy is not None and random.random() * 100 < share:
                task = asyncio.create_task(self._discard(request, endpoint, copy, body))
                self._mirrored.add(task)
                task.add_done_callback(self._mirrored.discard)

    async def _discard(self, request: Request, endpoint: Body, deployment: Body, body: bytes) -> None:
        answer = await self._forward(request, endpoint, deployment, body)
        if isinstance(answer, PassedOn):
            with suppress(httpx.TransportError):
                async with answer.stack:
                    async for _ in answer.body_iterator:
                        pass

    # -- to it --------------------------------------------------------------------------------------------------------

    async def _forward(self, request: Request, endpoint: Body, deployment: Body, body: bytes) -> Response:
        began, server = time.time(), self._runner.server(deployment["id"])
        if server is None or not server.ready:
            answer: Response = _error(424, "The deployment is not ready.", 503)
        else:
            answer = await self._ask(request, deployment, server, body)
        model = int(answer.headers.get(STATUS, answer.status_code))
        self._runner.measured.add(endpoint["id"], deployment["name"], answer.status_code, model, began)
        answer.headers["azureml-model-deployment"] = deployment["name"]
        return answer

    async def _ask(self, request: Request, deployment: Body, server: Server, body: bytes) -> Response:
        """The container's answer, within the deployment's concurrency and its request timeout."""
        settings = deployment["properties"]["requestSettings"]
        at_once = int(settings["maxConcurrentRequestsPerInstance"]) * int(deployment["sku"].get("capacity") or 1)
        if server.busy >= 2 * at_once:
            return PlainTextResponse("too many pending requests", 429)
        slots = self._slots.setdefault(f"{deployment['id']} {at_once}", asyncio.Semaphore(at_once))
        limit = min(parse_duration(settings["requestTimeout"]) or 5.0, LONGEST)
        stack = AsyncExitStack()
        server.enter()
        stack.callback(server.leave)
        try:
            async with asyncio.timeout(limit):
                await stack.enter_async_context(slots)
                answer = await stack.enter_async_context(self._stream(request, server, body))
        except TimeoutError:
            await stack.aclose()
            return PlainTextResponse("upstream request timeout", 408)
        except httpx.TransportError:
            await stack.aclose()
            return _error(424, "upstream connect error or disconnect before headers", 502)
        except BaseException:
            await stack.aclose()
            raise
        return PassedOn(answer, stack)

    def _stream(self, request: Request, server: Server, body: bytes):  # type: ignore[no-untyped-def]
        """The request as the container gets it; httpx does not name the type of its context manager."""
        path = request.scope["path"]
        asked = server.container.path("scoring", "/score") if path == "/score" else path
        headers = {key: value for key, value in request.headers.items() if key.lower() not in HOP_BY_HOP}
        query = request.query_params
        return self._client.stream(request.method, server.url(asked), params=query, headers=headers, content=body)


async def _body(request: Request) -> bytes | None:
    """The request's body, or None for one that is too large."""
    parts, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > LARGEST:
            return None
        parts.append(chunk)
    return b"".join(parts)


def _status_and_headers(answer: httpx.Response) -> tuple[int, dict[str, str]]:
    kept = {key: value for key, value in answer.headers.items() if key.lower() not in HOP_BY_HOP}
    if answer.status_code == 200:
        return 200, kept
    return 424, {**kept, STATUS: str(answer.status_code), REASON: "model_error"}


class PassedOn(StreamingResponse):
    """A container's answer as it comes; `stack` is closed at its end, also if the caller leaves before it begins."""

    def __init__(self, answer: httpx.Response, stack: AsyncExitStack) -> None:
        super().__init__(answer.aiter_raw(), *_status_and_headers(answer))
        self.stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self.stack:
            await super().__call__(scope, receive, send)


def _error(status: int, text: str, model_status: int) -> Response:
    return PlainTextResponse(text, status, {STATUS: str(model_status), REASON: "model_error"})
