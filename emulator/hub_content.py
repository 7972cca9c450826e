"""Makes what the stand-in of the model hub offers: a tiny Phi-3 with its tokenizer, and conversations to train it on.

    python -m emulator.hub_content FOLDER

All of it is made by rules and random numbers from a fixed seed: nothing is anybody's weights or anybody's text. The
files are such that transformers 4.41 and 5 both load them: merges as words, no `rope_scaling`.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

MODELS = ("microsoft/Phi-3.5-mini-instruct", "microsoft/Phi-3-mini-4k-instruct")
DATASET = "HuggingFaceH4/ultrachat_200k"
ROWS = {"train_sft": 2000, "test_sft": 200, "train_gen": 200, "test_gen": 200}
HIDDEN, LAYERS, HEADS, INNER, VOCABULARY = 64, 2, 4, 176, 2048
CONTROL = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
TEMPLATE = (
    "{% for message in messages %}{% if message['content'] %}{{ '<|' + message['role'] + '|>\\n' + message['content'] "
    "+ '<|end|>\\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}"
    "{{ eos_token }}{% endif %}"
)
THINGS = (
    "bridge",
    "garden",
    "river",
    "kitchen",
    "harbour",
    "library",
    "engine",
    "village",
    "market",
    "orchestra",
    "glacier",
    "workshop",
)
DEEDS = (
    "build",
    "describe",
    "repair",
    "compare",
    "plan",
    "measure",
    "paint",
    "visit",
    "explain",
    "organise",
    "protect",
    "imagine",
)
KINDS = (
    "small",
    "quiet",
    "wooden",
    "busy",
    "northern",
    "ancient",
    "modern",
    "green",
    "crowded",
    "careful",
    "bright",
    "forgotten",
)
REASONS = (
    "the weather changes quickly there",
    "people have always met at such places",
    "every part depends on another one",
    "a good beginning saves a lot of work",
    "nobody remembers how it was done before",
    "it teaches more than any book could",
)


def main(folder: Path) -> None:
    dice = random.Random(7)
    rows = {split: [conversation(dice, number) for number in range(count)] for split, count in ROWS.items()}
    _write_dataset(folder / "datasets" / DATASET, rows)
    tokenizer = make_tokenizer(texts_of(rows["train_sft"]))
    for name in MODELS:
        write_model(folder / "models" / name, tokenizer)


def texts_of(rows: list[dict[str, Any]]) -> list[str]:
    """What a vocabulary is learned from."""
    return [message["content"] for row in rows[:400] for message in row["messages"]]


def _sentence(dice: random.Random) -> str:
    kind, thing, deed = dice.choice(KINDS), dice.choice(THINGS), dice.choice(DEEDS)
    other, number = dice.choice(THINGS), dice.randint(2, 90)
    return dice.choice(
        (
            f"To {deed} a {kind} {thing} takes about {number} days, because {dice.choice(REASONS)}.",
            f"The {kind} {thing} lies beside a {other}, and {dice.choice(REASONS)}.",
            f"First they {deed} the {thing}, then they look after the {kind} {other} for {number} hours.",
            f"Most visitors remember the {thing} well, since {dice.choice(REASONS)}.",
        )
    )


def conversation(dice: random.Random, number: int) -> dict[str, Any]:
    messages = []
    for _ in range(dice.randint(2, 4)):
        question = f"How would you {dice.choice(DEEDS)} a {dice.choice(KINDS)} {dice.choice(THINGS)}?"
        answer = " ".join(_sentence(dice) for _ in range(dice.randint(9, 16)))
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    prompt = messages[0]["content"]
    return {"prompt": prompt, "prompt_id": f"{number:064x}", "messages": messages}


def _write_dataset(folder: Path, rows: dict[str, list[dict[str, Any]]]) -> None:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    (folder / "data").mkdir(parents=True, exist_ok=True)
    files = []
    for split, found in rows.items():
        name = f"data/{split}-00000-of-00001.parquet"
        pq.write_table(pa.Table.from_pylist(found), folder / name)
        files.append(f"  - split: {split}\n    path: data/{split}-*\n")
    card = f"---\nlicense: mit\nconfigs:\n- config_name: default\n  data_files:\n{''.join(files)}---\n"
    (folder / "README.md").write_text(card + "Conversations made by rules, for trying things out.\n")


def make_tokenizer(texts: list[str]) -> dict[str, Any]:
    """Llama's arrangement of byte pairs, as in Phi-3's tokenizer.json."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    learner = Tokenizer(models.BPE(unk_token="<unk>"))
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    size = VOCABULARY - len(CONTROL)
    learner.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, special_tokens=first, show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    vocabulary: dict[str, int] = learned["vocab"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in learned["merges"]]
    added = [(vocabulary[name], name) for name in first[:3]]
    added += [(len(vocabulary) + number, name) for number, name in enumerate(CONTROL)]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    prepend, spaces = {"type": "Prepend", "prepend": "▁"}, {"String": " "}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        # as in Phi-3's own: the template's line break after a control token is no token
        "added_tokens": [{"id": one, "content": name, **flags, "rstrip": name in CONTROL[1:]} for one, name in added],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [prepend, {"type": "Replace", "pattern": spaces, "content": "▁"}],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def write_model(
    folder: Path,
    tokenizer: dict[str, Any],
    template: str = TEMPLATE,
    deviations: tuple[float, float] = (0.02, 0.02),
) -> None:
    """A folder that `from_pretrained` loads, whose prompts are made by `template`.

    deviations: standard ones of the random weights, the layers' and the vocabulary's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    size, end = len(tokenizer["model"]["vocab"]) + len(CONTROL), ids["<|endoftext|>"]
    names = {"bos_token": "<s>", "eos_token": "<|endoftext|>", "unk_token": "<unk>", "pad_token": "<|endoftext|>"}
    config = {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "vocab_size": size,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        **{"bos_token_id": ids["<s>"], "eos_token_id": end, "pad_token_id": end},
    }
    files: dict[str, Any] = {
        "config.json": config,
        "generation_config.json": {"bos_token_id": ids["<s>"], "eos_token_id": [end, ids["<|end|>"]]},
        "tokenizer.json": tokenizer,
        "special_tokens_map.json": names,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": 4096,
            "clean_up_tokenization_spaces": False,
            "chat_template": template,
            **names,
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    card = "license: mit\npipeline_tag: text-generation\nlibrary_name: transformers\n"
    (folder / "README.md").write_text(f"---\n{card}---\nRandom weights, for trying things out.\n")
    _write_weights(folder / "model.safetensors", size, *deviations)


def _write_weights(path: Path, vocabulary: int, layers: float, words: float) -> None:
    """Random weights under Phi-3's names, its projections fused as it has them."""
    import numpy as np
    from safetensors.numpy import save_file

    dice = np.random.default_rng(7)
    shapes = {"model.embed_tokens": (vocabulary, HIDDEN), "lm_head": (vocabulary, HIDDEN), "model.norm": (HIDDEN,)}
    for layer in (f"model.layers.{number}" for number in range(LAYERS)):
        shapes |= {
            f"{layer}.self_attn.qkv_proj": (3 * HIDDEN, HIDDEN),
            f"{layer}.self_attn.o_proj": (HIDDEN, HIDDEN),
            f"{layer}.mlp.gate_up_proj": (2 * INNER, HIDDEN),
            f"{layer}.mlp.down_proj": (HIDDEN, INNER),
            f"{layer}.input_layernorm": (HIDDEN,),
            f"{layer}.post_attention_layernorm": (HIDDEN,),
        }
    weights = {
        f"{name}.weight": np.ones(shape, np.float32)
        if len(shape) == 1
        else dice.normal(0, layers if name.startswith("model.layers") else words, shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    save_file(weights, path, metadata={"format": "pt"})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
