"""Which endpoint is asked, as whom: from outputs and environment."""

from __future__ import annotations

import dataclasses
import json

import pytest

from flow.target import endpoint_of, outputs_here, user_here
from infra.cli import WRONG_USE, UserError
from infra.outputs import StackOutputs

NAMES = [field.name for field in dataclasses.fields(StackOutputs)]
OUTPUTS = StackOutputs(**{**dict.fromkeys(NAMES, ""), "stack": "dev", "location": "eastus2", "workspace_id": "/w"})


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CHAT_ENDPOINT", "CHAT_ENDPOINT_KEY", "STACK_OUTPUTS_JSON", "STACK_OUTPUTS", "CHAT_USER"):
        monkeypatch.delenv(name, raising=False)


def test_a_key_from_the_environment_is_sent_to_the_address_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CHAT_ENDPOINT", "https://elsewhere/score")
    monkeypatch.setenv("CHAT_ENDPOINT_KEY", "k")
    found = endpoint_of(OUTPUTS)
    assert (found.url, found.headers()) == ("https://elsewhere/score", {"Authorization": "Bearer k"})
    assert "Bearer k" not in repr(found)


def test_in_a_container_the_address_follows_from_the_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    from deployment.endpoint import endpoint_name

    monkeypatch.setenv("STACK_OUTPUTS_JSON", json.dumps(OUTPUTS.as_dict()))
    assert outputs_here() == OUTPUTS
    address = endpoint_of(outputs_here()).url
    assert address == f"https://{endpoint_name(OUTPUTS)}.eastus2.inference.ml.azure.com/score"


@pytest.mark.parametrize("text", ["nonsense", "[1]", "5", '{"stack": 5}', "{}"])
def test_outputs_that_are_none_are_one_sentence(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STACK_OUTPUTS_JSON", text)
    with pytest.raises(UserError, match="STACK_OUTPUTS_JSON"):
        outputs_here()


@pytest.mark.parametrize("address", ["endpoint", "ftp://x", "//x/score", "file:///etc/passwd"])
def test_an_address_that_is_none_is_wrong_use(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAT_ENDPOINT", address)
    with pytest.raises(UserError, match="CHAT_ENDPOINT") as refused:
        endpoint_of(OUTPUTS)
    assert refused.value.code == WRONG_USE


def test_the_environment_says_whose_conversations_these_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "login")
    monkeypatch.setenv("LOGNAME", "login")
    assert user_here() == "login"
    monkeypatch.setenv("CHAT_USER", "ann")
    assert user_here() == "ann"
