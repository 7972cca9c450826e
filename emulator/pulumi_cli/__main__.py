"""`pulumi`, as far as it is offered where no real one is installed."""

from __future__ import annotations

import argparse
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from emulator.pulumi_cli.errors import CliError
from emulator.pulumi_cli.project import Project
from emulator.pulumi_cli.state import Backend, Stack

_FAILED = 255  # what the real CLI leaves with
_INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(_FAILED, f"error: {message}; `pulumi --help` shows what this local pulumi offers\n")


def main(argv: list[str]) -> int:
    arguments = _parser().parse_args(_global_flags_last(argv))
    if arguments.cwd:
        os.chdir(arguments.cwd)
    try:
        return int(arguments.run(arguments) or 0)
    except CliError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return _FAILED
    except KeyboardInterrupt:
        print("error: interrupted; what was done is recorded, run the same command again", file=sys.stderr, flush=True)
        return _INTERRUPTED


# --- version, whoami, install ---------------------------------------------------------------------------------------


def _version(_: argparse.Namespace) -> None:
    print(f"v{version('pulumi')}")


def _whoami(arguments: argparse.Namespace) -> None:
    user = os.environ.get("USER", "local")
    url = os.environ.get("PULUMI_BACKEND_URL", "")
    print(json.dumps({"user": user, "organizations": [], "url": url}) if arguments.json else user)


# --- stack ----------------------------------------------------------------------------------------------------------


def _backend() -> Backend:
    return Backend(Project.find(Path.cwd().resolve()))


def _stack(arguments: argparse.Namespace) -> tuple[Project, Stack]:
    backend = _backend()
    return backend.project, backend.stack(arguments.stack)


def _stack_show(arguments: argparse.Namespace) -> None:
    _, stack = _stack(arguments)
    snapshot = stack.load()
    print(stack.name if arguments.show_name else f"stack {stack.name}: {len(snapshot.resources)} resources")


def _stack_init(arguments: argparse.Namespace) -> None:
    backend = _backend()
    name = arguments.name or arguments.stack
    if not name:
        raise CliError("name the stack: pulumi stack init NAME")
    made = backend.create(name)
    if not arguments.no_select:
        backend.select(made.name)
    print(f"Created stack '{made.name}'")


def _stack_select(arguments: argparse.Namespace) -> None:
    backend = _backend()
    name = arguments.name or arguments.stack
    if not name:
        raise CliError("name the stack: pulumi stack select NAME")
    if arguments.create and name not in backend.names():
        backend.create(name)
    backend.select(backend.stack(name).name)


def _stack_list(arguments: argparse.Namespace) -> None:
    backend = _backend()
    selected = backend.selected()
    rows: list[dict[str, Any]] = []
    for name in backend.names():
        stack = backend.stack(name)
        row = {"name": name, "current": name == selected, "updateInProgress": False}
        row["resourceCount"] = len(stack.load().resources)
        if history := stack.history():
            row["lastUpdate"] = history[0]["endTime"]
        rows.append(row)
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(f"{row['name']}{'*' if row['current'] else ''}  {row['resourceCount']} resources")


def _stack_output(arguments: argparse.Namespace) -> None:
    from emulator.pulumi_cli import operations

    _, stack = _stack(arguments)
    values = operations.outputs(stack, show_secrets=arguments.show_secrets)
    if arguments.name:
        if arguments.name not in values:
            raise CliError(f"the stack {stack.name!r} exports no {arguments.name!r}")
        value = values[arguments.name]
        print(json.dumps(value) if arguments.json or not isinstance(value, str) else value)
    elif arguments.json:
        print(json.dumps(values, indent=2))
    else:
        for key, value in sorted(values.items()):
            print(f"{key}  {value if isinstance(value, str) else json.dumps(value)}")


def _stack_history(arguments: argparse.Namespace) -> None:
    _, stack = _stack(arguments)
    entries = stack.history()
    if arguments.page_size:
        first = (arguments.page - 1) * arguments.page_size
        entries = entries[first : first + arguments.page_size]
    if arguments.json:
        print(json.dumps(entries, indent=2))
        return
    for entry in entries:
        print(f"{entry['version']:>4}  {entry['kind']:<8} {entry['result']:<10} {entry['endTime']}  {entry['message']}")


def _stack_remove(arguments: argparse.Namespace) -> None:
    backend = _backend()
    stack = backend.stack(arguments.name or arguments.stack)
    with stack.update():
        count = len(stack.snapshot.resources) + len(stack.snapshot.pending)
        if count and not arguments.force:
            raise CliError(f"'{stack.name}' still has {count} resources; run `pulumi destroy` first, or use --force")
        stack.remove()
    if not arguments.preserve_config:
        backend.project.stack_file(stack.name).unlink(missing_ok=True)
    if backend.selected() == stack.name:
        backend.select(None)
    print(f"Stack '{stack.name}' has been removed!")


def _stack_export(arguments: argparse.Namespace) -> None:
    import dataclasses

    _, stack = _stack(arguments)
    print(json.dumps({"version": 3, "deployment": dataclasses.asdict(stack.load())}, indent=2))


# --- config ---------------------------------------------------------------------------------------------------------


def _config_list(arguments: argparse.Namespace) -> None:
    project, stack = _stack(arguments)
    config = {key: _as_text(value) for key, value in sorted(project.stack_config(stack.name).items())}
    if arguments.json:
        print(json.dumps({key: {"value": value, "secret": False} for key, value in config.items()}, indent=2))
        return
    for key, value in config.items():
        print(f"{key.removeprefix(project.name + ':')}  {value}")


def _config_get(arguments: argparse.Namespace) -> None:
    project, stack = _stack(arguments)
    config = project.stack_config(stack.name)
    key = project.qualify(arguments.key)
    if key not in config:
        raise CliError(f"configuration key '{arguments.key}' not found for stack '{stack.name}'")
    value = _as_text(config[key])
    print(json.dumps({"name": key, "value": value, "secret": False}) if arguments.json else value)


def _config_set(arguments: argparse.Namespace) -> None:
    if arguments.secret:
        raise CliError("this local pulumi keeps no secrets; the program has none in its configuration")
    _change_config(arguments, {arguments.key: arguments.value})


def _config_set_all(arguments: argparse.Namespace) -> None:
    pairs = dict(pair.split("=", 1) for pair in arguments.plaintext or [])
    _change_config(arguments, pairs)


def _config_remove(arguments: argparse.Namespace) -> None:
    project, stack = _stack(arguments)
    config = project.stack_config(stack.name)
    for key in arguments.keys:
        config.pop(project.qualify(key), None)
    project.write_config(stack.name, config)


def _change_config(arguments: argparse.Namespace, pairs: dict[str, str]) -> None:
    project, stack = _stack(arguments)
    config = project.stack_config(stack.name)
    config.update({project.qualify(key): value for key, value in pairs.items()})
    project.write_config(stack.name, config)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


# --- operations -----------------------------------------------------------------------------------------------------


def _operate(arguments: argparse.Namespace) -> int:
    from emulator.pulumi_cli import operations

    if not (arguments.preview or arguments.yes or arguments.skip_preview):
        raise CliError(f"`pulumi {arguments.command}` asks nothing here; add --yes")
    project, stack = _stack(arguments)
    request = operations.Request(
        kind=arguments.kind,
        preview=arguments.preview,
        event_log=arguments.event_log,
        as_json=arguments.json,
        message=arguments.message or "",
        refresh_first=arguments.refresh,
        expect_no_changes=arguments.expect_no_changes,
        suppress_outputs=arguments.suppress_outputs,
        debug=arguments.debug,
    )
    return operations.perform(project, stack, request)


# --- the command line -----------------------------------------------------------------------------------------------


def _global_flags_last(argv: list[str]) -> list[str]:
    """The Automation API puts --non-interactive first; argparse knows it on the subcommands only."""
    return [word for word in argv if word != "--non-interactive"]


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="pulumi", description=__doc__)
    parser.add_argument("-C", "--cwd", help="run as if started in this folder")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    _command(commands, "version", _version, "print the version")
    _command(commands, "whoami", _whoami, "print the user and the backend")
    _command(commands, "install", lambda _: None, "nothing to do: plugins and packages are here")
    _stack_commands(commands)
    _config_commands(commands)
    for name, aliases, kind in (
        ("preview", [], "preview"),
        ("up", ["update"], "update"),
        ("refresh", [], "refresh"),
        ("destroy", ["down"], "destroy"),
    ):
        made = _command(commands, name, _operate, f"{name} the stack's resources", aliases=aliases)
        _operation_options(made, kind)
    return parser


def _command(commands: Any, name: str, run: Any, text: str, **more: Any) -> _Parser:
    made: _Parser = commands.add_parser(name, help=text, description=text, **more)
    made.add_argument("-s", "--stack")
    made.add_argument("-j", "--json", action="store_true")
    made.add_argument("-C", "--cwd", default=argparse.SUPPRESS)
    made.add_argument("--color")
    made.set_defaults(run=run)
    return made


def _stack_commands(commands: Any) -> None:
    parent = _command(commands, "stack", _stack_show, "the stack and its commands")
    parent.add_argument("--show-name", action="store_true")
    stack = parent.add_subparsers(metavar="COMMAND", parser_class=_Parser)
    init = _command(stack, "init", _stack_init, "create a stack")
    init.add_argument("name", nargs="?")
    init.add_argument("--no-select", action="store_true")
    init.add_argument("--secrets-provider")
    select = _command(stack, "select", _stack_select, "select a stack")
    select.add_argument("name", nargs="?")
    select.add_argument("-c", "--create", action="store_true")
    listing = _command(stack, "ls", _stack_list, "list the stacks")
    listing.add_argument("-a", "--all", action="store_true")
    output = _command(stack, "output", _stack_output, "print the exports")
    output.add_argument("name", nargs="?")
    output.add_argument("--show-secrets", action="store_true")
    history = _command(stack, "history", _stack_history, "list the updates")
    history.add_argument("--show-secrets", action="store_true")
    history.add_argument("--page-size", type=int, default=0)
    history.add_argument("--page", type=int, default=1)
    remove = _command(stack, "rm", _stack_remove, "remove a stack")
    remove.add_argument("name", nargs="?")
    remove.add_argument("-y", "--yes", action="store_true")
    remove.add_argument("-f", "--force", action="store_true")
    remove.add_argument("--preserve-config", action="store_true")
    export = _command(stack, "export", _stack_export, "print the state")
    export.add_argument("--show-secrets", action="store_true")


def _config_commands(commands: Any) -> None:
    parent = _command(commands, "config", _config_list, "the stack's configuration")
    parent.add_argument("--show-secrets", action="store_true")
    config = parent.add_subparsers(metavar="COMMAND", parser_class=_Parser)
    get = _command(config, "get", _config_get, "print one value")
    get.add_argument("key")
    put = _command(config, "set", _config_set, "set one value")
    put.add_argument("--plaintext", action="store_true")
    put.add_argument("--secret", action="store_true")
    put.add_argument("key")
    put.add_argument("value")
    put_all = _command(config, "set-all", _config_set_all, "set several values")
    put_all.add_argument("--plaintext", action="append", metavar="KEY=VALUE")
    remove = _command(config, "rm", _config_remove, "remove one value")
    remove.add_argument("keys", nargs=1, metavar="key")
    remove_all = _command(config, "rm-all", _config_remove, "remove several values")
    remove_all.add_argument("keys", nargs="+", metavar="key")


def _operation_options(made: _Parser, kind: str) -> None:
    made.set_defaults(kind=kind, preview=kind == "preview")
    made.add_argument("-y", "--yes", action="store_true")
    made.add_argument("-f", "--skip-preview", action="store_true")
    made.add_argument("-m", "--message")
    made.add_argument("--event-log")
    made.add_argument("-r", "--refresh", action="store_true")
    made.add_argument("--expect-no-changes", action="store_true")
    made.add_argument("--suppress-outputs", action="store_true")
    made.add_argument("-d", "--debug", action="store_true")
    made.add_argument("--preview-only", dest="preview", action="store_true", default=kind == "preview")
    # Accepted because callers pass them; there is one way of running and of printing here.
    made.add_argument("--diff", action="store_true")
    made.add_argument("--suppress-progress", action="store_true")
    made.add_argument("--show-secrets", action="store_true")
    made.add_argument("--exec-kind")
    made.add_argument("-p", "--parallel", type=int)
    made.add_argument("--logtostderr", action="store_true")
    made.add_argument("-v", "--verbose", type=int)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
