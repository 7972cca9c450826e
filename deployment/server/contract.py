"""What callers may say and what they get back, in two dialects, on every scoring route alike.

- OpenAI's chat: `{"messages": [...], "max_tokens": 64, "stream": false, ...}` → a `chat.completion` object, or
  server-sent events of `chat.completion.chunk` (https://platform.openai.com/docs/api-reference/chat).
- The guide's: `{"input_data": [TEXT or [MESSAGE, ...], ...], "params": {...}}` → the bare list of answers, one for
  each item, as MLflow's scoring image in Azure ML gives it.

Errors have OpenAI's shape in both: `{"error": {"message", "type", "param", "code"}}`. No message repeats what the
caller's texts say, because error bodies end up in logs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from training.prompt import ROLES

Message: TypeAlias = dict[str, str]
Body: TypeAlias = dict[str, Any]

MAX_STOPS = 4
"""Stop strings in one request, as OpenAI's API has it."""
MAX_STOP_CHARACTERS = 256
MAX_ITEMS = 16
"""Items of `input_data` in one request; more of them would be a batch job."""
UNSUPPORTED = ("tools", "tool_choice", "functions", "function_call", "logprobs", "logit_bias", "audio")
"""Fields that would change the answer's shape or meaning: refused rather than ignored."""


class RequestError(Exception):
    """A request that is answered with an error: HTTP status, OpenAI's `type`, `param` and `code`, extra headers."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers
        kind = "invalid_request_error" if status < 500 and status != 429 else "server_error"
        self.body = {
            "error": {
                "message": message,
                "type": "rate_limit_error" if status == 429 else kind,
                "param": param,
                "code": code,
            }
        }


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. `None` leaves it to the model's generation_config; a temperature of 0 is greedy."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class ChatRequest:
    """A parsed request: one conversation for each answer that is wanted.

    `guide` says in which dialect the reply goes; `prefix` holds, for each conversation, what the guide's
    `return_full_text` puts before the answer.
    """

    conversations: tuple[tuple[Message, ...], ...]
    sampling: Sampling
    guide: bool = False
    prefixes: tuple[str, ...] = ("",)
    stream: bool = False
    include_usage: bool = False


def parse(raw: bytes) -> ChatRequest:
    """The request in `raw`, a JSON object in either dialect.

    Raises:
        RequestError: 400, naming the field that is wrong.
    """
    body = _json_object(raw)
    if "input_data" in body:
        return _parse_guide(body)
    if "messages" in body:
        return _parse_openai(body)
    raise RequestError("the body has neither `messages` (OpenAI's chat) nor `input_data`", code="unknown_dialect")


def _json_object(raw: bytes) -> Body:
    try:
        body = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError:
        raise RequestError("the body is not valid UTF-8", code="invalid_utf8") from None
    except (ValueError, RecursionError):
        raise RequestError("the body is not valid JSON", code="invalid_json") from None
    if not isinstance(body, dict):
        raise RequestError("the body must be one JSON object", code="invalid_json")
    return body


def _parse_openai(body: Body) -> ChatRequest:
    for name in UNSUPPORTED:
        if body.get(name):
            raise RequestError(f"`{name}` is not supported by this server", param=name, code="unsupported")
    for name in ("presence_penalty", "frequency_penalty"):
        if body.get(name) not in (None, 0):
            raise RequestError(f"`{name}` is not supported by this server", param=name, code="unsupported")
    response_format = body.get("response_format")
    if response_format not in (None, {"type": "text"}):
        raise RequestError("only the response_format `text` is supported", param="response_format", code="unsupported")
    if body.get("n") not in (None, 1):
        raise RequestError("`n` must be 1: this server gives one answer a request", param="n", code="unsupported")
    stream = _flag(body, "stream")
    options = _object(body, "stream_options")
    if options and not stream:
        raise RequestError("`stream_options` needs `stream: true`", param="stream_options")
    return ChatRequest(
        conversations=(_messages(body["messages"], "messages"),),
        sampling=_sampling(body),
        stream=stream,
        include_usage=_flag(options, "include_usage"),
    )


def _parse_guide(body: Body) -> ChatRequest:
    params = _object(body, "params")
    items = body["input_data"]
    if not isinstance(items, list) or not items:
        raise RequestError("`input_data` must be a list of texts or of message lists, not empty", param="input_data")
    if len(items) > MAX_ITEMS:
        raise RequestError(f"`input_data` has {len(items)} items; {MAX_ITEMS} is the limit", param="input_data")
    conversations = tuple(_guide_item(item, f"input_data[{place}]") for place, item in enumerate(items))
    full = _flag(params, "return_full_text")
    return ChatRequest(
        conversations=conversations,
        sampling=_guide_sampling(params),
        guide=True,
        prefixes=tuple(item if full and isinstance(item, str) else "" for item in items),
    )


def _guide_item(item: object, param: str) -> tuple[Message, ...]:
    if isinstance(item, str):
        item = [{"role": "user", "content": item}]
    return _messages(item, param)


def _guide_sampling(params: Body) -> Sampling:
    """`do_sample`, transformers' switch between greedy and sampling, rules over a temperature that is given too."""
    sampling = _sampling(params)
    if "do_sample" not in params:
        return sampling
    sampled = _flag(params, "do_sample")
    temperature = (sampling.temperature if sampling.temperature is not None else 1.0) if sampled else 0.0
    return Sampling(sampling.max_tokens, temperature, sampling.top_p, sampling.seed, sampling.stop)


def _messages(value: object, param: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise RequestError(f"`{param}` must be a list of messages, not empty", param=param)
    messages = tuple(_message(item, f"{param}[{place}]") for place, item in enumerate(value))
    if messages[-1]["role"] == "assistant":
        raise RequestError(f"the last message of `{param}` is the assistant's: there is nothing to answer", param=param)
    return messages


def _message(value: object, param: str) -> Message:
    if not isinstance(value, dict):
        raise RequestError(f"`{param}` must be an object with `role` and `content`", param=param)
    role = value.get("role")
    if role not in ROLES:
        raise RequestError(f"`{param}.role` must be one of {', '.join(ROLES)}", param=f"{param}.role")
    return {"role": role, "content": _content(value.get("content"), f"{param}.content")}


def _content(value: object, param: str) -> str:
    """A message's text: a string, or OpenAI's list of parts as far as they are text."""
    if isinstance(value, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in value):
        texts = [part.get("text") for part in value]
        value = "".join(texts) if all(isinstance(text, str) for text in texts) else None
    if not isinstance(value, str):
        raise RequestError(f"`{param}` must be a text", param=param)
    return _unicode(value, param)


def _unicode(text: str, param: str) -> str:
    """`text`, if it can be encoded: JSON's \\ud800 escapes make lone surrogates, which no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise RequestError(f"`{param}` has a lone surrogate in it: it is not valid Unicode", param=param) from None
    return text


def _sampling(body: Body) -> Sampling:
    return Sampling(
        max_tokens=_max_tokens(body),
        temperature=_number(body, "temperature", lambda value: 0 <= value <= 2, "between 0 and 2"),
        top_p=_number(body, "top_p", lambda value: 0 < value <= 1, "above 0 and at most 1"),
        seed=_integer(body, "seed"),
        stop=_stop(body.get("stop")),
    )


def _max_tokens(body: Body) -> int | None:
    """The bound on new tokens under any of its three names; the first one given counts."""
    for name in ("max_completion_tokens", "max_tokens", "max_new_tokens"):
        value = _integer(body, name)
        if value is None:
            continue
        if value < 1:
            raise RequestError(f"`{name}` must be at least 1", param=name)
        return value
    return None


def _integer(body: Body, name: str) -> int | None:
    value = body.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 2**63):
        raise RequestError(f"`{name}` must be a whole number of at most 64 bits", param=name)
    return value


def _number(body: Body, name: str, allowed: Callable[[float], bool], rule: str) -> float | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e6 or not math.isfinite(value):
        raise RequestError(f"`{name}` must be a number {rule}", param=name)
    if not allowed(value):
        raise RequestError(f"`{name}` must be {rule}", param=name)
    return float(value)


def _stop(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise RequestError("`stop` must be a text or a list of texts, none of them empty", param="stop")
    if len(stops) > MAX_STOPS or any(len(stop) > MAX_STOP_CHARACTERS for stop in stops):
        raise RequestError(
            f"`stop` may hold {MAX_STOPS} texts of {MAX_STOP_CHARACTERS} characters at most", param="stop"
        )
    return tuple(_unicode(stop, "stop") for stop in stops)


def _flag(body: Body, name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise RequestError(f"`{name}` must be true or false", param=name)
    return bool(value)


def _object(body: Body, name: str) -> Body:
    value = body.get(name)
    if value is not None and not isinstance(value, dict):
        raise RequestError(f"`{name}` must be an object", param=name)
    return value or {}


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
