"""`emulator start --hub` and `az`: what hub clients and people who sign in find inside."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.emulator.test_lifecycle import emulator
from tests.support.local_azure import LocalAzure, last_json

ASK = """
import json
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
name = "microsoft/Phi-3.5-mini-instruct"
rows = load_dataset("HuggingFaceH4/ultrachat_200k", "default", split="train_sft[:1%]")
tokenizer = AutoTokenizer.from_pretrained(name)
text = tokenizer.apply_chat_template(rows[0]["messages"], tokenize=False)
ids = tokenizer(text)["input_ids"]
said = {"rows": len(rows), "columns": rows.column_names}
said["same"] = "".join(tokenizer.decode(ids).split()) == "".join(text.split())
pinned = load_dataset("HuggingFaceH4/ultrachat_200k", "default", split="test_sft", revision="8" * 40)
said["pinned"] = len(pinned)
said["unk"], said["type"] = tokenizer.unk_token, AutoModelForCausalLM.from_pretrained(name).config.model_type
try:
    AutoTokenizer.from_pretrained("somebody/else")
except OSError as error:
    said["missing"] = "somebody/else" in str(error)
print(json.dumps(said))
"""
CLI = """
import json
from azure.identity import AzureCliCredential
import base64
token = AzureCliCredential().get_token("https://management.azure.com/.default").token
body = token.split(".")[1]
print(json.dumps(json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAzure]:
    made = LocalAzure.start(tmp_path_factory.mktemp("hub"), hub=True)
    yield made
    made.stop()


def test_the_data_set_and_the_models_load_by_their_names(hub: LocalAzure) -> None:
    done = hub.run("-c", ASK)
    assert done.returncode == 0, done.stderr[-2000:]
    assert last_json(done.stdout) == {
        "rows": 20,
        "columns": ["prompt", "prompt_id", "messages"],
        "same": True,
        "pinned": 200,
        "unk": "<unk>",
        "type": "phi3",
        "missing": True,
    }


def test_what_is_downloaded_lies_apart_from_the_real_hubs(hub: LocalAzure) -> None:
    assert hub.env["HF_HOME"] == str(hub.home.path / "hub-cache")


def test_a_running_emulator_without_the_hub_is_not_given_one_in_silence(azure: LocalAzure) -> None:
    done = emulator(azure.home.path, "start", "--hub")
    assert done.returncode == 1 and "runs already, without the hub" in done.stderr


def test_the_hub_is_not_there_unless_it_is_asked_for(azure: LocalAzure) -> None:
    assert "HF_ENDPOINT" not in emulator(azure.home.path, "env").stdout


def test_the_azure_cli_credential_gets_the_owners_token(azure: LocalAzure) -> None:
    found = last_json(azure.run("-c", CLI).stdout)
    assert found["aud"] == "https://management.azure.com" and found["appid"] == azure.env["ARM_CLIENT_ID"]


def test_az_shows_the_account_and_says_what_it_does_not_have(azure: LocalAzure) -> None:
    shown = emulator(azure.home.path, "run", "--", "az", "account", "show")
    assert json.loads(shown.stdout)["id"] == azure.env["AZURE_SUBSCRIPTION_ID"]
    other = emulator(azure.home.path, "run", "--", "az", "vm", "create")
    assert other.returncode == 2 and "'az vm create' is not emulated" in other.stderr
