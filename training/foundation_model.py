"""The model of a registry that is to be fine-tuned, and what its publisher says of it in its tags.

The tags `finetune_compute_allow_list` and `inference_compute_allow_list` (VM sizes) and `model_specific_defaults`
(inputs of the fine-tuning component) are texts that hold a Python literal. They are parsed as literals and never
evaluated: whoever may publish in the registry may write anything into them.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from infra.cli import WRONG_USE, UserError

if TYPE_CHECKING:
    from azure.ai.ml import MLClient

LATEST = "latest"
TRAINS_ON, SERVED_ON, DEFAULTS = (
    "finetune_compute_allow_list",
    "inference_compute_allow_list",
    "model_specific_defaults",
)
# GPUs too old for the component, refused where a model names no sizes itself (Microsoft's guide has the same four)
UNSUPPORTED = ("standard_nc6", "standard_nc12", "standard_nc24", "standard_nc24r")

T = TypeVar("T", list[Any], dict[str, Any])


@dataclass(frozen=True)
class FoundationModel:
    """A version of a registry's model. The lists are None where the model has no such tag."""

    name: str
    version: str
    id: str
    trains_on: tuple[str, ...] | None
    served_on: tuple[str, ...] | None
    defaults: Mapping[str, Any]

    def check_size(self, size: str, cluster: str, stack: str) -> None:
        """Raises UserError, exit code 2, if the model cannot be fine-tuned on nodes of this VM size."""
        if self.trains_on is None and size.lower() in UNSUPPORTED:
            why = "whose GPUs the fine-tuning component does not support"
        elif self.trains_on is not None and size.lower() not in (one.lower() for one in self.trains_on):
            why = f"and {self.name}:{self.version} is fine-tuned on {', '.join(self.trains_on)} only ({TRAINS_ON})"
        else:
            return
        wanted = (self.trains_on or ("Standard_NC24ads_A100_v4",))[0]
        raise UserError(
            f"the nodes of {cluster} are {size}, {why}",
            next_command=f"pulumi config set computeSize {wanted} --stack {stack} && make up STACK={stack}",
            code=WRONG_USE,
        )


def find(registry: MLClient, name: str, version: str) -> FoundationModel:
    """The version of that number, or the newest.

    Raises:
        UserError: exit code 2: the registry has no such model or version (the nearest are named), or one of its tags is
            no Python literal of the kind that it should be.
    """
    asset = get_asset(registry.models, "model", name, version)
    tags = {str(key): str(value) for key, value in (asset.tags or {}).items()}
    where = f"{asset.name}:{asset.version}"
    return FoundationModel(
        str(asset.name),
        str(asset.version),
        str(asset.id),
        _sizes(tags, TRAINS_ON, where),
        _sizes(tags, SERVED_ON, where),
        literal(tags, DEFAULTS, {}, where) if DEFAULTS in tags else {},
    )


def get_asset(assets: Any, kind: str, name: str, version: str) -> Any:
    """A model or a component of a registry, through azure-ai-ml's operations on it.

    Raises:
        UserError: exit code 2, as `find`.
    """
    from azure.ai.ml.exceptions import ValidationException
    from azure.core.exceptions import ResourceNotFoundError

    try:
        return assets.get(name, label=LATEST) if version == LATEST else assets.get(name, version=version)
    except (ResourceNotFoundError, ValidationException):  # the second: azure-ai-ml finds no version for the label
        pass
    try:
        versions = [str(one.version) for one in assets.list(name=name)]
    except ResourceNotFoundError:
        versions = []
    if not versions:
        names = [str(one.name) for one in assets.list()]
        raise UserError(f"the registry has no {kind} {name!r}{_near(name, names)}", code=WRONG_USE)
    raise UserError(
        f"the registry has no version {version!r} of the {kind} {name}{_near(version, versions)}", code=WRONG_USE
    )


def _near(word: str, known: list[str]) -> str:
    """The nearest of what there is; of numbers those with the smallest difference."""
    if word.isdecimal() and all(one.isdecimal() for one in known):
        found = sorted(sorted(known, key=lambda one: abs(int(one) - int(word)))[:3], key=int)
    else:
        found = difflib.get_close_matches(word, known, n=3, cutoff=0.4)
    return f"; the nearest: {', '.join(found)}" if found else f"; it has {', '.join(known[:3])}" if known else ""


def _sizes(tags: Mapping[str, str], key: str, where: str) -> tuple[str, ...] | None:
    return tuple(str(one) for one in literal(tags, key, [], where)) if key in tags else None


def literal(tags: Mapping[str, str], key: str, like: T, where: str) -> T:
    """The tag's value, of the type of `like`. Raises UserError, exit code 2, for any other text; nothing is run."""
    try:
        value = ast.literal_eval(tags[key])
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = None
    if not isinstance(value, type(like)):
        kind = "list" if isinstance(like, list) else "dictionary"
        raise UserError(
            f"the tag {key} of the model {where} is no Python {kind}, and is not evaluated as anything else: "
            f"{tags[key][:60]!r}",
            next_command="choose another version: --set base_model_version=VERSION",
            code=WRONG_USE,
        )
    return value
