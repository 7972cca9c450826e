"""What a job is made of, checked: recipe, data, base model, cluster, code; and its azure-ai-ml form.

The job's node gets a snapshot of `training/` and `infra/cli.py`. The data are a data asset of the workspace, whose
version is the hash of their contents. The base model is a folder, which is uploaded too, or a name on the hub, which
the node downloads. The node's image is a build context (a Dockerfile and a lock with hashes; a conda file cannot carry
them), registered once for each content and built by the first job that uses it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from infra.cli import WRONG_USE, UserError
from infra.outputs import PROJECT, StackOutputs
from training.cluster import Cluster
from training.dataset import file_hash
from training.provenance import CODE, GitState, git_state
from training.recipe import AnyRecipe, Recipe
from training.register import MODEL_OUTPUT, NAME_TAG, REPORT_OUTPUT

if TYPE_CHECKING:
    from azure.ai.ml import MLClient

ENVIRONMENT = "finetune-phi-train"
DATA = "finetune-phi-data"
EXPERIMENT = "finetune-phi"
CARD = "card.json"
R = TypeVar("R", bound=AnyRecipe)
# of training/data the job needs the second domain
LEFT_OUT = shutil.ignore_patterns("__pycache__", "first-questions.jsonl", "environment", ".*", "*.md")


@dataclass(frozen=True)
class Submission(Generic[R]):
    """A job before anything is uploaded. `base_model`: a folder, or a name on the hub or in a registry, of which
    `revision` is wanted.
    """

    recipe: R
    outputs: StackOutputs
    data: Path
    base_model: Path | str
    revision: str = ""
    resumes: ClassVar[bool] = True
    """Whether a job goes on from the checkpoints of one that did not finish."""

    @property
    def data_files(self) -> list[Path]:
        """What the data asset holds: the two files, then the card and what describes them."""
        both = [self.data / self.recipe.data.train_file, self.data / self.recipe.data.eval_file]
        about = [path for path in sorted(self.data.iterdir()) if path.suffix in (".json", ".md", ".png")]
        return both + [path for path in about if path.is_file() and path not in both]

    @cached_property
    def hashes(self) -> dict[str, str]:
        """Of what the job trains on. 16 hex digits each."""
        train, held_out = self.data_files[:2]
        found = {"train": file_hash(train)[:16], "eval": file_hash(held_out)[:16]}
        model = self.base_model
        found["base_model"] = model if isinstance(model, str) else folder_hash(model)
        return found

    @property
    def identity(self) -> dict[str, Any]:
        """What the run learns from what. Not the code: a run goes on after a repair."""
        return {"recipe": self.recipe.fingerprint, **self.hashes}

    @property
    def key(self) -> str:
        """10 hex digits for the run's identity."""
        whole = json.dumps(self.identity, sort_keys=True)
        return hashlib.sha256(whole.encode()).hexdigest()[:10]

    @cached_property
    def data_version(self) -> str:
        return files_hash({path.name: path for path in self.data_files})

    @cached_property
    def code_hash(self) -> str:
        with snapshot(self.recipe) as folder:
            return folder_hash(folder)

    @cached_property
    def environment_version(self) -> str:
        folder = PROJECT / self.recipe.job.environment
        if not (folder / "Dockerfile").is_file():
            raise UserError(f"the recipe's environment {folder} has no Dockerfile", code=WRONG_USE)
        return folder_hash(folder)

    @cached_property
    def git(self) -> GitState:
        return git_state()

    @cached_property
    def tags(self) -> dict[str, str]:
        """The lineage, which the job carries and its model inherits. Strings all, as Azure ML demands."""
        return {
            "stack": self.outputs.stack,
            "recipe": self.recipe.name,
            "recipe_hash": self.recipe.fingerprint,
            "data": f"{DATA}:{self.data_version}",
            **{f"{name}_hash": found for name, found in self.hashes.items() if name != "base_model"},
            "base_model": self.base_model if isinstance(self.base_model, str) else self.base_model.name,
            "base_model_version": self.revision if isinstance(self.base_model, str) else self.hashes["base_model"],
            "environment": f"{ENVIRONMENT}:{self.environment_version}",
            "code_hash": self.code_hash,
            "git_commit": self.git.commit,
            "git_dirty": str(self.git.dirty).lower(),
            NAME_TAG: self.recipe.model.registered_name,
            **self.own_tags,
        }

    @property
    def own_tags(self) -> dict[str, str]:
        """What only this kind of job carries."""
        return {}

    def command(self, cluster: Cluster) -> str:
        """What the node runs. Azure ML starts the processes of a distributed job itself, so there is no torchrun."""
        model = shlex.quote(self.base_model) if isinstance(self.base_model, str) else "${{inputs.base_model}}"
        files = [shlex.quote(name) for name in (self.recipe.data.train_file, self.recipe.data.eval_file)]
        check = f"python -m training.node --gpus {cluster.processes(self.recipe)} && "
        price = f" --price-per-hour {cluster.price[0]:g}" if cluster.price else ""
        return (
            f"{check if self.recipe.job.compute == 'gpu' else ''}"
            f"python -m training.sft --recipe training/recipes/{self.recipe.name}.yaml --model {model}"
            f" --train ${{{{inputs.data}}}}/{files[0]} --eval ${{{{inputs.data}}}}/{files[1]}"
            f" --output ${{{{outputs.{MODEL_OUTPUT}}}}} --report ${{{{outputs.{REPORT_OUTPUT}}}}}{price}"
        )


def check(recipe: Recipe, outputs: StackOutputs, data: Path) -> Submission[Recipe]:
    """A submission whose parts all exist here. Raises UserError, exit code 2, with the command that mends it."""
    check_data(recipe, data)
    made = Submission(recipe, outputs, data, find_base_model(recipe, data), recipe.model.model_revision)
    _check_length(made)
    made.environment_version  # noqa: B018 - raises if it cannot be made
    return made


def check_data(recipe: AnyRecipe, data: Path) -> None:
    """Raises UserError, exit code 2, unless the recipe's data lie here as they were checked."""
    for name in (recipe.data.train_file, recipe.data.eval_file, CARD):
        if not (data / name).is_file():
            what = "incomplete" if data.is_dir() and any(data.iterdir()) else "missing"
            raise UserError(
                f"the training data is {what}: there is no file {data / name}",
                next_command=_make_data(recipe, data),
                code=WRONG_USE,
            )
    _check_card(recipe, data)


def _make_data(recipe: AnyRecipe, data: Path) -> str:
    share = f" --split {recipe.data.split}" if recipe.data.split else ""
    return f"python -m training.dataset --source {recipe.data.source}{share} --out {data}"


def _check_card(recipe: AnyRecipe, data: Path) -> None:
    """The data must be those that the card speaks of, and the card must speak of the recipe's source."""
    try:
        card = json.loads((data / CARD).read_text(encoding="utf-8"))
        hashes, source = card.get("hashes") or {}, card.get("source")
    except (ValueError, AttributeError):
        fault = f"{data / CARD} is damaged"
        raise UserError(fault, next_command=_make_data(recipe, data), code=WRONG_USE) from None
    for path in (data / recipe.data.train_file, data / recipe.data.eval_file):
        if hashes.get(path.name) not in (None, file_hash(path)):
            raise UserError(
                f"{path} was changed after it was checked: its hash is not the one in {CARD}",
                next_command=_make_data(recipe, data),
                code=WRONG_USE,
            )
    wanted = recipe.data.source
    if source and source != wanted and Path(source).resolve() != Path(wanted).resolve():
        raise UserError(
            f"the data in {data} were made from {source}, and the recipe {recipe.name} names {wanted}",
            next_command=f"{_make_data(recipe, data)}   (or, if these are meant: --set source={source})",
            code=WRONG_USE,
        )


def _check_length(made: Submission[Recipe]) -> None:
    length = made.recipe.sft.get("max_length")
    if length is None or isinstance(made.base_model, str):
        return
    config = json.loads((made.base_model / "config.json").read_text(encoding="utf-8"))
    longest = config.get("max_position_embeddings")
    if longest and length > longest:
        raise UserError(
            f"max_length {length} is more than the base model {made.base_model} was made for: at most {longest}",
            next_command=f"--set max_length={longest}",
            code=WRONG_USE,
        )


def find_base_model(recipe: Recipe, data: Path) -> Path | str:
    """The base model's folder, or its name on the hub. Raises UserError if it is neither."""
    name = recipe.model.model_name_or_path
    for folder in (data / name, Path(name)):
        if (folder / "config.json").is_file():
            return folder
    if name.count("/") == 1 and not name.startswith((".", "/")):
        return name
    raise UserError(
        f"the base model is missing: there is no model folder {data / name}",
        next_command=f"python -m training.small_model --out {data / name} --corpus {data / recipe.data.train_file}",
        code=WRONG_USE,
    )


@contextlib.contextmanager
def snapshot(recipe: AnyRecipe) -> Iterator[Path]:
    """A folder with what the node needs: the code, and the recipe with all its values."""
    with tempfile.TemporaryDirectory(prefix="finetune-phi-") as name:
        # the code's folder is named alike each time: azure-ai-ml finds a snapshot again by its contents
        folder = Path(name) / "snapshot"
        for part in CODE:
            source, target = PROJECT / part, folder / part
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=LEFT_OUT)
            else:
                shutil.copy(source, target)
        (folder / "training" / "recipes" / f"{recipe.name}.yaml").write_text(recipe.as_yaml(), encoding="utf-8")
        yield folder


def folder_hash(folder: Path) -> str:
    """12 hex digits for the names and contents of a folder's files."""
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return files_hash({path.relative_to(folder).as_posix(): path for path in found})


def files_hash(files: dict[str, Path]) -> str:
    """12 hex digits for files by their names and contents."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name}\0{file_hash(files[name])}\n".encode())
    return digest.hexdigest()[:12]


# --- Azure ML's form of it ------------------------------------------------------------------------------------------


def environment_of(client: MLClient, made: Submission[Any]) -> str:
    """The id of the job's environment, registered if it is not yet."""
    from azure.ai.ml.entities import BuildContext, Environment
    from azure.core.exceptions import ResourceNotFoundError

    version = made.environment_version
    try:
        client.environments.get(ENVIRONMENT, version=version)
    except ResourceNotFoundError:
        context = BuildContext(path=str(PROJECT / made.recipe.job.environment))
        client.environments.create_or_update(Environment(name=ENVIRONMENT, version=version, build=context))
    return f"azureml:{ENVIRONMENT}:{version}"


def data_of(client: MLClient, made: Submission[Any]) -> str:
    """The id of the job's data asset, uploaded if it is not yet."""
    from azure.ai.ml.entities import Data
    from azure.core.exceptions import ResourceNotFoundError

    version = made.data_version
    try:
        client.data.get(DATA, version=version)
    except ResourceNotFoundError:
        with _together(made.data_files) as folder:
            tags = {f"{name}_hash": made.hashes[name] for name in ("train", "eval")}
            tags["source"] = made.recipe.data.source
            client.data.create_or_update(
                Data(name=DATA, version=version, type="uri_folder", path=str(folder), tags=tags)
            )
    return f"azureml:{DATA}:{version}"


@contextlib.contextmanager
def _together(files: list[Path]) -> Iterator[Path]:
    """A folder with these files and no others; not copied where the file system can link."""
    with tempfile.TemporaryDirectory(prefix="finetune-phi-") as name:
        folder = Path(name) / "data"
        folder.mkdir()
        for path in files:
            try:
                os.link(path.resolve(), folder / path.name)
            except OSError:
                shutil.copy(path, folder / path.name)
        yield folder


def build_job(
    made: Submission[Recipe], cluster: Cluster, name: str, output: str | None, code: Path, client: MLClient
) -> Any:
    """The azure-ai-ml command job. `output`: where the model is to lie, if not where Azure ML puts it by itself."""
    from azure.ai.ml import Input, Output, command
    from azure.ai.ml.entities import ManagedIdentityConfiguration

    job, outputs, processes = made.recipe.job, made.outputs, cluster.processes(made.recipe)
    inputs = {"data": Input(type="uri_folder", path=data_of(client, made))}
    if isinstance(made.base_model, Path):
        inputs["base_model"] = Input(type="uri_folder", path=str(made.base_model.resolve()))
    many = {"type": "pytorch", "process_count_per_instance": processes}
    return command(
        name=name,
        command=made.command(cluster),
        code=str(code),
        inputs=inputs,
        outputs={
            MODEL_OUTPUT: Output(type="uri_folder", mode="rw_mount", path=output),
            REPORT_OUTPUT: Output(type="uri_folder", mode="rw_mount"),
        },
        environment=environment_of(client, made),
        compute=cluster.name,
        experiment_name=EXPERIMENT,
        display_name=f"{made.recipe.name}-{made.recipe.fingerprint[:6]}",
        tags=made.tags,
        identity=ManagedIdentityConfiguration(client_id=outputs.training_identity_client_id),
        environment_variables=node_variables(made),
        instance_count=job.instance_count,
        shm_size=job.shm_size,
        timeout=job.timeout_minutes * 60,
        distribution=many if processes * job.instance_count > 1 else None,
    )


def node_variables(made: Submission[Any]) -> dict[str, str]:
    """azure-identity picks the user-assigned identity by its client id, which it reads from AZURE_CLIENT_ID."""
    return {
        "AZURE_CLIENT_ID": made.outputs.training_identity_client_id,
        "GIT_COMMIT": str(made.git),
        "PYTHONUNBUFFERED": "1",
    }


def job_name(made: Submission[Any], attempt: int) -> str:
    """Unique in a workspace, and known before: two who submit the same run at once make one job."""
    return f"{re.sub(r'[^A-Za-z0-9-]', '-', made.recipe.name)}-{made.key}-{attempt}"
