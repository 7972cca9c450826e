"""Fine-tuning by Azure ML's own component: a pipeline of two steps, the component of the registry and our evaluation.

    fine_tuning (chat_completion_pipeline, with steps of its own) ─▶ trained_model ─▶ evaluation ─▶ report

The evaluation is what our own job does at its end (training/evaluate.py), so that such a model has the same metrics,
passes the same gate and is registered with the same tags. What the component is given follows from the recipe, the
model's tags, the cluster and `--set`; all of it is checked before anything is uploaded.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from infra.cli import WRONG_USE, UserError, say
from infra.outputs import StackOutputs
from training import component_parameters, foundation_model
from training.azure_faults import azure_faults
from training.cluster import Cluster
from training.component_parameters import CLUSTER, DEFAULT, Parameter, display_name
from training.component_recipe import ComponentRecipe
from training.foundation_model import FoundationModel, get_asset
from training.promote import registry_client
from training.register import KIND_TAG, MLFLOW, MLFLOW_OUTPUT, REPORT_OUTPUT
from training.submission import DATA, ENVIRONMENT, EXPERIMENT, Submission, data_of, environment_of, node_variables

if TYPE_CHECKING:
    from azure.ai.ml import MLClient

GPUS = "number_of_gpu_to_use_finetuning"
LONGEST_TAG = 1000
"""Characters that Azure ML keeps of a job's tag: learn.microsoft.com/azure/machine-learning/how-to-manage-quotas."""


@dataclass(frozen=True, kw_only=True)
class PipelineSubmission(Submission[ComponentRecipe]):
    """A pipeline before anything is uploaded.

    `component`: azure-ai-ml's, a function that makes the step. `gpus`: of one node.
    """

    model: FoundationModel
    component: Any
    parameters: Mapping[str, Parameter]
    gpus: int
    resumes: ClassVar[bool] = False

    @property
    def component_id(self) -> str:
        return f"{self.component.name}:{self.component.version}"

    @property
    def arguments(self) -> dict[str, Any]:
        """The values for the component; its own defaults are left to it."""
        return {key: one.value for key, one in self.parameters.items() if one.source != DEFAULT}

    @property
    def identity(self) -> dict[str, Any]:
        learned = {key: one.value for key, one in self.parameters.items() if one.source not in (DEFAULT, CLUSTER)}
        return {**super().identity, "component": self.component_id, "model": self.model.id, **learned}

    @property
    def display_name(self) -> str:
        data = re.sub(r"[^A-Za-z0-9_-]", "-", Path(self.recipe.data.source).stem)
        return display_name(self.model.name, data, self.parameters, self.gpus)

    @property
    def own_tags(self) -> dict[str, str]:
        """What register.py and the deployment have to know of such a model."""
        sizes = str(list(self.model.served_on or ()))
        served = {foundation_model.SERVED_ON: sizes} if self.model.served_on and len(sizes) <= LONGEST_TAG else {}
        return {"component": self.component_id, KIND_TAG: MLFLOW, **served}


def check(recipe: ComponentRecipe, outputs: StackOutputs, data: Path, cluster: Cluster) -> PipelineSubmission:
    """A submission that the registry, the model's tags and the cluster allow; nothing is uploaded.

    Raises:
        UserError: exit code 2: no such model, version or component, a tag that is no literal, a VM size that the model
            is not trained on, an input that the component does not have or take; 1: the registry cannot be reached.
    """
    wanted = recipe.model
    with azure_faults(outputs, f"asking the registry {wanted.registry}"):
        registry = registry_client(wanted.registry)
        model = foundation_model.find(registry, wanted.base_model, wanted.base_model_version)
        component = get_asset(registry.components, "component", wanted.component, wanted.component_version)
    model.check_size(cluster.size, cluster.name, outputs.stack)
    if not cluster.gpus:
        raise UserError(
            f"Azure does not say how many GPUs a {cluster.size} has ({cluster.name}), which the component must be told",
            next_command=f"make doctor STACK={outputs.stack}",
            code=WRONG_USE,
        )
    parameters = component_parameters.resolve(recipe, model.defaults, component_parameters.inputs_of(component))
    parameters = {key: one for key, one in parameters.items() if not key.startswith("instance_type_")}
    parameters |= {key: Parameter(cluster.name, CLUSTER) for key in component.inputs if key.startswith("compute_")}
    parameters[GPUS] = Parameter(cluster.gpus, CLUSTER)
    address = f"azureml://registries/{wanted.registry}/models/{model.name}"
    made = PipelineSubmission(
        recipe,
        outputs,
        data,
        address,
        model.version,
        model=model,
        component=component,
        parameters=parameters,
        gpus=cluster.gpus,
    )
    made.environment_version  # noqa: B018 - raises if it cannot be made
    return made


def tell(made: PipelineSubmission) -> None:
    """The model, the component and each value that is not the component's own default, with its source."""
    say(f"model: {made.model.name}:{made.model.version} of the registry {made.recipe.model.registry}")
    say(f"component: {made.component_id}, on {made.gpus} GPU(s) of each node")
    for key, one in sorted(made.parameters.items()):
        if one.source != DEFAULT:
            say(f"  {key}: {one}")
    unknown = sorted(set(made.model.defaults) - set(made.component.inputs))
    if unknown:
        say(f"note: {foundation_model.DEFAULTS} also names {', '.join(unknown)}, which the component does not have")


def evaluation_command(made: PipelineSubmission) -> str:
    """What the second step runs. A model that the gate refuses (exit code 3) is a result, not a failure of the job."""
    held_out = shlex.quote(made.recipe.data.eval_file)
    return (
        "python -m training.evaluate --model ${{inputs.model}} --baseline ${{inputs.base_model}}"
        f" --eval ${{{{inputs.data}}}}/{held_out} --recipe training/recipes/{made.recipe.name}.yaml"
        f" --out ${{{{outputs.{REPORT_OUTPUT}}}}} || test $? -eq 3"
    )


def build_job(made: PipelineSubmission, cluster: Cluster, name: str, code: Path, client: MLClient) -> Any:
    """The azure-ai-ml pipeline job. Data and environment are uploaded if they are not there yet."""
    from azure.ai.ml import Input
    from azure.ai.ml.dsl import pipeline
    from azure.ai.ml.entities import ManagedIdentityConfiguration, PipelineJobSettings

    data, evaluate, files = data_of(client, made), _evaluation(made, client, code), made.recipe.data
    folder = _address(client, data)

    @pipeline(None, name=made.display_name, display_name=made.display_name)
    def fine_tuned_and_judged() -> dict[str, Any]:
        fine_tuning = made.component(
            mlflow_model_path=Input(type=MLFLOW, path=made.model.id),
            train_file_path=Input(type="uri_file", path=f"{folder}/{files.train_file}"),
            test_file_path=Input(type="uri_file", path=f"{folder}/{files.eval_file}"),
            **made.arguments,
        )
        evaluation = evaluate(
            model=fine_tuning.outputs.mlflow_model_folder,
            base_model=Input(type=MLFLOW, path=made.model.id),
            data=Input(type="uri_folder", path=data),
        )
        evaluation.compute = cluster.name
        return {
            MLFLOW_OUTPUT: fine_tuning.outputs.mlflow_model_folder,
            REPORT_OUTPUT: evaluation.outputs[REPORT_OUTPUT],
        }

    job = fine_tuned_and_judged()
    job.name, job.experiment_name, job.tags = name, EXPERIMENT, made.tags
    job.identity = ManagedIdentityConfiguration(client_id=made.outputs.training_identity_client_id)
    job.settings = PipelineJobSettings(
        default_compute=cluster.name,
        force_rerun=True,  # results of earlier pipelines are not taken for this one's
        continue_on_step_failure=False,
    )
    return job


def _evaluation(made: PipelineSubmission, client: MLClient, code: Path) -> Any:
    from azure.ai.ml import Input, Output, command
    from azure.ai.ml.entities import ManagedIdentityConfiguration

    return command(
        name="evaluation",
        display_name="evaluation",
        command=evaluation_command(made),
        code=str(code),
        inputs={"model": Input(type=MLFLOW), "base_model": Input(type=MLFLOW), "data": Input(type="uri_folder")},
        outputs={REPORT_OUTPUT: Output(type="uri_folder", mode="rw_mount")},
        environment=environment_of(client, made),
        environment_variables=node_variables(made),
        identity=ManagedIdentityConfiguration(client_id=made.outputs.training_identity_client_id),
        shm_size=made.recipe.job.shm_size,
    )


def _address(client: MLClient, data: str) -> str:
    """Where the data asset's files lie, without the last slash."""
    _, name, version = data.split(":")
    return str(client.data.get(name, version=version).path).rstrip("/")


def facts(made: PipelineSubmission) -> dict[str, Any]:
    """What is to be known of the pipeline before it is submitted (`--dry-run`)."""
    return {
        "display_name": made.display_name,
        "component": f"azureml://registries/{made.recipe.model.registry}/components/{made.component_id}",
        "model": made.model.id,
        "parameters": {
            key: {
                "value": one.value,
                "source": one.source,
                **({"instead_of": one.instead_of} if one.instead_of else {}),
            }
            for key, one in sorted(made.parameters.items())
        },
        "evaluation": evaluation_command(made),
        "code": made.code_hash,
        "environment": f"{ENVIRONMENT}:{made.environment_version}",
        "gpus": made.gpus * made.recipe.job.instance_count,
        "inputs": {"data": f"{DATA}:{made.data_version}", "base_model": made.model.id},
        "outputs": [MLFLOW_OUTPUT, REPORT_OUTPUT],
    }
