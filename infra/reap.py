"""`reap`: which environments have outlived their time or their branch, and their removal.

The tags in Azure decide, because everybody sees the same ones; a stack whose group is not there is judged by its file.
What carries neither `branch` nor `expires-on` is nobody's temporary environment and is never touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from infra import branches, listing, removal, stack_config, stacks
from infra.arm import Refused
from infra.cli import UserError, say
from infra.holdings import Holdings, name_of, subscription_of
from infra.listing import Environment

if TYPE_CHECKING:
    from pulumi.automation import LocalWorkspace, StackSummary

    from infra.arm import Arm


@dataclass(frozen=True)
class Due:
    """An environment that may go, and why."""

    environment: Environment
    reason: str


@dataclass(frozen=True)
class Survey:
    """What `reap` found. `orphans` are expired groups of this project that no stack of this backend holds."""

    due: list[Due]
    orphans: list[dict[str, Any]]
    heads_known: bool


def reason(environment: Environment, heads: set[str] | None, now: datetime) -> str | None:
    """Why an environment may go, or None. `heads` are the branches of origin, None if they are not known."""
    expires, branch = environment.expires, environment.branch
    if expires is not None and expires <= now:
        return f"expired {branches.relative(expires, now)}"
    # What pull requests there are is not git's to say; theirs end by expiry, or when CI takes them down.
    if branch and heads is not None and branch not in heads and not branches.is_pull_request(branch):
        return f"origin has no branch {branch}"
    return None


def survey(workspace: LocalWorkspace, rows: list[StackSummary], template: str, now: datetime) -> Survey:
    """Look at every stack but the template, and at every group of the project."""
    arm, heads = removal.sign_in(), branches.heads_of_origin()
    if heads is None:
        say("note: there is no remote `origin` that answers, so only expiry counts")
    places = listing.subscriptions([template, *(stacks.plain(row.name) for row in rows)])
    held = {row.name: stacks.holdings_of(workspace, row.name, places[stacks.plain(row.name)]) for row in rows}
    used = {subscription_of(group) for one in held.values() for group in one.groups} | {*places.values()}
    groups = [group for one in sorted(filter(None, used)) for group in _groups(arm, one)]
    others = [row for row in rows if stacks.plain(row.name) != template]
    found = [_environment(workspace, row, held[row.name], arm, groups) for row in others]
    known = {group.lower() for one in held.values() for group in one.groups}
    return Survey(
        due=[Due(one, why) for one in found if (why := reason(one, heads, now))],
        orphans=[_orphan(one, now) for one in groups if one["id"].lower() not in known and _is_expired(one, now)],
        heads_known=heads is not None,
    )


def _groups(arm: Arm, subscription: str) -> list[dict[str, Any]]:
    return listing.groups_of(arm, subscription, stack_config.project_name())


def _environment(
    workspace: LocalWorkspace, row: StackSummary, holdings: Holdings, arm: Arm, groups: Iterable[dict[str, Any]]
) -> Environment:
    """A stack with its own group, by the checkpoint: another backend may have a stack of the same name."""
    mine = {one.lower() for one in holdings.groups}
    for group in groups:
        if group["id"].lower() in mine:
            return Environment(row, group["id"], group["tags"])
    stack = stacks.plain(row.name)
    if any(arm.find(one, listing.GROUPS) for one in holdings.groups):
        return Environment(row)  # a group whose tags somebody removed: it is theirs now
    project = stack_config.project_name()
    tags = listing.tags_in_file(stack) or listing.tags_of(stacks.last_config(workspace, row.name) or {}, project)
    return Environment(row, "", tags)


def _is_expired(group: dict[str, Any], now: datetime) -> bool:
    expires = branches.moment(group["tags"].get("expires-on", ""))
    return expires is not None and expires <= now


def _orphan(group: dict[str, Any], now: datetime) -> dict[str, str]:
    expires = branches.moment(group["tags"]["expires-on"])
    name, subscription = name_of(group["id"]), subscription_of(group["id"])
    return {
        "resource_group": name,
        "subscription_id": subscription,
        "stack": group["tags"].get("stack", ""),
        "branch": group["tags"].get("branch", ""),
        "expires_on": group["tags"]["expires-on"],
        "reason": f"expired {branches.relative(expires, now)}, and no stack of this backend holds it"
        if expires
        else "",
        "command": f"az group delete --name {name} --subscription {subscription}",
    }


# --- the verb -------------------------------------------------------------------------------------------------------


def reap(found: Survey, *, remove: Callable[[str], None] | None) -> list[dict[str, Any]]:
    """Remove what is due by `remove(name)`, or with None only list it; one that fails does not stop the others."""
    rows = []
    for due in found.due:
        one = due.environment
        row = {
            "stack": one.stack,
            "branch": one.branch,
            "expires_on": one.tags.get("expires-on", ""),
            "reason": due.reason,
            "removed": False,
            "error": "",
        }
        if remove:
            say(f"removing {one.stack}: {due.reason}")
            row["error"] = _failure(remove, one.row.name)
            row["removed"] = not row["error"]
        rows.append(row)
    return rows


def _failure(remove: Callable[[str], None], name: str) -> str:
    """Why a removal failed; empty if it did not."""
    from pulumi.automation.errors import CommandError

    try:
        remove(name)
    except (UserError, Refused) as error:
        say(f"error: {error}")
        return str(error)
    except CommandError as error:
        say(f"error: {stacks.reason(str(error))}")
        return stacks.reason(str(error))
    return ""


def lines(done: list[dict[str, Any]], orphans: list[dict[str, str]], *, removing: bool) -> list[str]:
    """The result for a reader."""
    made = [f"{_outcome(one, removing)} {one['stack']}: {one['reason']}" for one in done]
    if not done:
        made.append("nothing has expired or lost its branch")
    elif not removing:
        made.append("these were only listed; to remove them: add --yes (make reap YES=1)")
    for one in orphans:
        made += [f"orphan {one['resource_group']}: {one['reason']}", f"  to remove it: {one['command']}"]
    return made


def _outcome(one: dict[str, Any], removing: bool) -> str:
    if not removing:
        return "due"
    return "removed" if one["removed"] else "FAILED"
