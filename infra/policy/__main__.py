"""The policy pack: `pulumi preview --policy-pack infra/policy`. The rules stand in rules.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# Pulumi runs this folder as a program in the pack's own environment, so its files are top-level modules there.
from pulumi_policy import (  # type: ignore[import-not-found]
    EnforcementLevel,
    PolicyConfigSchema,
    PolicyPack,
    ResourceValidationPolicy,
)
from rules import RULES, Rule  # type: ignore[import-not-found]


def policy(rule: Rule) -> Any:
    """A rule as Pulumi's validation of one resource."""

    def validate(args: Any, report: Callable[[str], None]) -> None:
        for text in rule.violations(args.resource_type, args.props, args.get_config()):
            report(f"{args.name} {text}")

    return ResourceValidationPolicy(
        name=rule.name,
        description=rule.description,
        enforcement_level=EnforcementLevel(rule.level),
        config_schema=schema(rule),
        validate=validate,
    )


def schema(rule: Rule) -> Any:
    """What `--policy-pack-config` may say of a rule, or None."""
    texts = {"type": "array", "items": {"type": "string"}}
    properties = {name: {**texts, "default": list(default)} for name, default in rule.settings.items()}
    return PolicyConfigSchema(properties) if properties else None


PolicyPack("finetune-phi", [policy(rule) for rule in RULES])  # starts the server that the engine asks
