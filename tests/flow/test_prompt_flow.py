"""Prompt flow's own commands on our flow, and its end."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import httpx
import pytest
import yaml

from infra.outputs import PROJECT
from tests.deployment.conftest import free_port
from tests.flow.serving import environment, served, wait_ready
from tests.support.stub_endpoint import Stub, stub_endpoint

PF = Path(sys.executable).with_name("pf")
RETIRED = date(2027, 4, 20)
"""https://learn.microsoft.com/azure/machine-learning/prompt-flow/migrate-prompt-flow-to-agent-framework"""
NOTICE = timedelta(days=90)


def end_of(today: date) -> str | None:
    """What is to be said of Prompt flow's end on a day, if it is near or over."""
    if today < RETIRED - NOTICE:
        return None
    days = (RETIRED - today).days
    when = f"retires in {days} days" if days > 0 else f"was retired {-days} days ago"
    return f"Prompt flow {when}, on {RETIRED}: follow docs/promptflow-sunset.md"


def test_prompt_flow_is_still_there() -> None:
    """Warns from 90 days before the end on; the way out is a document, not a broken build."""
    if said := end_of(date.today()):
        warnings.warn(said, stacklevel=1)


@pytest.mark.parametrize(
    ("day", "words"),
    [
        (date(2027, 1, 19), None),
        (date(2027, 1, 20), "in 90 days"),
        (date(2027, 4, 19), "in 1 days"),
        (date(2027, 4, 20), "retired 0 days ago"),
        (date(2028, 1, 1), "retired 256 days ago"),
    ],
)
def test_the_warning_begins_90_days_before_the_end_and_names_the_document(day: date, words: str | None) -> None:
    said = end_of(day)
    assert (said is None) if words is None else (said is not None and words in said and "promptflow-sunset.md" in said)


def test_the_document_names_the_dates_and_every_file_that_goes() -> None:
    text = (PROJECT / "docs" / "promptflow-sunset.md").read_text()
    assert "2026-04-20" in text and RETIRED.isoformat() in text
    knowing = [
        path.name
        for path in (PROJECT / "flow").rglob("*.py")
        if "promptflow" in "\n".join(line for line in path.read_text().splitlines() if "import" in line)
    ]
    assert {*knowing, "flow.dag.yaml", "pf.yaml"} <= {name for name in _names(text)}, knowing
    assert set(knowing) == {"flow_tool.py", "prompt_flow.py"}


def _names(text: str) -> Iterator[str]:
    for word in text.replace("`", " ").split():
        yield word.strip(".,;:()").rpartition("/")[2]


def test_the_flow_has_a_chat_s_inputs_and_no_default_question() -> None:
    flow = yaml.safe_load((PROJECT / "flow" / "flow.dag.yaml").read_text())
    assert flow["inputs"]["question"] == {"type": "string", "is_chat_input": True}
    assert flow["inputs"]["chat_history"]["is_chat_history"] and flow["outputs"]["answer"]["is_chat_output"]
    settings = yaml.safe_load((PROJECT / "pf.yaml").read_text())
    assert settings == {"telemetry": {"enabled": False}, "trace": {"destination": "none"}}


@pytest.fixture
def stub() -> Iterator[Stub]:
    with stub_endpoint() as made:
        yield made


def pf(folder: Path, stub: Stub, *words: str) -> str:
    env = {**environment(folder, stub.url), "PF_HOME_DIRECTORY": str(folder / "pf")}
    done = subprocess.run([str(PF), *words], cwd=PROJECT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_pf_flow_validate_passes(tmp_path: Path, stub: Stub) -> None:
    assert json.loads(pf(tmp_path, stub, "flow", "validate", "--source", "flow")) == {"result": "Succeeded"}


@pytest.mark.slow
def test_pf_flow_test_answers(tmp_path: Path, stub: Stub) -> None:
    said = pf(tmp_path, stub, "flow", "test", "--flow", "flow", "--inputs", "question=Who founded Microsoft?")
    assert '"answer": "Who founded Microsoft?"' in said


@pytest.mark.slow
def test_pf_flow_serve_answers_with_its_page_and_ours_starts_five_times_faster(tmp_path: Path, stub: Stub) -> None:
    """From the command to the page, in turns, three of each."""
    theirs, ours = [], []
    for turn in range(3):
        theirs.append(_pf_serve(tmp_path / f"pf{turn}", stub, ask=turn == 0))
        with served(tmp_path / f"ours{turn}", stub.url) as made:
            ours.append(made.seconds)
    slow, fast = statistics.median(theirs), statistics.median(ours)
    print(f"to the page: pf flow serve {slow:.2f} s, flow.serve {fast:.2f} s, {slow / fast:.1f} times as long")
    assert slow >= 5 * fast


def _pf_serve(folder: Path, stub: Stub, *, ask: bool) -> float:
    env = {**environment(folder, stub.url), "PF_HOME_DIRECTORY": str(folder / "pf"), "PF_LOGGING_LEVEL": "WARNING"}
    port, began = free_port(), time.monotonic()
    words = ["flow", "serve", "--source", "flow", "--port", str(port), "--engine", "fastapi", "--skip-open-browser"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([str(PF), *words], cwd=PROJECT, env=env, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_ready(url, process, folder / "log")
        seconds = time.monotonic() - began
        if ask:
            answer = httpx.post(f"{url}/score", json={"question": "one two"}, trust_env=False, timeout=60)
            assert answer.json() == {"answer": "one two"}
    finally:
        process.terminate()
        process.wait(30)
    return seconds
