"""The second guide's way by our verbs, whole, on the emulator's own component: minutes, not seconds."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.support.local_azure import ROOT, last_json
from tests.support.stack import Stack, stack

pytestmark = pytest.mark.slow
RECIPE = ("--recipe", "registry-local")
HASTE = ("--yes", "--soak", "2", "--keep", "0")
GPU = "Standard_NC24ads_A100_v4"


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with stack(tmp_path_factory.mktemp("life"), "local-component") as made:
        done = made.azure.run("-m", "training.dataset", *RECIPE, "--out", str(made.folder / "data"))
        assert done.returncode == 0, done.stderr
        yield made


def submit(up: Stack, *words: str) -> tuple[str, ...]:
    return ("training.submit", *RECIPE, "--data", str(up.folder / "data"), *words)


@pytest.fixture(scope="module")
def trained(up: Stack) -> dict[str, object]:
    """Submitted by a process that is killed while the component trains, and followed to its end by another."""
    log = up.folder / "first.log"
    words = [*submit(up), "--outputs", str(up.outputs)]
    with log.open("w") as output:
        first = subprocess.Popen(
            [sys.executable, "-m", *words], env=up.azure.env | _records(up), cwd=ROOT, stdout=output, stderr=output
        )
        deadline = time.monotonic() + 300
        while "chat_completion_finetune: Running" not in log.read_text():
            assert first.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.2)
        first.kill()
        first.wait()
    done = up.verb(*submit(up, "--json"), timeout=1200, **_records(up))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "following it" in done.stderr and "submitting" not in done.stderr
    return last_json(done.stdout)


def _records(up: Stack) -> dict[str, str]:
    return {"RUN_RECORDS": str(up.folder / "runs"), "OMP_NUM_THREADS": "1"}


def test_its_model_is_approved_and_registered_once(up: Stack, trained: dict[str, object]) -> None:
    assert trained["approved"] is True and trained["model"] == "phi-local-registry:1"
    again = up.verb(*submit(up, "--json"), **_records(up))
    assert last_json(again.stdout) == trained and "has done the same run" in again.stderr


def test_the_same_data_gives_a_loss_of_the_same_size_by_our_own_job(up: Stack, trained: dict[str, object]) -> None:
    weights, data = up.folder / "weights", up.folder / "data"
    subprocess.run([sys.executable, "-m", "emulator.system_registry.weights", str(weights)], cwd=ROOT, check=True)
    base = weights / "Phi-3-mini-4k-instruct" / "data" / "model"
    rows = (data / "train.jsonl").read_text().splitlines(keepends=True)
    (up.folder / "train.jsonl").write_text("".join(rows[: len(rows) * 4 // 5]))  # the component keeps a fifth apart
    done = subprocess.run(
        [
            *(sys.executable, "-m", "training.sft", "--recipe", "local", "--set", "learning_rate=3e-3"),
            *("--set", "save_strategy=no", "--model", str(base), "--train", str(up.folder / "train.jsonl")),
            *("--eval", str(data / "eval.jsonl"), "--output", str(up.folder / "ours"), "--json"),
        ],
        env={**os.environ, "DISABLE_MLFLOW_INTEGRATION": "true"}, cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    ours, theirs = last_json(done.stdout)["metrics"], trained["metrics"]
    assert isinstance(theirs, dict)
    print(f"held-out loss, nats: TRL {ours['eval_loss']}, the component {theirs['eval_loss']}")
    assert theirs["eval_loss_before"] == pytest.approx(ours["eval_loss_before"], abs=1e-3)
    assert abs(theirs["eval_loss"] - ours["eval_loss"]) < 0.3  # of 6.7 before


def test_our_server_and_then_mlflows_serve_it_blue_and_green(up: Stack, trained: dict[str, object]) -> None:
    first = up.json("deployment.rollout", *HASTE)
    assert (first["model"], first["state"], first["deployment"]) == (trained["model"], "serving", "blue")
    answer = up.json("flow.chat", "Who founded Microsoft?")["answer"]
    assert "Bill Gates" in str(answer)
    refused = up.verb("deployment.rollout", "--engine", "mlflow", *HASTE)
    assert refused.returncode == 2 and "is not served by MLflow on Standard_E4s_v3" in refused.stderr
    second = up.json("deployment.rollout", "--engine", "mlflow", "--instance-type", GPU, *HASTE)
    assert (second["deployment"], second["traffic"]) == ("green", {"green": 100})
    _ask_as_the_guide_does(up, str(second["scoring_uri"]))


def _ask_as_the_guide_does(up: Stack, address: str) -> None:
    settings = {"temperature": 0.6, "top_p": 0.9, "do_sample": True, "max_new_tokens": 200}
    chat = {"input_string": [[{"role": "user", "content": "Who founded Microsoft?"}]], "parameters": settings}
    reply = up.azure.request("POST", address, audience="https://ml.azure.com", json={"input_data": chat, "params": {}})
    assert reply.status_code == 200 and reply.json()["output"].strip(), reply.text
