"""Between Pulumi's arguments and ARM's bodies, both ways. Pure functions; nothing here talks to anyone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emulator.pulumi_provider.resources import TOP_LEVEL, ResourceType

Values = dict[str, Any]


def path(kind: ResourceType, inputs: Mapping[str, Any], subscription: str) -> str:
    """The resource's ARM id, from its arguments."""
    arguments = {name: str(inputs[name]) for name in kind.path_arguments}
    if "scope" in arguments:
        arguments["scope"] = "/" + arguments["scope"].strip("/")
    return kind.path.format(subscriptionId=subscription, **arguments)


def body(kind: ResourceType, inputs: Mapping[str, Any]) -> Values:
    """The body of the PUT that makes ARM hold `inputs`."""
    made: Values = {}
    properties: Values = {}
    for key, value in inputs.items():
        if key in kind.path_arguments and key not in _also_in_body(kind):
            continue
        if key in kind.renames:
            properties[kind.renames[key]] = value
        elif key in TOP_LEVEL or (kind.nested and key == "properties"):
            made[key] = _identity(value) if key == "identity" else value
        else:
            properties[key] = value
    if not (kind.nested or _is_group(kind)):
        made["properties"] = properties
    return made


def outputs(kind: ResourceType, answer: Mapping[str, Any]) -> Values:
    """The resource's outputs, from ARM's answer: `properties` spread out again, under the arguments' names."""
    found = {key: value for key, value in answer.items() if key not in ("id", "properties")}
    found["azureApiVersion"] = kind.api_version
    properties = answer.get("properties") or {}
    if kind.nested or _is_group(kind):
        found["properties"] = properties
        return found
    arguments = {arm: argument for argument, arm in kind.renames.items()}
    for key, value in properties.items():
        found[arguments.get(key, key)] = value
    return found


def _is_group(kind: ResourceType) -> bool:
    """A resource group has no properties to set, and ARM's answer keeps them nested."""
    return kind.path_arguments == ["resourceGroupName"]


def _also_in_body(kind: ResourceType) -> frozenset[str]:
    # Cosmos DB's data-plane role assignment carries its scope in the body as well.
    return frozenset({"scope"}) if kind.name_argument == "roleAssignmentId" else frozenset()


def _identity(value: Any) -> Any:
    """Pulumi takes user-assigned identities as a list of ids; ARM takes a map from id to an empty object."""
    if isinstance(value, Mapping) and isinstance(value.get("userAssignedIdentities"), list):
        return {**value, "userAssignedIdentities": {name: {} for name in value["userAssignedIdentities"]}}
    return value
