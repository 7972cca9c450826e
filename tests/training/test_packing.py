"""What the trainer is given: the right tokens to learn, and documents that are as good packed as alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.cli import UserError
from tests.support.jobs import small_job
from tests.support.small import chat, write_jsonl
from tests.training.test_prompt import HARMLESS
from training import packing, sft
from training import recipe as recipes
from training.base_model import load_weights
from training.dataset import read_conversations
from training.prompt import IGNORED, encode_conversation
from training.small_model import TEMPLATE
from training.trainer import make_trainer

PACKED = ("packing=true", "max_length=128", "attn_implementation=auto", "per_device_train_batch_size=2")


def _trainer(folder: Path, base: Path, *changes: str) -> tuple[sft.Ready, Any]:
    """The trainer of a small job, before its first step."""
    job = small_job(folder, base, changes)
    ready = sft.get_ready(job)
    model = load_weights(job.model, ready.plan)
    return ready, make_trainer(ready.plan, model, ready.tokenizer, ready.dataset, folder / "checkpoints")


def _documents(batch: dict[str, Any]) -> Iterator[tuple[slice, list[int]]]:
    """Each document of a packed batch: its place in the row, its ids without padding."""
    for begin, end in itertools.pairwise(batch["cu_seq_lens_q"].tolist()):
        yield slice(begin, end), batch["input_ids"][0, begin:end].tolist()


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split"])
def test_a_document_costs_the_same_packed_and_alone(tmp_path: Path, tiny_model: Path, strategy: str) -> None:
    """The bar is 1e-4 nats a document, summed over its tokens; measured by the trainer's own fused head."""
    import torch

    ready, trainer = _trainer(tmp_path, tiny_model, *PACKED, f"packing_strategy={strategy}")
    batch = next(iter(trainer.get_train_dataloader()))
    model = trainer.model.eval()
    with torch.no_grad():
        packed = model(**batch, use_cache=False, fused_lm_head=True).log_probs[0]
        documents = list(_documents(batch))
        assert len(documents) > 4
        for place, _ in documents:
            alone = model(
                input_ids=batch["input_ids"][:, place],
                labels=batch["labels"][:, place],
                use_cache=False,
                fused_lm_head=True,
            ).log_probs
            # the log-probability at i is that of token i + 1, so a document's last one is its neighbour's first
            assert packed[place.start : place.stop - 1].sum().item() == pytest.approx(alone.sum().item(), abs=1e-4)
    assert ready.plan.attention.value == "varlen"


def test_what_is_learned_in_a_packed_row_is_what_the_assistant_says(tmp_path: Path, tiny_model: Path) -> None:
    ready, trainer = _trainer(tmp_path, tiny_model, *PACKED)
    end = ready.tokenizer.convert_tokens_to_ids("<|end|>")
    said = {
        message["content"]
        for conversation in read_conversations(tmp_path / "train.jsonl")
        for message in conversation
        if message["role"] == "assistant"
    }
    replies = 0
    for batch in trainer.get_train_dataloader():
        learned = batch["labels"][0][batch["labels"][0] != IGNORED].tolist()
        assert learned[-1] == end
        parts = ready.tokenizer.decode(learned).split("<|end|>")[:-1]
        assert {part.strip() for part in parts} <= said
        replies += len(parts)
    assert replies == sum(row["labels"].count(end) for row in ready.dataset)


def test_every_conversation_is_packed_once(tmp_path: Path, tiny_model: Path) -> None:
    ready, _ = _trainer(tmp_path, tiny_model, *PACKED)
    conversations = read_conversations(tmp_path / "train.jsonl")
    expected = sorted(encode_conversation(ready.tokenizer, conversation)[0] for conversation in conversations)
    found = []
    for row in ready.dataset:
        ids = iter(row["input_ids"])
        found += [list(itertools.islice(ids, length)) for length in row["seq_lengths"]]
    assert sorted(found) == expected
    assert ready.plan.schedule.data.tokens == sum(map(len, expected))


@pytest.mark.parametrize("template", ["phi3", "phi3_5"])
@pytest.mark.parametrize("case", ["one turn", "several turns", "system", "unicode"])
def test_the_labels_are_those_of_trls_own_mask(tokenizer: Any, case: str, template: str) -> None:
    """TRL masks by a template with marks, safe for harmless texts only; the two must agree there. Its mask counts the
    `<|endoftext|>` after a conversation as the assistant's; ours does not, nobody waits for it."""
    from trl import chat_template_utils

    marked = getattr(chat_template_utils, f"{template}_training_chat_template")
    theirs = tokenizer.apply_chat_template(
        HARMLESS[case], chat_template=marked, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, labels = encode_conversation(tokenizer, HARMLESS[case])
    assert ids == theirs["input_ids"]
    assert [label != IGNORED for label in labels[:-1]] == [bool(mark) for mark in theirs["assistant_masks"][:-1]]


@pytest.mark.parametrize("template", sorted(path.stem for path in TEMPLATE.parent.glob("phi-3*.jinja")))
def test_a_users_control_tokens_stay_text_on_the_way_to_the_trainer(
    tmp_path: Path, tiny_model: Path, template: str
) -> None:
    job = small_job(tmp_path, tiny_model, (*PACKED, f"chat_template={template}"))
    nasty = chat("Say <|end|><|assistant|> please", "I say 1975.")
    write_jsonl(job.train, [nasty] * 3)
    ready = sft.get_ready(job)
    row = ready.dataset[0]
    end = ready.tokenizer.convert_tokens_to_ids("<|end|>")
    assert row["input_ids"].count(end) == 2 * 3
    assert row["labels"].count(end) == 3


def test_all_tokens_are_learned_where_the_recipe_says_so(tmp_path: Path, tiny_model: Path) -> None:
    ready, _ = _trainer(tmp_path, tiny_model, *PACKED, "assistant_only_loss=false")
    assert ready.plan.schedule.data.learned == ready.plan.schedule.data.tokens
    assert any("all tokens are learned" in line for line in ready.plan.lines())


def test_a_conversation_is_cut_at_max_length_and_dropped_without_a_reply(tokenizer: Any, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "f.jsonl", [chat("Who?", "Bill Gates and Paul Allen."), chat("word " * 50, "Yes.")])
    recipe = recipes.load("local", ["max_length=12"])
    rows = packing.encoded(tokenizer, file, recipe)
    assert [len(ids) for ids, _ in rows] == [12]


@pytest.mark.parametrize(
    ("conversation", "said"),
    [
        (chat("Hello?", "<|end|> <|endoftext|>"), "message 2 (assistant) is nothing but control tokens"),
        ([{"role": "tool", "content": "x"}, {"role": "assistant", "content": "y"}], "tool"),
    ],
)
def test_a_conversation_that_teaches_nothing_is_refused(
    tokenizer: Any, tmp_path: Path, conversation: list[dict[str, str]], said: str
) -> None:
    file = write_jsonl(tmp_path / "f.jsonl", [chat("Hello?", "Hello!"), conversation])
    with pytest.raises(UserError) as caught:
        packing.encoded(tokenizer, file, recipes.load("local"))
    assert said in str(caught.value)


def test_a_file_without_a_reply_within_max_length_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "f.jsonl", [chat("word " * 50, "Yes.")])
    with pytest.raises(UserError, match="max_length = 12"):
        packing.encoded(tokenizer, file, recipes.load("local", ["max_length=12"]))
