"""Pipeline jobs as azure-ai-ml writes them: order, data between nodes, failures, cancellation, what clients see."""

# without `from __future__ import annotations`: azure-ai-ml reads the types of a pipeline's parameters
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from emulator.runner.job_environment import experiment_id
from emulator.testing import AzureMl
from tests.support.local_azure import LocalAzure

pytest_plugins = ["emulator.testing"]
ENVIRONMENT = "azureml://registries/azureml/environments/acft-hf-nlp-gpu/versions/112"


def step(name: str, script: str, compute: str | None = "cpu", **inputs: Any) -> Any:
    """A command component with an output folder `out`."""
    from azure.ai.ml import Output, command

    made = {"out": Output(type="uri_folder")}
    return command(name=name, command=script, inputs=inputs, outputs=made, environment=ENVIRONMENT, compute=compute)


def folder() -> Any:
    from azure.ai.ml import Input

    return Input(type="uri_folder")


def run(azure_ml: AzureMl, pipeline: Any) -> str:
    return str(azure_ml.client().jobs.create_or_update(pipeline(), experiment_name="pipelines").name)


def children(azure_ml: AzureMl, name: str) -> dict[str, str]:
    """The state of each child by its display name."""
    return {str(one.display_name): str(one.status) for one in azure_ml.client().jobs.list(parent_job_name=name)}


def downloaded(azure_ml: AzureMl, name: str, output: str, to: Path) -> Path:
    azure_ml.client().jobs.download(name, output_name=output, download_path=to)
    return to / "named-outputs" / output


def test_what_one_node_wrote_the_next_one_reads_and_the_pipeline_gives_back(azure_ml: AzureMl, tmp_path: Path) -> None:
    from azure.ai.ml.dsl import pipeline

    azure_ml.client()
    first = step("first", "sleep 2; echo ${{inputs.word}} > ${{outputs.out}}/word.txt", word="none")
    quick = step("quick", "true")
    second = step("second", "tr a-z A-Z < ${{inputs.words}}/word.txt > ${{outputs.out}}/word.txt", words=folder())

    @pipeline(name="two-steps")
    def two(word: str = "hello") -> dict[str, Any]:
        made = first(word=word)
        quick()  # its end must not let the next one begin
        loud = second(words=made.outputs.out)
        return {"loud": loud.outputs.out}

    name = run(azure_ml, two)
    assert azure_ml.wait(name) == "Completed"
    assert downloaded(azure_ml, name, "loud", tmp_path).joinpath("word.txt").read_text() == "HELLO\n"
    assert children(azure_ml, name) == {"made": "Completed", "quick": "Completed", "loud": "Completed"}
    job = azure_ml.client().jobs.get(name)
    number = experiment_id(job.id.split("/jobs/")[0], "pipelines")
    assert {one.experiment_name for one in azure_ml.client().jobs.list(parent_job_name=name)} == {number}
    assert job.type == "pipeline" and job.display_name == "two-steps"
    assert [one.name for one in azure_ml.client().jobs.list() if one.experiment_name == "pipelines"] == [name]


def test_nodes_that_wait_for_nothing_run_side_by_side(azure_ml: AzureMl) -> None:
    from azure.ai.ml.dsl import pipeline

    azure_ml.client()  # its cluster has two nodes: each step waits until the other one runs
    meet = "touch {shared}/$1; for i in $(seq 100); do test -e {shared}/$2 && exit 0; sleep 0.1; done; exit 1"
    shared = azure_ml.home.path / "meeting"
    shared.mkdir(exist_ok=True)
    script = meet.format(shared=shared)
    left = step("left", f"set -- left right; {script}")
    right = step("right", f"set -- right left; {script}")

    @pipeline(name="together")
    def together() -> None:
        left()
        right()

    assert azure_ml.wait(run(azure_ml, together)) == "Completed"


def test_a_failed_step_fails_the_pipeline_and_what_waits_for_it_never_runs(azure_ml: AzureMl, tmp_path: Path) -> None:
    from azure.ai.ml.dsl import pipeline
    from azure.ai.ml.exceptions import JobException

    azure_ml.client()
    bad = step("bad", "exit 3")
    after = step("after", "ls ${{inputs.words}}", words=folder())

    @pipeline(name="unlucky")
    def unlucky() -> None:
        broken = bad()
        after(words=broken.outputs.out)

    name = run(azure_ml, unlucky)
    with pytest.raises(JobException, match="Pipeline has some failed steps"):
        azure_ml.client().jobs.stream(name)
    azure_ml.client().jobs.download(name, download_path=tmp_path)
    assert "broken is Failed" in (tmp_path / "artifacts/logs/azureml/executionlogs.txt").read_text()
    assert children(azure_ml, name) == {"broken": "Failed"}


@pytest.mark.parametrize("go_on", [False, True, None])
def test_other_branches_go_on_after_a_failure_unless_the_pipeline_says_no(
    azure_ml: AzureMl, go_on: bool | None
) -> None:
    from azure.ai.ml.dsl import pipeline

    azure_ml.client()
    bad, slow, after = step("bad", "exit 1"), step("slow", "sleep 3"), step("after", "true", words=folder())

    @pipeline(name="branches")
    def branches() -> None:
        broken = bad()
        slow()
        after(words=broken.outputs.out)

    made = branches()
    made.settings.continue_on_step_failure = go_on
    name = str(azure_ml.client().jobs.create_or_update(made).name)
    assert azure_ml.wait(name) == "Failed"
    assert children(azure_ml, name) == {"broken": "Failed", "slow": "Canceled" if go_on is False else "Completed"}


def test_a_pipeline_inside_a_pipeline_hands_its_output_up(azure_ml: AzureMl, tmp_path: Path) -> None:
    from azure.ai.ml.dsl import pipeline

    azure_ml.client()
    write = step("write", "echo ${{inputs.number}} > ${{outputs.out}}/n.txt", compute=None, number="0")
    add_one = "expr $(cat ${{inputs.before}}/n.txt) + 1 > ${{outputs.out}}/n.txt"
    add = step("add", add_one, compute=None, before=folder())

    @pipeline(name="inner")
    def inner(number: str) -> dict[str, Any]:
        one = write(number=number)
        return {"sum": add(before=one.outputs.out).outputs.out}

    @pipeline(name="outer")
    def outer() -> dict[str, Any]:
        below = inner(number="41")
        return {"answer": below.outputs.sum}

    made = outer()
    made.settings.default_compute = "cpu"
    name = str(azure_ml.client().jobs.create_or_update(made).name)
    assert azure_ml.wait(name) == "Completed"
    assert downloaded(azure_ml, name, "answer", tmp_path).joinpath("n.txt").read_text() == "42\n"
    (child,) = azure_ml.client().jobs.list(parent_job_name=name)
    assert children(azure_ml, str(child.name)) == {"one": "Completed", "add": "Completed"}


def test_a_step_that_ran_before_is_not_run_again_unless_the_pipeline_says_so(azure_ml: AzureMl, tmp_path: Path) -> None:
    from azure.ai.ml.dsl import pipeline

    azure_ml.client()
    when = step("when", "date +%N > ${{outputs.out}}/now.txt; echo ${{inputs.word}}", word="none")

    @pipeline(name="again")
    def again(word: str) -> dict[str, Any]:
        return {"time": when(word=word).outputs.out}

    def now(word: str, force: bool) -> str:
        made = again(word=word)
        made.settings.force_rerun = force
        name = str(azure_ml.client().jobs.create_or_update(made).name)
        assert azure_ml.wait(name) == "Completed"
        return (downloaded(azure_ml, name, "time", tmp_path / name) / "now.txt").read_text()

    first = now("one", force=False)
    assert now("one", force=False) == first
    assert now("two", force=False) != first
    assert now("one", force=True) != first


def test_a_pipelines_output_lies_where_the_pipeline_says(azure_ml: AzureMl, tmp_path: Path) -> None:
    from azure.ai.ml import Output
    from azure.ai.ml.dsl import pipeline

    azure_ml.client()
    write = step("write", "echo here > ${{outputs.out}}/place.txt")
    place = "azureml://datastores/workspaceblobstore/paths/a-place-of-ones-own/"

    @pipeline(name="placed")
    def placed() -> dict[str, Any]:
        return {"kept": write().outputs.out}

    made = placed()
    made.outputs.kept = Output(type="uri_folder", path=place)
    name = str(azure_ml.client().jobs.create_or_update(made).name)
    assert azure_ml.wait(name) == "Completed"
    assert azure_ml.client().jobs.get(name).outputs.kept.path.endswith("/paths/a-place-of-ones-own/")
    assert (downloaded(azure_ml, name, "kept", tmp_path) / "place.txt").read_text() == "here\n"


def test_cancelling_a_pipeline_ends_what_runs_in_it(azure_ml: AzureMl) -> None:
    from azure.ai.ml.dsl import pipeline

    azure_ml.client()
    endless = step("endless", "sleep 300")

    @pipeline(name="endless-pipeline")
    def forever() -> None:
        endless()

    name = run(azure_ml, forever)
    for _ in range(100):
        if "Running" in children(azure_ml, name).values():
            break
        time.sleep(0.1)
    azure_ml.client().jobs.begin_cancel(name).wait()
    assert azure_ml.wait(name) == "Canceled"
    assert children(azure_ml, name) == {"endless": "Canceled"}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"compute": "nowhere"}, "Unknown compute target 'nowhere'"),
        ({"compute": "serverless"}, "serverless compute, which is not emulated"),
    ],
)
def test_a_pipeline_that_cannot_run_is_refused_when_it_is_submitted(
    azure_ml: AzureMl, changed: dict[str, str], says: str
) -> None:
    from azure.ai.ml.dsl import pipeline
    from azure.core.exceptions import HttpResponseError

    azure_ml.client()
    one = step("one", "true")

    @pipeline(name="refused")
    def refused() -> None:
        made = one()
        made.compute = changed["compute"]

    before = len(list(azure_ml.client().jobs.list()))
    with pytest.raises(HttpResponseError, match=says):
        azure_ml.client().jobs.create_or_update(refused(), skip_validation=True)
    assert len(list(azure_ml.client().jobs.list())) == before


def put(azure_ml: AzureMl, jobs: dict[str, Any]) -> Any:
    """Submit a graph that the SDK itself would not write."""
    import requests
    from azure.identity import DefaultAzureCredential

    ids = azure_ml.client()
    workspace = (
        f"/subscriptions/{ids.subscription_id}/resourceGroups/{ids.resource_group_name}/providers"
        f"/Microsoft.MachineLearningServices/workspaces/{ids.workspace_name}"
    )
    token = DefaultAzureCredential().get_token("https://management.azure.com/.default").token
    body = {"properties": {"jobType": "Pipeline", "jobs": jobs, "settings": {"default_compute": "cpu"}}}
    return requests.put(
        f"https://management.azure.com{workspace}/jobs/odd?api-version=2024-01-01-preview",
        json=body,
        headers={"Authorization": f"Bearer {token}"},
        timeout=60,
    )


def test_a_pipeline_whose_service_was_killed_is_marked_with_its_steps(azure: LocalAzure, workspace: str) -> None:
    component = f"{workspace}/components/waiting/versions/1"
    spec = {"type": "command", "command": "sleep 300", "environment": ENVIRONMENT, "inputs": {}, "outputs": {}}
    azure.put(component, {"properties": {"componentSpec": spec}})
    jobs = {"wait": {"type": "command", "componentId": component, "computeId": f"{workspace}/computes/cpu"}}
    azure.put(f"{workspace}/jobs/killed", {"properties": {"jobType": "Pipeline", "jobs": jobs}})
    history = f"https://eastus2.api.azureml.ms/history/v1.0{workspace}/runs/killed"

    def states() -> list[str]:
        below = azure.request("GET", f"{history}/children").json()["value"]
        return [one["status"] for one in (azure.request("GET", history).json(), *below)]

    for _ in range(100):
        if states() == ["Running", "Running"]:
            break
        time.sleep(0.1)
    service = psutil.Process(azure.record["pid"])
    service.kill()
    psutil.wait_procs([service], timeout=30)
    azure.env.update(LocalAzure.start(azure.home.path).env)
    assert states() == ["Failed", "Failed"]
    error = azure.request("GET", f"{history}/details").json()["error"]["error"]
    assert error["code"] == "JobNodeLost"


REGISTRY = "azureml://registries/azureml/components"
COMPONENT = f"{REGISTRY}/chat_completion_pipeline/versions/0.0.82"


@pytest.mark.parametrize(
    ("jobs", "says"),
    [
        ({}, "has no jobs"),
        ({"a": {"type": "command", "componentId": f"{REGISTRY}/none/versions/1"}}, "does not exist"),
        (
            {"a": {"type": "command", "componentId": f"{REGISTRY}/model_evaluation/versions/0.0.82"}},
            "The input 'preprocess_output' of the job 'a' is required",
        ),
        (
            {
                "a": {
                    "type": "command",
                    "componentId": f"{REGISTRY}/model_evaluation/versions/0.0.82",
                    "inputs": {"speed": {"job_input_type": "literal", "value": "9"}},
                }
            },
            "has no input 'speed'",
        ),
        (
            {
                "a": {
                    "type": "pipeline",
                    "componentId": COMPONENT,
                    "inputs": {"precision": {"job_input_type": "literal", "value": "8"}},
                }
            },
            "'precision' of the job 'a' is '8', not one of 32, 16",
        ),
        (
            {
                "a": {
                    "type": "pipeline",
                    "componentId": COMPONENT,
                    "inputs": {"compute_finetune": {"job_input_type": "literal", "value": "nowhere"}},
                }
            },
            "Unknown compute target 'nowhere'",
        ),
        (
            {
                name: {
                    "type": "command",
                    "componentId": f"{REGISTRY}/ft_nlp_model_converter/versions/0.0.82",
                    "inputs": {
                        key: {
                            "job_input_type": "literal",
                            "value": f"${{{{parent.jobs.{other}.outputs.mlflow_model_folder}}}}",
                        }
                        for key in ("model_path", "evaluation_result")
                    },
                }
                for name, other in (("a", "b"), ("b", "a"))
            },
            "wait for each other",
        ),
    ],
)
def test_a_graph_that_makes_no_sense_is_a_400_that_says_why(azure_ml: AzureMl, jobs: dict[str, Any], says: str) -> None:
    answer = put(azure_ml, jobs)
    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"]
