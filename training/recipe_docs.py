"""`python -m training.recipe_docs`: the recipes and their keys as tables, from the files and dataclasses themselves.

docs/recipes.md is its output; a test compares the two. The header of a recipe is data, too: the lines `# Key: text` at
its beginning.
"""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from pathlib import Path
from typing import Any

from infra.cli import Parser, run
from training import recipe as recipes
from training.recipe import DataChoice, JobChoice, ModelChoice, Recipe
from training.recipe_checks import RESERVED
from training.recipe_values import kinds_of

HEADER = ("Hardware", "Memory", "Global batch", "Tokens", "Speed", "Hours", "Cost")
ABOUT = {
    "model_name_or_path": "a model on the hub, or a folder: below the data folder, or from the working directory",
    "registered_name": "the model's name in the workspace",
    "chat_template": "a file in `training/templates`: phi-3 or phi-3.5",
    "model_revision": "of the model on the hub; a commit keeps it from changing",
    "dtype": "of the weights while they are trained: float32, bfloat16 (only where they are frozen), or auto",
    "save_dtype": "of the model that is saved: bfloat16 or float32",
    "attn_implementation": "auto, varlen, sdpa, eager, flash_attention_2, flash_attention_3, or a kernel on the hub",
    "use_peft": "train adapters (LoRA) instead of all weights; they are merged into the model that is saved",
    "load_in_4bit": "keep the frozen weights in four bits (QLoRA); needs a GPU",
    "lora_r": "the adapters' rank",
    "lora_alpha": "the adapters are scaled by `lora_alpha` / `lora_r`",
    "lora_dropout": "on the adapters' inputs",
    "lora_target_modules": "which linear modules of a layer get adapters",
    "source": "what `python -m training.dataset` reads: a file, a folder, or a data set on the hub",
    "split": "how much of it: `1%` or `500` (rows); empty is all",
    "revision": "of the data set on the hub; a commit keeps it from changing",
    "train_file": "below the data folder",
    "eval_file": "below the data folder",
    "gate_min_gain": "nats by which the loss on the held-out file must fall for the model to be approved",
    "gate_max_forgetting": "nats by which it may rise on the second domain; null does not judge that",
    "compute": "the stack's `gpu` cluster, its `cpu` cluster, or `any`: the CPU cluster, else the GPU cluster",
    "environment": "the folder that the node's image is built from",
    "instance_count": "nodes",
    "process_count_per_instance": "processes on a node; 0 is one for each GPU, or one without GPUs",
    "shm_size": "shared memory of a node's container, which its processes exchange gradients through",
    "timeout_minutes": "after which the job is stopped; submitted again it goes on from its newest checkpoint",
    "cpu_threads": "of torch, in each process; 0 leaves the number to torch",
    "checkpoint_minutes": "between two checkpoints at most, besides `save_steps`; 0 leaves it to them",
    "baseline": "accept settings that are known to be bad, because the recipe is there to be compared with",
}
INTRODUCTION = """# Recipes

A training run is a recipe: a YAML file in `training/recipes/` or anywhere else, with the sections `model`, `data` and
`training`. Made by `python -m training.recipe_docs > docs/recipes.md` from the files; what is estimated, modelled or
measured says so.

    python -m training.recipe show NAME_OR_FILE [--set KEY=VALUE]     # with every default filled in
    python -m training.recipe validate FILE
    python -m training.recipe diff ONE OTHER
    python -m training.submit --recipe NAME_OR_FILE --dry-run         # the job and what it costs

"""
SEVERAL = """
## Several processes

In Azure ML `instance_count` nodes start a process for each GPU (`process_count_per_instance`); by hand:
`torchrun --nproc_per_node 2 -m training.sft …`. The global batch is that of one process times their number. Weights,
gradients and optimizer are sharded (FSDP2) where they would not fit on each GPU, or where `fsdp` says so. In the last
step of an epoch, processes for which no rows are left get rows of its beginning again.

Two processes on a CPU (gloo) have learned what one does from the same global batch, were killed, and went on to the
same weights. Several GPUs, FSDP2 and several nodes have not run yet.
"""


def header(path: Path) -> dict[str, str]:
    """The `# Key: text` lines at the beginning of a recipe's file; empty if it has none."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        match = re.fullmatch(r"# ([A-Z][a-z ]+): (.+)", line)
        if match is None:
            break
        found[match[1]] = match[2]
    return found


def hours(path: Path) -> float | None:
    """The training time that a recipe's header expects; None if it is not known."""
    match = re.match(r"[\d.]+(?=[,; ]|$)", header(path).get("Hours", ""))
    return float(match[0]) if match else None


def page() -> str:
    """docs/recipes.md."""
    return "".join((INTRODUCTION, _recipes(), *_sections(), _trl(), _reserved(), SEVERAL))


def _recipes() -> str:
    text = "| recipe | trains | hardware | memory | global batch | tokens | speed | hours |\n" + "|---" * 8 + "|\n"
    for name in recipes.names():
        about = header(recipes.find(name))
        cells = (about[key] for key in HEADER[:-1])
        text += f"| [{name}](../training/recipes/{name}.yaml) | {_method(recipes.load(name))} | {' | '.join(cells)} |\n"
    return text


def _method(recipe: Recipe) -> str:
    if not recipe.model.use_peft:
        return "all weights"
    return "adapters (QLoRA)" if recipe.model.load_in_4bit else "adapters (LoRA)"


def _sections() -> list[str]:
    kinds: dict[str, Any] = {"model": ModelChoice, "data": DataChoice, "training": JobChoice}
    return [_section(name, kind) for name, kind in kinds.items()]


def _section(name: str, kind: Any) -> str:
    hints = typing.get_type_hints(kind)
    text = f"\n## `{name}`\n\n| key | takes | default | meaning |\n|---|---|---|---|\n"
    for field in dataclasses.fields(kind):
        default = "(must be set)" if field.default is dataclasses.MISSING else _shown(field.default)
        takes = " or ".join(kinds_of(hints[field.name])).replace("none", "null")
        text += f"| `{field.name}` | {takes} | {default} | {ABOUT[field.name]} |\n"
    return text


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    return (
        f"`{', '.join(value) if isinstance(value, tuple) else value if isinstance(value, str) else json.dumps(value)}`"
    )


def _trl() -> str:
    keys = ", ".join(f"`{name}`" for name in recipes.sft_keys() if name not in RESERVED)
    return (
        "\n`training` takes TRL's [SFTConfig](https://huggingface.co/docs/trl/sft_trainer#trl.SFTConfig) fields too, "
        f"under their own names and with their own defaults:\n{keys}.\n"
    )


def _reserved() -> str:
    rows = "".join(f"| `{key}` | {reason} |\n" for key, reason in sorted(RESERVED.items()))
    return f"\n## Not a recipe's to set\n\n| key | because |\n|---|---|\n{rows}"


def main(argv: list[str]) -> int:
    Parser(prog="python -m training.recipe_docs", description="Print the tables of recipes and keys.").parse_args(argv)
    print(page(), end="")
    return 0


if __name__ == "__main__":
    run(main)
