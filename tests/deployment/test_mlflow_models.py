"""What the registry's component has made: where its files lie, on which sizes it is served, how it is asked."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from deployment import image, smoke
from deployment.creation import CONCURRENCY, REQUEST_TIMEOUT_MS, Maker
from deployment.model_choice import SIZES, ModelVersion
from deployment.plan import Goal
from deployment.server.model import find_model
from infra.cli import UserError
from tests.deployment.test_choices import outputs

MADE = ModelVersion(
    "phi",
    "3",
    datetime(2026, 1, 1, tzinfo=UTC),
    {
        "approved": "true",
        "component": "chat_completion_pipeline:1",
        SIZES: "['Standard_NC6s_v3', 'Standard_ND96asr_v4']",
    },
    "mlflow_model",
)


def maker(made: image.Image | None) -> Maker:
    goal = Goal("phi:3", str(made or ""), "Standard_NC6s_v3")
    return Maker(None, outputs(), "chat", goal, made)  # type: ignore[arg-type]  # nothing is asked of Azure


def test_an_mlflow_model_is_served_on_the_sizes_of_its_base_model_alone() -> None:
    MADE.check_size("standard_nc6S_V3")
    with pytest.raises(
        UserError, match=r"phi:3 is not served by MLflow on Standard_E4s_v3: .* Standard_NC6s_v3, "
    ) as caught:
        MADE.check_size("Standard_E4s_v3")
    assert caught.value.code == 2 and "--instance-type Standard_NC6s_v3" in str(caught.value.next_command)
    replace(MADE, tags={"approved": "true"}).check_size("Standard_E4s_v3")


@pytest.mark.parametrize(
    "text", ["[print('x')]", "{'a': 1}", "[", "", "(" * 99999, "-" * 50000 + "1", "-" * 3000 + "1"]
)
def test_a_list_of_sizes_that_is_none_is_refused_and_not_evaluated(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="is no Python list") as caught:
        replace(MADE, tags={SIZES: text}).check_size("Standard_NC6s_v3")
    assert caught.value.code == 2 and capsys.readouterr().out == ""


def test_without_our_server_requests_and_probes_are_those_of_the_guide() -> None:
    made = maker(None).new_deployment("blue")
    assert made.environment is None and made.model == "azureml:phi:3"
    assert made.request_settings.request_timeout_ms == 90_000
    assert made.liveness_probe.initial_delay == 600
    assert made.readiness_probe.failure_threshold > 1, "--ready-within holds here too"


def test_our_server_keeps_its_own() -> None:
    made = maker(image.of_server()).new_deployment("blue")
    settings = made.request_settings
    assert settings.request_timeout_ms == REQUEST_TIMEOUT_MS
    assert settings.max_concurrent_requests_per_instance == CONCURRENCY
    assert made.liveness_probe.initial_delay == 10


def test_mlflows_server_is_asked_for_a_chat_as_in_the_guide() -> None:
    body: Any = smoke.MLFLOW_CHAT.body
    assert set(body) == {"input_data", "params"} and body["params"] == {}
    ((message,),) = body["input_data"]["input_string"]
    assert message["role"] == "user" and message["content"]
    assert set(body["input_data"]["parameters"]) == {"temperature", "top_p", "do_sample", "max_new_tokens"}
    assert smoke.judge(smoke.MLFLOW_CHAT, 200, '{"output": "I am Phi."}') == 0
    assert MADE.is_chat_by_mlflow and not replace(MADE, tags={}).is_chat_by_mlflow


def write(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text(json.dumps({}))


def test_our_server_finds_the_weights_in_an_mlflow_folder(tmp_path: Path) -> None:
    write(tmp_path / "trained_model" / "data" / "config", "config.json", "generation_config.json")
    write(tmp_path / "trained_model" / "data" / "tokenizer", "tokenizer.json")
    write(tmp_path / "trained_model" / "data" / "model", "config.json", "model.safetensors", "tokenizer.json")
    write(tmp_path / "trained_model" / "data" / "model" / "checkpoints", "config.json", "model.safetensors")
    found = find_model(None, {"AZUREML_MODEL_DIR": str(tmp_path)})
    assert found == tmp_path / "trained_model" / "data" / "model"


def test_a_folder_without_weights_is_still_named(tmp_path: Path) -> None:
    write(tmp_path / "data" / "config", "config.json")
    with pytest.raises(UserError, match="data/config has no weights"):
        find_model(None, {"AZUREML_MODEL_DIR": str(tmp_path)})
