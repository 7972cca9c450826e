"""The loop through its own commands against the emulator, failures above all: what each leaves behind.

`make demo` is the loop that succeeds, with the real recipe; here a model of a few steps stands in, and what goes wrong
in real life is made to go wrong.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.local_azure import ROOT, LocalAzure, last_json

STACK = "local-test"
HASTE = ("--set", "num_train_epochs=1", "--set", "gate_min_gain=0.1")


@dataclass
class Stack:
    """A stack on an emulator of its own, brought up by the real program; `outputs` is the file of its outputs."""

    azure: LocalAzure
    workspace: str
    outputs: Path

    def verb(self, module: str, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        return self.azure.run("-m", module, *words, "--stack", STACK, **env)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("loop")
    azure = LocalAzure.start(folder / "emulator")
    done = azure.run("-m", "infra.environment", "up", "--stack", STACK, "--yes", "--json", "--config", str(folder))
    assert done.returncode == 0, done.stderr
    (folder / "outputs.json").write_text(done.stdout)
    yield Stack(azure, last_json(done.stdout)["workspace_id"], folder / "outputs.json")
    azure.stop()
    (ROOT / f"Pulumi.{STACK}.yaml").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def data(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "data"
    assert stack.azure.run("-m", "training.dataset", "--recipe", "local", "--out", str(folder)).returncode == 0
    made = stack.azure.run(
        "-m", "training.small_model", "--out", str(folder / "base-model"), "--corpus", str(folder / "train.jsonl")
    )
    assert made.returncode == 0, made.stderr
    return folder


@pytest.fixture(scope="module")
def trained(stack: Stack, data: Path) -> dict[str, object]:
    """A job that really ran, one epoch long, and its registered model."""
    done = stack.verb("training.submit", "--recipe", "local", "--data", str(data), "--json", *HASTE)
    assert done.returncode == 0, done.stderr[-3000:]
    return last_json(done.stdout)


@pytest.fixture(scope="module")
def served(stack: Stack, trained: dict[str, object]) -> dict[str, object]:
    done = stack.verb("deployment.rollout", "--yes", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    return last_json(done.stdout)


def test_a_submitted_job_becomes_a_registered_model_with_its_lineage(stack: Stack, trained: dict[str, object]) -> None:
    assert trained["status"] == "Completed"
    name, version = str(trained["model"]).split(":")
    workspace = stack.workspace
    model = stack.azure.request("GET", f"{workspace}/models/{name}/versions/{version}").json()
    tags = model["properties"]["tags"]
    assert tags["job"] == trained["job"] and tags["approved"] == "true" and tags["stack"] == STACK


def test_following_the_same_job_again_registers_nothing_twice(
    stack: Stack, data: Path, trained: dict[str, object]
) -> None:
    words = ("--data", str(data), "--attach", str(trained["job"]), "--json")
    again = stack.verb("training.submit", *words)
    assert last_json(again.stdout)["model"] == trained["model"]


def test_the_rollout_serves_and_a_second_one_changes_nothing(stack: Stack, served: dict[str, object]) -> None:
    assert served["traffic"] == {served["deployment"]: 100}
    again = last_json(stack.verb("deployment.rollout", "--yes", "--json").stdout)
    assert again["state"] == "unchanged"


def test_the_chat_answers_through_the_endpoint_and_keeps_its_history(
    stack: Stack, served: dict[str, object], tmp_path: Path
) -> None:
    history = str(tmp_path / "chat.db")
    asked = stack.verb("flow.chat", "Who founded Microsoft?", "--json", CHAT_HISTORY=history)
    assert asked.returncode == 0, asked.stderr
    first = last_json(asked.stdout)
    words = ("--conversation", str(first["conversation"]), "--json")
    second = last_json(stack.verb("flow.chat", "When?", *words, CHAT_HISTORY=history).stdout)
    assert second["usage"]["prompt_tokens"] > first["usage"]["prompt_tokens"] + 5


def test_prompt_flow_runs_the_same_conversation(stack: Stack, served: dict[str, object], tmp_path: Path) -> None:
    code = "import sys; from promptflow._cli._pf.entry import main; sys.argv = ['pf', *sys.argv[1:]]; main()"
    question = "question=Who founded Microsoft?"
    done = stack.azure.run(
        "-c", code, "flow", "test", "--flow", "flow", "--inputs", question,
        PF_HOME_DIRECTORY=str(tmp_path / "pf"), STACK_OUTPUTS=str(stack.outputs),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    assert '"answer"' in done.stdout


def test_a_job_that_fails_shows_the_end_of_its_log_and_registers_nothing(
    stack: Stack, data: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "data"
    broken.mkdir()
    for name in ("train.jsonl", "eval.jsonl", "card.json"):
        (broken / name).write_bytes((data / name).read_bytes())
    (broken / "base-model").mkdir()
    (broken / "base-model" / "config.json").write_text("{}")
    words = ("--recipe", "local", "--data", str(broken), "--set", "registered_name=never")
    done = stack.verb("training.submit", *words)
    assert done.returncode == 1, done.stderr
    assert "Traceback (most recent call last)" not in done.stderr.split("error:")[-1]
    assert "next:" in done.stderr
    assert stack.azure.request("GET", f"{stack.workspace}/models/never").status_code == 404


def test_a_server_that_does_not_come_up_leaves_the_endpoint_as_it_was(
    stack: Stack, served: dict[str, object], trained: dict[str, object]
) -> None:
    workspace = stack.workspace
    uri = f"azureml://jobs/{trained['job']}/outputs/artifacts/paths/user_logs"
    properties = {"modelType": "custom_model", "modelUri": uri, "tags": {"approved": "true"}}
    stack.azure.put(f"{workspace}/models/broken/versions/1", {"properties": properties})
    done = stack.verb("deployment.rollout", "--model", "broken:1", "--yes")
    assert done.returncode == 1
    assert "config.json" in done.stderr, done.stderr
    assert "as it was" in done.stderr
    status = last_json(stack.verb("deployment.status", "--json").stdout)
    assert status["traffic"] == served["traffic"]


def test_an_unapproved_model_is_refused(stack: Stack, trained: dict[str, object]) -> None:
    workspace = stack.workspace
    uri = f"azureml://jobs/{trained['job']}/outputs/model"
    stack.azure.put(
        f"{workspace}/models/unapproved/versions/1", {"properties": {"modelType": "custom_model", "modelUri": uri}}
    )
    done = stack.verb("deployment.rollout", "--model", "unapproved:1", "--yes")
    assert done.returncode == 3
    assert done.stderr.count("Traceback") == 0


def test_without_a_stack_a_verb_says_what_to_type(stack: Stack) -> None:
    done = stack.azure.run("-m", "deployment.status", "--stack", "nobody")
    assert done.returncode == 2
    assert "nobody" in done.stderr and "next: make up" in done.stderr and "Traceback" not in done.stderr


def test_down_leaves_nothing_and_says_so(stack: Stack, served: dict[str, object]) -> None:
    done = stack.verb("infra.environment", "down", "--yes", "--config", str(stack.outputs.parent))
    assert done.returncode == 0, done.stderr[-3000:]
    group = stack.workspace.split("/providers/")[0]
    assert stack.azure.request("GET", group).status_code == 404
    status = json.loads(stack.azure.run("-m", "emulator", "status", "--json").stdout)
    assert status["resources"] == {}
    assert stack.verb("infra.environment", "down", "--yes", "--config", str(stack.outputs.parent)).returncode in (0, 2)
