"""The component's inputs as they will be set: each value, and who says it.

From the weakest to the strongest: the component's own default, what the model's publisher recommends (the tag
model_specific_defaults), the recipe, `--set`. In Microsoft's guide the tag is stronger than what is written; here what
a recipe says is obeyed, and what it overrules is printed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from training.component_recipe import GATES, ComponentRecipe
from training.recipe_values import nearest, unknown_key, wrong

DEFAULT, MODEL, RECIPE, SET, CLUSTER = "component default", "model default", "recipe", "--set", "cluster"


@dataclass(frozen=True)
class Input:
    """One input of the component. `kind`: string, integer, number, boolean, or that of a file or model."""

    kind: str
    default: Any = None
    values: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None


@dataclass(frozen=True)
class Parameter:
    """A value as the component takes it, who says it, and whom it overrules (`source value`)."""

    value: Any
    source: str
    instead_of: str = ""

    def __str__(self) -> str:
        return f"{self.value}   ({self.source}{f', instead of {self.instead_of}' if self.instead_of else ''})"


def inputs_of(component: Any) -> dict[str, Input]:
    """The inputs of an azure-ai-ml PipelineComponent."""
    return {
        str(name): Input(
            str(one.type),
            one.default,
            tuple(str(value) for value in one.enum or ()),
            _number(one.min),
            _number(one.max),
        )
        for name, one in component.inputs.items()
    }


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def resolve(
    recipe: ComponentRecipe, recommended: Mapping[str, Any], inputs: Mapping[str, Input]
) -> dict[str, Parameter]:
    """Every input that has a value. `recommended`: the model's defaults; what the component lacks of them is left out.

    Raises:
        UserError: exit code 2: an input that the component does not have (the nearest is named), a value that it does
            not take.
    """
    found = {name: Parameter(one.default, DEFAULT) for name, one in inputs.items() if one.default is not None}
    for key in recipe.parameters:
        if key not in inputs:
            where = "--set" if key in recipe.insisted else f"the recipe {recipe.name}"
            raise unknown_key(key, where, [*inputs, *GATES])
    by_set = {key: value for key, value in recipe.parameters.items() if key in recipe.insisted}
    by_recipe = {key: value for key, value in recipe.parameters.items() if key not in recipe.insisted}
    by_model = {key: value for key, value in recommended.items() if key in inputs}
    for source, values in ((MODEL, by_model), (RECIPE, by_recipe), (SET, by_set)):
        for key, value in values.items():
            found[key] = _over(found.get(key), Parameter(fitted(key, value, inputs[key], source), source))
    return found


def _over(before: Parameter | None, now: Parameter) -> Parameter:
    if before is None or before.source == DEFAULT or str(before.value) == str(now.value):
        return now
    return Parameter(now.value, now.source, f"{before.source} {before.value}")


def fitted(key: str, value: Any, one: Input, source: str) -> Any:
    """The value in the component's own type: `true` is its text "true", 2 may be its text "2".

    Raises:
        UserError: exit code 2: the input does not take it.
    """
    convert = {"string": _text, "integer": _whole, "number": _float, "boolean": _truth}.get(one.kind)
    if convert is None:
        raise wrong(f"`{key}` ({source}) takes a file or a model, which a recipe cannot name")
    made = convert(value)
    if made is None:
        raise wrong(f"`{key}` ({source}) is {value!r}, and the component takes {_article(one.kind)}")
    if one.values and made not in one.values:
        hint = nearest(str(made), one.values) if len(one.values) > 5 else ""
        raise wrong(f"`{key}` ({source}) is {made!r}{hint or '; the component takes ' + ', '.join(one.values)}")
    if isinstance(made, int | float) and one.least is not None and made < one.least:
        raise wrong(f"`{key}` ({source}) is {made}, and must be {one.least:g} or more")
    if isinstance(made, int | float) and one.most is not None and made > one.most:
        raise wrong(f"`{key}` ({source}) is {made}, and must be {one.most:g} or less")
    return made


def _article(kind: str) -> str:
    return {"string": "a text", "integer": "a whole number", "number": "a number", "boolean": "true or false"}[kind]


def _text(value: Any) -> str | None:
    return (
        str(value).lower() if isinstance(value, bool) else str(value) if isinstance(value, str | int | float) else None
    )


def _float(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _whole(value: Any) -> int | None:
    number = _float(value)
    return int(number) if number is not None and number.is_integer() else None


def _truth(value: Any) -> bool | None:
    return {"true": True, "false": False}.get(str(value).lower())


def display_name(model: str, data: str, parameters: Mapping[str, Parameter], gpus: int) -> str:
    """What the run is, for who looks at the workspace: Microsoft's guide names its runs so.

    `gpus`: of one node. The batch is that of all GPUs of all nodes.
    """

    def said(key: str, otherwise: Any) -> Any:
        return parameters[key].value if key in parameters else otherwise

    nodes, rows = int(said("num_nodes_finetune", 1)), int(said("per_device_train_batch_size", 1))
    batch = rows * int(said("gradient_accumulation_steps", 1)) * gpus * nodes
    deepspeed = f"ds{said('deepspeed_stage', 2)}" if said("apply_deepspeed", "false") == "true" else "nods"
    lora = "lora" if said("apply_lora", "false") == "true" else "nolora"
    limits = f"save_limit{said('save_total_limit', -1)}-seqlen{said('max_seq_length', -1)}"
    return f"{model}-{data}-bs{batch}-{said('lr_scheduler_type', 'linear')}-{deepspeed}-{lora}-{limits}"
