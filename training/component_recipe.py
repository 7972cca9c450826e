"""A recipe of Azure ML's ready-made fine-tuning component, which lies in a registry of Microsoft's (`azureml`).

It has the sections of every recipe. Its section `model` names a `component`, which tells the two kinds apart, and a
model of the same registry; `training` holds the component's own inputs under their own names, and the gate. Which
inputs there are, only the registry knows: they are checked when the recipe is submitted, before anything is uploaded
(training/component_parameters.py).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from training.recipe import DataChoice, JobChoice, Sections, as_yaml, fingerprint
from training.recipe_values import check_kind, meant, parse_change, section_of, unknown_key, wrong

KIND = "component"
"""The key of the section `model` that makes a recipe one of these."""
GATES = ("gate_min_gain", "gate_max_forgetting")
# inputs of the component that are not a recipe's: prefix or name, and who sets them
RESERVED = {
    "mlflow_model_path": "the section `model` names the model: base_model",
    "pytorch_model_path": "the section `model` names the model: base_model",
    "huggingface_id": "the section `model` names the model: base_model",
    "train_file_path": "the section `data` says it: train_file",
    "test_file_path": "the section `data` says it: eval_file",
    "validation_file_path": "the component takes a share of the training file; eval_file is held out for the gate",
    "train_mltable_path": "the data are JSON lines: train_file",
    "validation_mltable_path": "the data are JSON lines: train_file",
    "test_mltable_path": "the data are JSON lines: eval_file",
    "number_of_gpu_to_use_finetuning": "all GPUs of a node are used; the cluster's VM size says how many",
    "compute_": "every step runs on the stack's GPU cluster",
    "instance_type_": "every step runs on the stack's GPU cluster, not serverless",
}


@dataclass(frozen=True)
class FoundationChoice:
    """Section `model`: which model of the registry is trained, by which component, and what the result is called.

    A version is a number, or `latest`, which is resolved, printed and kept with the model when the recipe is submitted.
    """

    component: str
    base_model: str
    registered_name: str
    base_model_version: str = "latest"
    component_version: str = "latest"
    registry: str = "azureml"


@dataclass(frozen=True)
class ComponentRecipe:
    """A whole recipe of this kind. `parameters`: the component's inputs that it sets; `insisted`: those by `--set`."""

    name: str
    model: FoundationChoice
    data: DataChoice
    job: JobChoice
    parameters: Mapping[str, Any]
    insisted: frozenset[str] = field(default=frozenset(), compare=False)

    def as_dict(self) -> Sections:
        """The three sections, as they would stand in a file."""
        gates = {key: getattr(self.job, key) for key in GATES}
        return {
            "model": dict(vars(self.model)),
            "data": dict(vars(self.data)),
            "training": {**gates, **self.parameters},
        }

    def as_yaml(self) -> str:
        return as_yaml(self.as_dict())

    @property
    def fingerprint(self) -> str:
        """16 hex digits that stand for every value."""
        return fingerprint(self.as_dict())


def is_one(sections: Mapping[str, Mapping[str, Any]]) -> bool:
    return KIND in sections["model"]


def parse(name: str, sections: Sections, changes: Sequence[str], *, source: str) -> ComponentRecipe:
    """The recipe with `key=value` changes applied: a key that is not of `model` or `data` is the component's.

    Raises:
        UserError: exit code 2: a key or value that cannot be, as far as that is known without the registry.
    """
    known = {
        "model": [one.name for one in dataclasses.fields(FoundationChoice)],
        "data": [one.name for one in dataclasses.fields(DataChoice)],
    }
    insisted = set()
    for change in changes:
        key, value = parse_change(change)
        section = next((section for section, keys in known.items() if key in keys), "training")
        sections[section][key] = value
        insisted |= {key} if section == "training" else set()
    for section, keys in known.items():
        for key in sections[section]:
            if key not in keys:
                raise unknown_key(str(key), f"the section `{section}` of {source}", keys)
    training = {str(key): meant(str(key), value) for key, value in sections["training"].items()}
    recipe = ComponentRecipe(
        name=name,
        model=section_of(FoundationChoice, _with_text_versions(sections["model"]), source),
        data=section_of(DataChoice, sections["data"], source),
        job=_job(training, source),
        parameters={key: value for key, value in training.items() if key not in GATES},
        insisted=frozenset(insisted - set(GATES)),
    )
    _check(recipe, source)
    return recipe


def _with_text_versions(values: Mapping[str, Any]) -> dict[str, Any]:
    """YAML reads the version 15 as a number."""
    return {
        key: str(value) if key.endswith("_version") and type(value) is int else value for key, value in values.items()
    }


def _job(training: Mapping[str, Any], source: str) -> JobChoice:
    """Where the component runs and when its model is good enough, as our own job's recipes say it."""
    gates = {key: value for key, value in training.items() if key in GATES}
    nodes = check_kind("num_nodes_finetune", training.get("num_nodes_finetune", 1), ("int",), (), source=source)
    if nodes < 1:
        raise wrong(f"`num_nodes_finetune` in {source} must be 1 or more")
    return dataclasses.replace(section_of(JobChoice, gates, source), instance_count=nodes)


def _check(recipe: ComponentRecipe, source: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", recipe.name):
        raise wrong(f"the recipe's name {recipe.name!r} may hold letters, digits, `_`, `.` and `-` only")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}", recipe.model.registered_name):
        raise wrong(f"`registered_name` {recipe.model.registered_name!r} is no name that Azure ML accepts for a model")
    for key, value in recipe.parameters.items():
        reason = next((reason for start, reason in RESERVED.items() if _names(start, key)), None)
        if reason:
            raise wrong(f"the recipe {recipe.name} sets `{key}`, which is not its to set: {reason}")
        check_kind(key, value, ("bool", "int", "float", "str"), (), source=source)


def _names(start: str, key: str) -> bool:
    return key.startswith(start) if start.endswith("_") else key == start
