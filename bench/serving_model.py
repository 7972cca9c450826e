"""The model that every server of `bench.serving` gets: random weights, so no hub, and ids that cost what real ones do.

It runs as a process of its own, as the libraries that save a model should not weigh on the one that measures.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra import cli

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SHAPES: dict[str, dict[str, Any]] = {
    "134m": {"vocab_size": 32064, "hidden_size": 768, "intermediate_size": 2304, "num_hidden_layers": 12},
    "440m": {"vocab_size": 32064, "hidden_size": 1536, "intermediate_size": 4096, "num_hidden_layers": 12},
    "tiny": {"vocab_size": 2048, "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2},
}
HEADS = {"134m": 12, "440m": 12, "tiny": 4}
CORPUS = ["Who founded Microsoft? Microsoft was founded by Bill Gates and Paul Allen in 1975."]


def save(folder: Path, shape: str) -> int:
    """Write the model as training does; the number of its parameters."""
    import torch
    from transformers import GenerationConfig, Phi3Config, Phi3ForCausalLM

    from training.prompt import stop_ids

    sizes = SHAPES[shape]
    tokenizer = _tokenizer(sizes["vocab_size"])
    pad = tokenizer.pad_token_id
    config = Phi3Config(
        **sizes,
        num_attention_heads=HEADS[shape],
        num_key_value_heads=HEADS[shape],
        max_position_embeddings=4096,
        sliding_window=None,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=pad,
        pad_token_id=pad,
    )
    torch.manual_seed(0)
    model = Phi3ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=stop_ids(tokenizer), pad_token_id=pad)  # type: ignore[no-untyped-call]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return int(model.num_parameters())


def _tokenizer(size: int) -> PreTrainedTokenizerFast:
    """One whose every id has a text, so that each token of an answer can be streamed."""
    from training.small_model import make_tokenizer

    tokenizer = make_tokenizer(CORPUS)
    tokenizer.add_tokens([f" w{number}" for number in range(len(tokenizer), size)])
    return tokenizer


def save_for_mlflow(folder: Path, out: Path, dtype: str) -> None:
    """As the guide's script does, but for the signature: without it MLflow would drop the bound on new tokens."""
    import mlflow.transformers
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    text = Schema([ColSpec(DataType.string)])
    params = ParamSchema(
        [
            ParamSpec("max_new_tokens", DataType.integer, 16),
            ParamSpec("do_sample", DataType.boolean, False),
            ParamSpec("return_full_text", DataType.boolean, False),
        ]
    )
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    mlflow.transformers.save_model(
        transformers_model={"model": loaded, "tokenizer": tokenizer},
        path=str(out),
        task="text-generation",
        torch_dtype=getattr(torch, dtype),
        signature=ModelSignature(inputs=text, outputs=text, params=params),
        pip_requirements=["torch", "transformers"],
    )


def seconds_of_a_forward_pass(folder: Path, prompt: int, dtype: str, threads: int) -> float:
    """The best of five, for one prompt of so many tokens."""
    import time

    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    ids = torch.arange(300, 300 + prompt)[None]
    took = []
    with torch.inference_mode():
        for _ in range(5):
            began = time.perf_counter()
            model(ids, logits_to_keep=1)
            took.append(time.perf_counter() - began)
    return min(took)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.serving_model")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--mlflow", type=Path, metavar="OUT")
    parser.add_argument("--forward", type=int, metavar="TOKENS")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(argv)
    if given.shape:
        print(save(given.folder, given.shape))
    elif given.mlflow:
        save_for_mlflow(given.folder, given.mlflow, given.dtype)
    else:
        print(seconds_of_a_forward_pass(given.folder, given.forward, given.dtype, given.threads))
    return 0


if __name__ == "__main__":
    cli.run(main)
