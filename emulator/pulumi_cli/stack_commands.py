"""`pulumi stack …`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from emulator.pulumi_cli.cli import Parser, backend, command, project_and_stack, show
from emulator.pulumi_cli.errors import CliError
from emulator.pulumi_cli.state import Snapshot
from emulator.pulumi_provider import wire


def add(commands: Any) -> None:
    """Add `stack` and its subcommands."""
    parent = command(commands, "stack", _show, "the stack and its commands")
    parent.add_argument("--show-name", action="store_true", help="print the name alone")
    parent.add_argument("-u", "--show-urns", action="store_true", help="list the resources' URNs")
    parent.add_argument("-i", "--show-ids", action="store_true", help="list the resources' ids")
    stack = parent.add_subparsers(metavar="COMMAND", parser_class=Parser)
    _add_lifecycle(stack)
    _add_reading(stack)
    _add_tags(stack)


def _add_lifecycle(stack: Any) -> None:
    init = command(stack, "init", _init, "create a stack, and select it")
    init.add_argument("name", nargs="?")
    init.add_argument("--no-select", action="store_true")
    init.add_argument("--secrets-provider", choices=["passphrase", "default"], help="there is one")
    select = command(stack, "select", _select, "select a stack")
    select.add_argument("name", nargs="?")
    select.add_argument("-c", "--create", action="store_true", help="create it if it is new")
    command(stack, "unselect", _unselect, "select none")
    rename = command(stack, "rename", _rename, "give a stack another name")
    rename.add_argument("name")
    remove = command(stack, "rm", _remove, "remove a stack")
    remove.add_argument("name", nargs="?")
    remove.add_argument("-y", "--yes", action="store_true")
    remove.add_argument("-f", "--force", action="store_true", help="forget the resources that it still has")
    remove.add_argument("--preserve-config", action="store_true", help="keep Pulumi.<stack>.yaml")


def _add_reading(stack: Any) -> None:
    listing = command(stack, "ls", _list, "list the stacks")
    listing.add_argument("-a", "--all", action="store_true", help="there are only this project's")
    output = command(stack, "output", _output, "print the exports")
    output.add_argument("name", nargs="?")
    output.add_argument("--show-secrets", action="store_true")
    history = command(stack, "history", _history, "list the updates, newest first")
    history.add_argument("--show-secrets", action="store_true", help="configuration that was secret is not kept")
    history.add_argument("--page-size", type=int, default=0)
    history.add_argument("--page", type=int, default=1)
    export = command(stack, "export", _export, "print the state, in a layout of its own")
    export.add_argument("--file", type=Path)
    export.add_argument("--show-secrets", action="store_true")
    importing = command(stack, "import", _import, "replace the state by what `stack export` printed")
    importing.add_argument("--file", type=Path)


def _add_tags(stack: Any) -> None:
    parent = command(stack, "tag", _tag_list, "the stack's tags")
    tag = parent.add_subparsers(metavar="COMMAND", parser_class=Parser)
    command(tag, "ls", _tag_list, "list the tags")
    get = command(tag, "get", _tag_get, "print one tag")
    get.add_argument("name")
    put = command(tag, "set", _tag_set, "set one tag")
    put.add_argument("name")
    put.add_argument("value")
    remove = command(tag, "rm", _tag_remove, "remove one tag")
    remove.add_argument("name")


# --- lifecycle ------------------------------------------------------------------------------------------------------


def _named(arguments: argparse.Namespace, verb: str) -> str:
    name = arguments.name or arguments.stack
    if not name:
        raise CliError(f"name the stack: pulumi stack {verb} NAME")
    return str(name)


def _init(arguments: argparse.Namespace) -> None:
    found = backend()
    made = found.create(_named(arguments, "init"))
    if not arguments.no_select:
        found.select(made.name)
    print(f"Created stack '{made.name}'")


def _select(arguments: argparse.Namespace) -> None:
    found, name = backend(), _named(arguments, "select")
    if arguments.create and name not in found.names():
        found.create(name)
    found.select(found.stack(name).name)


def _unselect(_: argparse.Namespace) -> None:
    backend().select(None)


def _rename(arguments: argparse.Namespace) -> None:
    found = backend()
    old = found.stack(arguments.stack)
    new = found.new(arguments.name)
    old.rename(new)
    if (file := found.project.stack_file(old.name)).exists():
        file.rename(found.project.stack_file(new.name))
    if found.selected() == old.name:
        found.select(new.name)
    print(f"Renamed {old.name} to {new.name}")


def _remove(arguments: argparse.Namespace) -> None:
    found = backend()
    stack = found.stack(arguments.name or arguments.stack)
    with stack.update():
        count = len(stack.snapshot.resources) + len(stack.snapshot.pending)
        if count and not arguments.force:
            raise CliError(f"'{stack.name}' still has {count} resources; run `pulumi destroy` first, or use --force")
        stack.remove()
    if not arguments.preserve_config:
        found.project.stack_file(stack.name).unlink(missing_ok=True)
    if found.selected() == stack.name:
        found.select(None)
    print(f"Stack '{stack.name}' has been removed!")


# --- reading --------------------------------------------------------------------------------------------------------


def _show(arguments: argparse.Namespace) -> None:
    _, stack = project_and_stack(arguments)
    if arguments.show_name:
        print(stack.name)
        return
    resources = stack.load().resources
    print(f"Current stack is {stack.name}:\n    {len(resources)} resources")
    for one in resources:
        name = one.urn if arguments.show_urns else f"{one.type}  {one.name}"
        print(f"    {name}  {one.id if arguments.show_ids else ''}".rstrip())


def _list(arguments: argparse.Namespace) -> None:
    found = backend()
    selected = found.selected()
    rows: list[dict[str, Any]] = []
    for name in found.names():
        stack = found.stack(name)
        row = {"name": name, "current": name == selected, "updateInProgress": stack.holder() is not None}
        row["resourceCount"] = len(stack.load().resources)
        if history := stack.history():
            row["lastUpdate"] = history[0]["endTime"]
        rows.append(row)
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(f"{row['name']}{'*' if row['current'] else ''}  {row['resourceCount']} resources")


def _output(arguments: argparse.Namespace) -> None:
    _, stack = project_and_stack(arguments)
    snapshot = stack.load()
    values = wire.shown(snapshot.outputs, () if arguments.show_secrets else snapshot.secret_outputs)
    if arguments.name:
        if arguments.name not in values:
            raise CliError(f"current stack does not have output property '{arguments.name}'")
        show(values[arguments.name], as_json=arguments.json)
    elif arguments.json:
        print(json.dumps(values, indent=2))
    else:
        for key, value in sorted(values.items()):
            print(f"{key}  {value if isinstance(value, str) else json.dumps(value)}")


def _history(arguments: argparse.Namespace) -> None:
    _, stack = project_and_stack(arguments)
    entries = stack.history()
    if arguments.page_size:
        first = (arguments.page - 1) * arguments.page_size
        entries = entries[first : first + arguments.page_size]
    if arguments.json:
        print(json.dumps(entries, indent=2))
        return
    for entry in entries:
        print(f"{entry['version']:>4}  {entry['kind']:<8} {entry['result']:<10} {entry['endTime']}  {entry['message']}")


def _export(arguments: argparse.Namespace) -> None:
    _, stack = project_and_stack(arguments)
    deployment = stack.load().sealed(in_clear=arguments.show_secrets)
    text = json.dumps({"version": 3, "deployment": deployment}, indent=2)
    if arguments.file:
        arguments.file.write_text(text + "\n")
    else:
        print(text)


def _import(arguments: argparse.Namespace) -> None:
    _, stack = project_and_stack(arguments)
    try:
        values = json.loads(arguments.file.read_text() if arguments.file else sys.stdin.read())["deployment"]
        snapshot = Snapshot.opened(values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CliError(f"this is no state that `pulumi stack export` of this local pulumi printed: {error}") from None
    if foreign := [one.urn for one in snapshot.resources if not one.urn.startswith(f"urn:pulumi:{stack.name}::")]:
        raise CliError(f"this state is another stack's: it holds {foreign[0]}")
    with stack.update():
        stack.snapshot = snapshot
        stack.save()
    print("Import complete.")


# --- tags -----------------------------------------------------------------------------------------------------------


def _tag_list(arguments: argparse.Namespace) -> None:
    _, stack = project_and_stack(arguments)
    tags = stack.load().tags
    if arguments.json:
        print(json.dumps(tags, indent=2))
        return
    for name, value in sorted(tags.items()):
        print(f"{name}  {value}")


def _tag_get(arguments: argparse.Namespace) -> None:
    _, stack = project_and_stack(arguments)
    if arguments.name not in (tags := stack.load().tags):
        raise CliError(f"stack tag '{arguments.name}' not found for stack '{stack.name}'")
    print(tags[arguments.name])


def _tag_set(arguments: argparse.Namespace) -> None:
    _, stack = project_and_stack(arguments)
    with stack.update(), stack.changing() as snapshot:
        snapshot.tags[arguments.name] = arguments.value


def _tag_remove(arguments: argparse.Namespace) -> None:
    _, stack = project_and_stack(arguments)
    with stack.update(), stack.changing() as snapshot:
        snapshot.tags.pop(arguments.name, None)
