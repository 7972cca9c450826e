"""Each known cause is read off the words that Azure, the gateway or a container says it with; test_operations.py makes
real deployments fail in most of these ways.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from deployment.causes import Evidence, Role, diagnose

SEEN = Evidence("dev", "green", model="phi:2", principal="p", port=5001, timeout=5.0)
CRASHED = "ResourceNotReady: User container has crashed or terminated: exited with code 1"
DENIED = "HttpResponseError: This request is not authorized. ErrorCode:AuthorizationPermissionMismatch"
PULL = "Unable to download user container image: unauthorized"
LIVENESS = "User container has crashed or terminated: Liveness probe failed: HTTP probe failed with statuscode: 502"
HUNG = "Readiness probe failed: HTTP probe failed with statuscode: 503"


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({"error": "OutOfQuota: Not enough quota available for Standard_E4s_v3"}, "quota"),
        ({"error": "ImageBuildFailure: COPY failed"}, "image-build"),
        ({"image": "Failed", "error": "x"}, "image-build"),
        ({"error": PULL}, "acr-pull"),
        ({"initializer_log": DENIED, "error": "BadArgument"}, "blob-role"),
        ({"initializer_log": "The model phi:2 holds no files", "error": "x"}, "model-missing"),
        ({"server_log": "error: no config.json below /var/m", "error": CRASHED}, "model-missing"),
        ({"error": "terminated: exited with code 137"}, "out-of-memory"),
        ({"server_log": "torch.OutOfMemoryError: CUDA out of memory.", "error": CRASHED}, "out-of-memory"),
        ({"server_log": "ValueError: bad config", "error": CRASHED}, "crash"),
        ({"error": HUNG.replace("503", "502"), "server_log": "listening"}, "wrong-port"),
        ({"error": HUNG}, "never-ready"),
        ({"answer": "HTTP 408 instead of an answer: upstream request timeout"}, "request-timeout"),
        ({"answer": "HTTP 429 instead of an answer: too many pending requests"}, "overload"),
        ({"answer": "HTTP 403 instead of an answer: no permission"}, "callers-role"),
        ({"answer": "HTTP 401 instead of an answer: token"}, "callers-login"),
        ({"answer": "HTTP 404 instead of an answer: No valid deployments."}, "no-traffic"),
        ({"answer": "HTTP 500 instead of an answer: it broke"}, "bad-answers"),
        ({"answer": "something that is no chat completion: lorem"}, "bad-answers"),
        ({"error": "InternalServerError: sorry"}, "unknown"),
    ],
)
def test_the_likeliest_cause_is_named_with_a_next_command(change: dict[str, str], check: str) -> None:
    found = diagnose(replace(SEEN, **change))  # type: ignore[arg-type]
    assert found[0].check == check
    assert found[0].what and found[0].why and found[0].repair


def test_the_liveness_502_says_both_that_nobody_listens_and_that_it_is_killed() -> None:
    assert [one.check for one in diagnose(replace(SEEN, error=LIVENESS))] == ["wrong-port", "liveness"]


@pytest.mark.parametrize(
    ("change", "checks"),
    [
        ({"error": CRASHED, "server_log": "statuscode: 502"}, ["crash"]),
        ({"error": CRASHED, "server_log": "CUDA out of memory"}, ["out-of-memory"]),
        ({"error": CRASHED, "server_log": "there is no model"}, ["model-missing"]),
        ({"error": HUNG.replace("503", "502")}, ["wrong-port"]),
    ],
)
def test_a_cause_that_explains_another_stands_alone(change: dict[str, str], checks: list[str]) -> None:
    assert [one.check for one in diagnose(replace(SEEN, **change))] == checks  # type: ignore[arg-type]


def test_nothing_is_found_where_nothing_failed() -> None:
    assert diagnose(replace(SEEN, server_log="ready model=phi\nexited with code 0 long ago")) == []


@pytest.mark.parametrize(
    ("held", "age", "check", "says"),
    [
        (False, None, "blob-role", "az role assignment create --assignee p"),
        (True, 60.0, "blob-role-late", "was given 1 minutes ago"),
        (True, 5000.0, "blob-role", "the scope is another"),
        (None, None, "blob-role", "make up STACK=dev"),
    ],
)
def test_a_role_is_missing_or_late_or_not_the_reason(
    held: bool | None, age: float | None, check: str, says: str
) -> None:
    role = Role("Storage Blob Data Reader", "/scope", held, age)
    (found,) = diagnose(replace(SEEN, error="BadArgument", initializer_log=DENIED, roles=(role,)))
    assert found.check == check
    assert says in f"{found.why} {found.repair}"


def test_the_last_error_of_a_log_is_the_reason_of_a_crash() -> None:
    log = "RuntimeError: the first\nsomething else\nKeyError: 'the last'\n[emulator] the container exited with code 1"
    (found,) = diagnose(replace(SEEN, error=CRASHED, server_log=log))
    assert found.why == "KeyError: 'the last'"
