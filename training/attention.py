"""Attention over packed documents that never builds a dense mask and never lets one document see another.

TRL flattens a packed batch into one row and says where its documents begin (`cu_seq_lens_q`). transformers' own `sdpa`
turns that into a mask of (tokens, tokens) over the whole row, which costs two thirds of the speed; flash-attention
reads the borders themselves, but is a package of its own. torch has such a kernel built in
(https://docs.pytorch.org/docs/stable/nn.attention.varlen.html), which transformers does not use: the function here,
registered under the name `varlen`, does. Without a GPU it computes one causal attention per document.

A batch that is padded, or a step of generation, goes to transformers' own sdpa function with its mask.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from typing import TYPE_CHECKING, Any

from training.settings import Choice

if TYPE_CHECKING:
    from torch import Tensor

VARLEN = "varlen"


def choose(wanted: str, *, packed: bool) -> Choice[str]:
    """The attention to load the model with: what the recipe names, or for `auto` the fastest that is here.

    Registers `varlen`. A kernel on the hub (`kernels-community/…`) is code from elsewhere: only a recipe that names
    it gets it.
    """
    register()
    if wanted != "auto":
        return Choice(wanted, "the recipe names it")
    if not packed:
        return Choice("sdpa", "rows are padded, so there are no borders within a row")
    flash = _flash_attention()
    if flash and (flash == "flash_attention_3" or not has_kernel()):
        return Choice(flash, "packed rows; its package is installed")
    if has_kernel():
        return Choice(VARLEN, "packed rows; torch's own variable-length kernel")
    return Choice(VARLEN, "packed rows; one causal attention for each document")


def register() -> None:
    """Make `attn_implementation="varlen"` known to transformers. May be called again."""
    from transformers import AttentionInterface, AttentionMaskInterface

    # asked once, here: torch.compile cannot look into the question
    AttentionInterface.register(VARLEN, functools.partial(varlen_attention, kernel=has_kernel()))
    AttentionMaskInterface.register(VARLEN, varlen_mask)


def has_kernel() -> bool:
    """Whether there is a GPU and a torch whose kernel knows windows (2.11; that of 2.10 does not)."""
    import torch

    if not torch.cuda.is_available():
        return False
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return "window_size" in inspect.signature(varlen_attn).parameters


def _flash_attention() -> str | None:
    from transformers.utils.import_utils import is_flash_attn_2_available, is_flash_attn_3_available

    if is_flash_attn_3_available():
        return "flash_attention_3"
    return "flash_attention_2" if is_flash_attn_2_available() else None


def varlen_mask(*, q_length: int, kv_length: int, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """No mask for whole rows without padding, which `varlen_attention` masks by their borders; else sdpa's."""
    from transformers.masking_utils import sdpa_mask

    if attention_mask is None and q_length == kv_length:
        return None
    mask: Tensor | None = sdpa_mask(q_length=q_length, kv_length=kv_length, attention_mask=attention_mask, **kwargs)
    return mask


def varlen_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    position_ids: Tensor | None = None,
    *,
    kernel: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each document, as transformers' attention functions are called.

    Args:
        query: (batch, heads, tokens, head size); `key` and `value` may have fewer heads.
        sliding_window: how many tokens a token sees, itself included.
        cu_seq_lens_q: where the documents of a row begin, and its end: (documents + 1,), int32. Without it (another
            collator, a prompt) the borders are where `position_ids`, (batch or 1, tokens), start again.
        max_length_q: tokens of the longest document.
        kernel: whether torch's kernel is here (`has_kernel`); it computes in 16 bits only.

    Raises:
        ValueError: dropout, which the kernel does not know.

    Returns:
        (batch, tokens, heads, head size), and None for the weights.
    """
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

    batch, _, tokens, _ = query.shape
    if attention_mask is not None or tokens == 1 or key.shape[2] != tokens:
        output: Tensor = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )[0]
        return output, None
    if cu_seq_lens_q is None:
        cu_seq_lens_q, max_length_q = _borders(position_ids, batch, tokens, query.device)
    window = sliding_window if sliding_window and sliding_window < (max_length_q or tokens) else None
    groups = query.shape[1] // key.shape[1]
    rows = [_one_row(part) for part in (query, repeat_kv(key, groups), repeat_kv(value, groups))]
    dtype = _compute_dtype(query)
    if kernel and dtype.itemsize == 2:
        if dropout:
            raise ValueError("torch's variable-length attention knows no dropout: set attention_dropout to 0")
        parts = [part[0].transpose(0, 1).to(dtype) for part in rows]
        attended = _kernel(parts, cu_seq_lens_q, max_length_q or tokens, scaling, window)
    else:
        attended = _per_document(rows, cu_seq_lens_q, scaling, window, dropout)
    return attended.reshape(batch, tokens, *attended.shape[-2:]), None


def _one_row(part: Tensor) -> Tensor:
    """(batch, heads, tokens, size) → (1, heads, batch x tokens, size)."""
    return part if part.shape[0] == 1 else part.transpose(0, 1).flatten(1, 2)[None]


def _compute_dtype(query: Tensor) -> Any:
    """The rotary embedding leaves queries and keys in float32 under autocast, which knows nothing of this kernel."""
    import torch

    kind = query.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype


def _borders(position_ids: Tensor | None, batch: int, tokens: int, device: Any) -> tuple[Tensor, int]:
    """Where documents begin in `batch` rows laid end to end, with the end; and the longest document's length."""
    import torch

    starts = torch.zeros(batch, tokens, dtype=torch.bool, device=device)
    if position_ids is not None:
        starts[:, 1:] = position_ids.diff(dim=-1) != 1
    starts[:, 0] = True
    ends = torch.tensor([batch * tokens], device=device)
    borders = torch.cat([starts.flatten().nonzero().flatten(), ends]).to(torch.int32)
    return borders, int(borders.diff().max())


def _kernel(rows: list[Tensor], borders: Tensor, longest: int, scaling: float | None, window: int | None) -> Tensor:
    """torch's kernel on queries, keys and values, each of (tokens, heads, size)."""
    from torch.nn.attention.varlen import varlen_attn

    # cuDNN's kernel is only taken if both borders are the same object; a window counts the tokens left of the own one
    query, key, value = rows
    reach = (window - 1 if window else -1, 0)
    attended = varlen_attn(query, key, value, borders, borders, longest, longest, scale=scaling, window_size=reach)
    assert not isinstance(attended, tuple)  # it is one only where auxiliary results are asked for
    return attended


def _per_document(
    rows: list[Tensor], borders: Tensor, scaling: float | None, window: int | None, dropout: float
) -> Tensor:
    """Queries, keys and values of (1, heads, tokens, size) → (1, tokens, heads, size), one document after the other.

    A mask is built only for documents that are longer than the window, each of its own size.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    ends = borders.tolist()
    parts = []
    for begin, end in itertools.pairwise(ends):
        query, key, value = (row[:, :, begin:end] for row in rows)
        band = None
        if window and window < end - begin:
            ones = torch.ones(end - begin, end - begin, dtype=torch.bool, device=query.device)
            band = ones.tril() & ones.triu(1 - window)
        parts.append(
            scaled_dot_product_attention(query, key, value, band, dropout, is_causal=band is None, scale=scaling)
        )
    return torch.cat(parts, dim=2).transpose(1, 2)
