"""Stacks, through Pulumi's Automation API, on whichever backend is configured.

Pulumi names a stack `dev`, `acme/dev` or `acme/finetune-phi/dev`, by what its reader needs; our files, tags and options
have the last part.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from infra.cli import WRONG_USE, UserError, say
from infra.holdings import Holdings
from infra.outputs import PROJECT

if TYPE_CHECKING:
    from pulumi.automation import LocalWorkspace, StackSummary


def open_workspace() -> LocalWorkspace:
    """The project. Raises UserError where there is no pulumi."""
    from pulumi.automation import LocalWorkspace

    if shutil.which("pulumi") is None:
        raise UserError(
            "the pulumi command is not on PATH, and it is what creates the resources",
            next_command="python -m emulator run -- COMMAND   (local), or install the Pulumi CLI (Azure)",
            code=WRONG_USE,
        )
    return LocalWorkspace(work_dir=str(PROJECT))


def plain(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def named(rows: list[StackSummary], name: str) -> StackSummary | None:
    """The stack of that name. Raises UserError if several organisations have one."""
    found = [one for one in rows if one.name == name] or [one for one in rows if plain(one.name) == name]
    if len(found) > 1:
        raise UserError(
            f"{name!r} is the name of several stacks: {', '.join(one.name for one in found)}",
            next_command=f"--stack {found[0].name}",
            code=WRONG_USE,
        )
    return found[0] if found else None


def selected(rows: list[StackSummary]) -> str:
    """The selected stack's name. Raises UserError if there is none."""
    for one in rows:
        if one.current:
            say(f"stack {one.name} (the selected one)")
            return one.name
    raise UserError(
        "no stack is named, and none is selected",
        next_command="add --branch NAME, or --stack NAME, dev for example",
        code=WRONG_USE,
    )


@contextlib.contextmanager
def selection_kept(workspace: LocalWorkspace, rows: list[StackSummary]) -> Iterator[None]:
    """The Automation API selects each stack that it works on; afterwards the one that was selected is so again."""
    before = next((one.name for one in rows if one.current), None)
    try:
        yield
    finally:
        if before is not None:
            _select_again(workspace, before)


def _select_again(workspace: LocalWorkspace, name: str) -> None:
    from pulumi.automation import StackNotFoundError

    with contextlib.suppress(StackNotFoundError):  # it was the one that is removed now
        workspace.select_stack(name)


def holdings_of(workspace: LocalWorkspace, name: str, subscription: str | None) -> Holdings:
    """What the stack's checkpoint lists."""
    exported: Any = workspace.export_stack(name).deployment
    return Holdings.of(exported or {}, subscription=subscription)


def last_config(workspace: LocalWorkspace, name: str) -> dict[str, str] | None:
    """The configuration of the stack's last update, by whole key; None if there was none. Secrets are left out."""
    from pulumi.automation import Stack

    history = Stack.select(name, workspace).history(page_size=1, show_secrets=False)
    if not history:
        return None
    return {key: one.value for key, one in history[0].config.items() if not one.secret}


@contextlib.contextmanager
def pulumi_ends(stack: str) -> Iterator[None]:
    """Let pulumi end by itself when Ctrl-C is pressed, and only then raise KeyboardInterrupt.

    The terminal interrupts pulumi too, which ends what it has begun, notes it, and gives the stack's lock back. Killed
    instead, it leaves the lock and resources that it does not know of.
    """
    from pulumi.automation.errors import ConcurrentUpdateError

    interrupted = False

    def note(_number: int, _frame: object) -> None:
        nonlocal interrupted
        interrupted = True
        say("interrupted: waiting until pulumi has ended what it has begun (once more: at once)")

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    except ConcurrentUpdateError as error:
        raise _locked(stack, str(error)) from None
    finally:
        signal.signal(signal.SIGINT, before)
        if interrupted:
            raise KeyboardInterrupt


def _locked(stack: str, text: str) -> UserError:
    """A folder or container as backend keeps the lock of an update that was killed; who holds it is in the text."""
    holder = re.search(r"created by (.+)", text) or re.search(r"\((process \d+)\)", text)
    return UserError(
        f"another update of {stack} is running, or one was killed and left its lock"
        + (f": {holder[1].strip()}" if holder else ""),
        next_command=f"wait for it; if there is none: pulumi cancel --yes --stack {stack}, then the same command",
    )


def reason(text: str) -> str:
    """Why a pulumi command failed: what stands after `error:` on stderr, up to a blank line; else its diagnostics."""
    printed, _, complaint = text.partition("stderr: ")
    if "error: " in complaint:
        return complaint.partition("error: ")[2].split("\n\n")[0].strip()
    found = re.findall(r"^ +error: (.+)$", printed.partition("Diagnostics:")[2], re.MULTILINE)
    causes = [one for one in dict.fromkeys(found) if not one.endswith(("update failed", "preview failed"))]
    if causes:
        return "; ".join(causes)
    lines = (complaint or printed).strip().splitlines()
    return f"pulumi failed: {lines[-1].strip() if lines else 'it gave no reason'}"
