"""`python -m infra.cost`: what the stack would cost, from what a preview declares and the checked-in price file."""

from __future__ import annotations

import argparse

from infra import environment
from infra.charges import PLAN, endpoint_plan, resources
from infra.cli import WRONG_USE, UserError, parser, result, run
from infra.estimate import estimate, lines, moment
from infra.prices import read, refresh


def main(argv: list[str]) -> int:
    arguments = _parser().parse_args(argv)
    if arguments.refresh:
        left = refresh(region=arguments.region, currency=arguments.currency, sizes=arguments.size)
        result({"unpriced": left}, as_json=arguments.json)
        return 0
    if arguments.region or arguments.currency or arguments.size:
        command = "python -m infra.cost --refresh …"
        raise UserError("--region, --currency and --size go with --refresh", next_command=command, code=WRONG_USE)
    plan = endpoint_plan(arguments.endpoint_plan)
    until = moment(arguments.until, "--until") if arguments.until else None
    prices = read()
    name, events = environment.previewed(arguments.stack)
    found = {"stack": name, **estimate(resources(events), prices, plan=plan, until=until)}
    if arguments.json:
        result(found, as_json=True)
    else:
        print("\n".join(lines(found)))
    return 0


def _parser() -> argparse.ArgumentParser:
    made = parser("infra.cost", "Price what a preview declares, from the checked-in price file.")
    made.add_argument("--stack", help="the Pulumi stack, which need not be there yet (default: the selected one)")
    made.add_argument("--endpoint-plan", metavar="JSON|FILE", help=f"what the endpoint will keep, such as {PLAN}")
    made.add_argument("--until", metavar="TIME", help="when the stack goes (default: by its expiresOn or ttlHours)")
    made.add_argument("--refresh", action="store_true", help="fill the price file from the Azure Retail Prices API")
    made.add_argument("--region", help="with --refresh: a region to add to those of the file")
    made.add_argument("--currency", help="with --refresh: the currency of all prices (default: the file's)")
    made.add_argument("--size", action="append", default=[], help="with --refresh: a VM size to add to the file")
    return made


if __name__ == "__main__":
    run(main)
