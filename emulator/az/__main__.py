"""`az login`, `az account show`, `az account get-access-token`, answered by the emulator's Entra.

learn.microsoft.com/cli/azure/account; other commands end with 2 and say so.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from datetime import datetime
from typing import Any

from emulator.home import SUBSCRIPTION_ID, TENANT_ID

ARM = "https://management.azure.com"


def main(argv: list[str]) -> int:
    match [word for word in argv if not word.startswith("-")][:2]:
        case ["login", *_]:
            return _print([_account()])
        case ["logout", *_] | ["account", "set"]:
            return 0
        case ["version", *_]:
            return _print({"azure-cli": "2.75.0", "azure-cli-core": "2.75.0", "extensions": {}})
        case ["account", "show"]:
            return _print(_account())
        case ["account", "list"]:
            return _print([_account()])
        case ["account", "get-access-token"]:
            return _print(_token(argv))
    print(f"ERROR: 'az {' '.join(argv)}' is not emulated; login and account are.", file=sys.stderr)
    return 2


def _print(found: Any) -> int:
    print(json.dumps(found, indent=2))
    return 0


def _account() -> dict[str, Any]:
    return {
        "environmentName": "AzureCloud",
        "homeTenantId": TENANT_ID,
        "id": SUBSCRIPTION_ID,
        "isDefault": True,
        "managedByTenants": [],
        "name": "Local emulator",
        "state": "Enabled",
        "tenantId": TENANT_ID,
        "user": {"name": os.environ["ARM_CLIENT_ID"], "type": "servicePrincipal"},
    }


def _token(argv: list[str]) -> dict[str, Any]:
    import requests

    parser = argparse.ArgumentParser(prog="az")
    parser.add_argument("--scope", nargs="*", default=[])
    parser.add_argument("--resource", default=ARM)
    given, _ = parser.parse_known_args(argv[2:])
    scope = given.scope[0] if given.scope else given.resource.rstrip("/") + "/.default"
    form = {
        "grant_type": "client_credentials",
        "client_id": os.environ["ARM_CLIENT_ID"],
        "client_secret": os.environ["ARM_CLIENT_SECRET"],
        "scope": scope,
    }
    answer = requests.post(f"https://login.microsoftonline.com/{TENANT_ID}/oauth2/v2.0/token", data=form, timeout=30)
    found = answer.json()
    if "access_token" not in found:
        raise SystemExit(f"ERROR: {found.get('error_description')}")
    expires = int(datetime.now().timestamp()) + int(found["expires_in"])
    return {
        "accessToken": found["access_token"],
        "expiresOn": datetime.fromtimestamp(expires).strftime("%Y-%m-%d %H:%M:%S.%f"),
        "expires_on": expires,
        "subscription": SUBSCRIPTION_ID,
        "tenant": TENANT_ID,
        "tokenType": "Bearer",
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
