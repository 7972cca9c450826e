"""The contract between the stages: what `pulumi up` exports and every later stage reads.

Sources, in this order: `--outputs FILE`, `--stack NAME`, the variable STACK_OUTPUTS (a file, for CI), and
`pulumi stack output --json` of the selected stack. There are no keys and no secrets in it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.cli import FAILED, WRONG_USE, UserError

PROJECT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class StackOutputs:
    """The names and ids of one stack's resources.

    All fields are strings; ids are whole ARM ids. `expires_on`, `github_client_id`, `cpu_compute` and `chat_store` (the
    Cosmos DB account's address) are empty where the stack has none. With the guide's grants both identities are one.
    """

    stack: str
    tenant_id: str
    subscription_id: str
    location: str
    expires_on: str
    resource_group: str
    workspace: str
    workspace_id: str
    storage_account: str
    key_vault: str
    log_analytics: str
    application_insights: str
    container_registry: str
    container_registry_id: str
    training_identity_id: str
    training_identity_client_id: str
    training_identity_principal_id: str
    serving_identity_id: str
    serving_identity_client_id: str
    serving_identity_principal_id: str
    github_client_id: str
    compute: str
    compute_size: str
    cpu_compute: str
    chat_store: str

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, source: str) -> StackOutputs:
        """Outputs from a mapping. Raises UserError for a missing, extra or non-string field, naming it."""
        fields = [field.name for field in dataclasses.fields(cls)]
        stack = values.get("stack", "NAME")
        repair = f"make up STACK={stack}"
        for name in fields:
            if name not in values:
                raise UserError(
                    f"the stack outputs from {source} lack the field `{name}`: the stack was made by another version "
                    "of the program, or its last update did not finish",
                    next_command=repair,
                )
            if not isinstance(values[name], str):
                raise UserError(
                    f"the field `{name}` of the stack outputs from {source} is not a string", next_command=repair
                )
        if extra := sorted(set(values) - set(fields)):
            raise UserError(
                f"the stack outputs from {source} have an unknown field `{extra[0]}`: they come from another version",
                next_command=repair,
            )
        return cls(**{name: values[name] for name in fields})

    def as_dict(self) -> dict[str, str]:
        return dataclasses.asdict(self)

    def write_config(self, folder: Path) -> Path:
        """Write the `config.json` that `MLClient.from_config()` reads, so that notebooks work at once."""
        path = folder / "config.json"
        keys = {"subscription_id": self.subscription_id, "resource_group": self.resource_group}
        path.write_text(json.dumps({**keys, "workspace_name": self.workspace}, indent=2) + "\n")
        return path


def add_stack_options(to: argparse.ArgumentParser) -> None:
    """The options that say which stack a verb works on."""
    to.add_argument("--stack", help="the Pulumi stack (default: the selected one)")
    to.add_argument("--outputs", type=Path, metavar="FILE", help="read the stack's outputs from this JSON file instead")


def load_outputs(*, stack: str | None = None, file: Path | None = None) -> StackOutputs:
    """The outputs of a stack, from the first source that is given.

    Raises:
        UserError: exit code 2 if no stack is named or selected, or a file belongs to another stack than `stack`.
    """
    if file is None and stack is None and os.environ.get("STACK_OUTPUTS"):
        file = Path(os.environ["STACK_OUTPUTS"])
    if file is None:
        return _from_pulumi(stack)
    outputs = _from_file(file)
    if stack not in (None, outputs.stack):
        raise UserError(
            f"{file} holds the outputs of the stack {outputs.stack!r}, not of {stack!r}",
            next_command=f"leave out --stack, or give the outputs of {stack}",
            code=WRONG_USE,
        )
    return outputs


def _from_file(path: Path) -> StackOutputs:
    try:
        values = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read the stack outputs in {path}: {error.strerror}", code=WRONG_USE) from None
    except ValueError as error:
        raise UserError(f"the stack outputs in {path} are not JSON: {error}", code=WRONG_USE) from None
    if not isinstance(values, dict):
        raise UserError(f"the stack outputs in {path} are not one JSON object", code=WRONG_USE)
    return StackOutputs.parse(values, source=str(path))


def _from_pulumi(stack: str | None) -> StackOutputs:
    if shutil.which("pulumi") is None:
        raise UserError(
            f"the pulumi command is not on PATH, and it is what tells the outputs of the stack {stack or '(selected)'}",
            next_command="python -m emulator run -- COMMAND   (local), or install the Pulumi CLI (Azure)",
            code=WRONG_USE,
        )
    command = ["pulumi", "stack", "output", "--json", "--non-interactive", *(["--stack", stack] if stack else [])]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    if done.returncode != 0:
        reason = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise UserError(
            f"pulumi has no outputs for {f'the stack {stack!r}' if stack else 'a selected stack'}: "
            f"{reason[-1] if reason else 'no reason given'}",
            next_command=f"make up STACK={stack or 'NAME'}",
            code=WRONG_USE,
        )
    values = json.loads(done.stdout)
    if not values:
        raise UserError(
            f"the stack {stack or '(selected)'} exports nothing: it was never brought up, or is destroyed",
            next_command=f"make up STACK={stack or 'NAME'}",
            code=FAILED,
        )
    return StackOutputs.parse(values, source="pulumi stack output")
