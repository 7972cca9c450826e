"""`python -m infra.preflight`: what would fail later, found before anything is created.

It only reads. Each finding says what is so, why it matters and what repairs it. Levels: `blocking` (bringing the stack
up, or the first job, would fail), `warning`, `ok`, and `unknown` for a check that could not be made.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from infra.arm import Arm, NotSignedIn, Refused
from infra.cli import REFUSED, UserError, parser, result, run
from infra.finding import Finding, command, unmade

if TYPE_CHECKING:
    from infra.settings import Settings

NEW_STACK = "dev"  # whose settings a stack that is not there yet starts from


Check = Callable[[], Iterator[Finding]]


def main(argv: list[str]) -> int:
    made = parser("infra.preflight", "Find what would fail, before anything is created. Exit code 3: something would.")
    made.add_argument("--stack", help="the Pulumi stack, which need not be there yet (default: the selected one)")
    arguments = made.parse_args(argv)
    findings = list(examine(arguments.stack))
    blocking = [one for one in findings if one.level == "blocking"]
    if arguments.json:
        result({"findings": [dataclasses.asdict(one) for one in findings], "blocking": len(blocking)}, as_json=True)
    else:
        _print(findings)
    return REFUSED if blocking else 0


def _print(findings: list[Finding]) -> None:
    for one in findings:
        print(f"{one.level:>8}  {one.check}: {one.what}")
        if one.why:
            print(f"{'':>10}why: {one.why}")
        if one.repair:
            print(f"{'':>10}repair: {one.repair}")
    counts = {level: sum(one.level == level for one in findings) for level in ("blocking", "warning", "unknown", "ok")}
    print(", ".join(f"{count} {level}" for level, count in counts.items() if count))


def examine(stack: str | None) -> Iterator[Finding]:
    """Every finding, in the order in which a reader would repair them."""
    from infra import preflight_azure as azure

    yield from pulumi_cli()
    name = stack or _selected()
    settings, findings = _settings(name or NEW_STACK)
    if name is None:
        what = f"no stack is named or selected: checked for a new one like {NEW_STACK}"
        yield Finding("stack", "warning", what, "the checks depend on region and VM size", "add --stack NAME")
    yield from findings
    try:
        arm = Arm.sign_in()
    except NotSignedIn as error:
        why = "the SDK's credential reads data planes and submits jobs"
        yield Finding("sign-in", "blocking", f"nobody is signed in to Azure: {error}", why, "az login")
        for check in azure.NAMES:
            yield unmade(check, "nobody is signed in", "az login")
        return
    yield Finding("sign-in", "ok", f"signed in as {arm.claims.get('oid', 'someone')}")
    yield from _azure(arm, name or NEW_STACK, settings)


def _azure(arm: Arm, stack: str, settings: Settings | None) -> Iterator[Finding]:
    """The checks that ask Azure; one that is refused an answer is `unknown`, and the others go on."""
    from infra import preflight_azure as azure

    subscription, source = azure.subscription_id(stack)
    yield from _guarded("same-azure", lambda: azure.same_azure(arm))
    if subscription is None:
        repair = "export ARM_SUBSCRIPTION_ID=… AZURE_SUBSCRIPTION_ID=…, or az account set --subscription NAME"
        why = "the stack would go nowhere, or to a subscription that nobody chose"
        yield Finding("subscription", "blocking", "no subscription is chosen", why, repair)
        return
    base = f"/subscriptions/{subscription}"
    for check, make in azure.checks(arm, base, source, settings).items():
        if make is None:
            yield unmade(check, "the stack's settings are wrong", "repair the finding `settings`")
        else:
            yield from _guarded(check, make)


def _guarded(check: str, make: Check) -> Iterator[Finding]:
    try:
        yield from make()
    except Refused as error:
        repair = "ask for the role Reader on the subscription" if error.status == 403 else "run the doctor again"
        yield unmade(check, f"Azure answered {error.status}: {error}", repair)
    except (KeyError, TypeError) as error:
        yield unmade(check, f"Azure's answer lacks {error}", "run the doctor again")


# --- this machine ---------------------------------------------------------------------------------------------------


def pulumi_cli() -> Iterator[Finding]:
    """The command that creates the resources, and its login."""
    if shutil.which("pulumi") is None:
        why = "it is what creates the resources"
        repair = "install the Pulumi CLI, or for this machine alone: python -m emulator run -- COMMAND"
        yield Finding("pulumi", "blocking", "the pulumi command is not on PATH", why, repair)
        return
    code, text = command("pulumi", "whoami", "--non-interactive")
    if code != 0:
        why = f"the stack's state has to lie somewhere ({_last(text)})"
        yield Finding("pulumi", "blocking", "pulumi is logged in nowhere", why, "pulumi login")
        return
    yield Finding("pulumi", "ok", f"pulumi is logged in as {_last(text)}")


def _selected() -> str | None:
    if shutil.which("pulumi") is None:
        return None
    code, text = command("pulumi", "stack", "--show-name", "--non-interactive")
    return _last(text) if code == 0 and text.strip() else None


def _last(text: str) -> str:
    return (text.strip().splitlines() or ["it gave no reason"])[-1]


def _settings(stack: str) -> tuple[Settings | None, list[Finding]]:
    """The stack's settings if they are such as the program takes, and what its names will be."""
    from infra.stack_config import file_of, settings_of

    try:
        settings = settings_of(stack)
    except UserError as error:
        why = "the program refuses it before it creates anything"
        return None, [Finding("settings", "blocking", error.message, why, error.next_command or "")]
    return settings, [
        Finding("settings", "ok", f"{file_of(stack).name}: {settings.compute.size} in {settings.location}"),
        *names(settings),
    ]


def names(settings: Settings) -> Iterator[Finding]:
    """Whether every name fits in what Azure takes, with the provider's random digits at its end."""
    from infra.naming import LIMITS, SUFFIX, Names

    made = dataclasses.asdict(Names.of(settings.workload, settings.stack))
    long = [f"{kind} {name}" for kind, name in made.items() if len(name) + SUFFIX > LIMITS[kind]]
    if long:
        why = "Azure refuses a longer name half-way through"
        repair = "pulumi config set workload SHORTER, or a stack with a shorter name"
        yield Finding("names", "blocking", f"too long: {', '.join(long)}", why, repair)
        return
    yield Finding("names", "ok", f"{len(made)} names within Azure's limits, such as {made['workspace']}********")


if __name__ == "__main__":
    run(main)
