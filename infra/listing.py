"""The environments of this backend, with what Azure and their files say about them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from infra import branches, stack_config, stacks
from infra.arm import Arm, Refused
from infra.cli import say
from infra.holdings import name_of

if TYPE_CHECKING:
    from pulumi.automation import StackSummary

GROUPS = "2021-04-01"  # API version


@dataclass(frozen=True)
class Environment:
    """A stack. `tags` are its resource group's, or what its file would make them where there is none."""

    row: StackSummary
    group: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def stack(self) -> str:
        return stacks.plain(self.row.name)

    @property
    def branch(self) -> str:
        return self.tags.get("branch", "")

    @property
    def updated(self) -> datetime | None:
        """When the last update was; the Automation API leaves out that it is UTC."""
        found = self.row.last_update
        return found.replace(tzinfo=UTC) if found else None

    @property
    def expires(self) -> datetime | None:
        return branches.moment(self.tags.get("expires-on", ""))

    def as_dict(self, now: datetime) -> dict[str, Any]:
        """As `list --json` prints it."""
        return {
            "stack": self.stack,
            "selected": bool(self.row.current),
            "branch": self.branch,
            "expires_on": self.tags.get("expires-on", ""),
            "expired": self.expires is not None and self.expires <= now,
            "resources": self.row.resource_count or 0,
            "last_update": self.updated.isoformat(timespec="seconds") if self.updated else None,
            "resource_group": name_of(self.group) if self.group else "",
            "tags": dict(self.tags),
        }


def groups_of(arm: Arm, subscription: str, project: str) -> list[dict[str, Any]]:
    """The subscription's resource groups that carry the project's tag."""
    named = f"tagName eq 'project' and tagValue eq '{project}'"
    found = arm.list(f"/subscriptions/{subscription}/resourcegroups", GROUPS, **{"$filter": named})
    return [one for one in found if (one.get("tags") or {}).get("project") == project]


def environments(rows: Iterable[StackSummary], groups: Iterable[dict[str, Any]]) -> list[Environment]:
    """Every stack, with its group by the tag `stack`: what Azure says goes before what the file says."""
    by_stack: dict[str, list[dict[str, Any]]] = {}
    for group in groups:
        by_stack.setdefault(group["tags"].get("stack", ""), []).append(group)
    made = []
    for row in rows:
        found = by_stack.get(stacks.plain(row.name), []) if row.resource_count else []
        # Two backends may have stacks of one name; then the tag does not tell which group is whose.
        if len(found) == 1:
            made.append(Environment(row, found[0]["id"], found[0]["tags"]))
        else:
            made.append(Environment(row, "", tags_in_file(stacks.plain(row.name))))
    return made


def tags_in_file(stack: str) -> dict[str, str]:
    """The tags that the stack's own file leads to; none without a file."""
    project = stack_config.project_name()
    return tags_of(stack_config.config_in(stack_config.own_file(stack), project), project)


def tags_of(config: Mapping[str, Any], project: str) -> dict[str, str]:
    """The tags that a configuration leads to, as far as they matter here."""
    names = {"branch": "branch", "expires-on": "expiresOn", "owner": "owner", "cost-center": "costCenter"}
    tags = {tag: str(config.get(f"{project}:{key}", "")) for tag, key in names.items()}
    return {tag: value for tag, value in tags.items() if value}


def subscriptions(names: Iterable[str]) -> dict[str, str | None]:
    """Where each stack is, by its file or else by what Pulumi's provider falls back on, which is asked for once."""
    from infra.preflight_azure import subscription_id

    fallback = os.environ.get("ARM_SUBSCRIPTION_ID") or subscription_id(stack_config.TEMPLATE)[0]
    project, key = stack_config.project_name(), "azure-native:subscriptionId"
    return {name: stack_config.config_in(stack_config.own_file(name), project).get(key) or fallback for name in names}


def look(rows: list[StackSummary]) -> list[Environment]:
    """As much as can be known: without a login, what the files say."""
    from infra.arm import NotSignedIn

    groups: list[dict[str, Any]] = []
    try:
        arm = Arm.sign_in()
        found = set(subscriptions(stacks.plain(row.name) for row in rows).values())
        for subscription in sorted(filter(None, found)):
            groups += groups_of(arm, subscription, stack_config.project_name())
    except (NotSignedIn, Refused) as error:
        say(f"note: Azure was not asked ({str(error).splitlines()[0]}); branch and expiry are what the files here say")
    return environments(rows, groups)


def lines(found: list[Environment], now: datetime) -> list[str]:
    """A table for a reader."""
    if not found:
        return ["no environments; the first one: make up, or make env-up BRANCH=NAME"]
    rows = [("", "stack", "branch", "expires", "resources", "last update", "owner"), *(_row(one, now) for one in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _row(one: Environment, now: datetime) -> tuple[str, ...]:
    expires, updated = one.expires, one.updated
    when = "never" if expires is None else ("expired " if expires <= now else "") + branches.relative(expires, now)
    return (
        "*" if one.row.current else "",
        one.stack,
        one.branch or "-",
        when,
        str(one.row.resource_count or 0),
        branches.relative(updated, now) if updated else "never",
        one.tags.get("owner", "-"),
    )
