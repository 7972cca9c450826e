"""The openvino engine: the same contract on an exported model. Skipped where the library is not installed.

In an environment of its own: pip install -r deployment/server/openvino/requirements.txt nncf
"""

from __future__ import annotations

import json
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from deployment.server import openvino_check, openvino_engine
from deployment.server.decoding import Choice
from deployment.server.openvino_check import VERDICT, Verdict
from deployment.server.openvino_engine import OpenVinoEngine, OpenVinoModel
from deployment.server.openvino_pipeline import Asked
from deployment.server.rows import EngineStopped, Event, Failed, Finished, QueueFull, Row
from deployment.server.transformers_engine import TransformersModel
from infra.cli import REFUSED, UserError
from tests.deployment.conftest import free_port, serve, wait_idle
from tests.deployment.test_batcher import WORDS, finish, generated, row
from tests.deployment.test_server_process import wait_for

needs_openvino = pytest.mark.skipif(
    find_spec("openvino_genai") is None or find_spec("nncf") is None, reason="openvino-genai and nncf are not installed"
)


def test_an_export_that_was_not_measured_or_lost_too_much_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="never measured") as refused:
        openvino_check.require_approved(tmp_path)
    assert refused.value.code == REFUSED
    for after in (2.5, float("nan")):
        Verdict(2.0, after, 100).write(tmp_path)
        with pytest.raises(UserError, match="was refused"):
            openvino_check.require_approved(tmp_path)
    Verdict(2.0, 2.0 + openvino_check.MAX_RISE / 2, 100).write(tmp_path)
    openvino_check.require_approved(tmp_path)


def test_the_cache_takes_no_more_than_is_useful_or_free() -> None:
    gib = openvino_engine.GIB
    assert openvino_engine.cache_gigabytes(100 * gib, 3 * gib) == 3
    assert openvino_engine.cache_gigabytes(10 * gib, 30 * gib) == 4
    assert openvino_engine.cache_gigabytes(None, gib // 2) == 1


@pytest.mark.skipif(find_spec("openvino_genai") is not None, reason="openvino-genai is installed")
def test_a_missing_library_is_named_with_the_command_that_installs_it(model_folder: Path) -> None:
    with pytest.raises(UserError, match=r"pip install -r deployment/server/openvino"):
        openvino_engine.load(model_folder, threads=1)


class Echo:
    """Stands for the pipeline: each request gets its own number as a token at each step. The step numbered `fails` does
    not succeed.
    """

    def __init__(self, fails: int = 0) -> None:
        self.live: set[int] = set()
        self.steps, self.fails = 0, fails

    def step(self, added: Sequence[Asked], gone: Sequence[int]) -> dict[int, list[int]]:
        self.steps += 1
        self.live = (self.live - set(gone)) | {one.number for one in added}
        if self.steps == self.fails:
            raise RuntimeError("a step failed")
        return {number: [number] for number in self.live}

    def close(self) -> None: ...


def started(pipeline: Any, loaded: TransformersModel, count: int, bound: int) -> tuple[OpenVinoEngine, list[Any]]:
    engine = OpenVinoEngine(pipeline, frozenset(), slots=4, queue=64)
    asked = [row(loaded, "hello", bound) for _ in range(count)]
    engine.submit([made for made, _ in asked])
    return engine, asked


def test_each_row_gets_its_own_tokens_and_the_pipeline_is_told_of_all_that_go(loaded: TransformersModel) -> None:
    echo = Echo()
    engine, asked = started(echo, loaded, 10, 5)
    for _, events in asked:
        finish(events)
    engine.close()
    assert [made.generated for made, _ in asked] == [[number] * 5 for number in range(1, 11)]
    assert not echo.live


def test_a_failed_step_fails_its_rows_and_the_next_are_answered(loaded: TransformersModel) -> None:
    echo = Echo(fails=3)
    engine, asked = started(echo, loaded, 2, 50)
    for made, events in asked:
        while not isinstance(event := events.get(timeout=20), Failed):
            pass
        assert event.message == "the batch failed: RuntimeError" and len(made.generated) == 2
    made, events = row(loaded, "hello", 4)
    engine.submit([made])
    finish(events)
    engine.close()
    assert made.generated == [3] * 4 and not echo.live


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # that thread is to end
def test_a_pipeline_that_is_gone_ends_the_engine_and_nobody_waits(loaded: TransformersModel) -> None:
    class Gone(Echo):
        def step(self, added: Sequence[Asked], gone: Sequence[int]) -> dict[int, list[int]]:
            raise SystemExit(1)

    engine, [(_, events)] = started(Gone(), loaded, 1, 4)
    assert isinstance(events.get(timeout=20), Failed)
    engine._thread.join(20)
    assert not engine.alive
    with pytest.raises(EngineStopped):
        engine.submit([row(loaded, "hello")[0]])


@pytest.fixture(scope="module")
def exported(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from deployment.server import openvino_export

    out = tmp_path_factory.mktemp("exported") / "small"
    held_out = out.parent / "eval.jsonl"
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "Hello everyone!"}]
    held_out.write_text(json.dumps({"messages": messages}) + "\n")
    words = ["--model", str(model_folder), "--eval", str(held_out), "--out", str(out), "--json"]
    assert openvino_export.main(words) == 0
    return out


@pytest.fixture(scope="module")
def fast(exported: Path) -> OpenVinoModel:
    return openvino_engine.load(exported, threads=1)


@pytest.fixture(scope="module")
def engine(fast: OpenVinoModel) -> Iterator[OpenVinoEngine]:
    made = fast.start(4, 64)
    yield made
    made.close()


@needs_openvino
def test_the_export_says_what_it_cost(exported: Path) -> None:
    found = json.loads((exported / VERDICT).read_text())
    assert found["approved"] is True
    assert abs(found["rise"]) < openvino_check.MAX_RISE
    assert found["loss_before"] != found["loss_after"]


@needs_openvino
def test_a_loss_that_rose_by_a_nat_is_not_approved(exported: Path, model_folder: Path) -> None:
    verdict = openvino_check.check(model_folder, exported, exported.parent / "eval.jsonl")
    assert verdict.approved
    assert not replace(verdict, loss_after=verdict.loss_before + 1).approved


@needs_openvino
def test_the_server_leaves_with_the_gates_exit_code(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "unmeasured", ignore=shutil.ignore_patterns(VERDICT))
    command = [sys.executable, "-m", "deployment.server", "--model", str(tmp_path / "unmeasured")]
    done = subprocess.run([*command, "--port", str(free_port())], capture_output=True, text=True, timeout=120)
    assert done.returncode == REFUSED
    assert "never measured" in done.stderr and "Traceback" not in done.stderr


@needs_openvino
def test_greedy_tokens_are_mostly_those_of_the_original_whoever_joins(
    loaded: TransformersModel, engine: OpenVinoEngine
) -> None:
    dice = random.Random(5)
    asked = []
    for _ in range(20):
        made, events = row(loaded, " ".join(dice.choices(WORDS, k=dice.randint(1, 30))), dice.randint(2, 12))
        engine.submit([made])
        asked.append((made, events))
        time.sleep(dice.random() * 0.01)
    for _, events in asked:
        finish(events)
    same = sum(made.generated == generated(loaded, made.prompt, made.max_tokens) for made, _ in asked)
    assert all(len(made.generated) == made.max_tokens for made, _ in asked)
    assert same >= 10  # 8-bit weights, and a model whose choices are all near


@needs_openvino
def test_a_seed_repeats_and_another_differs(loaded: TransformersModel, engine: OpenVinoEngine) -> None:
    def drawn(seed: int) -> list[int]:
        made, events = row(loaded, "hello", 12, temperature=1.0, seed=seed)
        engine.submit([made])
        finish(events)
        return made.generated

    assert drawn(1) == drawn(1) != drawn(2)


@needs_openvino
@pytest.mark.parametrize(("temperature", "top_p"), [(5e-324, 0.9), (1e-9, 1e-300), (1.0, 1e-300), (2.0, 1.0)])
def test_no_temperature_or_top_p_makes_a_batch_fail(
    loaded: TransformersModel, engine: OpenVinoEngine, temperature: float, top_p: float
) -> None:
    made, events = row(loaded, "hello", 3)
    made.choice = Choice(temperature, top_p, 1)
    engine.submit([made])
    assert finish(events)[1].completion_tokens == 3


@needs_openvino
def test_cancelled_rows_leave_no_page_behind(loaded: TransformersModel, fast: OpenVinoModel) -> None:
    engine = fast.start(4, 8)
    dice, live = random.Random(3), list[Row]()
    for _ in range(300):
        made, _ = row(loaded, dice.choice(WORDS), 300)
        try:
            engine.submit([made])
            live.append(made)
        except QueueFull:
            live.pop(dice.randrange(len(live))).cancel()
            time.sleep(0.002)
    for one in live:
        one.cancel()
    deadline = time.monotonic() + 20
    while any(engine.load):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not engine._rows
    events: queue.Queue[Event]
    made, events = row(loaded, "hello", 4)
    engine.submit([made])
    assert finish(events)[1] == Finished("length", 4)
    engine.close()
    assert not engine.alive


@needs_openvino
def test_the_contract_holds_in_front_of_it(fast: OpenVinoModel) -> None:
    with serve(fast) as server, httpx.Client(base_url=server.url, timeout=30, trust_env=False) as client:
        asked = {"messages": [{"role": "user", "content": "Who founded Microsoft?"}], "max_tokens": 12}
        whole = client.post("/score", json=asked).json()["choices"][0]["message"]["content"]
        lines = client.post("/score", json={**asked, "stream": True}).text.splitlines()
        chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == whole
        stop = whole[len(whole) // 2 : len(whole) // 2 + 3]
        cut = client.post("/score", json={**asked, "stop": stop}).json()["choices"][0]
        assert (cut["message"]["content"], cut["finish_reason"]) == (whole[: whole.index(stop)], "stop")
        guide = client.post("/score", json={"input_data": ["Who founded Microsoft?"], "params": {"max_new_tokens": 12}})
        assert guide.json() == [whole]
        wait_idle(server, 5)


@pytest.fixture
def process(exported: Path) -> Iterator[tuple[subprocess.Popen[bytes], psutil.Process, httpx.Client]]:
    """A server in a group of its own, its pipeline's process, and a client, once it is ready."""
    port = free_port()
    words = ["--model", str(exported), "--port", str(port), "--threads", "1"]
    server = subprocess.Popen([sys.executable, "-m", "deployment.server", *words], start_new_session=True)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
        wait_for(client, "/ready", 60)
        (pipeline,) = psutil.Process(server.pid).children()
        yield server, pipeline, client
    server.kill()
    server.wait()
    pipeline.wait(20)  # it ends with the server, however that ended


LONG = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 600}


@needs_openvino
def test_the_library_is_in_a_process_of_its_own_where_its_lock_keeps_nobody_waiting(process: Any) -> None:
    server, pipeline, _ = process
    libraries = [Path(f"/proc/{pid}/maps").read_text() for pid in (server.pid, pipeline.pid)]
    assert ["openvino_genai" in maps for maps in libraries] == [False, True]


@needs_openvino
def test_sigterm_to_the_whole_group_loses_no_accepted_request(process: Any) -> None:
    server, pipeline, client = process
    with ThreadPoolExecutor(3) as pool:
        replies = [pool.submit(client.post, "/score", json=LONG) for _ in range(3)]
        while client.get("/ready").json()["running"] < 3:
            time.sleep(0.01)
        os.killpg(server.pid, signal.SIGTERM)
        assert [reply.result().json()["usage"]["completion_tokens"] for reply in replies] == [600] * 3
    assert server.wait(20) == 0
    pipeline.wait(20)


@needs_openvino
def test_a_pipeline_that_is_killed_ends_the_server_which_is_started_again_at_once(process: Any) -> None:
    server, pipeline, client = process
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(client.post, "/score", json=LONG)
        while client.get("/ready").json()["running"] < 1:
            time.sleep(0.01)
        pipeline.kill()
        assert reply.result().status_code == 500
    assert server.wait(20) == 1


@needs_openvino
def test_weights_that_cannot_be_read_are_one_sentence(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "damaged")
    (tmp_path / "damaged" / "openvino_model.xml").write_text("<nothing/>")
    command = [sys.executable, "-m", "deployment.server", "--model", str(tmp_path / "damaged")]
    done = subprocess.run([*command, "--port", str(free_port())], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "cannot be loaded" in done.stderr and "Traceback" not in done.stderr
