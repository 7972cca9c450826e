"""`python -m infra.preflight`: what would fail later, found before anything is created.

It only reads. Each finding says what is so, why it matters and what repairs it. Levels: `blocking` (bringing the stack
up, or the first job, would fail), `warning`, `ok`, and `unknown` for a check that could not be made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from infra.arm import Arm, NotSignedIn, Refused
from infra.cli import REFUSED, UserError, parser, result, run
from infra.finding import Check, Finding, unmade

if TYPE_CHECKING:
    from infra.settings import Settings

ORDER = ("ok", "unknown", "warning", "blocking")  # what matters most stands last, where a terminal's reader looks


def main(argv: list[str]) -> int:
    made = parser("infra.preflight", "Find what would fail, before anything is created. Exit code 3: something would.")
    made.add_argument("--stack", help="the Pulumi stack, which need not be there yet (default: the selected one)")
    arguments = made.parse_args(argv)
    findings = list(examine(arguments.stack))
    blocking = sum(one.level == "blocking" for one in findings)
    if arguments.json:
        result({"findings": [dataclasses.asdict(one) for one in findings], "blocking": blocking}, as_json=True)
    else:
        print("\n".join(lines(findings)))
    return REFUSED if blocking else 0


def lines(findings: Iterable[Finding]) -> Iterator[str]:
    """The findings for a reader, and what they come to; checks with the same answer are told at once."""
    findings = sorted(findings, key=lambda one: ORDER.index(one.level))
    alike: dict[Finding, list[str]] = {}
    for one in findings:
        alike.setdefault(dataclasses.replace(one, check=""), []).append(one.check)
    for one, checks in alike.items():
        yield f"{one.level:>8}  {', '.join(checks)}: {one.what}"
        if one.why:
            yield f"{'':>10}why: {one.why}"
        if one.repair:
            yield f"{'':>10}repair: {one.repair}"
    counts = {level: sum(one.level == level for one in findings) for level in ORDER}
    told = ", ".join(f"{count} {level}" for level, count in counts.items() if count)
    yield f"{told}: {'repair what blocks, and run the doctor again' if counts['blocking'] else 'nothing blocks'}"


def examine(named: str | None) -> Iterator[Finding]:
    """Every finding, in the order of the checks."""
    from infra import preflight_local as local

    yield from local.pulumi_cli()
    stack, findings = local.stack(named)
    yield from findings
    settings, findings = local.settings(stack)
    yield from findings
    try:
        arm = Arm.sign_in()
    except NotSignedIn as error:
        yield from _nobody(str(error), settings)
        return
    yield Finding("sign-in", "ok", f"signed in as {arm.claims.get('oid', 'someone')}")
    yield from _azure(arm, stack, settings)


def _nobody(text: str, settings: Settings | None) -> Iterator[Finding]:
    from infra import preflight_azure as azure

    what = f"nobody is signed in to Azure: {_reason(text)}"
    why = "the SDK's credential reads data planes and submits jobs"
    yield Finding("sign-in", "blocking", what, why, "az login, or AZURE_TENANT_ID, AZURE_CLIENT_ID and a secret")
    for check in azure.names(settings):
        yield unmade(check, "nobody is signed in", "az login")


def _reason(text: str) -> str:
    """Of what azure-identity says of each credential it tried, what is more than that it is not configured."""
    silent = ("unavailable", "not found", "not installed", "could not be found", "requires the")
    tried = [line.strip() for line in text.splitlines() if line.startswith("\t") and ": " in line]
    telling = [line for line in tried if not any(word in line for word in silent)]
    return "; ".join(telling) or text.splitlines()[0]


def _azure(arm: Arm, stack: str, settings: Settings | None) -> Iterator[Finding]:
    """The checks that ask Azure; one that is refused an answer is `unknown`, and the others go on."""
    from infra import preflight_azure as azure

    provider = azure.Provider.of(stack)
    yield from azure.same_azure(arm, provider)
    if provider.subscription is None:
        repair = "export ARM_SUBSCRIPTION_ID=… AZURE_SUBSCRIPTION_ID=…, or az account set --subscription NAME"
        why = "the stack would go nowhere, or to a subscription that nobody chose"
        yield Finding("subscription", "blocking", "no subscription is chosen", why, repair)
        return
    yield from guarded(azure.checks(arm, f"/subscriptions/{provider.subscription}", settings))


def guarded(checks: Mapping[str, Check | None]) -> Iterator[Finding]:
    """The findings of each check; where Azure cannot be reached, it is not asked again for the next one."""
    silence: UserError | None = None
    for check, make in checks.items():
        if make is None:
            yield unmade(check, "the stack's settings are wrong", "repair the finding `settings`")
            continue
        try:
            if silence is None:
                yield from make()
                continue
        except UserError as error:
            silence = error
        except Refused as error:
            yield _refused(check, error)
            continue
        except (KeyError, TypeError, ValueError) as error:
            yield unmade(check, f"Azure's answer is not as documented: {error!r}", "run the doctor again")
            continue
        yield unmade(check, silence.message, silence.next_command or "run the doctor again")


def _refused(check: str, error: Refused) -> Finding:
    repairs = {401: "az login, to the subscription's tenant", 403: "ask for the role Reader on the subscription"}
    return unmade(check, f"Azure answered {error.status}: {error}", repairs.get(error.status, "run the doctor again"))


if __name__ == "__main__":
    run(main)
