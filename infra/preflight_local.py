"""The doctor's checks that ask nobody but this machine: the Pulumi CLI, the stack and its settings."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from infra.charges import HOURS_A_MONTH, vm
from infra.cli import UserError
from infra.finding import Finding, command, unmade

if TYPE_CHECKING:
    from infra.prices import Prices
    from infra.settings import Budget, Settings

NEW_STACK = "dev"  # whose settings a stack that is not there yet starts from


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


def stack(named: str | None) -> tuple[str, list[Finding]]:
    """The stack's name without organisation and project, and whether it can be one."""
    name = named or _selected()
    if name is None:
        what = f"no stack is named or selected: checked for a new one like {NEW_STACK}"
        return NEW_STACK, [Finding("stack", "warning", what, "the checks depend on its settings", "add --stack NAME")]
    name = name.rpartition("/")[2]
    if re.fullmatch(r"[\w.-]{1,100}", name, re.ASCII):
        return name, [Finding("stack", "ok", f"{name}")]
    what = f"{name!r} cannot be a stack's name"
    why = "Pulumi takes up to 100 letters, digits, hyphens, underscores and periods"
    return NEW_STACK, [Finding("stack", "blocking", what, why, "--stack NAME, such as dev")]


def _selected() -> str | None:
    if shutil.which("pulumi") is None:
        return None
    code, text = command("pulumi", "stack", "--show-name", "--non-interactive")
    return _last(text) if code == 0 and text.strip() else None


def _last(text: str) -> str:
    return (text.strip().splitlines() or ["it gave no reason"])[-1]


def settings(stack: str) -> tuple[Settings | None, list[Finding]]:
    """The stack's settings if they are such as the program takes, and what can be said of them without Azure."""
    from infra.prices import read
    from infra.stack_config import file_of, settings_of

    try:
        found = settings_of(stack)
    except UserError as error:
        why = "the program refuses it before it creates anything"
        return None, [Finding("settings", "blocking", error.message, why, error.next_command or "")]
    file = file_of(stack).name
    new = "" if file == f"Pulumi.{stack}.yaml" else ", which a new stack copies"
    nodes = " and ".join(f"{one.max_nodes} x {one.size}" for one in (found.compute, found.cpu) if one)
    findings = [Finding("settings", "ok", f"{file}{new}: at most {nodes} in {found.location}"), *names(found)]
    findings += expiry(found)
    if found.budget:
        findings += budget_amount(found, found.budget, read())
    return found, findings


def names(settings: Settings) -> Iterator[Finding]:
    """Whether every name fits in what Azure takes, with the provider's random digits at its end."""
    from infra.naming import LIMITS, SUFFIX, Names, slug

    made = dataclasses.asdict(Names.of(settings.workload, settings.stack))
    if long := [f"{kind} {name}" for kind, name in made.items() if len(name) + SUFFIX > LIMITS[kind]]:
        why = "Azure refuses a longer name half-way through"
        repair = "pulumi config set workload SHORTER, or a stack with a shorter name"
        yield Finding("names", "blocking", f"too long: {', '.join(long)}", why, repair)
        return
    whole = f"{settings.workload}-{slug(settings.stack)}"
    cut = [name for name in made.values() if whole not in name and whole.replace("-", "") not in name]
    told = f"; {len(cut)} cut, such as {cut[0]}, which their random digits keep apart" if cut else ""
    yield Finding("names", "ok", f"{len(made)} names within Azure's limits, such as {made['workspace']}********{told}")


def expiry(settings: Settings, now: datetime | None = None) -> Iterator[Finding]:
    text = settings.lifetime.expires_on
    if text and datetime.fromisoformat(text) <= (now or datetime.now(UTC)):
        why = "`python -m infra.environment reap` would remove the stack as soon as it is there"
        repair = "pulumi config set expiresOn A_LATER_TIME, or pulumi config rm expiresOn"
        yield Finding("expiry", "blocking", f"`expiresOn` is {text}, which is over", why, repair)


def budget_amount(settings: Settings, budget: Budget, prices: Prices) -> Iterator[Finding]:
    """Whether the budget holds the stack standing idle for a month, and one hour of work."""
    idle = {} if settings.registry else {"container-registry/Standard": HOURS_A_MONTH / 24}
    hour = {vm(settings.compute.size, low_priority=settings.compute.low_priority): 1.0}
    found = {meter: prices.price(meter, settings.location) for meter in (*idle, *hour)}
    known = sum(price.amount * (idle | hour)[meter] for meter, price in found.items() if price)
    told = f"{budget.amount} a month; the idle stack and one hour of a GPU node cost {known:,.2f} {prices.currency}"
    if budget.amount < known:
        why = "the first mail would come although nothing is wrong, and the next one would not be read"
        repair = f"pulumi config set budgetAmount {int(known) + 1} or more, if you pay in {prices.currency}"
        yield Finding("budget-amount", "warning", told, why, repair)
    elif missing := [meter for meter, price in found.items() if price is None]:
        repair = f"python -m infra.cost --refresh --region {settings.location}"
        yield unmade("budget-amount", f"no price of {', '.join(missing)} in {settings.location}", repair)
    else:
        yield Finding("budget-amount", "ok", told)
