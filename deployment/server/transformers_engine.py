"""The engine that needs nothing but transformers: a model's own code and weights, decoded by batcher.py."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from deployment.server import machine
from deployment.server.model import LoadedModel, cannot_load, described

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from deployment.server.batcher import Batcher

log = logging.getLogger("deployment.server")

CACHE_SHARE = 0.5
"""Of the memory that is free once the model is loaded: for keys and values. The rest is for prompts on their way in."""
KEPT_SHARE = 0.25
"""Of that, or of what all slots could use if it is less: for answered conversations, whose next turns begin with it."""


@dataclass(frozen=True)
class TransformersModel(LoadedModel):
    model: PreTrainedModel

    def start(self, slots: int, queue: int) -> Batcher:
        from deployment.server.batcher import Batcher

        room = cache_room(self.model)
        kept = int(KEPT_SHARE * min(slots * self.context, room or 0))
        left = None if room is None else room - kept
        return Batcher(self.model, self.stop_ids, slots=slots, queue=queue, room=left, kept=kept)


def load(folder: Path, *, dtype: str = "auto", threads: int | None = None) -> TransformersModel:
    """Load the model in `folder`, onto a GPU if there is one.

    Args:
        dtype: `float32`, `bfloat16`, or `auto`: what `chosen_dtype` says.
        threads: torch's CPU threads; `cpu_quota()` if None. OMP_NUM_THREADS, when set, is left to rule.

    Raises:
        UserError: the files are not a causal language model with a Phi-3 tokenizer.
    """
    # read when torch is first imported: threads that wait in a loop take the cores from those that compute. With 2 of
    # them on 2 cores that others used too, 16 requests in bfloat16 got 356 tokens a second so, and 43 without
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # read when torch first multiplies in bfloat16: its 1024 compiled kernels of ever other shapes grew to 0.5 GB
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    fields = described(folder)
    if threads or not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(threads or machine.cpu_quota())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name, reason = chosen_dtype(dtype, device)
    log.info("%s on %s with %d threads: %s", name, device, torch.get_num_threads(), reason)
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, name), local_files_only=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise cannot_load(folder, error) from None
    cast(Any, model).to(device).eval()
    return TransformersModel(**fields, model=model)


def chosen_dtype(wanted: str, device: str) -> tuple[str, str]:
    """(float32 or bfloat16, why). On CPUs without bfloat16 arithmetic it was measured slower than float32."""
    if wanted != "auto":
        return wanted, "asked for"
    if device == "cuda":
        return "bfloat16", "a GPU"
    flag = machine.bfloat16_flag()
    return ("bfloat16", f"the CPU has {flag}") if flag else ("float32", "the CPU does not compute in bfloat16")


def cache_room(model: PreTrainedModel) -> int | None:
    """Tokens whose keys and values fit into the free memory; None where it is not known how much is free."""
    import torch

    free = torch.cuda.mem_get_info()[0] if model.device.type == "cuda" else machine.free_memory()
    return None if free is None else int(CACHE_SHARE * free / bytes_per_token(model))


def bytes_per_token(model: PreTrainedModel) -> int:
    """Of keys and values, in all layers."""
    config = cast(Any, model.config)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * size * model.dtype.itemsize)
