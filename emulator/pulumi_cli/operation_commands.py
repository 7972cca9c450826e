"""`pulumi preview`, `up`, `refresh` and `destroy`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from emulator.pulumi_cli.cli import Parser, command, project_and_stack
from emulator.pulumi_cli.config_commands import set_pair
from emulator.pulumi_cli.configuration import Configuration
from emulator.pulumi_cli.errors import UNCONFIRMED, CliError


def add(commands: Any) -> None:
    """Add the four operations."""
    for name, aliases, kind, text in (
        ("preview", ["pre"], "preview", "show what `up` would do"),
        ("up", ["update"], "update", "make Azure hold what the program declares"),
        ("refresh", [], "refresh", "make the state hold what Azure does"),
        ("destroy", ["down", "dn"], "destroy", "delete the stack's resources"),
    ):
        made = command(commands, name, _operate, text, aliases=aliases)
        made.set_defaults(kind=kind)
        _common_options(made)
        if kind != "preview":
            _changing_options(made)
        if kind in ("preview", "update"):
            _program_options(made)
        else:
            made.add_argument("--run-program", type=_never, help="only `false`: it does not run here")


def _never(text: str) -> str:
    if text != "false":
        raise argparse.ArgumentTypeError("only false is offered")
    return text


def _common_options(made: Parser) -> None:
    made.add_argument("-m", "--message", default="", help="kept in the history")
    made.add_argument("--event-log", help="write the engine's events to this file, or tcp://HOST:PORT")
    made.add_argument("--expect-no-changes", action="store_true", help="fail if there is anything to do")
    made.add_argument("--diff", action="store_true", help="show each property that differs")
    made.add_argument("-d", "--debug", action="store_true", help="print the program's debug lines too")
    made.add_argument("-t", "--target", action="append", default=[], metavar="URN", help="nothing but this; * matches")
    made.add_argument("--target-dependents", action="store_true", help="and what depends on it")
    made.add_argument("--suppress-outputs", action="store_true", help="do not print the exports")
    made.add_argument("-p", "--parallel", type=int, help="resources at once (default: 16)")
    made.add_argument("--config-file", type=Path, help="in place of Pulumi.<stack>.yaml")
    # About progress, which is not printed here, and about who called.
    made.add_argument("--suppress-progress", action="store_true", help=argparse.SUPPRESS)
    made.add_argument("--exec-kind", help=argparse.SUPPRESS)


def _changing_options(made: Parser) -> None:
    made.add_argument("-y", "--yes", action="store_true", help="do not ask")
    made.add_argument("-f", "--skip-preview", action="store_true", help="neither preview nor ask")
    made.add_argument("--preview-only", action="store_true", help="show it, and stop")


def _program_options(made: Parser) -> None:
    made.add_argument("-r", "--refresh", action="store_true", help="refresh first")
    made.add_argument("-c", "--config", action="append", default=[], metavar="KEY=VALUE", help="set and keep it")
    made.add_argument("--config-path", action="store_true", help="--config takes paths")
    made.add_argument("--policy-pack", action="append", default=[], type=Path, metavar="FOLDER")
    made.add_argument("--policy-pack-config", action="append", default=[], type=Path, metavar="FILE")


def _operate(arguments: argparse.Namespace) -> None:
    from emulator.pulumi_cli import operations
    from emulator.pulumi_cli.targets import Targets

    preview = arguments.kind == "preview" or arguments.preview_only
    ask = not preview and not (arguments.yes or arguments.skip_preview)
    if ask and (not sys.stdin.isatty() or "non_interactive" in arguments):
        raise CliError(
            "--yes or --skip-preview or --preview-only must be passed in to proceed when running in non-interactive "
            "mode",
            code=UNCONFIRMED,
        )
    project, stack = project_and_stack(arguments)
    config = Configuration(project, stack.name, arguments.config_file)
    for pair in getattr(arguments, "config", ()):
        set_pair(config, pair, path=arguments.config_path)
        config.save()
    request = operations.Request(
        kind=arguments.kind,
        preview=preview,
        ask=ask,
        event_log=arguments.event_log,
        as_json=arguments.json,
        message=arguments.message,
        refresh_first=getattr(arguments, "refresh", False),
        expect_no_changes=arguments.expect_no_changes,
        suppress_outputs=arguments.suppress_outputs,
        debug=arguments.debug,
        diff=arguments.diff,
        targets=Targets(tuple(arguments.target), dependents=arguments.target_dependents),
        parallel=arguments.parallel,
        policy_packs=getattr(arguments, "policy_pack", ()),
        policy_configs=_policy_configs(arguments),
    )
    operations.Operation(project, stack, config.for_program(), request).perform()


def _policy_configs(arguments: argparse.Namespace) -> list[Path]:
    packs, configs = getattr(arguments, "policy_pack", ()), getattr(arguments, "policy_pack_config", [])
    if configs and len(configs) != len(packs):
        raise CliError("the number of `--policy-pack-config` flags must match the number of `--policy-pack` flags")
    return list(configs)
