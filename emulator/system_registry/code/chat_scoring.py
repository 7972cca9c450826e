"""How the MLflow model answers: `{"input_string": [conversation], "parameters": {...}}` in, `{"output": text}` out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SETTINGS = ("temperature", "top_p", "top_k", "do_sample", "max_new_tokens", "repetition_penalty")


class ChatModel:
    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder / "tokenizer")
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder / "model")

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> dict[str, str]:
        """The assistant's next words. Raises ValueError for an input without a conversation."""
        asked: dict[str, Any] = data if isinstance(data, dict) else {"input_string": list(data["input_string"])}
        given = asked.get("input_string")
        conversation = given[0] if given and isinstance(given[0], list) else given
        if not conversation or not all(isinstance(one, dict) for one in conversation):
            raise ValueError("input_string needs a list of messages with role and content")
        wanted = {**(asked.get("parameters") or {}), **(params or {})}
        settings = {"max_new_tokens": 200, **{key: value for key, value in wanted.items() if key in SETTINGS}}
        return {"output": self._generate(conversation, settings)}

    def _generate(self, conversation: list[dict[str, str]], settings: dict[str, Any]) -> str:
        import torch

        prompt = self._tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        tokens = self._tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        with torch.inference_mode():
            made = self._model.generate(**tokens, **settings)
        return str(self._tokenizer.decode(made[0][tokens["input_ids"].shape[1] :], skip_special_tokens=True))


def _load_pyfunc(path: str) -> ChatModel:
    return ChatModel(Path(path))
