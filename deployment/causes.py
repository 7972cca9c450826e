"""Why a deployment does not serve: the known causes, read off what Azure and the containers say. No Azure in here.

Sources: learn.microsoft.com/azure/machine-learning/how-to-troubleshoot-online-endpoints; Azure/mlops-v2#120 (502).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from infra.finding import Finding

FRESH = 900.0
"""Seconds in which a role assignment may not have reached the data planes yet; Azure says up to ten minutes."""


@dataclass(frozen=True)
class Role:
    """A role that the endpoint's identity needs: whether it has it, and since how many seconds."""

    name: str
    scope: str
    held: bool | None = None
    age: float | None = None


@dataclass(frozen=True)
class Evidence:
    """All that was found out about one deployment; empty where nothing could be.

    `error` is what creating it failed with, `answer` what a request to it got (`HTTP 408 …`); `image` is the state of
    its environment's image; `timeout` the request timeout in seconds; `port` what the routes ask.
    """

    stack: str
    deployment: str
    model: str = ""
    error: str = ""
    answer: str = ""
    server_log: str = ""
    initializer_log: str = ""
    image: str = ""
    roles: tuple[Role, ...] = ()
    quota: str = ""
    timeout: float | None = None
    port: int | None = None
    principal: str = ""

    @property
    def words(self) -> str:
        return "\n".join((self.error, self.initializer_log, self.server_log))

    def says(self, *patterns: str, of: str | None = None) -> bool:
        text = self.words if of is None else of
        return any(re.search(pattern, text, re.IGNORECASE) for pattern in patterns)


Cause = Callable[[Evidence], Iterator[Finding]]


def blocking(check: str, what: str, why: str, repair: str) -> Finding:
    return Finding(check, "blocking", what, why, repair)


def quota(seen: Evidence) -> Iterator[Finding]:
    if seen.says(r"OutOfQuota|quota", of=seen.error):
        why = seen.quota or "managed endpoints count the cores 1.2 times, for upgrades"
        repair = "ask for more at https://ml.azure.com/quota, or --instance-type another one"
        yield blocking("quota", "the subscription has not enough cores of this family", why, repair)


def image_build(seen: Evidence) -> Iterator[Finding]:
    if seen.says(r"ImageBuildFailure|image build (has )?failed", of=seen.error) or seen.image.lower() == "failed":
        what = "the server's image could not be built"
        why = (
            first(seen.error, r"ImageBuildFailure.*") or "the log of the build is in the workspace's container registry"
        )
        yield blocking(
            "image-build", what, why, "docker build the folder here; mend the Dockerfile; run the rollout again"
        )


def registry_role(seen: Evidence) -> Iterator[Finding]:
    if seen.says(r"AcrPull|unauthorized|pull.*denied|unable to download user container image", of=seen.error):
        yield from _role(seen, "acr-pull", "AcrPull", "the endpoint's identity may not pull the image")


def blob_role(seen: Evidence) -> Iterator[Finding]:
    patterns = (r"AuthorizationPermissionMismatch", r"blobs/read", r"not authorized to perform this operation")
    if seen.says(*patterns, of=seen.error + seen.initializer_log):
        what = "the endpoint's identity may not read the model's blobs"
        yield from _role(seen, "blob-role", "Storage Blob Data Reader", what)


def _role(seen: Evidence, check: str, name: str, what: str) -> Iterator[Finding]:
    role = next((one for one in seen.roles if one.name == name), None)
    if role is not None and role.held and role.age is not None and role.age < FRESH:
        why = f"the role {name} was given {role.age / 60:.0f} minutes ago, and takes up to ten to reach the data planes"
        yield blocking(f"{check}-late", what, why, "wait, then run the same rollout again")
        return
    if role is not None and role.held:
        why = f"it holds {name}, which does not help: the scope is another, or a firewall or policy is in the way"
        yield blocking(
            check, what, why, f"compare the scopes: az role assignment list --assignee {seen.principal} --all"
        )
        return
    repair = f"make up STACK={seen.stack}   (the program grants it), then the rollout again"
    if role is not None:
        given = f'az role assignment create --assignee {seen.principal} --role "{name}" --scope {role.scope}'
        repair = f"make up STACK={seen.stack}, or {given}"
    yield blocking(check, what, f"the role {name} is missing", repair)


def model_missing(seen: Evidence) -> Iterator[Finding]:
    empty = seen.says(r"holds no files|ResourceNotFound", of=seen.initializer_log)
    absent = seen.says(r"no config\.json|config\.json.*not|no file MLmodel|there is no model", of=seen.server_log)
    if empty or absent:
        what = f"the model {seen.model or '(none)'} is not where the server looks for it".replace("  ", " ")
        why = (
            "the registered path holds no files"
            if empty
            else first(seen.server_log, r".*(config\.json|MLmodel|no model).*")
        )
        repair = f"python -m training.register --job JOB --stack {seen.stack}, with a job whose output holds the model"
        yield blocking("model-missing", what, why, repair)


def memory(seen: Evidence) -> Iterator[Finding]:
    if seen.says(r"code 137|OOMKilled|MemoryError|out of memory|Cannot allocate memory"):
        why = first(seen.words, r".*(code 137|OOMKilled|MemoryError|out of memory|Cannot allocate).*")
        repair = "--instance-type with more memory (Standard_E16s_v3 has 128 GB), or a smaller precision"
        yield blocking("out-of-memory", "the container was killed for want of memory", why, repair)


def crash(seen: Evidence) -> Iterator[Finding]:
    crashed = re.search(r"exited with code (?!0\b)(?!137)\d+|CrashLoopBackOff", seen.words)
    if crashed and not any(found for cause in (model_missing, memory) for found in cause(seen)):
        lines = [line for line in seen.server_log.splitlines() if re.match(r"\S*(Error|Exception)\b.*:|error:", line)]
        why = lines[-1] if lines else f"the container {crashed[0]}"
        repair = f"python -m deployment.logs --deployment {seen.deployment} --stack {seen.stack}"
        yield blocking("crash", "the server crashes when it starts", why, repair)


def nobody_listens(seen: Evidence) -> Iterator[Finding]:
    """502: the platform's proxy found nobody behind it. A container that exits is another matter."""
    if seen.says(r"statuscode: 502|connection refused") and not seen.says(r"exited with code"):
        port = f"port {seen.port}" if seen.port else "the port of its routes"
        what = f"nobody answers the probes on {port}"
        why = "the server listens on another port, or on 127.0.0.1 alone, or took longer to begin"
        repair = f"let it bind 0.0.0.0 and {port}, as EXPOSE in its Dockerfile says; or --ready-within more minutes"
        yield blocking("wrong-port", what, why, repair)


def not_ready(seen: Evidence) -> Iterator[Finding]:
    if found := re.search(r"Readiness probe failed: HTTP probe failed with statuscode: (?!502)(\d+)", seen.words):
        why = f"its readiness route answered {found[1]} to the end: the model still loads, or never will"
        repair = f"python -m deployment.logs --stack {seen.stack}; --ready-within more minutes, if it only needs time"
        yield blocking("never-ready", "the server runs, and does not become ready", why, repair)


def killed_alive(seen: Evidence) -> Iterator[Finding]:
    if seen.says(r"Liveness probe failed"):
        why = "its liveness route did not answer in time: one that generates in the same thread blocks it"
        repair = f"python -m deployment.logs --stack {seen.stack}; then a server that answers probes while it is busy"
        yield blocking("liveness", "the platform kills the server again and again", why, repair)


def timeout(seen: Evidence) -> Iterator[Finding]:
    if seen.says(r"HTTP 408", of=seen.answer):
        limit = f"{seen.timeout:g} s" if seen.timeout else "the request timeout"
        what = f"an answer takes longer than {limit}"
        yield blocking(
            "request-timeout",
            what,
            "the gateway gives up then (Azure's default is 5 s, the most 180 s)",
            "run the rollout, which sets 180 s; else fewer max_tokens, or a faster --instance-type",
        )


def overload(seen: Evidence) -> Iterator[Finding]:
    if seen.says(r"HTTP 429", of=seen.answer):
        why = "the deployment takes 2 × its concurrency × its nodes at once, and the server queues no more"
        yield blocking(
            "overload", "more requests come than it can take", why, "--instance-count more, or ask again later"
        )


def callers_role(seen: Evidence) -> Iterator[Finding]:
    if seen.says(r"HTTP 403", of=seen.answer):
        what = "who asks may not score on this endpoint"
        why = "the action Microsoft.MachineLearningServices/workspaces/onlineEndpoints/score/action is missing"
        yield blocking("callers-role", what, why, f"python -m deployment.access --allow PRINCIPAL --stack {seen.stack}")
    if seen.says(r"HTTP 401", of=seen.answer):
        yield blocking(
            "callers-login", "the endpoint does not accept the login", "token or key are wrong or over", "az login"
        )


def no_traffic(seen: Evidence) -> Iterator[Finding]:
    if seen.says(r"HTTP 404", of=seen.answer):
        why = "no deployment has traffic, or the one that was named is not there"
        yield blocking("no-traffic", "nobody answers", why, f"python -m deployment.status --stack {seen.stack}")


def failing_answers(seen: Evidence) -> Iterator[Finding]:
    if found := re.search(r"HTTP 5\d\d.*|no chat completion.*|an empty answer|no JSON.*", seen.answer):
        lines = [line for line in seen.server_log.splitlines() if re.match(r"\S*(Error|Exception)\b.*:", line)]
        why = lines[-1] if lines else found[0][:200]
        repair = f"python -m deployment.logs --deployment {seen.deployment} --stack {seen.stack}"
        yield blocking("bad-answers", "the server runs, and does not answer as it should", why, repair)


CAUSES: tuple[Cause, ...] = (
    quota,
    image_build,
    registry_role,
    blob_role,
    model_missing,
    memory,
    crash,
    nobody_listens,
    not_ready,
    killed_alive,
    timeout,
    overload,
    callers_role,
    no_traffic,
    failing_answers,
)


def diagnose(seen: Evidence) -> list[Finding]:
    """Every cause that the evidence speaks for, the likeliest first; one that says so where there is none."""
    found = [finding for cause in CAUSES for finding in cause(seen)]
    if not found and (seen.error or seen.answer):
        what = "none of the known causes"
        repair = f"python -m deployment.logs --stack {seen.stack}, and --container storage-initializer"
        found = [Finding("unknown", "unknown", what, (seen.error or seen.answer)[:300], repair)]
    return found


def first(text: str, pattern: str) -> str:
    """The first line of a text that matches, cut to what a terminal shows."""
    found = re.search(pattern, text, re.IGNORECASE)
    return found[0].strip()[:300] if found else ""
