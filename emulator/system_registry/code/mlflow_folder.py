"""An MLflow model folder as Azure ML's registry has it: `data/{model,config,tokenizer}`, `code`, MLmodel on top.

The tokenizer's files lie in `data/model` too, where `from_pretrained` looks for them.
"""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from typing import Any

import yaml

SCORING = "chat_scoring"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
CONFIG = ("config.json", "generation_config.json")


def write(model: Path, folder: Path, metadata: dict[str, Any]) -> None:
    """Make the MLflow model `folder` of the plain model folder `model`."""
    data = folder / "data"
    kept = [path for path in model.iterdir() if path.suffix in (".safetensors", ".json", ".jinja")]
    kept = [path for path in kept if path.name != "finetune_args.json"]
    _copy(kept, data / "model")
    _copy([path for path in kept if path.name in TOKENIZER], data / "tokenizer")
    _copy([path for path in kept if path.name in CONFIG], data / "config")
    _copy([Path(__file__).with_name(f"{SCORING}.py")], folder / "code")
    (folder / "conda.yaml").write_text(yaml.safe_dump(_conda()))
    (folder / "MLmodel").write_text(yaml.safe_dump(_description(metadata), sort_keys=False))


def _copy(files: list[Path], to: Path) -> None:
    to.mkdir(parents=True, exist_ok=True)
    for path in files:
        shutil.copy(path, to / path.name)


def _conda() -> dict[str, Any]:
    pip = ["mlflow", "torch", "transformers", "accelerate"]
    return {"name": "model-env", "channels": ["conda-forge"], "dependencies": ["python=3.10", "pip", {"pip": pip}]}


def _description(metadata: dict[str, Any]) -> dict[str, Any]:
    hf = {"hf_config_class": "AutoConfig", "hf_pretrained_class": "AutoModelForCausalLM"}
    hf |= {"hf_tokenizer_class": "AutoTokenizer", "model_data": "data", "task_type": "chat-completion", "code": "code"}
    python = {"code": "code", "data": "data", "env": "conda.yaml", "loader_module": SCORING, "python_version": "3.10.0"}
    return {
        "flavors": {"hftransformersv2": hf, "python_function": python},
        "metadata": metadata,
        "mlflow_version": "2.10.2",
        "model_uuid": uuid.uuid4().hex,
    }
