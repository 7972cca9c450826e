"""The one maker of small models here: Phi-3's architecture and a real tokenizer in a few million parameters.

A model from here knows nothing: its weights are random, only its vocabulary comes from the corpus. What it can say
after a training job, it learned in that job. The same corpus and seed give the same files, byte for byte.

    python -m training.small_model --out data/base-model --corpus data/train.jsonl
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra import cli
from infra.cli import WRONG_USE, UserError
from training.prompt import stop_ids

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

TEMPLATE = Path(__file__).parent / "templates" / "phi-3.5.jinja"
VOCABULARY = 4096
# Phi-3's control tokens in the order of their ids (32000-32010 in the real vocabulary)
CONTROL_TOKENS = (
    "<|endoftext|>",
    "<|assistant|>",
    *(f"<|placeholder{n}|>" for n in range(1, 5)),
    "<|system|>",
    "<|end|>",
    "<|placeholder5|>",
    "<|placeholder6|>",
    "<|user|>",
)


def make_small_model(
    out: Path, corpus_texts: Sequence[str], seed: int = 0, *, hidden: int = 256, layers: int = 4
) -> int:
    """Write a folder that `from_pretrained` loads: random weights, tokenizer, chat template, generation config.

    The folder appears whole or not at all; one that stands at `out` is replaced. Uses no random state of the caller.

    Returns:
        The number of parameters: 5.3 million with a full vocabulary, fewer where the corpus yields a smaller one.

    Raises:
        ValueError: the corpus has no text to learn a vocabulary from.
    """
    if not any(text.strip() for text in corpus_texts):
        raise ValueError("the corpus has no text to learn a vocabulary from")
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        tokenizer = make_tokenizer(corpus_texts)
        tokenizer.save_pretrained(partial)
        parameters = _save_random_model(partial, tokenizer, seed, hidden=hidden, layers=layers)
        shutil.rmtree(out, ignore_errors=True)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return parameters


def make_tokenizer(corpus_texts: Sequence[str], vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """A tokenizer of Phi-3's kind: BPE over `▁words`, digits one by one, bytes for what the vocabulary lacks."""
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    backend = _byte_pair_encoding(corpus_texts, vocabulary - len(CONTROL_TOKENS))
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<unk>", "<s>")])
    # rstrip: the template's line break after a control token is no token
    backend.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False, rstrip=token != CONTROL_TOKENS[0])
            for token in CONTROL_TOKENS
        ]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
        chat_template=TEMPLATE.read_text(encoding="utf-8"),
    )


def _byte_pair_encoding(texts: Sequence[str], size: int) -> Tokenizer:
    """Llama's arrangement of BPE, as in Phi-3's tokenizer.json. Its merges are learned within words only."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    learner = Tokenizer(models.BPE(unk_token="<unk>"))
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Punctuation(),
        ]
    )
    learner.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, special_tokens=first, show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    merges = [tuple(pair) for pair in learned["merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocab=learned["vocab"], merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def _save_random_model(folder: Path, tokenizer: PreTrainedTokenizerFast, seed: int, *, hidden: int, layers: int) -> int:
    import torch
    from transformers import GenerationConfig, Phi3Config, Phi3ForCausalLM, logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]

    bos, pad = tokenizer.bos_token_id, tokenizer.pad_token_id
    # the shape of Phi-3-mini in small; without its sliding window, which would need a dense mask from 2,047 tokens on
    config = Phi3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        sliding_window=None,
        bos_token_id=bos,
        eos_token_id=pad,
        pad_token_id=pad,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Phi3ForCausalLM(config)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        bos_token_id=bos,
        eos_token_id=stop_ids(tokenizer),
        pad_token_id=pad,
    )
    model.save_pretrained(folder)
    return int(model.num_parameters())


def corpus_from(files: Iterable[Path]) -> list[str]:
    """The texts of files to learn a vocabulary from: each message's of a .jsonl of conversations, each line of others.

    Raises:
        UserError: exit code 2 for a file that cannot be read.
    """
    texts: list[str] = []
    for file in files:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
            texts += _messages_of(lines) if file.suffix == ".jsonl" else lines
        except FileNotFoundError:
            raise UserError(
                f"the corpus {file} does not exist: a vocabulary is learned from the training data",
                next_command=f"python -m training.dataset --source NAME_OR_FILE --out {file.parent}",
                code=WRONG_USE,
            ) from None
        except OSError as error:
            raise UserError(f"cannot read the corpus {file}: {error.strerror}", code=WRONG_USE) from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"the corpus {file} does not hold conversations: {error!r}", code=WRONG_USE) from None
    return texts


def _messages_of(lines: Sequence[str]) -> list[str]:
    rows: list[Any] = [json.loads(line) for line in lines if line.strip()]
    return [message["content"] for row in rows for message in row["messages"]]


def main(argv: list[str]) -> int:
    parser = cli.parser("training.small_model", "Make a small Phi-3 model with random weights and its own tokenizer.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the model's folder")
    parser.add_argument("--corpus", type=Path, nargs="+", required=True, metavar="FILE", help=".jsonl or text files")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights (default: %(default)s)")
    args = parser.parse_args(argv)
    texts = corpus_from(args.corpus)
    if args.out.exists() and not (args.out / "config.json").is_file():
        raise UserError(f"{args.out} exists and is not a model's folder: it is left as it is", code=WRONG_USE)
    try:
        parameters = make_small_model(args.out, texts, args.seed)
    except ValueError as error:
        raise UserError(str(error), code=WRONG_USE) from None
    except OSError as error:
        raise UserError(f"cannot write the model to {args.out}: {error.strerror}") from None
    cli.result({"model": str(args.out), "parameters": parameters, "seed": args.seed}, as_json=args.json)
    return 0


if __name__ == "__main__":
    cli.run(main)
