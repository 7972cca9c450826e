"""Entra ID as far as azure-identity asks: discovery, client-credential tokens, and managed-identity tokens.

Tokens are JSON Web Tokens signed with the emulator's own key, so the other services here can tell a real one, its
principal and its audience. The endpoints and claims follow the Microsoft identity platform's documentation
(learn.microsoft.com/entra/identity-platform/v2-oauth2-client-creds-grant-flow, .../access-token-claims-reference).
"""

from __future__ import annotations

import hmac
import time
import uuid
from typing import Any
from urllib.parse import parse_qsl

import jwt
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from emulator.faults import clock, token_lifetime
from emulator.home import DEPLOYER_CLIENT_ID, DEPLOYER_OBJECT_ID, TENANT_ID, Home
from emulator.state import State

LIFETIME = 3600  # seconds; Azure's own default lies between 60 and 90 minutes
LEEWAY = 300  # seconds that a token is valid before it was issued, for services whose clock is behind

_BY_OUR_CLOCK: Any = {"require": ["exp", "nbf"], "verify_exp": False, "verify_nbf": False, "verify_iat": False}

# learn.microsoft.com/azure/azure-resource-manager/management/overview (metadata of a cloud, api-version 2019-05-01)
PUBLIC_CLOUD = {
    "name": "AzureCloud",
    "portal": "https://portal.azure.com",
    "authentication": {
        "loginEndpoint": "https://login.microsoftonline.com/",
        "audiences": ["https://management.core.windows.net/", "https://management.azure.com/"],
        "tenant": "common",
        "identityProvider": "AAD",
    },
    "graph": "https://graph.windows.net/",
    "resourceManager": "https://management.azure.com/",
    "suffixes": {
        "storage": "core.windows.net",
        "keyVaultDns": "vault.azure.net",
        "acrLoginServer": "azurecr.io",
        "sqlServerHostname": "database.windows.net",
    },
}


class Entra:
    """Issues and checks tokens."""

    def __init__(self, home: Home, state: State) -> None:
        made = home.secrets()
        self._key, self._client_secret = made["token_key"], made["client_secret"]
        self._state = state
        self.routes = [
            Route("/common/discovery/instance", self.instance),
            Route("/{tenant}/.well-known/openid-configuration", self.openid),
            Route("/{tenant}/v2.0/.well-known/openid-configuration", self.openid),
            Route("/{tenant}/oauth2/v2.0/token", self.token, methods=["POST"]),
            Route("/{tenant}/oauth2/token", self.token, methods=["POST"]),
        ]

    def issue(self, audience: str, *, client_id: str, object_id: str, lifetime: int = LIFETIME, **more: str) -> str:
        now = int(time.time())
        claims = {
            "aud": audience.removesuffix("/.default").rstrip("/"),
            "iss": f"https://sts.windows.net/{TENANT_ID}/",
            "iat": now - LEEWAY,
            "nbf": now - LEEWAY,
            "exp": now + token_lifetime(self._state, lifetime),
            "appid": client_id,
            "oid": object_id,
            "sub": object_id,
            "tid": TENANT_ID,
            "ver": "1.0",
            **more,
        }
        return jwt.encode(claims, self._key, algorithm="HS256")

    def check(self, authorization: str, audiences: tuple[str, ...]) -> dict[str, Any] | None:
        """The claims of a bearer header, or None if it is missing, forged, expired or for another audience."""
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return None
        try:
            claims: dict[str, Any] = jwt.decode(
                token, self._key, algorithms=["HS256"], audience=audiences, options=_BY_OUR_CLOCK
            )
        except jwt.InvalidTokenError:
            return None
        return claims if claims["nbf"] <= clock(self._state) < claims["exp"] else None

    async def instance(self, request: Request) -> Response:
        tenant = f"https://login.microsoftonline.com/{TENANT_ID}"
        host = "login.microsoftonline.com"
        return JSONResponse(
            {
                "tenant_discovery_endpoint": f"{tenant}/v2.0/.well-known/openid-configuration",
                "api-version": "1.1",
                "metadata": [{"preferred_network": host, "preferred_cache": host, "aliases": [host]}],
            }
        )

    async def openid(self, request: Request) -> Response:
        base = f"https://login.microsoftonline.com/{request.path_params['tenant']}"
        return JSONResponse(
            {
                "issuer": f"{base}/v2.0",
                "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
                "token_endpoint": f"{base}/oauth2/v2.0/token",
                "device_authorization_endpoint": f"{base}/oauth2/v2.0/devicecode",
                "jwks_uri": f"{base}/discovery/v2.0/keys",
                "tenant_region_scope": "NA",
                "cloud_instance_name": "microsoftonline.com",
            }
        )

    async def clouds(self, request: Request) -> Response:
        """What the public cloud is made of, by which azureml-mlflow finds its hosts; asked for without a token."""
        return JSONResponse([PUBLIC_CLOUD])

    async def token(self, request: Request) -> Response:
        form = dict(parse_qsl((await request.body()).decode(errors="replace")))
        client, secret = form.get("client_id", ""), form.get("client_secret", "")
        if client != DEPLOYER_CLIENT_ID:
            return _refused("AADSTS700016", f"Application with identifier '{client}' was not found in the directory.")
        if not hmac.compare_digest(secret, self._client_secret):
            return _refused("AADSTS7000215", "Invalid client secret provided.")
        audience = (form.get("scope") or form.get("resource") or "").split(" ")[0]
        token = self.issue(audience, client_id=client, object_id=DEPLOYER_OBJECT_ID)
        lives = token_lifetime(self._state, LIFETIME)
        return JSONResponse(
            {"token_type": "Bearer", "expires_in": lives, "ext_expires_in": lives, "access_token": token}
        )

    async def managed_identity(self, request: Request) -> Response:
        """The endpoint that a job or deployment finds in IDENTITY_ENDPOINT; its header names whose it is.

        Protocol: learn.microsoft.com/azure/app-service/overview-managed-identity (REST endpoint reference).
        """
        header = request.headers.get("x-identity-header") or request.headers.get("secret") or ""
        identity = self._state.record("identity-header", header) if header else None
        if identity is None:
            return JSONResponse({"statusCode": 403, "message": "The identity header is not known."}, 403)
        wanted = request.query_params.get("client_id") or request.query_params.get("clientid")
        if wanted and wanted != identity["client_id"]:
            message = "No User Assigned or Delegated Managed Identity found for specified ClientId/ResourceId."
            return JSONResponse({"statusCode": 400, "message": message}, 400)
        resource = request.query_params.get("resource", "")
        token = self.issue(resource, client_id=identity["client_id"], object_id=identity["principal_id"])
        return JSONResponse(
            {
                "access_token": token,
                "expires_on": str(int(time.time()) + LIFETIME),
                "resource": resource,
                "token_type": "Bearer",
                "client_id": identity["client_id"],
            }
        )


def _refused(code: str, sentence: str) -> Response:
    trace = str(uuid.uuid4())
    return JSONResponse(
        {
            "error": "invalid_client",
            "error_description": f"{code}: {sentence} Trace ID: {trace}",
            "error_codes": [int(code.removeprefix("AADSTS"))],
            "trace_id": trace,
        },
        401,
    )
