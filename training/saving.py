"""The trained model as a folder that `from_pretrained`, MLflow and people can read.

Written as soon as the training ends, before anything that can fail. `trained.json` is written when the model is whole:
a job that failed after that goes on from there, without training again.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.cli import UserError
from training import lora, ranks
from training.base_model import revision
from training.mishaps import explained
from training.prompt import stop_ids
from training.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TRAINED_FILE = "trained.json"
TOKENIZER_COPY = "components/tokenizer"
"""Where MLflow's transformers flavor looks for the tokenizer."""
# what a process that loads the folder must have
NEEDED = ("torch", "transformers", "accelerate")


def save(trainer: Any, tokenizer: Any, recipe: Recipe, base: str, output: Path, ran: Mapping[str, Any]) -> None:
    """Write weights, tokenizer, template, generation config, recipe and MLmodel. All processes call it, one writes.

    Raises:
        UserError: the folder cannot be written; the checkpoints are as they were.
    """
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # sharded weights come together here
    if ranks.is_first():
        with explained(output, trainer):
            _save_all(trainer, state, tokenizer, recipe, base, output)
            sizes = {path.name: path.stat().st_size for path in output.glob("*.safetensors")}
            (output / TRAINED_FILE).write_text(json.dumps({**ran, "files": sizes}, indent=2) + "\n")
    ranks.wait()


def _save_all(trainer: Any, state: Mapping[str, Any], tokenizer: Any, recipe: Recipe, base: str, output: Path) -> None:
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_torch_compile=False)
    try:
        if recipe.model.use_peft:
            model.save_pretrained(output / lora.ADAPTER, state_dict=state)
            model = lora.merged(base, output / lora.ADAPTER, **revision(base, recipe))
            state = model.state_dict()
        _save_model(model, state, tokenizer, recipe, output)
        (output / "recipe.yaml").write_text(recipe.as_yaml(), encoding="utf-8")
        _write_mlmodel(model, tokenizer, output)
    except PermissionError as error:
        raise UserError(
            f"cannot write the model to {output}: {error.strerror}; the checkpoints are kept",
            next_command="make the folder writable, then run the same command again",
        ) from None


def trained_before(output: Path, identity: Mapping[str, str]) -> dict[str, Any] | None:
    """What an earlier start of the same job noted when its model was saved, or None; the same for every process."""
    return ranks.from_first(_trained_before(output, identity) if ranks.is_first() else None)


def _trained_before(output: Path, identity: Mapping[str, str]) -> dict[str, Any] | None:
    try:
        ran: dict[str, Any] = json.loads((output / TRAINED_FILE).read_text())
        whole = all((output / name).stat().st_size == size for name, size in ran["files"].items())
    except (OSError, ValueError, KeyError):
        return None
    return ran if whole and ran["run"] == identity else None


def forget(trainer: Any) -> None:
    """Give back the memory of model and optimizer: what was saved is loaded for its evaluation next."""
    import torch

    trainer.accelerator.free_memory()
    trainer.model = trainer.model_wrapped = trainer.optimizer = None
    gc.collect()
    torch.cuda.empty_cache()


def _save_model(model: PreTrainedModel, state: Mapping[str, Any], tokenizer: Any, recipe: Recipe, output: Path) -> None:
    import torch
    from transformers import GenerationConfig

    dtype = getattr(torch, recipe.model.save_dtype)
    model.config.use_cache = True  # the trainer may have switched it off
    model.config.dtype = dtype
    # both stop tokens, and no sampling: a model that is loaded by anyone ends its replies
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=stop_ids(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
    )
    narrow = {name: part.to(dtype) if part.is_floating_point() else part for name, part in state.items()}
    model.save_pretrained(output, state_dict=narrow)
    for folder in (output, output / TOKENIZER_COPY):
        tokenizer.save_pretrained(folder)


def _write_mlmodel(model: PreTrainedModel, tokenizer: Any, output: Path) -> None:
    """The description by which MLflow loads the folder (its `transformers` flavor, as save_model of 3.15 writes it).

    Written by hand: mlflow would copy the weights once more. Paths are relative to the folder.
    """
    import yaml

    flavor = {
        "code": None,
        "components": ["tokenizer"],
        "inference_task": "llm/v1/chat",
        "instance_type": "TextGenerationPipeline",
        "model_binary": ".",
        "pipeline_model_type": type(model).__name__,
        "source_model_name": ".",
        "task": "text-generation",
        "tokenizer_type": type(tokenizer).__name__,
        "torch_dtype": str(model.config.dtype),
        "transformers_version": version("transformers"),
    }
    needed = [f"{package}=={version(package).partition('+')[0]}" for package in NEEDED]
    python = {"python": "3.11", "build_dependencies": ["pip"], "dependencies": ["-r requirements.txt"]}
    env = {"virtualenv": "python_env.yaml", "conda": "conda.yaml"}
    described = {
        "flavors": {"python_function": {"env": env, "loader_module": "mlflow.transformers"}, "transformers": flavor},
        "metadata": {"task": "llm/v1/chat"},
        "mlflow_version": "3.15.0",
    }
    conda = {"channels": ["conda-forge"], "dependencies": ["python=3.11", "pip", {"pip": needed}], "name": "phi"}
    for name, values in {"MLmodel": described, "python_env.yaml": python, "conda.yaml": conda}.items():
        (output / name).write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    (output / "requirements.txt").write_text("\n".join(needed) + "\n")
