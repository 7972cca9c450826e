"""`python -m infra.environment up|down|list`: a stack with all its resources, brought up and removed as a whole.

Every step looks at what is there before it acts, so any of them may be interrupted and the command run again.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from infra.cli import REFUSED, WRONG_USE, Parser, UserError, result, run, say
from infra.outputs import PROJECT, StackOutputs

if TYPE_CHECKING:
    from pulumi.automation import EngineEvent, LocalWorkspace, Stack

TEMPLATE = PROJECT / "Pulumi.dev.yaml"


def main(argv: list[str]) -> int:
    arguments = _parser().parse_args(argv)
    from pulumi.automation.errors import CommandError, InvalidVersionError  # half a second, so after --help

    try:
        arguments.verb(arguments)
    except (CommandError, InvalidVersionError) as error:
        raise UserError(
            _reason(str(error)), next_command="mend it, and run the same command again; what was done is kept"
        ) from None
    return 0


def _parser() -> argparse.ArgumentParser:
    made = Parser(prog="python -m infra.environment", description=__doc__)
    verbs = made.add_subparsers(required=True, metavar="up|down|list", parser_class=Parser)
    up = verbs.add_parser("up", help="create the stack if it is new, and make Azure hold what the program declares")
    up.set_defaults(verb=bring_up)
    down = verbs.add_parser("down", help="remove endpoints, jobs, computes, the workspace and all else, and check it")
    down.set_defaults(verb=take_down)
    for one in (up, down):
        one.add_argument("--stack", help="the Pulumi stack (default: the selected one)")
        one.add_argument("--yes", action="store_true", help="do not ask")
        one.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
        place = "folder of config.json for MLClient.from_config() (default: the project)"
        one.add_argument("--config", type=Path, default=PROJECT, metavar="DIR", help=place)
    listing = verbs.add_parser("list", help="the stacks, and how much each holds")
    listing.set_defaults(verb=show_list)
    for one in (up, down, listing):
        one.add_argument("--json", action="store_true", help="print the result as one JSON object on stdout")
    return made


# --- up -------------------------------------------------------------------------------------------------------------


def bring_up(arguments: argparse.Namespace) -> None:
    """`pulumi up`, from a copy of the template's configuration if the stack is new."""
    workspace = _workspace()
    name = _stack_name(workspace, arguments.stack)
    is_new = name not in [one.name for one in workspace.list_stacks()]
    if arguments.dry_run:
        changes = _preview_only(workspace, name, is_new)
        result({"stack": name, "changes": changes}, as_json=arguments.json)
        return
    stack = _ensure_stack(workspace, name)
    if not arguments.yes:
        from infra import cost

        events: list[EngineEvent] = []
        stack.preview(on_output=say, on_event=events.append)
        cost.tell(events)
        _ask(f"bring up {name}?")
    stack.up(on_output=say, suppress_outputs=True, color="never")
    values = {key: output.value for key, output in stack.outputs().items()}
    outputs = StackOutputs.parse(values, source="pulumi up")
    say(f"wrote {outputs.write_config(arguments.config).name} for MLClient.from_config()")
    result(outputs.as_dict(), as_json=arguments.json)


def _ensure_stack(workspace: LocalWorkspace, name: str) -> Stack:
    from pulumi.automation import Stack

    stack = Stack.create_or_select(name, workspace)
    file = PROJECT / f"Pulumi.{name}.yaml"
    if not file.exists():
        shutil.copyfile(TEMPLATE, file)
        say(f"wrote {file.name}, a copy of {TEMPLATE.name}")
    return stack


def previewed(named: str | None) -> tuple[str, list[EngineEvent]]:
    """The stack's name, and the events of a preview of it; a stack that is not there yet is not there after it."""
    from pulumi.automation.errors import CommandError

    workspace = _workspace()
    name = _stack_name(workspace, named)
    events: list[EngineEvent] = []
    try:
        is_new = name not in [one.name for one in workspace.list_stacks()]
        _preview_only(workspace, name, is_new, on_event=events.append, on_output=lambda _: None)
    except CommandError as error:
        raise UserError(_reason(str(error)), next_command="mend it, and run the same command again") from None
    return name, events


def _preview_only(
    workspace: LocalWorkspace,
    name: str,
    is_new: bool,
    *,
    on_event: Callable[[EngineEvent], None] | None = None,
    on_output: Callable[[str], None] = say,
) -> dict[str, int]:
    """A preview; a stack that was made for its sake is removed again, a configuration that was there stays."""
    configured = (PROJECT / f"Pulumi.{name}.yaml").exists()
    stack = _ensure_stack(workspace, name)
    try:
        summary = stack.preview(on_output=on_output, on_event=on_event, color="never").change_summary
    finally:
        if is_new:
            workspace.remove_stack(name, preserve_config=configured)
    return {str(getattr(op, "value", op)): count for op, count in summary.items()}


# --- down -----------------------------------------------------------------------------------------------------------


def take_down(arguments: argparse.Namespace) -> None:
    """Everything that the stack holds, in an order that works: what uses the workspace goes before it."""
    workspace = _workspace()
    name = _stack_name(workspace, arguments.stack)
    if name not in [one.name for one in workspace.list_stacks()]:
        say(f"there is no stack {name!r}: nothing to remove")
        result({"stack": name, "gone": []}, as_json=arguments.json)
        return
    from pulumi.automation import Stack

    stack = Stack.select(name, workspace)
    outputs = _outputs(stack)
    if arguments.dry_run:
        stack.destroy(on_output=say, preview_only=True, color="never")
        result({"stack": name, "gone": []}, as_json=arguments.json)
        return
    if not arguments.yes:
        _ask(f"remove {name} with everything in it?")
    gone = _remove(stack, outputs, arguments.config)
    workspace.remove_stack(name)
    gone.append(f"stack {name}")
    for line in gone:
        say(f"gone: {line}")
    result({"stack": name, "gone": gone}, as_json=arguments.json)


def _remove(stack: Stack, outputs: StackOutputs | None, config: Path) -> list[str]:
    """Remove the stack's resources; what was verified to be gone."""
    from infra import removal

    if outputs is None:
        say("the stack exports nothing: no workspace to empty")
    else:
        removal.empty_workspace(outputs)
    say("destroying what the program declares")
    stack.destroy(on_output=say, color="never")
    if outputs is None:
        return []
    gone = removal.verify_gone(outputs)
    _forget_config(outputs, config)
    return gone


def _outputs(stack: Stack) -> StackOutputs | None:
    """What the stack exports; None if its first update never ended or its last destroy did."""
    values = {key: output.value for key, output in stack.outputs().items()}
    return StackOutputs.parse(values, source="pulumi stack output") if values else None


def _forget_config(outputs: StackOutputs, folder: Path) -> None:
    """Remove config.json if it leads to the workspace that is gone."""
    import json

    path = folder / "config.json"
    try:
        held = json.loads(path.read_text())
    except (OSError, ValueError):
        return
    if held.get("workspace_name") == outputs.workspace:
        path.unlink()


# --- list -----------------------------------------------------------------------------------------------------------


def show_list(arguments: argparse.Namespace) -> None:
    """The stacks of the backend."""
    rows = [
        {
            "stack": one.name,
            "selected": one.current,
            "resources": one.resource_count or 0,
            "last_update": one.last_update.isoformat() if one.last_update else None,
        }
        for one in _workspace().list_stacks()
    ]
    if arguments.json:
        result({"environments": rows}, as_json=True)
    for row in [] if arguments.json else rows:
        print(f"{'*' if row['selected'] else ' '} {row['stack']}  {row['resources']} resources  {row['last_update']}")


# --- pulumi ---------------------------------------------------------------------------------------------------------


def _workspace() -> LocalWorkspace:
    """The project, through Pulumi's Automation API, on whichever backend is configured."""
    from pulumi.automation import LocalWorkspace

    if shutil.which("pulumi") is None:
        raise UserError(
            "the pulumi command is not on PATH, and it is what creates the resources",
            next_command="python -m emulator run -- COMMAND   (local), or install the Pulumi CLI (Azure)",
            code=WRONG_USE,
        )
    return LocalWorkspace(work_dir=str(PROJECT))


def _stack_name(workspace: LocalWorkspace, named: str | None) -> str:
    if named:
        return named
    selected = workspace.stack()
    if selected is None:
        raise UserError(
            "no stack is named, and none is selected", next_command="add --stack NAME, dev for example", code=WRONG_USE
        )
    say(f"stack {selected.name} (the selected one)")
    return selected.name


def _reason(text: str) -> str:
    """What a failed command says after `error:`, up to a blank line; else its last line."""
    text = text.partition("stderr: ")[2] or text
    if "error: " in text:
        return text.partition("error: ")[2].split("\n\n")[0].strip()
    lines = text.strip().splitlines()
    return f"pulumi failed: {lines[-1] if lines else 'it gave no reason'}"


def _ask(question: str) -> None:
    if not sys.stdin.isatty():
        raise UserError(f"{question} There is nobody to ask", next_command="add --yes", code=WRONG_USE)
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UserError("nothing was done: the answer was not yes", code=REFUSED)


if __name__ == "__main__":
    run(main)
