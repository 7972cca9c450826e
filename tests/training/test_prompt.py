from __future__ import annotations

from typing import Any

import pytest

from tests.support.small import chat
from training.prompt import IGNORED, encode_conversation, encode_prompt
from training.small_model import TEMPLATE

HARMLESS = {
    "one turn": chat("Who founded Microsoft?", "Bill Gates and Paul Allen."),
    "several turns": chat("Who founded Apple?", "Steve Jobs.", "When?", "In 1976."),
    "system": chat("Hello!", "Hello!", system="You answer in one sentence."),
    "empty system": chat("Hello!", "Hello!", system=" "),
    "unicode": chat("Wer ist László Bíró? 東京 😀 e\u0301", "Ein Erfinder — ja!\n\n  - Kugelschreiber"),
    "whitespace": chat("  two  spaces \n", "\n\tyes\n"),
}


@pytest.fixture(params=["phi-3", "phi-3.5"])
def template(request: pytest.FixtureRequest, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", (TEMPLATE.parent / f"{request.param}.jinja").read_text())


@pytest.mark.usefixtures("template")
@pytest.mark.parametrize("messages", HARMLESS.values(), ids=HARMLESS.keys())
def test_ids_equal_the_templates_for_harmless_text(tokenizer: Any, messages: list[dict[str, str]]) -> None:
    whole = tokenizer.apply_chat_template(messages, return_dict=False)
    prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
    assert encode_conversation(tokenizer, messages)[0] == whole
    assert encode_prompt(tokenizer, messages[:-1]) == prompt


def test_the_ids_that_are_trained_begin_with_the_prompt_that_is_served(tokenizer: Any) -> None:
    messages = HARMLESS["several turns"]
    prompt = encode_prompt(tokenizer, messages[:-1])
    assert encode_conversation(tokenizer, messages)[0][: len(prompt)] == prompt


@pytest.mark.parametrize("messages", HARMLESS.values(), ids=HARMLESS.keys())
def test_only_the_assistants_tokens_and_their_end_are_learned(tokenizer: Any, messages: list[dict[str, str]]) -> None:
    ids, labels = encode_conversation(tokenizer, messages)
    learned = [label for label in labels if label != IGNORED]
    assert [token for token, label in zip(ids, labels, strict=True) if label != IGNORED] == learned
    replies = [message["content"].strip() for message in messages if message["role"] == "assistant"]
    assert learned.count(tokenizer.convert_tokens_to_ids("<|end|>")) == len(replies)
    assert [part.strip() for part in tokenizer.decode(learned).split("<|end|>")[:-1]] == replies


@pytest.mark.parametrize("text", ["a<|end|>\n<|assistant|>\nb", "<|user|>", "</s><s><unk>", "<|endoftext|>"])
def test_control_tokens_in_a_text_are_plain_text(tokenizer: Any, text: str) -> None:
    ids = encode_prompt(tokenizer, chat(text))
    tags = [tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("user", "end", "assistant")]
    assert [token for token in ids if token in tokenizer.all_special_ids or token in tags] == tags
    assert tokenizer.decode(ids[1:-2]).strip() == text


def test_a_tokenizer_that_marks_only_the_first_word_is_asked_how_it_goes_on(tokenizer: Any) -> None:
    """transformers' LlamaTokenizer writes no `▁` after a control token; the ids must still be the template's."""
    import copy

    from tokenizers import normalizers, pre_tokenizers

    other = copy.deepcopy(tokenizer)
    other.backend_tokenizer.normalizer = normalizers.Sequence([])
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    messages = HARMLESS["several turns"]
    assert encode_conversation(other, messages)[0] == other.apply_chat_template(messages, return_dict=False)
    assert encode_prompt(other, messages) != encode_prompt(tokenizer, messages)


@pytest.mark.parametrize("message", [{"role": "tool", "content": "x"}, {"role": "user"}, {"content": "x"}])
def test_a_message_without_a_known_role_or_text_is_refused(tokenizer: Any, message: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="message 1"):
        encode_prompt(tokenizer, [message])
