"""`up`: a stack with its settings' file, looked at by the doctor, previewed, priced, and brought up."""

from __future__ import annotations

import argparse
import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from infra import branches, removal, stack_config, stack_file, stacks
from infra.cli import REFUSED, WRONG_USE, UserError, say
from infra.confirm import ask
from infra.outputs import StackOutputs
from infra.target import Target

if TYPE_CHECKING:
    from pathlib import Path

    from pulumi.automation import EngineEvent, LocalWorkspace, Stack, StackSummary


@dataclass(frozen=True)
class Wish:
    """What `up` is asked for: the stack, the template of a new one, and hours to live (0: nothing is said)."""

    target: Target
    template: str
    ttl: int

    @classmethod
    def of(cls, arguments: argparse.Namespace, target: Target) -> Wish:
        """Raises UserError for what would make the template itself somebody's own environment."""
        if target.stack == arguments.template and (target.branch or arguments.ttl):
            raise UserError(
                f"{target.stack} is the template of new stacks, so it gets no branch and no expiry",
                next_command="--branch NAME without --stack",
                code=WRONG_USE,
            )
        return cls(target, arguments.template, arguments.ttl or 0)


class Draft:
    """A stack's file and its entry in the backend, as a preview needs them; taken back if nothing comes of it."""

    def __init__(self, workspace: LocalWorkspace, wish: Wish, now: datetime) -> None:
        self.workspace, self.target = workspace, wish.target
        self.path = stack_config.own_file(wish.target.stack)
        self._before = self.path.read_bytes() if self.path.exists() else None
        self._made = False
        if (text := _text(workspace, wish, self.path, now)) is not None:
            stack_file.write(self.path, text)

    @property
    def is_new_file(self) -> bool:
        return self._before is None

    def stack(self) -> Stack:
        """The stack, created if it is new. The file comes first: Pulumi would begin one of its own."""
        from pulumi.automation import Stack

        if self.target.row is None and not self._made:
            self._made = True
            return Stack.create(self.target.name, self.workspace)
        return Stack.select(self.target.name, self.workspace)

    def take_back(self) -> None:
        """Leave no trace: neither a stack that was not there, nor a changed file."""
        from pulumi.automation.errors import StackNotFoundError

        if self._made:
            with contextlib.suppress(StackNotFoundError):  # its creation was what failed
                self.workspace.remove_stack(self.target.name, preserve_config=True)
        if self._before is None:
            self.path.unlink(missing_ok=True)
        elif self.path.read_bytes() != self._before:  # Pulumi adds its encryption's salt, for one
            self.path.write_bytes(self._before)


def _text(workspace: LocalWorkspace, wish: Wish, path: Path, now: datetime) -> str | None:
    """What the stack's file is to be; None if it stays as it is."""
    project = stack_config.project_name()
    if held := stack_config.config_in(path, project):
        values = _lifetime(wish, wish.ttl, now)
        changed = {key: one for key, one in values.items() if held.get(f"{project}:{key}") != one}
        return _with(path.read_text(), changed) if changed else None
    last = stacks.last_config(workspace, wish.target.name) if wish.target.row else None
    if last:
        text = stack_file.restored(last, stack_config.schema(), namespace=project)
        made = _with(text, _lifetime(wish, wish.ttl, now))
    else:
        made = _from_template(wish, project, now)
    salt = stack_file.encryption_of(path.read_text()) if path.exists() else ""
    return made if stack_file.encryption_of(made) else made + salt


def _from_template(wish: Wish, project: str, now: datetime) -> str:
    template = stack_config.own_file(wish.template)
    held = stack_config.config_in(template, project)
    values = _lifetime(wish, wish.ttl or int(held.get(f"{project}:ttlHours", 0)), now)
    if int(held.get(f"{project}:budgetAmount", 0)) > 0 and not held.get(f"{project}:budgetStart"):
        values["budgetStart"] = now.strftime("%Y-%m-01")
    return _with(stack_file.copy_of(template, namespace=project), values)


def _with(text: str, values: dict[str, str | int]) -> str:
    project = stack_config.project_name()
    return stack_file.with_values(text, {f"{project}:{key}": one for key, one in values.items()}, namespace=project)


def _lifetime(wish: Wish, hours: int, now: datetime) -> dict[str, str | int]:
    values: dict[str, str | int] = {"branch": wish.target.branch} if wish.target.branch else {}
    if hours:
        values |= {"ttlHours": hours, "expiresOn": branches.expiry(hours, now)}
    return values


# --- the verb -------------------------------------------------------------------------------------------------------


def bring_up(workspace: LocalWorkspace, rows: list[StackSummary], arguments: argparse.Namespace) -> dict[str, Any]:
    """`pulumi up`, once the doctor finds nothing that would fail, and with a preview and a price if it has to be asked.

    Returns the stack's outputs; of a dry run what would change.
    """
    target = Target.of(rows, stack=arguments.stack, branch=arguments.branch)
    target.check_branch(workspace)
    draft = Draft(workspace, Wish.of(arguments, target), datetime.now(UTC))
    try:
        _ask_doctor(target.stack)
        if arguments.dry_run:
            changes = _priced_preview(draft.stack())
            draft.take_back()
            return {"stack": target.stack, "changes": changes}
        stack = draft.stack()
        if not arguments.yes:
            _priced_preview(stack)
            ask(f"bring up {target.stack}?")
    except BaseException:
        draft.take_back()
        raise
    if draft.is_new_file:
        say(f"wrote {draft.path.name}, the settings of the stack")
    if target.row is None:
        _tell_unpushed(target.branch)
    outputs = _up(stack, refresh=_is_stale(workspace, target))
    say(f"wrote {outputs.write_config(arguments.config).name} for MLClient.from_config()")
    _tell_lifetime(target, outputs)
    return dict(outputs.as_dict())


def _up(stack: Stack, *, refresh: bool) -> StackOutputs:
    with stacks.pulumi_ends(stack.name):
        done = stack.up(on_output=say, suppress_outputs=True, suppress_progress=True, color="never", refresh=refresh)
    return StackOutputs.parse({key: one.value for key, one in done.outputs.items()}, source="pulumi up")


def _tell_lifetime(target: Target, outputs: StackOutputs) -> None:
    if expires := branches.moment(outputs.expires_on):
        when = branches.relative(expires, datetime.now(UTC))
        say(f"{target.stack} expires {when} ({outputs.expires_on}); `up --ttl HOURS` counts anew from then on")


def _tell_unpushed(branch: str) -> None:
    heads = branches.heads_of_origin() if branch and not branches.is_pull_request(branch) else None
    if heads is not None and branch not in heads:
        say(f"note: origin has no branch {branch}, so to everybody's `reap` it is gone; push it")


def preview(stack: Stack, *, quietly: bool = False) -> tuple[dict[str, int], list[EngineEvent]]:
    """How many resources would change in which way, and all that the engine told."""
    events: list[EngineEvent] = []
    with stacks.pulumi_ends(stack.name):
        heard = _nothing if quietly else say
        done = stack.preview(on_output=heard, on_event=events.append, suppress_progress=True, color="never")
    return {str(getattr(op, "value", op)): count for op, count in done.change_summary.items()}, events


def _nothing(_: str) -> None:
    pass


def _priced_preview(stack: Stack) -> dict[str, int]:
    from infra import estimate

    changes, events = preview(stack)
    estimate.tell(events)
    return changes


def previewed(workspace: LocalWorkspace, rows: list[StackSummary], named: str | None) -> tuple[str, list[EngineEvent]]:
    """A preview for its events alone; nothing is changed, and nothing is said."""
    target = Target.of(rows, stack=named, branch=None)
    draft = Draft(workspace, Wish(target, stack_config.TEMPLATE, 0), datetime.now(UTC))
    try:
        return target.stack, preview(draft.stack(), quietly=True)[1]
    finally:
        draft.take_back()


# --- what is looked at first ----------------------------------------------------------------------------------------


def _ask_doctor(stack: str) -> None:
    """Refuse what would fail half-way, before anything is created."""
    from infra import preflight

    findings = list(preflight.examine(stack))
    telling = [one for one in findings if one.level in ("warning", "blocking")]
    if not any(one.level == "blocking" for one in telling):
        for line in preflight.lines(telling) if telling else ["the doctor found nothing that would fail"]:
            say(line)
        return
    told = "\n".join(preflight.lines(one for one in telling if one.level == "blocking"))
    raise UserError(
        f"nothing was created, because it would fail:\n{told}",
        next_command="repair it, and run the same command again",
        code=REFUSED,
    )


def _is_stale(workspace: LocalWorkspace, target: Target) -> bool:
    """Whether Azure lacks what the stack's record lists, as after a `down` that was cut off."""
    if target.row is None or not target.row.resource_count:
        return False
    holdings = stacks.holdings_of(workspace, target.name, None)
    gone = removal.missing(removal.sign_in(), holdings)
    if gone:
        say(f"gone in Azure since the last update: {', '.join(gone)}; so the stack's record is refreshed first")
    return bool(gone)
