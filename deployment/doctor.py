"""`python -m deployment.doctor`: why a deployment does not serve, and what to type next.

Asks Azure for the deployment, both containers' logs, the activity log, quota, the image's state and the identity's
roles, and sends one request. What may not be asked is left out. `causes.py` judges.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from deployment import causes, smoke
from deployment.causes import Evidence, Role
from deployment.endpoint import BASE, add_endpoint_options, arm, connect, endpoint_name, explained
from infra import cli
from infra.cli import REFUSED, UserError, say
from infra.client import ml_client
from infra.finding import Finding
from infra.outputs import StackOutputs, load_outputs

if TYPE_CHECKING:
    from azure.ai.ml import MLClient

LINES = 200
# learn.microsoft.com/azure/role-based-access-control/built-in-roles
READERS = ("2a2b9908-6ea1-4ae2-8e65-a410df84e7d1", "ba92f5b4-2d11-453d-a403-e96b0029c9fe")
PULLERS = (  # AcrPull, AcrPush, Contributor, Owner
    "7f951dda-4ed3-4680-a7ca-43fe172d538d",
    "8311e382-0749-4cb8-b61a-304f252e45ec",
    "b24988ac-6180-42a0-ab88-20f7382dd24c",
    "8e3af657-a8ff-443c-a75c-2fe8c4bcb635",
)


def examine(outputs: StackOutputs, ml: MLClient, app: str, name: str, *, error: str = "", answer: str = "") -> Evidence:
    """All that can be found out about one deployment; `error` and `answer` are what is known already."""
    endpoint = endpoint_name(outputs, app)
    seen = Evidence(outputs.stack, name, error=error, answer=answer, principal=outputs.serving_identity_principal_id)
    found = _deployment(ml, endpoint, name)
    if found is None:
        return replace(seen, error=error or _event(outputs, endpoint, name))
    settings = getattr(found, "request_settings", None)
    timeout = getattr(settings, "request_timeout_ms", None)
    return replace(
        seen,
        model=str(found.model or "").split("/models/")[-1].replace("/versions/", ":"),
        error=error or (_event(outputs, endpoint, name) if _failed(found) else ""),
        server_log=_log(ml, endpoint, name, "inference-server"),
        initializer_log=_log(ml, endpoint, name, "storage-initializer"),
        image=_image(found.environment),
        port=_port(ml, found.environment),
        roles=tuple(_roles(outputs)),
        quota=_quota(ml, outputs, found),
        timeout=float(timeout) / 1000 if timeout else None,
    )


def explain(findings: Iterable[Finding]) -> None:
    """Each finding in three lines, on stderr."""
    for one in findings:
        say(f"  cause: {one.what}: {one.why}\n    next: {one.repair}")


def _deployment(ml: MLClient, endpoint: str, name: str) -> Any:
    from azure.core.exceptions import ResourceNotFoundError

    with explained(f"looking at the deployment {name}"):
        try:
            return ml.online_deployments.get(name, endpoint)
        except ResourceNotFoundError:
            return None


def _failed(found: Any) -> bool:
    return str(found.provisioning_state).lower() == "failed"


def _log(ml: MLClient, endpoint: str, name: str, container: str) -> str:
    from azure.core.exceptions import AzureError

    try:
        return str(ml.online_deployments.get_logs(name, endpoint, LINES, container_type=container))
    except AzureError:
        return ""


def _ask(path: str, version: str, **query: str) -> dict[str, Any]:
    """What ARM answers; empty where it refuses, which is no reason to stop looking."""
    from azure.identity import DefaultAzureCredential

    reply = arm(DefaultAzureCredential(), "GET", path, {"api-version": version, **query})
    return dict(reply.json()) if reply.status_code == 200 else {}


def _event(outputs: StackOutputs, endpoint: str, name: str) -> str:
    """The last failure of a deployment in the activity log."""
    deployment = f"{outputs.workspace_id}/onlineEndpoints/{endpoint}/deployments/{name}"
    since = (datetime.now(UTC) - timedelta(days=7)).strftime("%Y-%m-%dT%H:%M:%SZ")
    found = _ask(
        f"/subscriptions/{outputs.subscription_id}/providers/Microsoft.Insights/eventtypes/management/values",
        "2015-04-01",
        **{"$filter": f"eventTimestamp ge '{since}' and resourceUri eq '{deployment}'"},
    ).get("value", [])
    failed = [one for one in found if one.get("status", {}).get("value") == "Failed"]
    latest: dict[str, Any] = max(failed, key=lambda one: str(one.get("eventTimestamp")), default={})
    return str(latest.get("properties", {}).get("statusMessage", ""))


def _image(environment: Any) -> str:
    """The provisioning state of an environment's version: Azure notes a failed image build there."""
    if not str(environment or "").startswith("/"):
        return ""
    return str(_ask(str(environment), "2024-04-01").get("properties", {}).get("provisioningState") or "")


def _port(ml: MLClient, environment: Any) -> int | None:
    found = re.search(r"/environments/([^/]+)/versions/([^/]+)", str(environment or ""))
    if not found:
        return None
    with explained("reading the environment"):
        config: Any = ml.environments.get(found[1], found[2]).inference_config or {}
    route = (config.get("readiness_route") if isinstance(config, dict) else config.readiness_route) or {}
    port = route.get("port") if isinstance(route, dict) else getattr(route, "port", None)
    return int(port) if port else None


def _roles(outputs: StackOutputs) -> Iterable[Role]:
    """What the serving identity needs, and whether it has it."""
    group = f"/subscriptions/{outputs.subscription_id}/resourceGroups/{outputs.resource_group}"
    storage = f"{group}/providers/Microsoft.Storage/storageAccounts/{outputs.storage_account}"
    yield _role(outputs, "Storage Blob Data Reader", storage, READERS)
    yield _role(outputs, "AcrPull", outputs.container_registry_id, PULLERS)


def _role(outputs: StackOutputs, name: str, scope: str, ids: tuple[str, ...]) -> Role:
    who = f"assignedTo('{outputs.serving_identity_principal_id}')"
    path = f"{scope}/providers/Microsoft.Authorization/roleAssignments"
    found = _ask(path, "2022-04-01", **{"$filter": f"atScope() and {who}"})
    if "value" not in found:
        return Role(name, scope)
    held = [one["properties"] for one in found["value"] if str(one["properties"]["roleDefinitionId"]).endswith(ids)]
    made = [str(one["createdOn"]) for one in held if one.get("createdOn")]
    return Role(name, scope, bool(held), min(map(_age, made)) if made else None)


def _age(moment: str) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()


def _quota(ml: MLClient, outputs: StackOutputs, found: Any) -> str:
    from deployment import quota
    from deployment.plan import Goal

    goal = Goal("", "", str(found.instance_type), int(found.instance_count or 1))
    with explained("asking for sizes and quota"):
        return quota.need(ml, goal, outputs.location).quota()


def main(argv: list[str]) -> int:
    parser = cli.parser("deployment.doctor", "Find out why a deployment does not serve.")
    add_endpoint_options(parser)
    parser.add_argument("--deployment", metavar="NAME", help="blue or green (default: all of them)")
    given = parser.parse_args(argv)
    outputs = load_outputs(stack=given.stack, file=given.outputs)
    ml = ml_client(outputs)
    findings: list[Finding] = []
    for name in [given.deployment] if given.deployment else _names(ml, outputs, given.app):
        seen = examine(outputs, ml, given.app, name)
        if not seen.error:
            seen = replace(seen, answer=_answer(outputs, given.app, name))
        found = causes.diagnose(seen)
        findings += found or [Finding("serving", "ok", f"{name} serves")]
    blocking = sum(one.level == "blocking" for one in findings)
    explain(one for one in findings if one.level != "ok")
    cli.result({"findings": [asdict(one) for one in findings], "blocking": blocking}, as_json=given.json)
    return REFUSED if blocking else 0


def _names(ml: MLClient, outputs: StackOutputs, app: str) -> list[str]:
    from deployment.observe import observe

    seen = observe(ml, endpoint_name(outputs, app))
    if not seen.deployments:
        what = "there is no endpoint" if seen.state is None else "the endpoint has no deployment"
        raise UserError(what, next_command=f"make deploy STACK={outputs.stack}")
    return [one.name for one in seen.deployments]


def _answer(outputs: StackOutputs, app: str, name: str) -> str:
    """What is wrong with an answer; empty where nothing is. Of other servers than ours any answer of JSON will do."""
    question = smoke.CHAT if app == BASE else smoke.Question(smoke.CHAT.body, chat=False)
    try:
        smoke.probe(connect(outputs, app), question, name)
    except smoke.ProbeFailed as failure:
        return str(failure)
    return ""


if __name__ == "__main__":
    cli.run(main)
