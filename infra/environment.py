"""`python -m infra.environment up|down|list|reap|name`: stacks with all their resources, for branches or by name.

Every step looks at what is there before it acts, so any of them may be interrupted and the command run again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.cli import FAILED, INTERRUPTED, Parser, UserError, result, run
from infra.outputs import PROJECT

if TYPE_CHECKING:
    from pulumi.automation import EngineEvent

Verb = Callable[[argparse.Namespace], int]
AGAIN = "repair it, and run the same command again; what was done is kept"
GO_ON = "the same command goes on; `down` removes what there is"


def main(argv: list[str]) -> int:
    arguments = _parser().parse_args(argv)
    code: int = arguments.verb(arguments)
    return code


def _with_pulumi(verb: Verb) -> Verb:
    """A verb whose failures, pulumi's and Azure's, are one sentence with what to type next."""

    def explained(arguments: argparse.Namespace) -> int:
        from pulumi.automation.errors import CommandError, InvalidVersionError

        from infra import stacks
        from infra.arm import Refused

        try:
            return verb(arguments)
        except (CommandError, InvalidVersionError) as error:
            raise UserError(stacks.reason(str(error)), next_command=AGAIN) from None
        except Refused as error:
            raise UserError(f"Azure refused: {error}", next_command=AGAIN) from None
        except KeyboardInterrupt:
            raise UserError("interrupted; what was done is kept", next_command=GO_ON, code=INTERRUPTED) from None

    return explained


# --- the command line -----------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    made = Parser(prog="python -m infra.environment", description=__doc__)
    verbs = made.add_subparsers(required=True, metavar="up|down|list|reap|name", parser_class=Parser)
    up = _verb(
        verbs, "up", _with_pulumi(_up), "create the stack if it is new, and make Azure hold what the program declares"
    )
    up.add_argument("--ttl", type=_hours, metavar="HOURS", help="when `reap` may remove it, counted from now")
    down = _verb(
        verbs, "down", _with_pulumi(_down), "remove jobs, endpoints, computes, the workspace and all else, and check it"
    )
    for one in (up, down):
        one.add_argument(
            "--branch", metavar="NAME", help="the environment of a git branch, or of a pull request: pr-12"
        )
        one.add_argument("--stack", help="the Pulumi stack (default: the branch's, else the selected one)")
        place = "folder of config.json for MLClient.from_config() (default: the project)"
        one.add_argument("--config", type=Path, default=PROJECT, metavar="DIR", help=place)
    listing = _verb(verbs, "list", _with_pulumi(_list), "the environments, with branch and expiry")
    reap = _verb(
        verbs,
        "reap",
        _with_pulumi(_reap),
        "remove what has expired, or whose branch is gone; without --yes only list it",
    )
    name = _verb(verbs, "name", _name, "the name of a branch's stack")
    name.add_argument("--branch", required=True, metavar="NAME")
    name.add_argument("--prefix", default="", help="what the name begins with")
    for one in (up, reap):
        template = "whose settings a new stack starts from; never reaped (default: dev)"
        one.add_argument("--template", default="dev", metavar="STACK", help=template)
    for one in (up, down, reap):
        one.add_argument("--yes", action="store_true", help="do not ask")
        one.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    for one in (up, down, listing, reap, name):
        one.add_argument("--json", action="store_true", help="print the result as one JSON object on stdout")
    return made


def _verb(verbs: Any, name: str, run_it: Any, text: str) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    made.set_defaults(verb=run_it)
    return made


def _hours(text: str) -> int:
    from infra.branches import LONGEST_TTL

    if not text.isdigit() or not 1 <= int(text) <= LONGEST_TTL:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of hours from 1 to {LONGEST_TTL}")
    return int(text)


# --- the verbs ------------------------------------------------------------------------------------------------------


def _up(arguments: argparse.Namespace) -> int:
    from infra import stacks, up

    workspace = stacks.open_workspace()
    rows = workspace.list_stacks()
    with stacks.selection_kept(workspace, rows):
        result(up.bring_up(workspace, rows, arguments), as_json=arguments.json)
    return 0


def _down(arguments: argparse.Namespace) -> int:
    from infra import down, stacks

    workspace = stacks.open_workspace()
    rows = workspace.list_stacks()
    with stacks.selection_kept(workspace, rows):
        result(down.take_down(workspace, rows, arguments), as_json=arguments.json)
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from infra import listing, stacks

    found, now = listing.look(stacks.open_workspace().list_stacks()), datetime.now(UTC)
    if arguments.json:
        result({"environments": [one.as_dict(now) for one in found]}, as_json=True)
    else:
        print("\n".join(listing.lines(found, now)))
    return 0


def _reap(arguments: argparse.Namespace) -> int:
    from infra import down, reap, stacks

    workspace = stacks.open_workspace()
    rows = workspace.list_stacks()
    removing = arguments.yes and not arguments.dry_run
    with stacks.selection_kept(workspace, rows):
        found = reap.survey(workspace, rows, arguments.template, datetime.now(UTC))

        def remove(name: str) -> None:
            down.Down.of(workspace, name, PROJECT).run()

        done = reap.reap(found, remove=remove if removing else None)
    if arguments.json:
        result({"due": done, "orphans": found.orphans, "branches_known": found.heads_known}, as_json=True)
    else:
        print("\n".join(reap.lines(done, found.orphans, removing=removing)))
    return FAILED if any(one["error"] for one in done) else 0


def _name(arguments: argparse.Namespace) -> int:
    from infra.branches import canonical, stack_of

    name = "-".join(filter(None, [arguments.prefix, stack_of(arguments.branch)]))
    if arguments.json:
        result({"stack": name, "branch": canonical(arguments.branch)}, as_json=True)
    else:
        print(name)
    return 0


def previewed(named: str | None) -> tuple[str, list[EngineEvent]]:
    """The stack's name, and the events of a preview of it; a stack that is not there yet is not there after it."""
    from pulumi.automation.errors import CommandError

    from infra import stacks, up

    workspace = stacks.open_workspace()
    rows = workspace.list_stacks()
    with stacks.selection_kept(workspace, rows):
        try:
            return up.previewed(workspace, rows, named)
        except CommandError as error:
            raise UserError(
                stacks.reason(str(error)), next_command="repair it, and run the same command again"
            ) from None


if __name__ == "__main__":
    run(main)
