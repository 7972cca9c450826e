"""What a Phi-3 model costs to train: its parameters, the arithmetic of a token, the memory of a process.

Computed from the model's configuration alone, without torch and without weights, so that a run can be planned where
neither is. The bytes of activations were counted on Phi-3 layers of three shapes (what autograd keeps for the backward
pass, under each precision); the rest is arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infra.cli import WRONG_USE, UserError

# Bytes that autograd keeps for each token and layer: so many per hidden and per intermediate unit, and for each score
# of an attention that writes its scores down (eager).
KEPT = {"float32": (52, 16, 4), "autocast": (34, 8, 6), "bfloat16": (30, 8, 6)}
# what remains of it when a layer is compiled, which recomputes what is cheap: estimated, not measured
KEPT_COMPILED = 0.6
HEAD_TOKENS = 4096
"""The fused LM head holds the logits of so many tokens at a time (TRL's TOKEN_CHUNK_SIZE)."""
CONTEXT = 2**30
"""Bytes that CUDA and its libraries take before anything is loaded."""
LORA_MODULES = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")


@dataclass(frozen=True)
class Shape:
    """The sizes of a Phi-3 model."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    tied: bool

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of each linear module of a layer."""
        attended = self.heads * self.head_size
        return {
            "qkv_proj": (self.hidden, attended + 2 * self.kv_heads * self.head_size),
            "o_proj": (attended, self.hidden),
            "gate_up_proj": (self.hidden, 2 * self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def matmul_parameters(self) -> int:
        """Those that every token is multiplied with: all but the embedding and the norms."""
        in_layer = sum(inputs * outputs for inputs, outputs in self.linear.values())
        return self.layers * in_layer + self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        norms = (2 * self.layers + 1) * self.hidden
        return self.matmul_parameters + norms + (0 if self.tied else self.vocabulary * self.hidden)

    def lora_parameters(self, rank: int, modules: tuple[str, ...]) -> int:
        """Those of adapters of that rank on these modules of every layer."""
        return self.layers * rank * sum(sum(self.linear[name]) for name in modules if name in self.linear)


def shape_of(config: Mapping[str, Any]) -> Shape:
    """The shape of a model from its config.json. Raises UserError, exit code 2, for another architecture."""
    if config.get("model_type") != "phi3":
        raise UserError(
            f"the base model is of the architecture {config.get('model_type')!r}: this job trains Phi-3 and Phi-3.5",
            next_command="set model_name_or_path to one of them, as microsoft/Phi-3.5-mini-instruct",
            code=WRONG_USE,
        )
    heads = int(config["num_attention_heads"])
    return Shape(
        layers=int(config["num_hidden_layers"]),
        hidden=int(config["hidden_size"]),
        intermediate=int(config["intermediate_size"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_size=int(config.get("head_dim") or config["hidden_size"] // heads),
        vocabulary=int(config["vocab_size"]),
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def flops_per_token(shape: Shape, span: float, lora: int = 0) -> float:
    """Model FLOPs of one token, forward and backward.

    The convention: 6 for each parameter that a token is multiplied with (2 forward, 4 backward), or 4 where it is
    frozen (the gradient of a frozen weight is not computed) with 6 for each of the `lora` adapter parameters; plus
    attention as causal, half of 12 x heads x head size x `span` in each layer. `span` is the length of the document
    that a token is in, averaged over tokens. What checkpointing computes again is not counted.
    """
    attention = 6 * shape.layers * shape.heads * shape.head_size * span
    if lora:
        return 4 * shape.matmul_parameters + 6 * lora + attention
    return 6 * shape.matmul_parameters + attention


@dataclass(frozen=True)
class Memory:
    """Bytes in one process at the peak of a step."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    other: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations + self.other

    def __str__(self) -> str:
        parts = {"weights": self.weights, "gradients": self.gradients, "optimizer": self.optimizer}
        parts |= {"activations": self.activations, "other": self.other}
        return f"{gigabytes(self.total)} ({', '.join(f'{name} {gigabytes(size)}' for name, size in parts.items())})"


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


@dataclass(frozen=True)
class Load:
    """What decides the memory of a process, besides the model's shape."""

    tokens: int
    """In one micro-batch, all rows together."""
    row: int
    """Tokens of one row."""
    dtype: str = "float32"
    autocast: bool = True
    lora: int = 0
    """Trainable adapter parameters; 0 where all weights are trained."""
    four_bit: bool = False
    scores: bool = False
    """Whether attention writes its scores down, as eager does."""
    checkpointing: bool = False
    compiled: bool = False
    eight_bit_optimizer: bool = False
    shards: int = 1
    """Among how many processes weights, gradients and optimizer are divided."""
    copies: bool = False
    """Whether gradients lie twice, as in DistributedDataParallel's buckets."""
    cuda: bool = True


def memory_of(shape: Shape, load: Load) -> Memory:
    """An estimate of what one process needs; `Load` says for what."""
    width = 2 if load.dtype == "bfloat16" else 4
    trained, trained_width = (load.lora, 4) if load.lora else (shape.parameters, width)
    linear = shape.matmul_parameters - shape.vocabulary * shape.hidden
    # four bits, and a constant of 8 bits for each 64 weights (nested quantisation)
    weights = shape.parameters * width - (linear * (width - 0.52) if load.four_bit else 0)
    return Memory(
        weights=(weights + (4 * load.lora)) / load.shards,
        gradients=trained * trained_width * (2 if load.copies else 1) / load.shards,
        optimizer=trained * (2 if load.eight_bit_optimizer else 2 * trained_width) / load.shards,
        activations=_activations(shape, load),
        other=_other(shape, load),
    )


def _activations(shape: Shape, load: Load) -> float:
    kind = "autocast" if load.autocast and load.dtype == "float32" else load.dtype
    per_hidden, per_intermediate, per_score = KEPT[kind]
    layer: float = load.tokens * (per_hidden * shape.hidden + per_intermediate * shape.intermediate)
    layer *= KEPT_COMPILED if load.compiled else 1
    layer += load.tokens * load.row * shape.heads * per_score if load.scores else 0
    border = load.tokens * shape.hidden * (2 if load.dtype == "bfloat16" else 4)
    return shape.layers * border + layer if load.checkpointing else shape.layers * layer


def _other(shape: Shape, load: Load) -> float:
    """Logits of the fused head and what its backward adds up; weights in 16 bits, which autocast keeps for a step."""
    width = 2 if load.autocast or load.dtype == "bfloat16" else 4
    head: float = min(load.tokens, HEAD_TOKENS) * shape.vocabulary * width * 2
    head += 0 if load.lora else 4 * shape.vocabulary * shape.hidden
    in_use = shape.matmul_parameters / shape.layers * 3 if load.shards > 1 else shape.matmul_parameters
    casts = 2.0 * in_use if load.autocast and load.dtype == "float32" else 0.0
    return head + casts + (CONTEXT if load.cuda else 0)
