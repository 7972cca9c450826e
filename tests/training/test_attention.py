"""Documents in a packed row do not see each other, and nothing builds a mask over the whole row."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

from training import attention

DOCUMENTS = [[5, 17, 900, 31, 8], [77, 12, 4, 9, 301, 45, 230, 11], [600, 3, 19], [42]]


def _model(folder: Path, implementation: str = attention.VARLEN, **config: Any) -> Any:
    from transformers import AutoModelForCausalLM, Phi3Config

    attention.register()
    values = Phi3Config.from_pretrained(folder)
    values.update(config)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(values, attn_implementation=implementation).eval()


def _packed(documents: list[list[int]]) -> dict[str, Any]:
    """A row as TRL's collator makes it of packed documents."""
    lengths = [len(document) for document in documents]
    borders = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return {
        "input_ids": torch.tensor([[token for document in documents for token in document]]),
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "cu_seq_lens_q": borders,
        "cu_seq_lens_k": borders,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }


def _alone(model: Any, documents: list[list[int]]) -> torch.Tensor:
    return torch.cat([model(input_ids=torch.tensor([ids]), use_cache=False).logits[0] for ids in documents])


@pytest.fixture(params=[{}, {"sliding_window": 4}, {"num_key_value_heads": 2}], ids=["plain", "window", "grouped"])
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    return dict(request.param)


@torch.no_grad()
def test_documents_in_a_row_do_not_see_each_other(tiny_model: Path, config: dict[str, Any]) -> None:
    packed = _model(tiny_model, **config)(**_packed(DOCUMENTS), use_cache=False).logits[0]
    assert torch.allclose(packed, _alone(_model(tiny_model, "eager", **config), DOCUMENTS), atol=1e-5)


@torch.no_grad()
def test_the_borders_are_found_without_the_collators_help(tiny_model: Path, config: dict[str, Any]) -> None:
    row = _packed(DOCUMENTS)
    model = _model(tiny_model, **config)
    found = model(input_ids=row["input_ids"], position_ids=row["position_ids"], use_cache=False).logits
    assert torch.allclose(found, model(**row, use_cache=False).logits, atol=1e-6)


@torch.no_grad()
def test_rows_without_padding_are_documents_each(tiny_model: Path, config: dict[str, Any]) -> None:
    rows = torch.tensor([DOCUMENTS[0], DOCUMENTS[1][:5], DOCUMENTS[1][3:]])
    ours, eager = (_model(tiny_model, name, **config)(input_ids=rows).logits for name in (attention.VARLEN, "eager"))
    assert torch.allclose(ours, eager, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_give_what_eager_gives(tiny_model: Path, config: dict[str, Any], side: str) -> None:
    short, long = DOCUMENTS[0], DOCUMENTS[1]
    pad = len(long) - len(short)
    ids = torch.tensor([short + [0] * pad if side == "right" else [0] * pad + short, long])
    mask = torch.tensor([[1] * 5 + [0] * pad if side == "right" else [0] * pad + [1] * 5, [1] * 8])
    ours, eager = (
        _model(tiny_model, name, **config)(input_ids=ids, attention_mask=mask).logits[mask.bool()]
        for name in (attention.VARLEN, "eager")
    )
    assert torch.allclose(ours, eager, atol=1e-5)


@torch.no_grad()
def test_generation_gives_what_eager_gives(tiny_model: Path, config: dict[str, Any]) -> None:
    ids = torch.tensor([[0, 0, 0, *DOCUMENTS[0]], DOCUMENTS[1]])
    mask = (ids != 0).long()
    ours, eager = (
        _model(tiny_model, name, **config).generate(
            ids, attention_mask=mask, max_new_tokens=8, min_new_tokens=8, do_sample=False
        )
        for name in (attention.VARLEN, "eager")
    )
    assert ours.tolist() == eager.tolist()


def test_no_mask_is_built_for_a_packed_row(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import masking_utils

    monkeypatch.setattr(masking_utils, "sdpa_mask", _refused)
    _model(tiny_model)(**_packed(DOCUMENTS), use_cache=False)


def _refused(*_: object, **__: object) -> None:
    raise AssertionError("a mask over the whole row was built")


def test_gradients_of_a_packed_row_are_those_of_its_documents(tiny_model: Path) -> None:
    model, alone = _model(tiny_model), _model(tiny_model, "eager")
    model(**_packed(DOCUMENTS), use_cache=False).logits.pow(2).sum().backward()
    _alone(alone, DOCUMENTS).pow(2).sum().backward()
    for ours, theirs in zip(model.parameters(), alone.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-3, atol=1e-3 * theirs.grad.abs().max())


def _kernel_in_words(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
) -> torch.Tensor:
    """What torch's kernel is documented to compute, written down plainly: (tokens, heads, size) each."""
    assert cu_seq_q is cu_seq_k
    assert query.dtype == key.dtype == value.dtype == torch.bfloat16
    assert max_q == max_k >= int(cu_seq_q.diff().max())
    left, right = window_size
    assert right == 0
    place = torch.arange(len(query))
    document = (place[:, None] >= cu_seq_q[None, 1:]).sum(1)
    seen = (document[:, None] == document[None]) & (place[:, None] >= place[None])
    if left >= 0:
        seen &= place[:, None] - place[None] <= left
    scores = torch.einsum("qhd,khd->hqk", query.float(), key.float()) * scale
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, value.float()).to(query.dtype)


@torch.no_grad()
@pytest.mark.parametrize("rows", ["packed", "whole rows"])
def test_torchs_kernel_is_asked_for_the_same(
    tiny_model: Path, config: dict[str, Any], rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU the kernel itself cannot run: a plain formulation of its documentation takes its place."""
    from torch.nn.attention import varlen

    batch = _packed(DOCUMENTS) if rows == "packed" else {"input_ids": torch.tensor([DOCUMENTS[1], DOCUMENTS[1][::-1]])}
    model = _model(tiny_model, **config)
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(**batch, use_cache=False).logits
        monkeypatch.setattr(attention, "has_kernel", lambda: True)
        monkeypatch.setattr(varlen, "varlen_attn", _kernel_in_words)
        attention.register()
        given = model(**batch, use_cache=False).logits
    monkeypatch.undo()
    attention.register()
    assert torch.allclose(given, expected, atol=0.02 * float(expected.abs().max()))


def test_the_plain_formulation_takes_what_the_installed_kernel_takes() -> None:
    from torch.nn.attention.varlen import varlen_attn

    assert set(inspect.signature(_kernel_in_words).parameters) <= set(inspect.signature(varlen_attn).parameters)


def test_the_installed_kernel_accepts_the_call_and_keeps_the_shape() -> None:
    """On tensors without contents, which torch checks as it would check real ones on a GPU."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with FakeTensorMode(), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        row = torch.empty(24, 4, 32, device="cuda", dtype=torch.bfloat16)
        borders = torch.empty(4, device="cuda", dtype=torch.int32)
        given = attention._kernel([row, row, row], borders, 12, 0.2, 6)
    assert given.shape == row.shape
    assert given.device.type == "cuda"


@pytest.mark.parametrize(
    ("packed", "kernel", "flash", "expected"),
    [
        (False, True, None, "sdpa"),
        (True, False, None, "varlen"),
        (True, True, None, "varlen"),
        (True, True, "flash_attention_2", "varlen"),
        (True, False, "flash_attention_2", "flash_attention_2"),
        (True, True, "flash_attention_3", "flash_attention_3"),
    ],
)
def test_the_fastest_attention_that_is_here_is_chosen(
    packed: bool, kernel: bool, flash: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "has_kernel", lambda: kernel)
    monkeypatch.setattr(attention, "_flash_attention", lambda: flash)
    chosen = attention.choose("auto", packed=packed)
    monkeypatch.undo()
    attention.register()
    assert chosen.value == expected
    assert chosen.reason


def test_an_attention_that_the_recipe_names_is_taken() -> None:
    assert attention.choose("eager", packed=False).value == "eager"
