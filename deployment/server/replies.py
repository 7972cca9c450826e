"""What callers get back, in the dialect of their request: OpenAI's objects and chunks, or as the guides' images do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deployment.server.contract import Dialect
from deployment.server.fields import Body


@dataclass(frozen=True)
class Usage:
    """Token counts of one answer."""

    prompt: int
    completion: int

    def as_dict(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        }


def completion(request_id: str, model: str, created: int, text: str, reason: str, usage: Usage) -> Body:
    """A whole answer, as OpenAI's `chat.completion` object. `created` is in Unix seconds."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, "refusal": None},
        "logprobs": None,
        "finish_reason": reason,
    }
    head = {"id": request_id, "object": "chat.completion", "created": created, "model": model}
    return {**head, "choices": [choice], "usage": usage.as_dict()}


def chunk(
    request_id: str,
    model: str,
    created: int,
    delta: Mapping[str, str],
    *,
    reason: str | None = None,
) -> Body:
    """A piece of an answer, as OpenAI's `chat.completion.chunk` object."""
    choice = {"index": 0, "delta": dict(delta), "logprobs": None, "finish_reason": reason}
    head = {"id": request_id, "object": "chat.completion.chunk", "created": created, "model": model}
    return {**head, "choices": [choice]}


def usage_chunk(request_id: str, model: str, created: int, usage: Usage) -> Body:
    """The last chunk of a stream whose `stream_options` ask for usage: no choices, only the counts."""
    head = {"id": request_id, "object": "chat.completion.chunk", "created": created, "model": model}
    return {**head, "choices": [], "usage": usage.as_dict()}


def guide_reply(dialect: Dialect, texts: Sequence[str]) -> Body | list[str]:
    """All answers of a request in one of the guides' dialects."""
    if dialect is Dialect.REGISTRY:
        return {"output": texts[0] if len(texts) == 1 else list(texts)}
    return list(texts)
