"""The inference gateway: authentication, traffic, and the way to a deployment's server.

Status codes: learn.microsoft.com/azure/machine-learning/how-to-troubleshoot-online-endpoints (HTTP status codes).
"""

from __future__ import annotations

import hmac
import random
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import httpx
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from emulator.arm.schema import Body
from emulator.entra import Entra
from emulator.machinelearning.endpoints import DEPLOYMENT, ENDPOINT
from emulator.runner.deployments import DeploymentRunner
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


class Gateway:
    def __init__(self, state: State, entra: Entra, runner: DeploymentRunner) -> None:
        self._state, self._entra, self._runner = state, entra, runner
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
        self._client = httpx.AsyncClient(trust_env=False, limits=limits, timeout=None)

    async def close(self) -> None:
        await self._client.aclose()

    async def handle(self, request: Request) -> Response:
        name, location, *_ = (request.url.hostname or "").split(".")
        found = [e for e in self._state.of_type(ENDPOINT) if e["name"].lower() == name and e["location"] == location]
        if not found:
            return PlainTextResponse("The endpoint does not exist.", 404)
        endpoint = found[0]
        if not self._may_call(endpoint, request.headers.get("authorization", "")):
            return PlainTextResponse("The key or token is missing or not valid for this endpoint.", 401)
        deployment = self._choose(endpoint, request.headers.get("azureml-model-deployment"))
        if deployment is None:
            return PlainTextResponse(
                "No valid deployments to route to. Please check that the endpoint has traffic.", 404
            )
        return await self._forward(request, deployment)

    def _may_call(self, endpoint: Body, authorization: str) -> bool:
        if endpoint["properties"]["authMode"].lower() == "key":
            keys = self._state.record("endpoint-keys", endpoint["id"]) or {}
            given = authorization.removeprefix("Bearer ")
            return any(hmac.compare_digest(given.encode(), key.encode()) for key in keys.values())
        return self._entra.check(authorization, ("https://ml.azure.com",)) is not None

    def _choose(self, endpoint: Body, wanted: str | None) -> Body | None:
        if wanted is not None:
            return self._state.get(f"{endpoint['id']}/deployments/{wanted}")
        shares = {name: share for name, share in endpoint["properties"]["traffic"].items() if share}
        if not shares:
            return None
        name = random.choices(list(shares), list(shares.values()))[0]
        return self._state.get(f"{endpoint['id']}/deployments/{name}")

    async def _forward(self, request: Request, deployment: Body) -> Response:
        assert deployment["type"].lower() == DEPLOYMENT.lower()
        server = self._runner.server(deployment["id"])
        if server is None:
            return PlainTextResponse("The deployment is not ready.", 503, {"ms-azureml-model-error-statuscode": "503"})
        path = request.scope["path"]
        url = f"http://127.0.0.1:{server.port}{server.scoring_path if path == '/score' else path}"
        headers = {key: value for key, value in request.headers.items() if key.lower() not in HOP_BY_HOP}
        limit = min(parse_duration(deployment["properties"]["requestSettings"]["requestTimeout"]) or 5.0, LONGEST)
        stack = AsyncExitStack()
        try:
            answer = await stack.enter_async_context(
                self._client.stream(
                    request.method,
                    url,
                    params=request.query_params,
                    headers=headers,
                    content=await request.body(),
                    timeout=httpx.Timeout(limit, connect=5),
                )
            )
        except httpx.TimeoutException:
            return PlainTextResponse("upstream request timeout", 408)
        except httpx.TransportError:
            return PlainTextResponse("upstream connect error or disconnect before headers", 503)
        kept = {key: value for key, value in answer.headers.items() if key.lower() not in HOP_BY_HOP}
        kept["azureml-model-deployment"] = deployment["name"]

        async def body() -> AsyncIterator[bytes]:
            async with stack:
                async for chunk in answer.aiter_raw():
                    yield chunk

        # A container's 5xx becomes 424 with the original status beside it; every other status passes.
        status = answer.status_code
        if status >= 500 and not re.match(r"50[34]", str(status)):
            kept["ms-azureml-model-error-statuscode"], status = str(status), 424
        return StreamingResponse(body(), status, kept)
