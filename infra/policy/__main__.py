"""The policy pack: `pulumi preview --policy-pack infra/policy`. The rules stand in rules.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# Pulumi runs this folder as a program in the pack's own environment, so its files are top-level modules there.
from pulumi_policy import (  # type: ignore[import-not-found]
    EnforcementLevel,
    PolicyPack,
    ResourceValidationPolicy,
)
from rules import RULES, Rule, plain_type  # type: ignore[import-not-found]


def policy(rule: Rule) -> Any:
    """A rule as Pulumi's validation of one resource."""

    def validate(args: Any, report: Callable[[str], None]) -> None:
        for text in rule.check(plain_type(args.resource_type), args.props):
            report(f"{args.name} {text}")

    return ResourceValidationPolicy(
        name=rule.name,
        description=rule.description,
        enforcement_level=EnforcementLevel.MANDATORY,
        validate=validate,
    )


PolicyPack("finetune-phi", [policy(rule) for rule in RULES])  # starts the server that the engine asks
