"""A branch's environment: its stack's name, and how long it lives."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from datetime import UTC, datetime, timedelta

from infra.cli import WRONG_USE, UserError
from infra.naming import slug
from infra.outputs import PROJECT

LONGEST = 40  # letters of a stack's name: what is left of a longer one still tells branches apart in a list
# letters of a tag's value: https://learn.microsoft.com/azure/azure-resource-manager/management/tag-resources
LONGEST_BRANCH = 256
LONGEST_TTL = 24 * 366  # hours, as infra/settings.py allows
PULL_REQUEST = re.compile(r"refs/pull/(\d+)/(?:merge|head)|pr-(\d+)")


def canonical(branch: str) -> str:
    """A branch as its tag records it: refs/heads/feat/x → feat/x, refs/pull/12/merge → pr-12.

    Raises UserError for what can be no branch.
    """
    if number := _pull_request(branch):
        return f"pr-{number}"
    name = branch.removeprefix("refs/heads/")
    if not 0 < len(name) <= LONGEST_BRANCH or not name.isprintable():
        raise UserError(
            f"{branch[:60]!r} is no branch: 1 to {LONGEST_BRANCH} printable letters are",
            next_command="--branch feat/x, or --branch pr-12 for a pull request",
            code=WRONG_USE,
        )
    return name


def stack_of(branch: str) -> str:
    """The name of a branch's stack: its slug and 4 hex digits of its exact name's hash; `pr-12` for a pull request.

    The digits tell `feat/x` from `feat-x`, and branches that are alike in their first letters. A slash would make
    Pulumi read the name's first part as an organisation.
    """
    name = canonical(branch)
    if _pull_request(name):
        return name
    digits = hashlib.sha256(name.encode()).hexdigest()[:4]
    return f"{slug(name)[: LONGEST - 5].rstrip('-')}-{digits}"


def is_pull_request(branch: str) -> bool:
    return _pull_request(branch) is not None


def _pull_request(branch: str) -> str | None:
    found = PULL_REQUEST.fullmatch(branch)
    return (found[1] or found[2]) if found else None


def heads_of_origin() -> set[str] | None:
    """The branches that the remote `origin` has now; None if there is no such remote or it does not answer."""
    command = ["git", "ls-remote", "--heads", "origin"]
    quiet = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    try:
        done = subprocess.run(command, cwd=PROJECT, env=quiet, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0:
        return None
    return {line.partition("refs/heads/")[2] for line in done.stdout.splitlines()}


# --- time -----------------------------------------------------------------------------------------------------------


def expiry(hours: int, now: datetime) -> str:
    """The time `hours` from now, as the configuration key `expiresOn` and the tag have it."""
    return (now + timedelta(hours=hours)).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def moment(text: str) -> datetime | None:
    """The time that a tag names, or None; a time without a zone is UTC."""
    try:
        made = datetime.fromisoformat(text)
    except ValueError:
        return None
    return made if made.tzinfo else made.replace(tzinfo=UTC)


def relative(then: datetime, now: datetime) -> str:
    """`in 5 h`, `3 d ago`: how far a moment is, in the largest unit that says enough."""
    seconds = abs((then - now).total_seconds())
    units = ((48 * 3600, 24 * 3600, "d"), (5400, 3600, "h"), (60, 60, "min"))  # from how many seconds on, of how many
    length = next((f"{seconds / size:.0f} {unit}" for least, size, unit in units if seconds >= least), "a moment")
    return f"in {length}" if then > now else f"{length} ago"
