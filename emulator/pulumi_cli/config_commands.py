"""`pulumi config …`."""

from __future__ import annotations

import argparse
import getpass
import json
import sys
from typing import Any

from emulator.pulumi_cli.cli import Parser, command, project_and_stack
from emulator.pulumi_cli.configuration import Configuration, Entry
from emulator.pulumi_cli.errors import CliError

# `config set KEY --secret -- VALUE`, as the Automation API writes it: argparse takes no positional after an option
# where one before it was optional, so what follows the dashes becomes an option (`__main__.main`).
AFTER_DASHES = "--after-dashes"


def add(commands: Any) -> None:
    """Add `config` and its subcommands."""
    parent = command(commands, "config", _list, "the stack's configuration, with its defaults")
    parent.add_argument("--show-secrets", action="store_true")
    config = parent.add_subparsers(metavar="COMMAND", parser_class=Parser)
    get = command(config, "get", _get, "print one value")
    get.add_argument("key")
    put = command(config, "set", _set, "set one value; without VALUE it is asked for, or read from stdin")
    put.add_argument("--plaintext", action="store_true", help="keep it in clear text, the default")
    put.add_argument("--secret", action="store_true", help="keep it encrypted")
    put.add_argument("key")
    put.add_argument("value", nargs="?")
    put.add_argument(AFTER_DASHES, dest="value", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    put_all = command(config, "set-all", _set_all, "set several values")
    put_all.add_argument("--plaintext", action="append", default=[], metavar="KEY=VALUE")
    put_all.add_argument("--secret", action="append", default=[], metavar="KEY=VALUE")
    remove = command(config, "rm", _remove, "remove one value")
    remove.add_argument("keys", nargs=1, metavar="key")
    remove_all = command(config, "rm-all", _remove, "remove several values")
    remove_all.add_argument("keys", nargs="+", metavar="key")
    for one in (get, put, put_all, remove, remove_all):
        one.add_argument("--path", action="store_true", help="the key is a path: 'emails[0]', 'outer.inner'")


def _configuration(arguments: argparse.Namespace) -> Configuration:
    project, stack = project_and_stack(arguments)
    return Configuration(project, stack.name)


def _list(arguments: argparse.Namespace) -> None:
    config = _configuration(arguments)
    entries = config.entries(show_secrets=arguments.show_secrets)
    if arguments.json:
        print(json.dumps({key: _as_json(one, arguments.show_secrets) for key, one in entries.items()}, indent=2))
        return
    for key, one in entries.items():
        print(f"{key.removeprefix(config.project.name + ':')}  {one.text}")


def _as_json(entry: Entry, show_secrets: bool) -> dict[str, Any]:
    """As the real one: a secret that is not to be shown has no value at all."""
    return {"secret": True} if entry.secret and not show_secrets else {"value": entry.text, "secret": entry.secret}


def _get(arguments: argparse.Namespace) -> None:
    config = _configuration(arguments)
    entry = config.get(arguments.key, path=arguments.path)
    name = config.project.qualify(arguments.key)
    print(json.dumps({"name": name, "value": entry.text, "secret": entry.secret}) if arguments.json else entry.text)


def _set(arguments: argparse.Namespace) -> None:
    if arguments.secret and arguments.plaintext:
        raise CliError("--secret and --plaintext exclude one another")
    config = _configuration(arguments)
    value = _asked(arguments) if arguments.value is None else arguments.value
    config.set(arguments.key, value, path=arguments.path, secret=arguments.secret)
    config.save()


def _asked(arguments: argparse.Namespace) -> str:
    """A value that is not on the command line, where other users of the machine could read it."""
    if not sys.stdin.isatty():
        return sys.stdin.read().rstrip("\n")
    return getpass.getpass("value: ") if arguments.secret else input("value: ")


def _set_all(arguments: argparse.Namespace) -> None:
    config = _configuration(arguments)
    for pairs, secret in ((arguments.plaintext, False), (arguments.secret, True)):
        for pair in pairs:
            set_pair(config, pair, path=arguments.path, secret=secret)
    config.save()


def set_pair(config: Configuration, pair: str, *, path: bool, secret: bool = False) -> None:
    """Set `KEY=VALUE`."""
    key, equals, value = pair.partition("=")
    if not equals:
        raise CliError(f"{pair!r} is not of the form KEY=VALUE")
    config.set(key, value, path=path, secret=secret)


def _remove(arguments: argparse.Namespace) -> None:
    config = _configuration(arguments)
    for key in arguments.keys:
        config.remove(key, path=arguments.path)
    config.save()
