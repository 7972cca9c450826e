"""The one function that turns messages into token ids, for training, the server and the flow alike.

A Phi-3 conversation is, for each message, `<|role|>`, its text and `<|end|>`; then `<|endoftext|>` after a whole
conversation, or `<|assistant|>` before a reply that is still to come. (Phi-3's control tokens swallow the whitespace
that follows them, so the template's line breaks never become tokens.)

Why not `apply_chat_template`: it joins the texts and the control tokens into one string and tokenises that, so a user
who types `<|end|>` ends their own message and can start another role's. Here the control tokens are put in by id and
each text is tokenised alone with `split_special_tokens=True`, which makes whatever it says plain text. For texts
without control tokens both give the same ids.

This file imports nothing of the project: it travels alone into job snapshots and container images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias

Message: TypeAlias = Mapping[str, str]

ROLES = ("system", "user", "assistant")
END = "<|end|>"
END_OF_TEXT = "<|endoftext|>"
IGNORED = -100
"""The label of a token that has no part in the loss (PyTorch's cross-entropy default)."""

_ANCHOR = "\n"  # in a byte-fallback vocabulary a token of its own, which merges with nothing that follows it


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used here.

    `encode` switches a flag of the shared backend, so one tokenizer must not be used by two threads at once.
    """

    def encode(self, text: str, *, add_special_tokens: bool, split_special_tokens: bool) -> list[int]: ...

    def convert_tokens_to_ids(self, tokens: str) -> int | list[int]: ...


def encode_prompt(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Token ids of a conversation that waits for its reply: the last id is that of `<|assistant|>`.

    Raises:
        ValueError: an unknown role, a message without text, or a tokenizer without Phi-3's control tokens.
    """
    control, text_ids = _control_ids(tokenizer), _TextEncoder(tokenizer)
    ids: list[int] = []
    for role, text in _turns(messages):
        ids += [control[role], *text_ids(text), control[END]]
    return [*ids, control["assistant"]]


def encode_conversation(tokenizer: Tokenizer, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
    """Token ids of a whole conversation, and its labels: two lists of the same length.

    The loss is taken on what the assistant says, each reply's `<|end|>` included: those labels are the ids, all others
    (roles, other speakers, the final `<|endoftext|>`) are `IGNORED`.

    Raises:
        ValueError: as `encode_prompt`.
    """
    control, text_ids = _control_ids(tokenizer), _TextEncoder(tokenizer)
    ids: list[int] = []
    labels: list[int] = []
    for role, text in _turns(messages):
        said = [*text_ids(text), control[END]]
        ids += [control[role], *said]
        labels += [IGNORED, *(said if role == "assistant" else [IGNORED] * len(said))]
    return [*ids, control[END_OF_TEXT]], [*labels, IGNORED]


def stop_ids(tokenizer: Tokenizer) -> list[int]:
    """The ids that end a reply: `<|end|>`, and `<|endoftext|>` should a model skip it."""
    control = _control_ids(tokenizer)
    return [control[END], control[END_OF_TEXT]]


def _turns(messages: Sequence[Message]) -> list[tuple[str, str]]:
    """(role, text) of each message; texts are trimmed as the templates do, an empty system message is left out."""
    turns = []
    for position, message in enumerate(messages, start=1):
        role, text = message.get("role"), message.get("content")
        if role not in ROLES:
            raise ValueError(f"message {position} has the role {role!r}; known roles: {', '.join(ROLES)}")
        if not isinstance(text, str):
            raise ValueError(f"message {position} ({role}) has no text: `content` must be a string")
        if role != "system" or text.strip():
            turns.append((role, text.strip()))
    return turns


def _control_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """The ids of the role tags (by role), of `<|end|>` and of `<|endoftext|>`."""
    tokens = {**{role: f"<|{role}|>" for role in ROLES}, END: END, END_OF_TEXT: END_OF_TEXT}
    ids = {}
    unknown = tokenizer.convert_tokens_to_ids("<unk>")  # the answer for a token that does not exist (or None)
    for name, token in tokens.items():
        token_id = tokenizer.convert_tokens_to_ids(token)
        if not isinstance(token_id, int) or token_id == unknown:
            raise ValueError(f"the tokenizer lacks Phi-3's control token {token}: it is not a Phi-3 tokenizer")
        ids[name] = token_id
    return ids


class _TextEncoder:
    """Tokenises one text as it would be tokenised after a control token, every control token in it as plain text.

    Llama-style tokenizers begin a text with the word mark `▁`. Some do so after every control token (Phi-3's own
    tokenizer.json), some only at the very start of the string (transformers' LlamaTokenizer): which one this is is
    asked of the tokenizer itself, once.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        after_tag = tokenizer.encode("<|user|>a", add_special_tokens=False, split_special_tokens=False)[1:]
        self._marks_every_text = after_tag == self._plain("a")
        self._anchor_length = len(self._plain(_ANCHOR))

    def __call__(self, text: str) -> list[int]:
        if self._marks_every_text or not text:
            return self._plain(text)
        return self._plain(_ANCHOR + text)[self._anchor_length :]

    def _plain(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
