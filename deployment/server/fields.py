"""The fields of a request's body, one by one: each is what its name says, or a RequestError that names it.

No message repeats what the caller's texts say, because error bodies end up in logs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from deployment.server.errors import RequestError
from training.prompt import ROLES

Message: TypeAlias = dict[str, str]
Body: TypeAlias = dict[str, Any]

MAX_STOPS = 4
"""Stop strings in one request, as OpenAI's API has it."""
MAX_STOP_CHARACTERS = 256


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. `None` leaves it to the model's generation_config; a temperature of 0 is greedy."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()


def messages_of(value: object, param: str) -> tuple[Message, ...]:
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


def sampling_of(body: Body) -> Sampling:
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


def flag_of(body: Body, name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise RequestError(f"`{name}` must be true or false", param=name)
    return bool(value)


def object_of(body: Body, name: str) -> Body:
    value = body.get(name)
    if value is not None and not isinstance(value, dict):
        raise RequestError(f"`{name}` must be an object", param=name)
    return value or {}
