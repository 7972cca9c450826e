"""Which stack a verb works on: `--branch`, `--stack`, or the selected one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from infra import branches, stack_config, stacks
from infra.cli import WRONG_USE, UserError

if TYPE_CHECKING:
    from pulumi.automation import LocalWorkspace, StackSummary


@dataclass(frozen=True)
class Target:
    """A stack by Pulumi's `name`, there (`row`) or not yet, and the branch that was given for it."""

    name: str
    branch: str
    row: StackSummary | None

    @classmethod
    def of(cls, rows: list[StackSummary], *, stack: str | None, branch: str | None) -> Target:
        """Raises UserError if nothing is named and nothing selected."""
        given = branches.canonical(branch) if branch else ""
        wanted = stack or (branches.stack_of(branch) if branch else stacks.selected(rows))
        row = stacks.named(rows, wanted)
        return cls(row.name if row else wanted, given, row)

    @property
    def stack(self) -> str:
        """The name without organisation and project."""
        return stacks.plain(self.name)

    def check_branch(self, workspace: LocalWorkspace) -> None:
        """Raise UserError if the stack is another branch's: of 65,536 four-digit hashes, two may be alike."""
        if not (self.branch and self.row):
            return
        held = branch_of(workspace, self)
        if held and held != self.branch:
            raise UserError(
                f"the stack {self.stack} belongs to the branch {held}, not to {self.branch}",
                next_command=f"name another one: --stack NAME --branch {self.branch}",
                code=WRONG_USE,
            )


def branch_of(workspace: LocalWorkspace, target: Target) -> str:
    """The branch that an existing stack was made for, by its file or else its last update; empty if none is known."""
    key = f"{stack_config.project_name()}:branch"
    config = stack_config.config_in(stack_config.own_file(target.stack), stack_config.project_name())
    if key not in config:
        config = stacks.last_config(workspace, target.name) or {}
    return str(config.get(key, ""))
