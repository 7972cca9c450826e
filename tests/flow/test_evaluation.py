"""The evaluation: metrics that can be checked by hand, the verdict, the report, and Prompt flow's table beside ours."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flow.evaluation import __main__ as verb
from flow.evaluation import metrics, report, run
from infra.cli import REFUSED, WRONG_USE, UserError
from infra.outputs import PROJECT
from tests.flow.serving import environment
from tests.support.stub_endpoint import Stub, stub_endpoint


@pytest.mark.parametrize(
    ("answer", "expected", "exact", "f1"),
    [
        ("Paris is the capital of France.", "paris is capital of France", True, 1.0),
        ("Paris", "Paris is the capital of France", False, 1 / 3),
        ("Rome", "Paris", False, 0.0),
        ("", "Paris", False, 0.0),
        ("Paris Paris", "Paris", False, 2 / 3),
        ("Bíró", "bíró!", True, 1.0),
    ],
)
def test_exact_match_and_f1_are_those_of_squad(answer: str, expected: str, exact: bool, f1: float) -> None:
    assert metrics.exact(answer, expected) is exact
    assert metrics.f1(answer, expected) == pytest.approx(f1)


def test_fuzzy_is_one_for_the_same_and_falls_with_each_letter() -> None:
    assert metrics.fuzzy("Paris.", "paris") == 1.0
    assert 1.0 > metrics.fuzzy("Pariss", "Paris") > metrics.fuzzy("Prs", "Paris") > metrics.fuzzy("xyz", "Paris")


@pytest.mark.parametrize("text", ["I'm sorry, but no.", "As an AI, …", "I cannot answer that.", "I can't say"])
def test_refusals_are_counted(text: str) -> None:
    assert metrics.scored({"question": "q", "expected": "e"}, text, None)["refused"]
    assert not metrics.scored({"question": "q", "expected": "e"}, "It cannot be sold.", None)["refused"]


def row(f1: float, seconds: float | None = 1.0, answer: str | None = "a") -> dict[str, Any]:
    made = metrics.scored({"question": "q", "expected": "e"}, answer, seconds)
    return {**made, "f1": f1}


def test_a_summary_counts_unanswered_questions_as_nothing_right() -> None:
    rows = [row(1.0, 0.1), row(0.5, 0.3), row(0.0, None, None)]
    found = metrics.summary(rows)
    assert (found["questions"], found["unanswered"], found["f1"]) == (3, 1, 0.5)
    assert (found["seconds_median"], found["seconds_p95"]) == (0.2, 0.3)
    assert metrics.summary([row(0.0, None)])["seconds_median"] is None


def test_a_difference_is_taken_question_by_question() -> None:
    found = metrics.difference([row(1.0), row(0.5), row(0.2)], [row(0.5), row(0.5), row(0.4)])
    assert (found["better"], found["worse"], found["same"]) == (1, 1, 1)
    assert found["f1_gain"] == pytest.approx(0.1) and found["f1_gain_error"] == pytest.approx(0.2082, abs=1e-3)


def test_the_checked_in_questions_are_whole_and_different() -> None:
    questions = run.read_questions()
    asked = [(question["question"], json.dumps(question["chat_history"])) for question in questions]
    assert len(questions) >= 50 and len(set(asked)) == len(asked)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no questions"),
        ("nonsense", "no JSON object"),
        ("[1]", "no JSON object"),
        ('{"question": "q"}', ":1 has no texts"),
        ('{"question": "q", "expected": "e", "chat_history": [{"a": 1}]}', ":1: `chat_history`"),
    ],
)
def test_a_file_that_holds_no_questions_is_wrong_use(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "q.jsonl").write_text(text)
    with pytest.raises(UserError, match=words) as refused:
        run.read_questions(tmp_path / "q.jsonl")
    assert refused.value.code == WRONG_USE


def test_texts_are_escaped_in_the_report() -> None:
    evil = "<script>alert(1)</script>"
    rows = [{**row(1.0), "question": evil, "expected": evil, "answer": evil}, {**row(0.0, None, None), "error": evil}]
    version = {"name": evil, "metrics": metrics.summary(rows), "rows": rows}
    page = report.html({"versions": [version, version], "difference": {"better": 1}, "verdict": evil})
    assert "<script" not in page and page.count("&lt;script&gt;") > 5
    assert "://" not in re.sub(r"base64,[^\"]+", "", page)


# -- the verb -----------------------------------------------------------------------------------------------------


@pytest.fixture
def stub() -> Iterator[Stub]:
    with stub_endpoint() as made:
        yield made


@pytest.fixture
def echoes(tmp_path: Path) -> Path:
    """Questions that the stub answers rightly, but for the last."""
    lines = [{"question": f"word{n} and more", "expected": f"word{n} and more"} for n in range(4)]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"question": "x", "expected": "y"}]))
    return path


def evaluate(tmp_path: Path, stub: Stub, *words: str, **more: str) -> tuple[int, dict[str, Any], str]:
    command = [sys.executable, "-m", "flow.evaluation", "--json", "--out", str(tmp_path / "report"), *words]
    env = environment(tmp_path / "env", stub.url, **more)
    done = subprocess.run(command, cwd=PROJECT, env=env, capture_output=True, text=True)
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr


def test_as_a_gate_it_asks_the_deployment_that_is_to_get_traffic(tmp_path: Path, stub: Stub, echoes: Path) -> None:
    code, result, said = evaluate(tmp_path, stub, "--questions", str(echoes), ROLLOUT_DEPLOYMENT="green")
    assert (code, result["approved"], result["f1"], result["exact"]) == (0, True, 0.8, 0.8)
    assert "to green" in said and len(stub.asked) == 5
    assert set(stub.headers) == {"green"}
    page = (tmp_path / "report" / "report.html").read_text()
    assert "word3 and more" in page and "data:image/png;base64," in page


def test_what_is_too_bad_is_refused_with_the_condition(tmp_path: Path, stub: Stub, echoes: Path) -> None:
    code, result, _ = evaluate(tmp_path, stub, "--questions", str(echoes), "--min-f1", "0.9")
    assert code == REFUSED and result["failed"] == ["F1 is 0.800, below 0.9"]


def test_a_version_that_is_worse_than_another_is_refused(tmp_path: Path, stub: Stub, echoes: Path) -> None:
    evaluate(tmp_path, stub, "--questions", str(echoes))
    before = tmp_path / "before.json"
    (tmp_path / "report" / "report.json").rename(before)
    stub.faults = [(500, {}, {"error": {"message": "out of memory"}})]
    code, result, _ = evaluate(tmp_path, stub, "--questions", str(echoes), "--against", str(before))
    assert code == REFUSED and result["unanswered"] == 1
    assert [words.split()[0] for words in result["failed"]] == ["1", "F1"]
    assert (result["better"], result["worse"], result["same"]) == (0, 1, 4)


def test_two_deployments_are_compared_side_by_side(tmp_path: Path, stub: Stub, echoes: Path) -> None:
    words = ["--questions", str(echoes), "--deployment", "green", "--against", "blue"]
    code, result, _ = evaluate(tmp_path, stub, *words)
    assert code == 0 and result["f1_gain"] == 0.0
    assert stub.headers.count("green") == stub.headers.count("blue") == 5


@pytest.mark.parametrize("text", ["nonsense", "{}", '{"versions": []}', '{"versions": [{"rows": []}]}'])
def test_a_report_of_something_else_cannot_be_compared(tmp_path: Path, text: str) -> None:
    (tmp_path / "before.json").write_text(text)
    given = verb._options().parse_args(["--against", str(tmp_path / "before.json")])
    with pytest.raises(UserError, match=r"no report|other questions"):
        verb._compared(given, run.read_questions())


@pytest.mark.slow
def test_prompt_flow_and_our_own_runner_make_the_same_table(tmp_path: Path, stub: Stub) -> None:
    env = {**environment(tmp_path / "env", stub.url), "PF_HOME_DIRECTORY": str(tmp_path / "pf"), "PF_WORKER_COUNT": "1"}
    mapping = ["question=${data.question}", "chat_history=${data.chat_history}"]
    words = ["run", "create", "--flow", "flow", "--data", str(run.QUESTIONS), "--name", "batch"]
    pf = Path(sys.executable).with_name("pf")
    done = subprocess.run(
        [str(pf), *words, "--column-mapping", *mapping], cwd=PROJECT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr + done.stdout
    outputs = next((tmp_path / "pf").rglob("output.jsonl"))
    evaluate(tmp_path, stub, "--answers", str(outputs))
    table = json.loads((tmp_path / "report" / "report.json").read_text())["versions"][0]["rows"]
    evaluate(tmp_path, stub)
    ours = json.loads((tmp_path / "report" / "report.json").read_text())["versions"][0]["rows"]
    assert len(ours) > 50 and all(row["answer"] for row in ours)
    assert [{**row, "seconds": None} for row in ours] == table
