"""Small conversations, a tokenizer and models that tests share."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from training.prompt import encode_prompt

FIRST_QUESTIONS = Path(__file__).resolve().parents[2] / "training" / "data" / "first-questions.jsonl"


def chat(*turns: str, system: str | None = None) -> list[dict[str, str]]:
    """A conversation: the user speaks first, then each in turn."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return messages + [{"role": roles[number % 2], "content": text} for number, text in enumerate(turns)]


def write_jsonl(path: Path, conversations: Iterable[list[dict[str, str]]]) -> Path:
    path.write_text(
        "".join(json.dumps({"messages": messages}, ensure_ascii=False) + "\n" for messages in conversations),
        encoding="utf-8",
    )
    return path


def reply(folder: Path, *turns: str) -> str:
    """What the model in `folder` says, greedily, after these turns."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([encode_prompt(tokenizer, chat(*turns))])
    with torch.no_grad():
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40)
    return str(tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True))
