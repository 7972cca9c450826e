"""Where the model lies and how it is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from deployment.server.decoding import Decoder
from infra.cli import WRONG_USE, UserError
from training.prompt import Tokenizer, stop_ids

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True)
class Defaults:
    """What holds for a request that does not say otherwise; a temperature of 0 is greedy."""

    temperature: float
    top_p: float


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to generate.

    `decoder` is a second tokenizer: `encode` switches a flag inside the shared backend, so the thread that decodes
    needs its own. `context` is in tokens, prompt and answer together.
    """

    name: str
    model: PreTrainedModel
    encoder: Tokenizer
    decoder: Decoder
    context: int
    stop_ids: frozenset[int]
    defaults: Defaults


def find_model(given: Path | None, environ: Mapping[str, str] = os.environ) -> Path:
    """The folder that holds the model: `given`, or the one with a `config.json` under AZUREML_MODEL_DIR.

    Azure ML mounts a registered model at AZUREML_MODEL_DIR with the leaf folder of its registered path kept, so the
    files may lie one or more levels down; of several the one nearest to the top counts.

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
    found = sorted((path for path in configs if path.is_file()), key=lambda path: (len(path.parts), path))
    if not found:
        raise UserError(
            f"there is no model in {root}: no config.json" + ("" if given else " in it or below it"),
            next_command="give the folder that training wrote (config.json, model.safetensors, tokenizer.json)",
        )
    folder = found[0].parent
    if not any(any(folder.glob(pattern)) for pattern in WEIGHTS):
        raise UserError(f"the model in {folder} has no weights: there is neither {' nor '.join(WEIGHTS)}")
    return folder


def cpu_quota() -> int:
    """CPUs that this process may use: its affinity mask, cut by the container's quota (cgroup v2), at least 1.

    More torch threads than that make every step wait for descheduled ones: 2 threads on one contended core were
    measured 20 times slower than one.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cpus = len(affinity(0)) if affinity else (os.cpu_count() or 1)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cpus = min(cpus, int(quota) // int(period))
    except (OSError, ValueError):
        pass  # no cgroup v2, or no quota ("max")
    return max(1, cpus)


def load(folder: Path, *, dtype: str = "auto", threads: int | None = None) -> LoadedModel:
    """Load the model in `folder`, onto a GPU if there is one.

    Args:
        dtype: `float32`, `bfloat16`, or `auto`: bfloat16 on a GPU, float32 on a CPU (where bfloat16 is faster only
            with AVX512-BF16, and slower than float32 without).
        threads: torch's CPU threads; `cpu_quota()` if None. OMP_NUM_THREADS, when set, is left to rule.

    Raises:
        UserError: the files are not a causal language model with a Phi-3 tokenizer.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if threads or not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(threads or cpu_quota())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = _dtype(torch, dtype, device)
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=kind, local_files_only=True)
        encoder, decoder = (cast(Any, AutoTokenizer).from_pretrained(folder, local_files_only=True) for _ in range(2))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"the model in {folder} cannot be loaded: {error}") from None
    cast(Any, model).to(device).eval()
    return LoadedModel(
        name=folder.name,
        model=model,
        encoder=encoder,
        decoder=decoder,
        context=context_length(model.config),
        stop_ids=_stop_ids(model, encoder, folder),
        defaults=_defaults(model),
    )


def _dtype(torch_module: Any, name: str, device: str) -> torch.dtype:
    chosen = name if name != "auto" else ("bfloat16" if device == "cuda" else "float32")
    return cast("torch.dtype", getattr(torch_module, chosen))


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


def _stop_ids(model: PreTrainedModel, tokenizer: Tokenizer, folder: Path) -> frozenset[int]:
    """The ids that end an answer: those of generation_config, and Phi-3's `<|end|>` and `<|endoftext|>`."""
    config = model.generation_config
    eos = config.eos_token_id if config is not None else None
    configured = [eos] if isinstance(eos, int) else list(eos or [])
    try:
        return frozenset([*configured, *stop_ids(tokenizer)])
    except ValueError as error:
        raise UserError(f"the model in {folder} cannot be served: {error}") from None


def _defaults(model: PreTrainedModel) -> Defaults:
    """The model's own generation_config; greedy if that does not say `do_sample`."""
    config = model.generation_config
    if config is None or not config.do_sample:
        return Defaults(0.0, 1.0)
    return Defaults(float(config.temperature or 1.0), float(config.top_p or 1.0))
