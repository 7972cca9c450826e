"""A stack's settings outside of the Pulumi program: the same files, read and checked by the same code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.cli import UserError
from infra.outputs import PROJECT

if TYPE_CHECKING:
    from infra.settings import Settings


def settings_of(stack: str, *, project: Path = PROJECT) -> Settings:
    """The settings that `pulumi up` would see for `stack`; a stack without a file starts from Pulumi.dev.yaml.

    Raises:
        UserError: a file is unreadable, or a value is one that the program refuses.
    """
    import contextvars

    schema = _yaml(project / "Pulumi.yaml")
    name = str(schema.get("name", "finetune-phi"))
    values = {f"{name}:{key}": rule["default"] for key, rule in schema.get("config", {}).items() if "default" in rule}
    values |= values_of(stack, project=project)
    texts = {key: one if isinstance(one, str) else json.dumps(one) for key, one in values.items()}
    # Pulumi keeps configuration, project and stack in context variables: in a copy they stay ours.
    return contextvars.copy_context().run(_load, name, stack, texts)


def _load(project: str, stack: str, texts: dict[str, str]) -> Settings:
    from pulumi import runtime

    from infra import settings

    runtime.configure(runtime.Settings(project=project, stack=stack))
    runtime.set_all_config(texts)
    return settings.load()


def values_of(stack: str, *, project: Path = PROJECT) -> dict[str, Any]:
    """What the stack's own file sets, by whole key, such as `azure-native:subscriptionId`."""
    found = _yaml(file_of(stack, project=project)).get("config")
    return found if isinstance(found, dict) else {}


def file_of(stack: str, *, project: Path = PROJECT) -> Path:
    """The file that holds the stack's configuration, or the one that a new stack copies."""
    own = project / f"Pulumi.{stack}.yaml"
    return own if own.exists() else project / "Pulumi.dev.yaml"


def _yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read {path.name}: {error.strerror}", next_command="git status") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path.name} is not YAML: {error}", next_command=f"mend {path.name}") from None
    return found if isinstance(found, dict) else {}
