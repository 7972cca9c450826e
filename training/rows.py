"""Raw rows and what keeps one from being a conversation.

A row holds `messages` (an optional `system` first, then `user` and `assistant` in turn, `assistant` last), or `prompt`
and `completion`, each a text or a list of messages. Everything else in it is left out, and counted. A prompt's own
replies are replies like any other: the loss is taken on them too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, TypeAlias

Conversation: TypeAlias = list[dict[str, str]]

FAULTS = {
    "not_utf8": "bytes that are not UTF-8",
    "byte_order_mark": "a byte order mark at the beginning of the file",
    "line_too_long": "a line of more than 64 MiB",
    "not_json": "not JSON",
    "not_a_number": "NaN or Infinity, which JSON does not have",
    "no_conversation": "neither `messages` nor `prompt` and `completion`",
    "incomplete_message": "a message without `role` or `content`",
    "unknown_role": "a role other than system, user, assistant",
    "nested_content": "a `content` that is a list or an object",
    "not_text": "a `content` that is no text",
    "half_character": "a lone surrogate, which UTF-8 cannot hold",
    "empty_message": "a message of the user or the assistant without a visible character",
    "only_control_tokens": "a reply that is nothing but control tokens",
    "wrong_order": "speakers who do not take turns",
    "no_reply": "no reply at the end",
    "too_long": "no reply within `max_length` tokens: nothing to learn",
}
"""Every kind of fault, as it is counted in the data card, and what it means."""

SIDES = {"prompt": "user", "completion": "assistant"}

# Phi's control tokens and Llama's: <|end|>, <s>, </s>, <unk>
_ONLY_CONTROL = re.compile(r"(?:<\|\w+\|>|</?s>|<unk>|\s)+")


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a row: a key of FAULTS, and a sentence about this row."""

    kind: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Row:
    """A raw row and where it stands, as a reader of an error would look for it (`file:line`).

    `values` is a Fault if the row cannot even be read; `ignored` names columns that were not read at all.
    """

    place: str
    values: Any
    ignored: tuple[str, ...] = ()


def messages_of(values: Any) -> Any:
    """The row's messages, unchecked; None if it has none."""
    if not isinstance(values, dict):
        return None
    if values.get("messages") is not None:
        return values["messages"]
    sides = [_side(values.get(key), role) for key, role in SIDES.items()]
    return None if None in sides else [message for side in sides for message in side]


def _side(value: Any, role: str) -> Any:
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return value if isinstance(value, list) else None


def fault_of(row: Row) -> Fault | None:
    """What keeps a row from being a conversation, or None if nothing does."""
    if isinstance(row.values, Fault):
        return row.values
    messages = messages_of(row.values)
    if messages is None or messages == []:
        return Fault("no_conversation", "it has no `messages` list, nor `prompt` and `completion`")
    if not isinstance(messages, list):
        return Fault("no_conversation", f"its `messages` are no list but {_kind(messages)}")
    for number, message in enumerate(messages, start=1):
        if fault := _message_fault(number, message):
            return fault
    return _order_fault([message["role"] for message in messages])


def _message_fault(number: int, message: Any) -> Fault | None:
    name = f"message {number}"
    if not isinstance(message, dict) or "role" not in message or "content" not in message:
        return Fault("incomplete_message", f"{name} lacks `role` or `content`")
    role, content = message["role"], message["content"]
    if role not in ("system", "user", "assistant"):
        return Fault("unknown_role", f"{name} has the unknown role {role!r:.60}")
    if isinstance(content, list | dict):
        return Fault("nested_content", f"{name} has a nested `content`: {_kind(content)}, where a text should be")
    if not isinstance(content, str):
        return Fault("not_text", f"{name} has a `content` that is not text but {_kind(content)}")
    if not content.isascii() and not _is_unicode(content):
        return Fault("half_character", f"{name} holds half a character (a lone surrogate), which UTF-8 cannot hold")
    if role != "system" and not is_visible(content):  # an empty system message is none: prompt.py leaves it out
        return Fault("empty_message", f"{name} ({role}) is empty")
    if role == "assistant" and content.lstrip().startswith("<") and _ONLY_CONTROL.fullmatch(content):
        return Fault("only_control_tokens", f"{name} (assistant) is nothing but control tokens")
    return None


def _kind(value: Any) -> str:
    names = {list: "a list", dict: "an object", str: "a text", type(None): "null", bool: "true or false"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def is_visible(text: str) -> bool:
    """Whether there is anything to see: more than spaces, control characters and zero-width ones."""
    rest = text.lstrip()
    return bool(rest) and (rest[0].isprintable() or any(s.isprintable() and not s.isspace() for s in rest))


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _order_fault(roles: list[str]) -> Fault | None:
    first = 2 if roles[0] == "system" else 1
    for number, role in enumerate(roles[first - 1 :], start=first):
        expected = "assistant" if (number - first) % 2 else "user"
        if role != expected:
            return Fault("wrong_order", f"message {number} is of the {role}, where the {expected} should speak")
    return None if roles[-1] == "assistant" else Fault("no_reply", "the last message is not the assistant's")


def conversation_of(row: Row) -> Conversation:
    """The conversation of a row without fault: `role` and `content` only."""
    return [{"role": message["role"], "content": message["content"]} for message in messages_of(row.values)]


def ignored_keys(row: Row) -> list[str]:
    """What a row without fault holds besides its conversation: `prompt_id`, or `messages.name` inside messages."""
    used = ("messages",) if row.values.get("messages") is not None else tuple(SIDES)
    names = [*row.ignored, *(key for key, value in row.values.items() if key not in used and value is not None)]
    for message in messages_of(row.values):
        if len(message) > 2:
            names += [
                f"messages.{key}" for key in message if key not in ("role", "content") and message[key] is not None
            ]
    return names
