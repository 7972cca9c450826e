"""The provider: check, diff, create, read, update, delete and invoke, on plain values.

The same seven calls as Pulumi's provider protocol, without its transport.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from emulator.pulumi_provider import changes, translate
from emulator.pulumi_provider.arm import ArmClient, ArmError
from emulator.pulumi_provider.resources import RESOURCES, ResourceType, canonical

Values = dict[str, Any]


class ProviderError(Exception):
    """The provider cannot do what the program asks; the text is for the program's author."""


@dataclass(frozen=True)
class Diff:
    """What differs.

    changed, replacing: arguments, and those of them that need a new resource.
    paths: each property that differs, and how.
    delete_first: the new resource would have the old one's id, so both cannot exist at once.
    """

    paths: Mapping[str, changes.Kind]
    changed: tuple[str, ...]
    replacing: tuple[str, ...]
    delete_first: bool


class AzureNative:
    """azure-native's behaviour for the types in `resources.RESOURCES`."""

    def __init__(self, client: ArmClient | None = None) -> None:
        self._client = client

    @property
    def client(self) -> ArmClient:
        """Made on first use, so that a program that fails early needs no credentials."""
        if self._client is None:
            self._client = ArmClient()
        return self._client

    def check(self, token: str, name: str, news: Values, olds: Mapping[str, Any] | None) -> Values:
        """The inputs, with the resource's own name filled in: the old one, or a new one by azure-native's rule."""
        kind = _kind(token)
        inputs = {key: value for key, value in news.items() if value is not None}
        own = kind.name_argument
        if own not in inputs:
            inputs[own] = olds[own] if olds and own in olds else _generated_name(kind, name)
        for argument in kind.path_arguments:
            if argument not in inputs:
                raise ProviderError(f"{token} {name!r} lacks the required argument {argument!r}")
        return inputs

    def diff(self, token: str, name: str, olds: Mapping[str, Any], news: Mapping[str, Any]) -> Diff:
        """What changes between two checked sets of inputs; a value that is not known yet counts as changed."""
        kind = _kind(token)
        paths = changes.between(olds, news)
        changed = tuple(dict.fromkeys(re.split(r"[.\[]", path)[0] for path in paths))
        replacing = tuple(key for key in changed if key in kind.replacing)
        own = str(news.get(kind.name_argument))
        same_id = not set(kind.path_arguments) & set(changed) and not _is_generated(kind, name, own)
        return Diff(paths, changed, replacing, delete_first=bool(replacing) and same_id)

    def identifier(self, token: str, inputs: Mapping[str, Any]) -> str:
        """The ARM id that a resource with these inputs has."""
        return translate.path(_kind(token), inputs, self.client.credentials.subscription_id)

    def create(self, token: str, inputs: Mapping[str, Any], *, adopt: bool = False) -> tuple[str, Values]:
        """Create the resource. With `adopt`, one that exists is taken over: a creation that was cut off is repeated."""
        kind = _kind(token)
        path = self.identifier(token, inputs)
        if not (adopt or kind.lone) and self.client.get(path, kind.api_version) is not None:
            raise ProviderError(f"cannot create the existing resource {path}; import it, or give another name")
        return self._put(kind, path, inputs)

    def update(self, token: str, path: str, inputs: Mapping[str, Any]) -> Values:
        """Make the existing resource hold `inputs`."""
        return self._put(_kind(token), path, inputs)[1]

    def read(
        self, token: str, path: str, inputs: Mapping[str, Any], before: Mapping[str, Any]
    ) -> tuple[Values, Values] | None:
        """The resource's inputs and outputs as they are now, or None where it is gone.

        The inputs follow what differs from the outputs `before`, so that the next diff sees what somebody changed.
        """
        kind = _kind(token)
        answer = self.client.get(path, kind.api_version)
        if answer is None:
            return None
        outputs = translate.outputs(kind, answer)
        return changes.followed(dict(inputs), dict(before), outputs), outputs

    def delete(self, token: str, path: str) -> None:
        """Delete the resource; one that is gone already is fine."""
        kind = _kind(token)
        if not kind.lone:
            self.client.delete(path, kind.api_version)

    def invoke(self, token: str, arguments: Mapping[str, Any]) -> Values:
        """The provider functions that a program may call."""
        token = canonical(token)
        if token == "azure-native:authorization:getClientConfig":
            who = self.client.credentials
            return {
                "clientId": who.client_id,
                "objectId": _object_id(self.client.token()),
                "subscriptionId": who.subscription_id,
                "tenantId": who.tenant_id,
            }
        if token == "azure-native:authorization:getClientToken":
            return {"token": self.client.token()}
        return self._get(token, arguments)

    def preview(self, token: str, inputs: Mapping[str, Any]) -> Values:
        """What a preview can promise of a new resource's outputs.

        An argument whose output has another shape is left out: the SDK raises an AssertionError on user-assigned
        identities, which go in as a list and come out as a map.
        """
        left_out = {"identity", *_kind(token).path_arguments}
        return {key: value for key, value in inputs.items() if key not in left_out}

    def _put(self, kind: ResourceType, path: str, inputs: Mapping[str, Any]) -> tuple[str, Values]:
        answer = self.client.put(path, kind.api_version, translate.body(kind, inputs))
        return answer.get("id", path), translate.outputs(kind, answer)

    def _get(self, token: str, arguments: Mapping[str, Any]) -> Values:
        """`azure-native:module:getThing` for every type `azure-native:module:Thing` that is known."""
        module, _, function = token.rpartition(":")
        kind = RESOURCES.get(f"{module}:{function.removeprefix('get')}")
        if kind is None or not function.startswith("get"):
            raise ProviderError(f"the local provider has no function {token}")
        path = translate.path(kind, arguments, self.client.credentials.subscription_id)
        answer = self.client.get(path, kind.api_version)
        if answer is None:
            raise ProviderError(f"{token}: there is no resource {path}")
        return {"id": answer["id"], **translate.outputs(kind, answer)}


def _kind(token: str) -> ResourceType:
    try:
        return RESOURCES[canonical(token)]
    except KeyError:
        raise ProviderError(f"the local provider has no resource type {token}") from None


def _generated_name(kind: ResourceType, logical: str) -> str:
    if kind.naming == "guid":
        return str(uuid.uuid4())
    return logical if kind.naming == "logical" else logical + secrets.token_hex(4)


def _is_generated(kind: ResourceType, logical: str, name: str) -> bool:
    """Whether `name` is one of azure-native's own; a new resource gets another."""
    if kind.naming == "guid":
        return True
    return kind.naming == "suffix" and re.fullmatch(re.escape(logical) + "[0-9a-f]{8}", name) is not None


def _object_id(token: str) -> str:
    """The principal in an access token. It is read, not verified: ARM does that with every request."""
    payload = token.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return str(claims.get("oid", ""))


__all__ = ["ArmError", "AzureNative", "Diff", "ProviderError"]
