"""Where the model lies, and what its files say about it: the same for every engine."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from deployment.server.decoding import Decoder
from infra.cli import WRONG_USE, UserError
from training.prompt import Tokenizer, stop_ids

if TYPE_CHECKING:
    from deployment.server.rows import Engine

WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "openvino_model.bin")


@dataclass(frozen=True)
class Defaults:
    """What holds for a request that does not say otherwise; a temperature of 0 is greedy."""

    temperature: float
    top_p: float


@dataclass(frozen=True)
class LoadedModel(ABC):
    """A model ready to generate, whatever engine it was loaded for.

    `decoder` is a second tokenizer: `encode` switches a flag inside the shared backend, so the thread that decodes
    needs its own. `context` is in tokens, prompt and answer together.
    """

    name: str
    encoder: Tokenizer
    decoder: Decoder
    context: int
    stop_ids: frozenset[int]
    defaults: Defaults

    @abstractmethod
    def start(self, slots: int, queue: int) -> Engine:
        """An engine that decodes `slots` requests together and lets `queue` more wait."""


def find_model(given: Path | None, environ: Mapping[str, str] = os.environ) -> Path:
    """The folder that holds the model: `given`, or the one with a `config.json` under AZUREML_MODEL_DIR.

    Azure ML mounts a registered model at AZUREML_MODEL_DIR with the leaf folder of its registered path kept, so the
    files may lie one or more levels down; of several the one nearest to the top counts, those with weights first: the
    registry's MLflow models have `data/config` and `data/model`.

    Raises:
        UserError: nothing is given, or there is no `config.json`, or no weights beside it.
    """
    root = given or (Path(mounted) if (mounted := environ.get("AZUREML_MODEL_DIR")) else None)
    if root is None:
        raise UserError(
            "no model is given: there is neither --model nor AZUREML_MODEL_DIR, which Azure ML sets in a deployment",
            next_command="python -m deployment.server --model DIR",
            code=WRONG_USE,
        )
    configs = [root / "config.json"] if given else root.rglob("config.json")
    there = [path for path in configs if path.is_file()]
    found = sorted(there, key=lambda path: (not _has_weights(path.parent), len(path.parts), path))
    if not found:
        raise UserError(
            f"there is no model in {root}: no config.json" + ("" if given else " in it or below it"),
            next_command="give the folder that training wrote (config.json, model.safetensors, tokenizer.json)",
        )
    folder = found[0].parent
    if not _has_weights(folder):
        raise UserError(f"the model in {folder} has no weights: there is neither {' nor '.join(WEIGHTS)}")
    return folder


def _has_weights(folder: Path) -> bool:
    return any(any(folder.glob(pattern)) for pattern in WEIGHTS)


def described(folder: Path) -> dict[str, Any]:
    """The fields of LoadedModel, from the configuration and the tokenizer in `folder`; the weights are not touched.

    Raises:
        UserError: the files are not a causal language model's with a Phi-3 tokenizer.
    """
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        encoder, decoder = (cast(Any, AutoTokenizer).from_pretrained(folder, local_files_only=True) for _ in range(2))
        has_own = (folder / "generation_config.json").is_file()
        generation = GenerationConfig.from_pretrained(folder) if has_own else GenerationConfig.from_model_config(config)
        ids = _stop_ids(generation, encoder)
    except (OSError, ValueError, KeyError) as error:
        raise cannot_load(folder, error) from None
    return {
        "name": folder.name,
        "encoder": encoder,
        "decoder": decoder,
        "context": context_length(config),
        "stop_ids": ids,
        "defaults": _defaults(generation),
    }


def cannot_load(folder: Path, error: Exception) -> UserError:
    return UserError(f"the model in {folder} cannot be loaded: {error}")


def context_length(config: Any) -> int:
    """Tokens that a prompt and its answer may have together.

    With LongRoPE (Phi-3.5's 128k) it is the original length, not the extended one: beyond it all rotary factors change,
    those of keys already in the cache too, and rows on both sides of the border cannot share one batch.
    """
    extended = int(config.max_position_embeddings)
    scaling = getattr(config, "rope_parameters", None) or {}
    if scaling.get("rope_type") != "longrope":
        return extended
    original = scaling.get("original_max_position_embeddings") or getattr(
        config, "original_max_position_embeddings", None
    )
    return min(extended, int(original or extended))


def _stop_ids(generation: Any, tokenizer: Tokenizer) -> frozenset[int]:
    """The ids that end an answer: those of generation_config, and Phi-3's `<|end|>` and `<|endoftext|>`."""
    eos = generation.eos_token_id
    configured = [eos] if isinstance(eos, int) else list(eos or [])
    return frozenset([*configured, *stop_ids(tokenizer)])


def _defaults(generation: Any) -> Defaults:
    """The model's own generation_config; greedy if that does not say `do_sample`."""
    if not generation.do_sample:
        return Defaults(0.0, 1.0)
    return Defaults(float(generation.temperature or 1.0), float(generation.top_p or 1.0))
