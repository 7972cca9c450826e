"""Models with random weights and chats of random tokens: a benchmark needs no hub and no data set.

The lengths are like those of ultrachat_200k (log-normal, 1,163 tokens on average; a twentieth longer than about 2,470,
there it is 2,302; a fifth said by the user), because they decide how rows are packed. The tokens are a Markov chain's,
so that there is something to learn: each token is followed by one of four, which four depends on the domain.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Any

from training.evaluate import Encoded
from training.prompt import IGNORED

if TYPE_CHECKING:
    from transformers import Phi3Config, PreTrainedModel

MEAN_LENGTH, SIGMA = 1163, 0.55
USER_SHARE = 0.22
FIRST_TOKEN = 300
"""Below it lie bytes and control tokens."""
STATES = 2000
FOLLOWERS = 4

SHAPES: dict[str, dict[str, Any]] = {
    "phi-3.5-mini": {"vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32},
    "small": {"vocab_size": 8192, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4},
    "tiny": {"vocab_size": 4096, "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2},
}
HEADS = {"phi-3.5-mini": 32, "small": 4, "tiny": 4}


def conversations(domain: str, tokens: int, seed: int, mean_length: int = MEAN_LENGTH) -> list[Encoded]:
    """Chats of about `tokens` tokens in all; the assistant's are labelled, as training.prompt does."""
    source, found, count = random.Random(f"{domain}-{seed}"), [], 0
    followers = _followers(domain)
    while count < tokens:
        length = round(source.lognormvariate(_mu(mean_length), SIGMA))
        found.append(_chat(source, followers, min(max(length, 16), 8 * mean_length)))
        count += len(found[-1][0])
    return found


def _mu(mean: int) -> float:
    """Of the log-normal distribution with that mean."""
    return math.log(mean) - SIGMA**2 / 2


def _followers(domain: str) -> list[list[int]]:
    source = random.Random(domain)
    return [[source.randrange(STATES) for _ in range(FOLLOWERS)] for _ in range(STATES)]


def _chat(source: random.Random, followers: list[list[int]], length: int) -> Encoded:
    state, ids = source.randrange(STATES), []
    for _ in range(length):
        state = source.choice(followers[state])
        ids.append(FIRST_TOKEN + state)
    asked = max(round(length * USER_SHARE), 1)
    return ids, [IGNORED] * asked + ids[asked:]


def configuration(shape: str) -> Phi3Config:
    """Phi-3's architecture in one of SHAPES; with Phi-3.5's longrope, whose factors change no speed."""
    from transformers import Phi3Config

    sizes, heads = SHAPES[shape], HEADS[shape]
    factors = [1.0] * (sizes["hidden_size"] // heads // 2)
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": factors,
        "long_factor": factors,
        "original_max_position_embeddings": 4096,
    }
    return Phi3Config(
        **sizes,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=131072,
        original_max_position_embeddings=4096,
        rope_parameters=rope,
        sliding_window=262144,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )


def model(shape: str, dtype: str, attention: str, device: str, seed: int = 0) -> PreTrainedModel:
    """Random weights, made on the device itself."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    with torch.device(device):
        made: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            configuration(shape), dtype=getattr(torch, dtype), attn_implementation=attention
        )
    return made


def tokenizer() -> Any:
    """One that the trainer can ask for its padding; nothing is tokenised."""
    from training.small_model import make_tokenizer

    return make_tokenizer(["a few words"])
