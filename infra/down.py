"""`down`: everything that a stack holds, in an order that works, and the proof that it is gone."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra import removal, stack_config, stack_file, stacks
from infra.cli import say
from infra.confirm import ask
from infra.holdings import Holdings, group_of, name_of
from infra.target import Target

if TYPE_CHECKING:
    from pulumi.automation import LocalWorkspace, StackSummary

    from infra.arm import Arm


def take_down(workspace: LocalWorkspace, rows: list[StackSummary], arguments: argparse.Namespace) -> dict[str, Any]:
    """Remove a stack, after showing what goes with it where it has to be asked. Returns what is proved to be gone."""
    target = Target.of(rows, stack=arguments.stack, branch=arguments.branch)
    if target.row is None:
        say(f"there is no stack {target.stack}: nothing to remove")
        left = [] if arguments.dry_run else forget_file(target.stack)
        return {"stack": target.stack, "gone": left, "reserved": []}
    target.check_branch(workspace)
    found = Down.of(workspace, target.name, arguments.config)
    if arguments.dry_run or not arguments.yes:
        say("\n  ".join([f"to remove {target.stack}:", *found.plan()]))
    if arguments.dry_run:
        return {"stack": target.stack, "gone": [], "reserved": []}
    if not arguments.yes:
        ask(f"remove {target.stack} with everything in it?")
    proof = found.run()
    for line in proof.gone:
        say(f"gone: {line}")
    return {"stack": target.stack, "gone": proof.gone, "reserved": proof.reserved}


@dataclass(frozen=True)
class Down:
    """A stack to be removed. `name` is Pulumi's, `config` the folder of config.json."""

    workspace: LocalWorkspace
    name: str
    config: Path
    holdings: Holdings
    arm: Arm | None

    @classmethod
    def of(cls, workspace: LocalWorkspace, name: str, config: Path) -> Down:
        """Reads the checkpoint; signs in only if it lists anything in Azure."""
        from infra.preflight_azure import subscription_id

        holdings = stacks.holdings_of(workspace, name, subscription_id(stacks.plain(name))[0])
        return cls(workspace, name, config, holdings, None if holdings.is_empty else removal.sign_in())

    @property
    def stack(self) -> str:
        return stacks.plain(self.name)

    def plan(self) -> list[str]:
        """What would be done, a line each."""
        held = self.holdings
        found = [removal.Guests.of(self.arm, one, held.computes) for one in held.workspaces] if self.arm else []
        lines = [line for guests in found if guests for line in guests.lines]
        lines += [f"purge the workspace {name_of(one)}" for one in held.workspaces]
        lines += [f"purge the key vault {name_of(one)}" for one in held.vaults]
        lines += [f"delete the resource group {name_of(one)} with everything in it" for one in held.groups]
        lines += [f"delete a role assignment outside of it, in {group_of(one)}" for one in held.outside]
        return [*lines, f"remove the stack {self.stack} ({held.resources} resources)"]

    def run(self) -> removal.Proof:
        """Remove it all. Every step looks first, so a `run` that was cut off is done again from its start."""
        proof = removal.Proof()
        if self.arm:
            removal.empty(self.arm, self.holdings, self.stack)
        else:
            say("nothing in Azure is on the stack's record; what a plain `pulumi destroy` soft-deleted goes by itself")
        if self.holdings.resources or self.holdings.unfinished:
            self._destroy()
        if self.arm:
            tags = {"project": stack_config.project_name(), "stack": self.stack}
            proof = removal.verify(self.arm, self.holdings, tags)
        self._forget_config()
        self.workspace.remove_stack(self.name, preserve_config=True)  # the file may be a user's own
        proof.gone += [f"stack {self.stack}", *forget_file(self.stack)]
        return proof

    def _destroy(self) -> None:
        from pulumi.automation import Stack

        say("destroying what the program declares")
        with stacks.pulumi_ends(self.stack):
            Stack.select(self.name, self.workspace).destroy(on_output=say, suppress_progress=True, color="never")

    def _forget_config(self) -> None:
        """Remove config.json if it leads to a workspace that is gone."""
        path = self.config / "config.json"
        try:
            held = json.loads(path.read_text())
        except (OSError, ValueError):
            return
        if held.get("workspace_name") in [name_of(one) for one in self.holdings.workspaces]:
            path.unlink()


def forget_file(stack: str) -> list[str]:
    """Remove the stack's settings if `up` wrote them; their name if they are gone now."""
    path = stack_config.own_file(stack)
    if stack_file.is_made(path, stack_config.project_name()):
        path.unlink()
        return [path.name]
    if path.exists() and stack != stack_config.TEMPLATE:
        say(f"note: {path.name} stays, because it was not `up` that wrote it")
    return []
