"""A stack's settings outside of the Pulumi program: the same files, read and checked by the same code.

`project` is the folder with these files, the repository unless another one is given.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.cli import UserError
from infra.outputs import PROJECT

if TYPE_CHECKING:
    from infra.settings import Settings

TEMPLATE = "dev"
"""The stack whose file a new stack's is copied from, unless another one is named."""


def settings_of(stack: str, *, project: Path | None = None) -> Settings:
    """The settings that `pulumi up` would see for `stack`; a stack without a file starts from the template's.

    Raises:
        UserError: a file is unreadable, a key is unknown or of another type, or the program refuses a value.
    """
    import contextvars

    name, rules = project_name(project=project), schema(project=project)
    own = values_of(stack, project=project)
    for key, value in own.items():
        if key.startswith(f"{name}:"):
            _check(key.removeprefix(f"{name}:"), value, rules, file_of(stack, project=project).name)
    values = {f"{name}:{key}": rule["default"] for key, rule in rules.items() if "default" in rule} | own
    texts = {key: one if isinstance(one, str) else json.dumps(one) for key, one in values.items()}
    # Pulumi keeps configuration, project and stack in context variables: in a copy they stay ours.
    return contextvars.copy_context().run(_load, name, stack, texts)


def _check(key: str, value: object, rules: dict[str, dict[str, Any]], file: str) -> None:
    """Pulumi checks types when it runs the program, and takes any key, so a slip of the pen would do nothing."""
    rule = rules.get(key)
    if rule is None:
        raise UserError(
            f"{file} sets the unknown configuration key `{key}`; known are {', '.join(sorted(rules))}",
            next_command=f"pulumi config rm {key}",
        )
    kind = str(rule.get("type", "string"))
    if not _fits(value, kind):
        raise UserError(
            f"{file} sets the configuration key `{key}` to {json.dumps(value, default=str)} "
            f"({type(value).__name__}), which is no {kind}",
            next_command=f"pulumi config set {key} {json.dumps(rule.get('default'))}",
        )


def _fits(value: object, kind: str) -> bool:
    """`pulumi config set` writes text, which the engine reads by the key's type."""
    if isinstance(value, dict) and "secure" in value:
        return True
    if kind == "boolean":
        return isinstance(value, bool) or value in ("true", "false")
    if kind == "integer":
        return isinstance(value, int | str) and re.fullmatch(r"-?\d+", str(value)) is not None
    return isinstance(value, list if kind == "array" else str)


def _load(project: str, stack: str, texts: dict[str, str]) -> Settings:
    from pulumi import runtime

    from infra import settings

    runtime.configure(runtime.Settings(project=project, stack=stack))
    runtime.set_all_config(texts)
    return settings.load()


def values_of(stack: str, *, project: Path | None = None) -> dict[str, Any]:
    """What the stack's own file sets, by whole key, such as `azure-native:subscriptionId`."""
    return config_in(file_of(stack, project=project), project_name(project=project))


def file_of(stack: str, *, project: Path | None = None) -> Path:
    """The file that holds the stack's configuration, or the one that a new stack copies."""
    own = own_file(stack, project=project)
    return own if own.exists() else own_file(TEMPLATE, project=project)


def own_file(stack: str, *, project: Path | None = None) -> Path:
    """Where the stack's configuration is, or would be."""
    return (project or PROJECT) / f"Pulumi.{stack}.yaml"


def config_in(path: Path, namespace: str) -> dict[str, Any]:
    """What a stack's file sets, by whole key; nothing if there is no file."""
    return by_whole_key(read(path).get("config") if path.exists() else None, namespace)


def by_whole_key(config: object, namespace: str) -> dict[str, Any]:
    """A file's `config:`; a key without a namespace is the project's."""
    values = config if isinstance(config, dict) else {}
    return {key if ":" in key else f"{namespace}:{key}": value for key, value in values.items()}


def project_name(*, project: Path | None = None) -> str:
    return str(read((project or PROJECT) / "Pulumi.yaml").get("name", "finetune-phi"))


def schema(*, project: Path | None = None) -> dict[str, dict[str, Any]]:
    """Every key that Pulumi.yaml declares, with its type and default."""
    found = read((project or PROJECT) / "Pulumi.yaml").get("config", {})
    return {key: rule for key, rule in found.items() if isinstance(rule, dict)}


def read(path: Path) -> dict[str, Any]:
    """A YAML file's mapping. Raises UserError if it cannot be read."""
    import yaml

    try:
        found = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read {path.name}: {error.strerror}", next_command="git status") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path.name} is not YAML: {error}", next_command=f"mend {path.name}") from None
    return found if isinstance(found, dict) else {}
