"""`reap`: what may go, what is never touched, and that one failure does not stop the rest."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infra import branches, down, reap, stack_file
from infra.branches import expiry, stack_of
from infra.cli import UserError
from infra.listing import Environment, tags_of
from infra.removal import Proof
from tests.infra import environments
from tests.infra.environments import Environments
from tests.support.arm_in_process import ArmInProcess

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
PAST, FUTURE = expiry(-3, NOW), expiry(3, NOW)


def environment(**tags: str) -> Environment:
    row: Any = SimpleNamespace(name="acme/finetune-phi/x", current=False, resource_count=1, last_update=None)
    return Environment(row, "", {key.replace("_", "-"): value for key, value in tags.items()})


@pytest.mark.parametrize(
    ("tags", "heads", "why"),
    [
        ({"expires_on": PAST}, None, "expired 3 h ago"),
        ({"expires_on": PAST, "branch": "a"}, {"a"}, "expired 3 h ago"),
        ({"expires_on": FUTURE, "branch": "a"}, {"a"}, None),
        ({"expires_on": FUTURE, "branch": "b"}, {"a"}, "origin has no branch b"),
        ({"branch": "b"}, {"a"}, "origin has no branch b"),
        ({"branch": "b"}, None, None),  # what is not known is not gone
        ({"branch": "pr-12"}, {"a"}, None),  # pull requests are not among the branches
        ({"branch": "pr-12", "expires_on": PAST}, {"a"}, "expired 3 h ago"),
        ({}, {"a"}, None),
        ({"owner": "x", "project": "finetune-phi"}, {"a"}, None),
        ({"expires_on": "soon"}, None, None),
        ({"expires_on": expiry(0, NOW)}, None, "expired a moment ago"),
    ],
)
def test_what_may_go_has_a_reason(tags: dict[str, str], heads: set[str] | None, why: str | None) -> None:
    assert reap.reason(environment(**tags), heads, NOW) == why


def test_a_file_leads_to_the_same_tags_as_azure_has() -> None:
    config = {"p:branch": "x", "p:expiresOn": PAST, "p:ttlHours": 3, "p:owner": ""}
    assert tags_of(config, "p") == {"branch": "x", "expires-on": PAST}


# --- the whole way --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def brought_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("brought-up")
    environments.prepare(folder, "old", "new", ttl=2)
    return folder


@pytest.fixture
def copied(brought_up: Path, tmp_path: Path) -> None:
    shutil.copytree(brought_up, tmp_path, dirs_exist_ok=True, symlinks=True)


@pytest.fixture
def env(copied: None, arm: ArmInProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environments:
    """Two environments: `old` has expired by its tag in Azure, `new` has not."""
    made = environments.made(arm, tmp_path, monkeypatch)
    set_tag(made, "old", "expires-on", expiry(-2, datetime.now(UTC)))
    return made


def set_tag(env: Environments, branch: str, tag: str, value: str | None) -> str:
    """Change or remove a tag of the branch's resource group, as somebody in the portal would."""
    (name,) = [one for one in env.groups() if env.tags(one).get("stack") == stack_of(branch)]
    path = f"/subscriptions/{env.subscription}/resourceGroups/{name}"
    body = env.arm.emulator.state.get(path)
    assert body is not None
    body["tags"] = {key: one for key, one in {**body["tags"], tag: value}.items() if one is not None}
    env.arm.emulator.state.put(path, body, parent=f"/subscriptions/{env.subscription}")
    return name


def test_without_yes_it_only_lists(env: Environments) -> None:
    found = env.done("reap")
    (due,) = found["due"]
    assert (due["stack"], due["branch"], due["removed"]) == (stack_of("old"), "old", False)
    assert due["reason"] == "expired 2 h ago" and found["branches_known"] is False and len(env.groups()) == 2
    assert env.done("reap", "--yes", "--dry-run")["due"] == [due] and len(env.groups()) == 2
    assert env.verb("reap") == 0 and "add --yes" in env.out


def test_with_yes_it_removes_what_is_due_and_nothing_else(env: Environments) -> None:
    (due,) = env.done("reap", "--yes")["due"]
    assert due["removed"] and due["error"] == ""
    assert env.stacks() == [stack_of("new")] and len(env.groups()) == 1 and env.soft_deleted() == []
    assert env.verb("reap", "--yes") == 0 and "nothing has expired" in env.out


def test_one_that_fails_does_not_stop_the_others_and_shows_in_the_exit_code(
    env: Environments, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_tag(env, "new", "expires-on", expiry(-1, datetime.now(UTC)))
    run = down.Down.run

    def refuse_new(one: down.Down) -> Proof:
        if one.stack == stack_of("new"):  # comes first in the list
            raise UserError("an endpoint stays", next_command="delete it")
        return run(one)

    monkeypatch.setattr(down.Down, "run", refuse_new)
    assert env.verb("reap", "--yes") == 1
    assert f"FAILED {stack_of('new')}" in env.out and f"removed {stack_of('old')}" in env.out
    assert env.stacks() == [stack_of("new")]


def expire_file(env: Environments, branch: str, hours: int) -> None:
    """Let the stack's own file say that it expired so many hours ago."""
    file = env.file(stack_of(branch))
    past = {"finetune-phi:expiresOn": expiry(-hours, datetime.now(UTC))}
    file.write_text(stack_file.with_values(file.read_text(), past, namespace="finetune-phi"))


def test_azure_is_believed_before_the_file(env: Environments) -> None:
    set_tag(env, "old", "expires-on", expiry(5, datetime.now(UTC)))  # prolonged from another machine
    expire_file(env, "old", hours=2)
    assert env.done("reap")["due"] == []


def test_an_environment_whose_tags_somebody_took_away_is_not_touched(env: Environments) -> None:
    set_tag(env, "old", "expires-on", None)
    set_tag(env, "old", "branch", None)
    assert env.done("reap", "--yes")["due"] == []
    set_tag(env, "new", "expires-on", expiry(-1, datetime.now(UTC)))
    set_tag(env, "new", "project", "somebody-elses")
    assert env.done("reap", "--yes")["due"] == [] and len(env.groups()) == 2


def test_the_template_is_never_touched(env: Environments) -> None:
    assert env.done("reap", "--template", stack_of("old"))["due"] == []


def test_a_branch_that_is_gone_is_due_and_an_unknown_remote_removes_nothing(
    env: Environments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(branches, "heads_of_origin", lambda: {"main", "old"})
    assert {one["reason"] for one in env.done("reap")["due"]} == {"expired 2 h ago", "origin has no branch new"}


def test_a_stack_whose_group_is_gone_is_judged_by_its_file_and_removed(env: Environments) -> None:
    name = set_tag(env, "old", "expires-on", None)
    env.arm.emulator.state.delete(f"/subscriptions/{env.subscription}/resourceGroups/{name}")
    expire_file(env, "old", hours=72)
    (due,) = env.done("reap", "--yes")["due"]
    assert due["reason"] == "expired 3 d ago" and due["removed"] and stack_of("old") not in env.stacks()


def test_an_expired_group_without_a_stack_is_an_orphan_that_is_only_told(env: Environments) -> None:
    name = next(one for one in env.groups() if env.tags(one)["stack"] == stack_of("old"))
    env.pulumi("stack", "rm", "--yes", "--force", stack_of("old"))
    found = env.done("reap", "--yes")
    (orphan,) = found["orphans"]
    assert orphan["resource_group"] == name and orphan["command"].startswith(f"az group delete --name {name} ")
    assert found["due"] == [] and name in env.groups()
    assert env.verb("reap") == 0 and f"orphan {name}: expired 2 h ago" in env.out


def test_a_group_of_another_backend_that_has_not_expired_is_no_orphan(env: Environments) -> None:
    env.pulumi("stack", "rm", "--yes", "--force", stack_of("new"))
    assert env.done("reap")["orphans"] == []
