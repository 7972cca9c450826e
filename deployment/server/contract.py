"""What callers may say, in three dialects, on every scoring route alike; each is answered in its own (replies.py).

- OpenAI's chat: `{"messages": [...], "max_tokens": 64, "stream": false, ...}` → a `chat.completion` object, or
  server-sent events of `chat.completion.chunk` (https://platform.openai.com/docs/api-reference/chat).
- The first guide's: `{"input_data": [TEXT or [MESSAGE, ...], ...], "params": {...}}` → the bare list of answers, one
  for each item, as MLflow's scoring image in Azure ML gives it.
- The registry guide's: `{"input_data": {"input_string": [MESSAGE, ...] or [[MESSAGE, ...], ...], "parameters": {...}}}`
  → `{"output": ANSWER}`, a list of answers where a list of conversations was given with more than one in it.

Errors have OpenAI's shape in all of them: `{"error": {"message", "type", "param", "code"}}`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum

from deployment.server.errors import RequestError
from deployment.server.fields import Body, Message, Sampling, flag_of, messages_of, object_of, sampling_of

MAX_ITEMS = 16
"""Conversations in one request; more of them would be a batch job."""
UNSUPPORTED = ("tools", "tool_choice", "functions", "function_call", "logprobs", "logit_bias", "audio")
"""Fields that would change the answer's shape or meaning: refused rather than ignored."""


class Dialect(Enum):
    OPENAI = "openai"
    GUIDE = "guide"
    REGISTRY = "registry"


@dataclass(frozen=True)
class ChatRequest:
    """A parsed request: one conversation for each answer that is wanted.

    `prefixes` holds, for each conversation, what the guide's `return_full_text` puts before the answer.
    """

    conversations: tuple[tuple[Message, ...], ...]
    sampling: Sampling
    dialect: Dialect = Dialect.OPENAI
    prefixes: tuple[str, ...] = ("",)
    stream: bool = False
    include_usage: bool = False


def parse(raw: bytes) -> ChatRequest:
    """The request in `raw`, a JSON object in one of the dialects.

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
    _refuse_unsupported(body)
    stream = flag_of(body, "stream")
    options = object_of(body, "stream_options")
    if options and not stream:
        raise RequestError("`stream_options` needs `stream: true`", param="stream_options")
    return ChatRequest(
        conversations=(messages_of(body["messages"], "messages"),),
        sampling=sampling_of(body),
        stream=stream,
        include_usage=flag_of(options, "include_usage"),
    )


def _refuse_unsupported(body: Body) -> None:
    named = [name for name in UNSUPPORTED if body.get(name)]
    named += [name for name in ("presence_penalty", "frequency_penalty") if body.get(name) not in (None, 0)]
    if named:
        raise RequestError(f"`{named[0]}` is not supported by this server", param=named[0], code="unsupported")
    if body.get("response_format") not in (None, {"type": "text"}):
        raise RequestError("only the response_format `text` is supported", param="response_format", code="unsupported")
    if body.get("n") not in (None, 1):
        raise RequestError("`n` must be 1: this server gives one answer a request", param="n", code="unsupported")


def _parse_guide(body: Body) -> ChatRequest:
    if body.get("stream"):
        raise RequestError("only requests with `messages` (OpenAI's chat) can stream", param="stream")
    if isinstance(body["input_data"], dict):
        return _parse_registry(body["input_data"], object_of(body, "params"))
    params = object_of(body, "params")
    items = _items(body["input_data"], "input_data")
    full = flag_of(params, "return_full_text")
    return ChatRequest(
        conversations=tuple(_conversation(item, f"input_data[{place}]") for place, item in enumerate(items)),
        sampling=_guide_sampling(params),
        dialect=Dialect.GUIDE,
        prefixes=tuple(item if full and isinstance(item, str) else "" for item in items),
    )


def _parse_registry(data: Body, params: Body) -> ChatRequest:
    """`parameters` in `input_data`, as the registry guide has them; what they lack may stand in `params` beside it."""
    name = "input_data.input_string"
    items = _items(data.get("input_string"), name)
    if isinstance(items[0], dict):
        items = [items]
    conversations = tuple(_conversation(item, f"{name}[{place}]") for place, item in enumerate(items))
    return ChatRequest(
        conversations=conversations,
        sampling=_guide_sampling({**params, **object_of(data, "parameters")}),
        dialect=Dialect.REGISTRY,
        prefixes=("",) * len(conversations),
    )


def _items(value: object, param: str) -> list[object]:
    if not isinstance(value, list) or not value:
        raise RequestError(f"`{param}` must be a list of texts or of message lists, not empty", param=param)
    if len(value) > MAX_ITEMS and not isinstance(value[0], dict):
        raise RequestError(f"`{param}` has {len(value)} items; {MAX_ITEMS} is the limit", param=param)
    return value


def _conversation(item: object, param: str) -> tuple[Message, ...]:
    if isinstance(item, str):
        item = [{"role": "user", "content": item}]
    return messages_of(item, param)


def _guide_sampling(params: Body) -> Sampling:
    """`do_sample`, transformers' switch between greedy and sampling, rules over a temperature that is given too."""
    sampling = sampling_of(params)
    if "do_sample" not in params:
        return sampling
    sampled = flag_of(params, "do_sample")
    temperature = (sampling.temperature if sampling.temperature is not None else 1.0) if sampled else 0.0
    return Sampling(sampling.max_tokens, temperature, sampling.top_p, sampling.seed, sampling.stop)
