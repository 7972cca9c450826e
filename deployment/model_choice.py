"""Which model version goes out: the newest approved one, or the one that is named, if it is approved."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from infra.cli import REFUSED, WRONG_USE, UserError

if TYPE_CHECKING:
    from azure.ai.ml import MLClient
    from azure.ai.ml.entities import Model

APPROVED = "approved"
"""The tag that training's gate sets to the text `true` (tags are texts)."""


MADE_BY, SIZES = "component", "inference_compute_allow_list"
"""Tags of what a registry's component has made: which one, and the VM sizes that its base model is served on."""


@dataclass(frozen=True)
class ModelVersion:
    """One registered version. `created` is UTC; tags are texts."""

    name: str
    version: str
    created: datetime
    tags: Mapping[str, str]
    kind: str = "custom_model"

    @property
    def approved(self) -> bool:
        return self.tags.get(APPROVED) == "true"

    @property
    def is_chat_by_mlflow(self) -> bool:
        """Whether MLflow's server takes conversations for it, and not texts."""
        return MADE_BY in self.tags

    def check_size(self, size: str) -> None:
        """For serving without our server.

        Raises:
            UserError: exit code 2: the publisher of its base model names other VM sizes, or its tag is no list of them.
        """
        if SIZES not in self.tags:
            return
        try:
            sizes = ast.literal_eval(self.tags[SIZES])
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            sizes = None
        if not isinstance(sizes, list):
            raise UserError(f"the tag {SIZES} of {self} is no Python list of VM sizes", code=WRONG_USE)
        if size.lower() not in (str(one).lower() for one in sizes):
            raise UserError(
                f"{self} is not served by MLflow on {size}: its base model's sizes are {', '.join(map(str, sizes))}",
                next_command=f"--instance-type {sizes[0]}, or without --engine mlflow" if sizes else None,
                code=WRONG_USE,
            )

    def __str__(self) -> str:
        return f"{self.name}:{self.version}"


def choose(
    versions: Sequence[ModelVersion], wanted: str | None, *, stack: str, kind: str | None = None
) -> ModelVersion:
    """The version to roll out.

    Args:
        versions: all that are registered (of the wanted name, if one is given).
        wanted: NAME, NAME:VERSION or None for any name.
        kind: only models of this type, such as `mlflow_model`.

    Raises:
        UserError: there is none; exit code 3 if there are some but none of them is approved.
    """
    name, _, version = (wanted or "").partition(":")
    fitting = [one for one in versions if (not name or one.name == name) and (not version or one.version == version)]
    if kind and fitting and not (fitting := [one for one in fitting if one.kind == kind]):
        raise UserError(
            f"no model {wanted or 'of the workspace'} is registered as {kind}, which serving without code needs",
            next_command=f"register it with type={kind}, or leave --engine away",
        )
    if not fitting:
        raise UserError(
            f"there is no model {wanted} in the workspace" if wanted else "no model is registered in the workspace",
            next_command=f"make train STACK={stack}",
        )
    approved = [one for one in fitting if one.approved]
    if not approved:
        raise UserError(
            f"{', '.join(map(str, fitting[:5]))}: not approved (no tag {APPROVED}=true), so it may not take traffic; "
            "the evaluation after training did not pass or did not run",
            next_command=f"make train STACK={stack}",
            code=REFUSED,
        )
    return max(approved, key=lambda one: (one.created, _numeric(one.version)))


def _numeric(version: str) -> tuple[int, str]:
    """Orders 10 after 9; versions that are no numbers come first, by text."""
    return (int(version), "") if version.isdecimal() else (-1, version)


def registered(ml: MLClient, wanted: str | None) -> list[ModelVersion]:
    """The workspace's model versions: those of the wanted name, or of all names."""
    from azure.core.exceptions import ResourceNotFoundError

    names = [wanted.partition(":")[0]] if wanted else [model.name for model in ml.models.list()]
    found: list[ModelVersion] = []
    for name in names:
        try:
            found += [_version(model) for model in ml.models.list(name=name)]
        except ResourceNotFoundError:
            continue  # a name without versions, or one that is not there
    return found


def _version(model: Model) -> ModelVersion:
    context = model.creation_context
    created = context.created_at if context is not None else None
    if not isinstance(created, datetime):
        created = datetime.min.replace(tzinfo=UTC)
    elif created.tzinfo is None:
        created = created.replace(tzinfo=UTC)
    return ModelVersion(str(model.name), str(model.version), created, dict(model.tags or {}), str(model.type))
