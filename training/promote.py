"""Share a model version with a registry: in its workspace it goes when the workspace goes, as a branch's does.

    python -m training.promote phi-local --registry shared              # the newest approved version
    python -m training.promote phi-local:3 --registry shared --version 7
    python -m training.promote phi-local:3 --registry shared --force "compared by hand, issue 41"

Azure copies the files, whoever asks; other workspaces then use it as `azureml://registries/…`. Asked again, a version
that the registry has from the same job is the answer. The reason of `--force` is a tag of the version, which is set
before it is copied, and stands in the run record.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra import cli
from infra.cli import REFUSED, WRONG_USE, UserError, say
from infra.outputs import StackOutputs, add_stack_options, load_outputs
from training import runs
from training.azure_faults import azure_faults
from training.register import APPROVED_TAG, JOB_TAG

if TYPE_CHECKING:
    from azure.ai.ml import MLClient
    from azure.ai.ml.entities import Model

FORCED_TAG = "promotion_forced"


@dataclass(frozen=True)
class Promotion:
    """A version of the workspace, and which version of the registry it becomes. `reason`: of a forced one."""

    model: Model
    registry: str
    version: str
    reason: str | None

    @property
    def source(self) -> str:
        return f"{self.model.name}:{self.model.version}"

    @property
    def approved(self) -> bool:
        return is_approved(self.model)

    @property
    def address(self) -> str:
        """How other workspaces name it."""
        return f"azureml://registries/{self.registry}/models/{self.model.name}/versions/{self.version}"

    def result(self, *, shared: bool) -> dict[str, Any]:
        return {"model": self.address, "source": self.source, "approved": self.approved, "shared": shared}


def is_approved(model: Model) -> bool:
    return (model.tags or {}).get(APPROVED_TAG) == "true"


def find(client: MLClient, wanted: str, outputs: StackOutputs, *, forced: bool) -> Model:
    """The version NAME:VERSION of the workspace, or of NAME the newest that is approved; `forced`: the newest of all.

    Raises:
        UserError: exit code 2: there is none; 3: none that is approved.
    """
    name, _, number = wanted.partition(":")
    versions = _versions(client, name)
    fitting = [one for one in versions if number in ("", one.version)]
    if not fitting:
        known = ", ".join(str(one.version) for one in versions[-5:])
        raise UserError(
            f"the workspace {outputs.workspace} has no model {wanted}" + (f"; it has {name} in {known}" * bool(known)),
            next_command=f"make train STACK={outputs.stack}",
            code=WRONG_USE,
        )
    good = fitting if forced else [one for one in fitting if is_approved(one)]
    if not good:
        raise UserError(
            f"{name}:{fitting[-1].version} is not approved: its evaluation did not pass, or was not made",
            next_command='train a better one, or give --force "WHY IT MAY BE SHARED", which is recorded',
            code=REFUSED,
        )
    return good[-1]


def _versions(client: MLClient, name: str) -> list[Model]:
    """All versions of a name, the highest last; none where there is no such name."""
    from azure.core.exceptions import ResourceNotFoundError

    try:
        found: Iterable[Model] = list(client.models.list(name=name))
    except ResourceNotFoundError:
        return []
    return sorted(found, key=lambda one: (_number(one), str(one.version)))


def _number(model: Model) -> int:
    return int(str(model.version)) if str(model.version).isdecimal() else -1


def registry_client(name: str) -> MLClient:
    """Raises UserError, exit code 2, for a registry that is not there or that this login does not see."""
    from azure.ai.ml import MLClient
    from azure.core.exceptions import HttpResponseError
    from azure.identity import DefaultAzureCredential

    try:
        return MLClient(DefaultAzureCredential(), registry_name=name, enable_telemetry=False, show_progress=False)
    except HttpResponseError as error:
        if error.status_code not in (401, 403, 404):
            raise
        raise UserError(
            f"there is no registry {name}, or this login may not see it",
            next_command=f"az ml registry show --name {name}   (its owner grants the role AzureML Registry User)",
            code=WRONG_USE,
        ) from None


def is_there(registry: MLClient, made: Promotion) -> bool:
    """Whether the registry has the version already.

    Raises:
        UserError: exit code 2: it has another one of this name and number.
    """
    versions = _versions(registry, str(made.model.name))
    there = next((one for one in versions if one.version == made.version), None)
    if there is None:
        return False
    job, its_job = ((one.tags or {}).get(JOB_TAG) for one in (made.model, there))
    if job and job == its_job:
        return True
    raise UserError(
        f"the registry {made.registry} has a {made.model.name}:{made.version} already, of "
        + (f"the job {its_job}" if its_job else "another origin"),
        next_command=f"give --version {max(map(_number, versions)) + 1}",
        code=WRONG_USE,
    )


def share(client: MLClient, registry: MLClient, made: Promotion) -> None:
    """Have Azure copy it; the reason of a forced one goes along as a tag.

    Raises:
        UserError: the registry does not show it afterwards.
    """
    from azure.core.exceptions import ResourceNotFoundError

    name, version = str(made.model.name), str(made.model.version)
    if made.reason:
        made.model.tags = {**(made.model.tags or {}), FORCED_TAG: made.reason}
        client.models.create_or_update(made.model)
    # when all is done, azure-ai-ml 1.32 looks for the copy below the workspace's resource group; we look ourselves
    with contextlib.suppress(ResourceNotFoundError):
        client.models.share(
            name, version, share_with_name=name, share_with_version=made.version, registry_name=made.registry
        )
    if not any(one.version == made.version for one in _versions(registry, name)):
        raise UserError(
            f"{made.source} was handed to the registry {made.registry}, which does not show it yet",
            next_command="the same command again, in some minutes",
        )


def record(made: Promotion) -> None:
    """In the record of the job that made the model, if the model says which."""
    if job := (made.model.tags or {}).get(JOB_TAG):
        promoted = {"model": made.address, "source": made.source, "at": runs.now(), "forced": made.reason}
        runs.record(job, {"promoted": promoted})


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    if args.force is not None and not args.force.strip():
        raise UserError("--force needs a reason, which is recorded", code=WRONG_USE)
    outputs = load_outputs(stack=args.stack, file=args.outputs)

    from infra.client import ml_client

    client = ml_client(outputs)
    with azure_faults(outputs, f"sharing {args.model}"):
        model = find(client, args.model, outputs, forced=args.force is not None)
        reason = None if is_approved(model) else args.force
        made = Promotion(model, args.registry, args.version or str(model.version), reason)
        registry = registry_client(args.registry)
        there = is_there(registry, made)
        if not there and not args.dry_run:
            say(f"sharing {made.source} as {made.address}; Azure copies the files, which may take minutes …")
            share(client, registry, made)
            record(made)
    say(_sentence(made, there=there, dry_run=args.dry_run))
    cli.result(made.result(shared=there or not args.dry_run), as_json=args.json)
    return 0


def _sentence(made: Promotion, *, there: bool, dry_run: bool) -> str:
    if there:
        return f"the registry has {made.source} already: nothing to do"
    forced = f", forced: {made.reason}" if made.reason else ""
    return f"{made.source} {'would be' if dry_run else 'is'} shared with the registry {made.registry}{forced}"


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("training.promote", "Share an approved model version with a registry of Azure ML.")
    add = parser.add_argument
    add("model", metavar="NAME[:VERSION]", help="without a version the newest that is approved")
    add("--registry", required=True, metavar="NAME")
    add("--version", metavar="VERSION", help="in the registry (default: as in the workspace)")
    add("--force", metavar="REASON", help="share it although it is not approved; the reason is recorded")
    add("--dry-run", action="store_true", help="say what would be shared, and stop")
    add_stack_options(parser)
    return parser


if __name__ == "__main__":
    cli.run(main)
