"""`python -m training.recipe_docs`: the recipes and their keys as tables, from the files and dataclasses themselves.

docs/recipes.md is its output; a test compares the two. The header of a recipe is data, too: the lines `# Key: text` at
its beginning.
"""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infra.cli import Parser, run
from training import component_recipe
from training import recipe as recipes
from training.component_recipe import FoundationChoice
from training.recipe import AnyRecipe, DataChoice, JobChoice, ModelChoice, Recipe
from training.recipe_checks import RESERVED
from training.recipe_values import kinds_of

HEADER = ("Hardware", "Memory", "Global batch", "Tokens", "Speed", "Hours", "Cost")
ABOUT = {
    "component": "the pipeline component of the registry; this key tells the kind of the recipe",
    "component_version": "a version, or `latest`, which is resolved and kept with the model",
    "base_model": "the registry's model that is trained",
    "base_model_version": "a version, or `latest`, which is resolved and kept with the model",
    "registry": "of Azure ML",
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
`training`. There are two kinds: of [our own job](#model), which trains with TRL, and of
[the registry's component](#the-registrys-component), which Microsoft keeps. Made by
`python -m training.recipe_docs > docs/recipes.md` from the files; what is estimated, modelled or measured says so.

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


REGISTRY = """
## The registry's component

A recipe whose section `model` names a `component` is trained by Azure ML's own ready-made pipeline from the registry
`azureml`, as in Microsoft's guide on it. All verbs take it like any other:

    make train RECIPE=registry-phi-3-mini
    make deploy                                                       # on our server
    python -m deployment.rollout --engine mlflow --instance-type Standard_NC24ads_A100_v4   # without, as in the guide

| | our own job (TRL) | the registry's component |
|---|---|---|
| choose it | unless you have a reason not to | to follow Microsoft's guide, or where its code is a must |
| its code | here: what is learned can be read and changed | Microsoft's, pinned by `component_version` |
| the loss | on the assistant's tokens, packed rows | on all tokens, padded rows |
| the training data | all of `train_file` | without a share that the component takes to validate |
| LoRA | as the recipe says | `lora_r` 8, `lora_alpha` 128 unless set |
| a job that was stopped | goes on from its newest checkpoint | begins anew; what was submitted is found again |
| the model | custom model | MLflow model: our server or MLflow's |
| metrics, gate, tags | training/evaluate.py | the same, as the pipeline's second step |

A run is a pipeline job of two steps, the component and our evaluation. Before anything is uploaded, the versions are
resolved, the cluster's VM size is compared with the model's tag `finetune_compute_allow_list`, its GPUs are counted,
and each parameter is checked against the component's own specification. Where a value is said twice, `--set` is
stronger than the recipe, the recipe than the model's tag `model_specific_defaults`, that than the component's default;
in the guide the tag is stronger than what is written. `training.submit --dry-run` shows every value with its source
and what it overrules.

Data are those of `training.dataset`. What the guide's `download-dataset.py --dataset HuggingFaceH4/ultrachat_200k
--download_dir DIR --dataset_split_pc 5` writes is, checked and without repetitions,

    python -m training.dataset --source HuggingFaceH4/ultrachat_200k --split 5% --out DIR
    python -m training.dataset --source HuggingFaceH4/ultrachat_200k --split 'train_gen[:5%]' --out DIR-gen

| the guide's file | ours |
|---|---|
| `train_sft.jsonl`, `test_sft.jsonl` | `train.jsonl`, `eval.jsonl` in DIR |
| `train_gen.jsonl`, `test_gen.jsonl` | `train.jsonl`, `eval.jsonl` in DIR-gen |

`registry-local` is for the local Azure ML, whose models have random weights: `make up train deploy STACK=local
RECIPE=registry-local`. With `registry-phi-3-mini` these learn too little to speak, and the gate refuses them. So far
the component has run on the local Azure ML only.

`model` holds:

"""


COMPONENT_KEYS = """
`data` is as above. `training` holds `gate_min_gain` (must be set) and `gate_max_forgetting` as above, and the
component's own inputs, such as `num_train_epochs`, `learning_rate`, `apply_lora`, `lora_r`, `max_seq_length`,
`precision`, `num_nodes_finetune` (https://aka.ms/azureml/components/chat_completion_pipeline). Not to be set are:
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
    ours = (*_sections(), _trl(), _table(RESERVED, "## Not a recipe's to set"), SEVERAL)
    theirs = (REGISTRY, _keys(FoundationChoice), COMPONENT_KEYS, _table(component_recipe.RESERVED))
    return "".join((INTRODUCTION, _recipes(), *ours, *theirs))


def _recipes() -> str:
    text = "| recipe | trains | hardware | memory | global batch | tokens | speed | hours |\n" + "|---" * 8 + "|\n"
    for name in recipes.names():
        about = header(recipes.find(name))
        cells = (about[key] for key in HEADER[:-1])
        text += (
            f"| [{name}](../training/recipes/{name}.yaml) | {_method(recipes.load_any(name))} | {' | '.join(cells)} |\n"
        )
    return text


def _method(recipe: AnyRecipe) -> str:
    if not isinstance(recipe, Recipe):
        return f"{recipe.model.base_model} of the registry, by its component"
    if not recipe.model.use_peft:
        return "all weights"
    return "adapters (QLoRA)" if recipe.model.load_in_4bit else "adapters (LoRA)"


def _sections() -> list[str]:
    kinds: dict[str, Any] = {"model": ModelChoice, "data": DataChoice, "training": JobChoice}
    return [_section(name, kind) for name, kind in kinds.items()]


def _section(name: str, kind: Any) -> str:
    return f"\n## `{name}`\n\n{_keys(kind)}"


def _keys(kind: Any) -> str:
    hints = typing.get_type_hints(kind)
    text = "| key | takes | default | meaning |\n|---|---|---|---|\n"
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


def _table(reserved: Mapping[str, str], title: str = "") -> str:
    """Keys that a recipe may not set, and why."""
    names = {key: f"`{key}*`" if key.endswith("_") else f"`{key}`" for key in reserved}
    rows = "".join(f"| {names[key]} | {reason} |\n" for key, reason in sorted(reserved.items()))
    return f"\n{title}\n\n| key | because |\n|---|---|\n{rows}".replace("\n\n\n", "\n")


def main(argv: list[str]) -> int:
    Parser(prog="python -m training.recipe_docs", description="Print the tables of recipes and keys.").parse_args(argv)
    print(page(), end="")
    return 0


if __name__ == "__main__":
    run(main)
