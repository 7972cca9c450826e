"""Which engine generates, and why. All of them stand behind the same contract.

| engine | for | needs |
|---|---|---|
| transformers | any machine; in float32 exactly the model's own text | torch, transformers |
| openvino | Azure's CPUs: 8-bit weights | openvino/requirements.txt, and a model exported by openvino_export.py |
| vllm | Azure's GPUs | vllm/Dockerfile; it has never run with vLLM |
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deployment.server.openvino_check import OPENVINO_MODEL

if TYPE_CHECKING:
    from deployment.server.model import LoadedModel

NAMES = ("transformers", "openvino", "vllm")


def for_sku(instance_type: str) -> tuple[str, str]:
    """(engine, why) for a deployment on an Azure VM size such as `Standard_F8s_v2`."""
    if instance_type.removeprefix("Standard_").upper().startswith("N"):  # NC, ND, NV: the sizes with a GPU
        return "vllm", f"{instance_type} has a GPU"
    return "openvino", f"{instance_type} has no GPU, and 8-bit weights are the fastest on a CPU"


def choose(wanted: str, folder: Path) -> tuple[str, str]:
    """(engine, why) for the model in `folder` where `wanted` is `auto`."""
    if wanted != "auto":
        return wanted, "asked for"
    if (folder / OPENVINO_MODEL).is_file():
        return "openvino", f"the model's folder holds {OPENVINO_MODEL}"
    return "transformers", "the model's folder holds weights as training wrote them"


def load(engine: str, folder: Path, *, dtype: str, threads: int | None) -> LoadedModel:
    """Load the model for `engine`. Raises UserError if it, or the engine's library, is not there."""
    if engine == "openvino":
        from deployment.server import openvino_engine

        return openvino_engine.load(folder, threads=threads)
    if engine == "vllm":
        from deployment.server import vllm_engine

        return vllm_engine.load(folder)
    from deployment.server import transformers_engine

    return transformers_engine.load(folder, dtype=dtype, threads=threads)
