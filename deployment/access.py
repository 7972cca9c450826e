"""`python -m deployment.access`: who may ask the endpoint. Callers get a role on it, not a key.

Azure has no built-in role that may score and nothing else, so the stack's resource group gets a custom one, with the
action that scoring needs: learn.microsoft.com/azure/machine-learning/how-to-authenticate-online-endpoint
"""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING, Any

from deployment.endpoint import add_endpoint_options, arm, endpoint_name, first_line
from infra import cli
from infra.cli import WRONG_USE, UserError, say
from infra.outputs import StackOutputs, load_outputs

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential
    from requests import Response

VERSION = "2022-04-01"
ACTIONS = (
    "Microsoft.MachineLearningServices/workspaces/onlineEndpoints/score/action",
    "Microsoft.MachineLearningServices/workspaces/onlineEndpoints/read",  # the address is asked of ARM
)
TYPES = ("ServicePrincipal", "User", "Group")
NAMES = uuid.UUID("6f1d2d0e-6c7e-4c1a-9a39-3d4b8f0c5a11")
"""Ids are made from it, so that asking twice changes nothing."""


class Access:
    """The role and its assignments on one endpoint."""

    def __init__(self, outputs: StackOutputs, app: str, credential: TokenCredential) -> None:
        self._credential, self._stack = credential, outputs.stack
        self.endpoint = endpoint_name(outputs, app)
        self.scope = f"{outputs.workspace_id}/onlineEndpoints/{self.endpoint}"
        self.group = outputs.workspace_id.split("/providers/")[0]
        self.subscription = f"/subscriptions/{outputs.subscription_id}"
        self.role = str(uuid.uuid5(NAMES, self.group.lower()))

    def callers(self) -> list[dict[str, str]]:
        """Those who have the role on this endpoint. Raises UserError if there is no endpoint."""
        path = f"{self.scope}/providers/Microsoft.Authorization/roleAssignments"
        reply = self._send("GET", path, {"$filter": "atScope()"})
        found = [one["properties"] for one in reply.json()["value"]]
        return [
            {"principal": str(one["principalId"]), "type": str(one.get("principalType") or "")}
            for one in found
            if str(one["roleDefinitionId"]).lower().endswith(self.role)
        ]

    def allow(self, principal: str, kind: str) -> None:
        """Give the role, which is made where it is missing."""
        self._send(
            "PUT", f"{self.group}/providers/Microsoft.Authorization/roleDefinitions/{self.role}", {}, self._definition()
        )
        role = f"{self.subscription}/providers/Microsoft.Authorization/roleDefinitions/{self.role}"
        properties = {"roleDefinitionId": role, "principalId": principal, "principalType": kind}
        self._send("PUT", self._assignment(principal), {}, {"properties": properties}, accept=(409,))

    def withdraw(self, principal: str) -> None:
        self._send("DELETE", self._assignment(principal), {}, accept=(204, 404))

    def _assignment(self, principal: str) -> str:
        name = uuid.uuid5(NAMES, f"{self.scope}\0{principal}".lower())
        return f"{self.scope}/providers/Microsoft.Authorization/roleAssignments/{name}"

    def _definition(self) -> dict[str, Any]:
        permission = {"actions": list(ACTIONS), "notActions": [], "dataActions": [], "notDataActions": []}
        properties = {
            "roleName": f"finetune-phi endpoint caller {self.role[:8]}",
            "description": "May ask online endpoints, and nothing else.",
            "type": "CustomRole",
            "permissions": [permission],
            "assignableScopes": [self.group],
        }
        return {"properties": properties}

    def _send(
        self, method: str, path: str, query: dict[str, str], body: Any = None, accept: tuple[int, ...] = ()
    ) -> Response:
        reply = arm(self._credential, method, path, {"api-version": VERSION, **query}, body)
        if reply.status_code in (200, 201, *accept):
            return reply
        if reply.status_code == 404:
            raise UserError(f"there is no endpoint {self.endpoint}", next_command=f"make deploy STACK={self._stack}")
        if reply.status_code == 403:
            raise UserError(
                "this login may not give roles on the endpoint",
                next_command=f"ask for the role Role Based Access Control Administrator on {self.group}",
            )
        raise UserError(
            f"Azure Resource Manager answers {reply.status_code}: {first_line(Exception(reply.text))[:300]}"
        )


def main(argv: list[str]) -> int:
    from azure.identity import DefaultAzureCredential

    given = _options().parse_args(argv)
    for principal in (given.allow, given.withdraw):
        if principal and not re.fullmatch(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", principal):
            raise UserError(
                f"{principal!r} is no object id of a principal",
                next_command="az ad sp show --id CLIENT_ID --query id, or az ad user show --id NAME --query id",
                code=WRONG_USE,
            )
    access = Access(load_outputs(stack=given.stack, file=given.outputs), given.app, DefaultAzureCredential())
    before = access.callers()
    if given.allow:
        access.allow(given.allow, given.type)
        say(f"{given.allow} may ask {access.endpoint}; it can take ten minutes until the endpoint knows")
    if given.withdraw:
        access.withdraw(given.withdraw)
    changed = given.allow or given.withdraw
    callers = access.callers() if changed else before
    values = {"endpoint": access.endpoint, "callers": callers, "state": "changed" if callers != before else "unchanged"}
    cli.result(values, as_json=given.json)
    return 0


def _options() -> cli.Parser:
    parser = cli.parser("deployment.access", "Show, allow or withdraw who may ask the endpoint.")
    add_endpoint_options(parser)
    parser.add_argument("--allow", metavar="ID", help="the object id of who may ask from now on")
    parser.add_argument("--type", choices=TYPES, default=TYPES[0], help=f"what --allow names (default: {TYPES[0]})")
    parser.add_argument("--withdraw", metavar="ID", help="the object id of who may not any longer")
    return parser


if __name__ == "__main__":
    cli.run(main)
