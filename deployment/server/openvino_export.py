"""`python -m deployment.server.openvino_export --model DIR --eval FILE --out DIR`: 8-bit weights for openvino.

The model is traced with its past keys and values as plain inputs and a mask that is given, not found out, so that no
branch depends on data; OpenVINO then turns the past into a state, which its continuous batching finds again and puts
into pages. Weights become 8 bits wide, each output channel with its own scale and zero point.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deployment.server.openvino_check import OPENVINO_MODEL, check
from infra import cli
from infra.cli import REFUSED, UserError

if TYPE_CHECKING:
    import torch

BESIDE = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def export(folder: Path, out: Path) -> None:
    """Write the model in `folder` to `out`: OpenVINO's model, and the configuration and tokenizer beside it.

    Needs memory for the weights in float32 twice.

    Raises:
        UserError: OpenVINO or NNCF is not installed, or the model cannot be read.
    """
    try:
        import nncf  # type: ignore[import-not-found]
        import openvino as ov  # type: ignore[import-not-found]
    except ImportError as error:
        raise UserError(
            f"{error.name} is not installed, and an export needs it",
            next_command="pip install -r deployment/server/openvino/requirements.txt nncf",
        ) from None
    model = _converted(folder)
    compressed = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
    compressed.set_rt_info("f16", ["runtime_options", "KV_CACHE_PRECISION"])
    out.mkdir(parents=True, exist_ok=True)
    ov.save_model(compressed, out / OPENVINO_MODEL, compress_to_fp16=False)
    for name in BESIDE:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)


def _converted(folder: Path) -> Any:
    import openvino as ov
    import torch
    from transformers import AutoModelForCausalLM

    try:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"the model in {folder} cannot be read: {error}") from None
    model.set_attn_implementation("sdpa")
    layers, heads, size = _shape(model.config)
    past = [torch.zeros(1, heads, 2, size) for _ in range(2 * layers)]
    example = (torch.ones(1, 3, dtype=torch.long), torch.ones(1, 5, dtype=torch.long), torch.tensor([[2, 3, 4]]), *past)
    with torch.no_grad():
        converted = ov.convert_model(_traceable(model.eval()), example_input=example)
    _name(converted, layers, heads, size)
    _make_stateful(converted, layers, heads, size)
    return converted


def _shape(config: Any) -> tuple[int, int, int]:
    """(layers, key/value heads, size of a head)."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_hidden_layers, config.num_key_value_heads, int(size)


class _Past:
    """The least that a model asks of a cache: the past given, and the present to be taken out again."""

    def __init__(self, past: tuple[torch.Tensor, ...]) -> None:
        self.states = list(past)

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        return self.states[0].shape[2]

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        keys = torch.cat([self.states[2 * layer], keys], dim=2)
        values = torch.cat([self.states[2 * layer + 1], values], dim=2)
        self.states[2 * layer : 2 * layer + 2] = [keys, values]
        return keys, values


def _traceable(model: Any) -> torch.nn.Module:
    import torch

    class Traceable(torch.nn.Module):
        """ids [rows, new], mask [rows, past + new], positions [rows, new], then keys and values of every layer."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(
            self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, *past: torch.Tensor
        ) -> tuple[torch.Tensor, ...]:
            cache = _Past(past)
            columns = torch.arange(mask.shape[1])
            asking = columns[-ids.shape[1] :]
            seen = (columns[None, :] <= asking[:, None])[None, None] & mask.bool()[:, None, None, :]
            added = torch.zeros_like(seen, dtype=torch.float32).masked_fill(~seen, torch.finfo(torch.float32).min)
            output = self.model(
                input_ids=ids, attention_mask=added, position_ids=positions, past_key_values=cache, use_cache=True
            )
            return (output.logits, *cache.states)

    return Traceable()


def _names(layers: int, kind: str) -> list[str]:
    return [f"{kind}.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]


def _name(model: Any, layers: int, heads: int, size: int) -> None:
    """Names and dynamic shapes that OpenVINO's pipelines go by."""
    import openvino as ov

    inputs = ["input_ids", "attention_mask", "position_ids", *_names(layers, "past_key_values")]
    for port, name in zip(model.inputs, inputs, strict=True):
        port.get_tensor().set_names({name})
        shape = [-1, heads, -1, size] if name.startswith("past") else [-1, -1]
        port.get_node().set_partial_shape(ov.PartialShape(shape))
        port.get_node().set_friendly_name(name)  # the transformation to pages looks at this one
    for port, name in zip(model.outputs, ["logits", *_names(layers, "present")], strict=True):
        port.get_tensor().set_names({name})
    model.validate_nodes_and_infer_types()


def _make_stateful(model: Any, layers: int, heads: int, size: int) -> None:
    """Past and present become one state; `beam_idx` says which row each row goes on from."""
    import numpy as np
    import openvino.opset13 as ops  # type: ignore[import-not-found]
    from openvino._offline_transformations import (  # type: ignore[import-not-found]
        apply_make_stateful_transformation,
    )

    order = ops.parameter([-1], np.int32, name="beam_idx")
    order.output(0).get_tensor().add_names({"beam_idx"})
    past = [port for port in model.inputs if next(iter(port.get_names())).startswith("past")]
    for port in past:
        readers = port.get_target_inputs()
        gathered = ops.gather(port.get_node(), order, ops.constant(0))
        for reader in readers:
            reader.replace_source_output(gathered.output(0))
    model.add_parameters([order])
    pairs = dict(zip(_names(layers, "past_key_values"), _names(layers, "present"), strict=True))
    apply_make_stateful_transformation(model, pairs)
    rows = ops.gather(ops.shape_of(model.input("input_ids"), output_type="i64"), ops.constant([0]), ops.constant(0))
    rest = [ops.constant(np.array([number], dtype=np.int64)) for number in (heads, 0, size)]
    empty = ops.broadcast(ops.constant(np.float32(0)), ops.concat([rows, *rest], axis=0))
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":
            node.set_arguments([empty.output(0)])
    model.validate_nodes_and_infer_types()


def main(argv: list[str]) -> int:
    parser = cli.parser(
        "deployment.server.openvino_export", "Export a model with 8-bit weights for the openvino engine."
    )
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="as training wrote it")
    parser.add_argument("--eval", type=Path, required=True, metavar="FILE", help="held-out conversations (.jsonl)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the exported model's folder")
    given = parser.parse_args(argv)
    export(given.model, given.out)
    verdict = check(given.model, given.out, given.eval)
    verdict.write(given.out)
    values = {"model": str(given.out), "loss_before": verdict.loss_before, "loss_after": verdict.loss_after}
    values |= {"rise": round(verdict.rise, 5), "approved": verdict.approved}
    cli.result(values, as_json=given.json)
    return 0 if verdict.approved else REFUSED


if __name__ == "__main__":
    cli.run(main)
