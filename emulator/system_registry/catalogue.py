"""The registry's content as its clients get it: models with their tags, and components with their specifications."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
ADDRESS = "azureml://registries/azureml"
Body = dict[str, Any]


def models() -> dict[str, Body]:
    """The facts of each foundation model by its name."""
    found: dict[str, Body] = yaml.safe_load((FOLDER / "models.yaml").read_text())
    return found


def model_properties(facts: Body) -> Body:
    """A version's ARM properties, but for where its files lie."""
    tags = {
        "task": "chat-completion",
        "license": "mit",
        "author": "Microsoft",
        "textContextWindow": str(facts["context"]),
        "inference_compute_allow_list": str(facts["inference"]),
        "finetune_compute_allow_list": str(facts["finetune"]),
        "inference_supported_envs": "['vllm']",
        "model_specific_defaults": str(facts["defaults"]),
    }
    properties = {
        "SharedComputeCapacityEnabled": "true",
        "languages": "en",
        "finetuning-tasks": "chat-completion",
        "inference-recommended-sku": ", ".join(facts["inference"]),
        "finetune-recommended-sku": ", ".join(facts["finetune"]),
    }
    flavors = {"python_function": {"data": {"loader_module": "chat_scoring"}}}
    return {"modelType": "mlflow_model", "tags": tags, "properties": properties, "flavors": flavors}


def components() -> dict[str, Body]:
    """The specification of the pipeline component and of each of its steps, by name."""
    source: Body = yaml.safe_load((FOLDER / "chat_completion.yaml").read_text())
    steps = {name: _step(name, said, source) for name, said in source["steps"].items()}
    pipeline = {
        "name": source["name"],
        "version": source["version"],
        "type": "pipeline",
        "display_name": source["display_name"],
        "description": "Fine-tunes a chat model of the registry and gives it back as an MLflow model.",
        "inputs": source["inputs"],
        "outputs": source["outputs"],
        "jobs": {name: _node(name, said, source) for name, said in source["steps"].items()},
    }
    return {**steps, source["name"]: pipeline}


def environment() -> tuple[str, str]:
    """Name and version of the environment that every step runs in."""
    source: Body = yaml.safe_load((FOLDER / "chat_completion.yaml").read_text())
    return source["environment"], source["environment_version"]


def _inputs(said: Body, source: Body) -> Body:
    given = {name: source["inputs"][name] for name in said.get("inputs", ())}
    origins = {name: origin.split(".") for name, origin in said.get("from", {}).items()}
    kinds = {name: source["steps"][node]["outputs"][output] for name, (node, output) in origins.items()}
    return {**given, **{name: {"type": kind} for name, kind in kinds.items()}}


def _step(name: str, said: Body, source: Body) -> Body:
    inputs = _inputs(said, source)
    words = [f"$[[--{one} '${{{{inputs.{one}}}}}']]" for one in inputs]
    words += [f"--{one} '${{{{outputs.{one}}}}}'" for one in said["outputs"]]
    spec = {
        "name": name,
        "version": source["version"],
        "type": "command",
        "display_name": name,
        "inputs": inputs,
        "outputs": {one: {"type": kind} for one, kind in said["outputs"].items()},
        "code": f"{ADDRESS}/codes/chat_completion/versions/1",
        "environment": f"{ADDRESS}/environments/{source['environment']}/versions/{source['environment_version']}",
        "command": " ".join(["python", said["script"], *words]),
    }
    if "processes" in said:
        spec["distribution"] = {"type": "pytorch", "process_count_per_instance": 1}
    return spec


def _node(name: str, said: Body, source: Body) -> Body:
    """The step as a node of the pipeline, bound to the pipeline's inputs and to earlier steps."""
    inputs = {one: f"${{{{parent.inputs.{one}}}}}" for one in said.get("inputs", ())}
    for one, origin in said.get("from", {}).items():
        node, output = origin.split(".")
        inputs[one] = f"${{{{parent.jobs.{node}.outputs.{output}}}}}"
    found: Body = {
        "name": name,
        "type": "command",
        "componentId": f"{ADDRESS}/components/{name}/versions/{source['version']}",
        "computeId": f"${{{{parent.inputs.{said['compute']}}}}}",
        "inputs": {one: {"job_input_type": "literal", "value": value} for one, value in inputs.items()},
        "outputs": {
            one: {"type": "literal", "value": f"${{{{parent.outputs.{one}}}}}"}
            for one in said["outputs"]
            if one in source["outputs"]
        },
    }
    if "processes" in said:
        counted = f"${{{{parent.inputs.{said['processes']}}}}}"
        found["distribution"] = {"type": "pytorch", "process_count_per_instance": counted}
        found["resources"] = {"instance_count": f"${{{{parent.inputs.{said['nodes']}}}}}"}
    return found
