"""Questions from a file, put to a deployment several at once; or answers that `pf run create` got."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flow.chat import checked
from flow.conversation import Endpoint, Reply, ask
from flow.evaluation.metrics import Row, scored
from infra.cli import WRONG_USE, UserError

QUESTIONS = Path(__file__).resolve().parent / "questions.jsonl"
AT_ONCE = 4


def read_questions(path: Path = QUESTIONS) -> Sequence[Row]:
    """Rows `{"question", "expected", "chat_history"?}`. Raises UserError (wrong use) naming the line that is none."""
    rows = _lines(path)
    for number, row in enumerate(rows, 1):
        if not all(isinstance(row.get(name), str) and row[name].strip() for name in ("question", "expected")):
            raise UserError(f"{path}:{number} has no texts `question` and `expected`", code=WRONG_USE)
        try:
            _earlier(row)
        except (KeyError, TypeError):
            what = "`chat_history` has to hold {inputs: {question}, outputs: {answer}}"
            raise UserError(f"{path}:{number}: {what}", code=WRONG_USE) from None
    if not rows:
        raise UserError(f"{path} has no questions", code=WRONG_USE)
    return rows


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", code=WRONG_USE) from None
    except ValueError:
        rows = [None]
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} has a line that is no JSON object", code=WRONG_USE)
    return rows


def _earlier(row: Row) -> list[tuple[str, str]]:
    return [(turn["inputs"]["question"], turn["outputs"]["answer"]) for turn in row.get("chat_history") or []]


async def run(endpoint: Endpoint, questions: Sequence[Row]) -> list[dict[str, Any]]:
    """The table of answers, in the questions' order. A question that fails is a row with its error."""
    import httpx

    slots = asyncio.Semaphore(AT_ONCE)

    async def one(question: Row, client: httpx.AsyncClient) -> dict[str, Any]:
        async with slots:
            began, reply = time.monotonic(), Reply()
            try:
                text = checked(question["question"])
                async for _ in ask(endpoint, text, _earlier(question), reply=reply, client=client):
                    pass
            except UserError as error:
                return scored(question, None, None, error.message)
            return scored(question, reply.text, round(time.monotonic() - began, 4))

    async with httpx.AsyncClient() as client:
        return list(await asyncio.gather(*(one(question, client) for question in questions)))


def from_prompt_flow(path: Path, questions: Sequence[Row]) -> list[dict[str, Any]]:
    """The same table from what `pf run create` got: lines `{"line_number", "answer"}`, or its run's folder."""
    if path.is_dir():
        path = path / "flow_outputs" / "output.jsonl"
    answers = {row.get("line_number"): row.get("answer") for row in _lines(path)}
    rows = []
    for number, question in enumerate(questions):
        answer = answers.get(number)
        known = answer if isinstance(answer, str) else None
        rows.append(scored(question, known, None, None if known is not None else "Prompt flow has no answer"))
    return rows
