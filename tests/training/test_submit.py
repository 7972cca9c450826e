from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.cli import UserError
from infra.outputs import StackOutputs
from tests.support.local_azure import LocalAzure, last_json
from tests.training.submissions import (
    SUCCEEDS,
    Submit,
    make_data,
    make_gpu_cluster,
    make_outputs,
    with_command,
)
from training import dry_run, follow, runs, submission, submit
from training import recipe as recipes
from training.provenance import GitState
from training.submission import check, find_base_model, snapshot

OUTPUTS = StackOutputs(**dict.fromkeys(StackOutputs.__dataclass_fields__, "x"))
LOCAL = recipes.load("local")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_data(tmp_path / "data")


@pytest.fixture(autouse=True)
def own_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN_RECORDS", str(tmp_path / "runs"))


@pytest.fixture(scope="module")
def two_clusters(azure: LocalAzure, workspace: str) -> str:
    make_gpu_cluster(azure, workspace)
    return workspace


@pytest.fixture
def run(
    azure: LocalAzure, two_clusters: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Submit]:
    """`training.submit` in this process, on the emulator, with a command that succeeds in no time."""
    for key, value in azure.env.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(follow, "POLL_SECONDS", 0.1)
    with_command(monkeypatch, SUCCEEDS)
    outputs = tmp_path / "outputs.json"

    def made(*words: str, **changes: str) -> int:
        outputs.write_text(json.dumps(make_outputs(two_clusters, **changes).as_dict()))
        which = [] if {"--attach", "--recipe"} & set(words) else ["--recipe", "local"]
        return submit.main([*which, *words, "--data", str(data), "--outputs", str(outputs), "--json"])

    yield made


def _job(azure: LocalAzure, workspace: str, name: str) -> dict[str, Any]:
    return dict(azure.request("GET", f"{workspace}/jobs/{name}").json()["properties"])


# --- what is found here, before Azure is asked ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train.jsonl", "eval.jsonl", "card.json"])
def test_incomplete_data_is_wrong_use_and_names_the_command(data: Path, name: str) -> None:
    (data / name).unlink()
    with pytest.raises(UserError, match="incomplete") as caught:
        check(LOCAL, OUTPUTS, data)
    assert caught.value.code == 2
    assert "python -m training.dataset --source training/data" in str(caught.value.next_command)


def test_missing_data_names_the_command_with_the_recipes_split(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing") as caught:
        check(recipes.load("phi-3.5-mini"), OUTPUTS, tmp_path)
    assert "--source HuggingFaceH4/ultrachat_200k --split 1%" in str(caught.value.next_command)


def test_data_that_were_changed_after_they_were_checked_are_refused(data: Path) -> None:
    with (data / "train.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(UserError, match="changed after it was checked"):
        check(LOCAL, OUTPUTS, data)


def test_data_of_another_source_than_the_recipe_names_are_refused(data: Path) -> None:
    with pytest.raises(UserError, match="HuggingFaceH4") as caught:
        check(recipes.load("phi-3.5-mini"), OUTPUTS, data)
    assert "--set source=" in str(caught.value.next_command)
    check(recipes.load("phi-3.5-mini", ["source=training/../training/data/first-questions.jsonl"]), OUTPUTS, data)


def test_a_damaged_card_is_wrong_use(data: Path) -> None:
    (data / "card.json").write_text("[")
    with pytest.raises(UserError, match=r"card\.json is damaged"):
        check(LOCAL, OUTPUTS, data)


def test_a_missing_base_model_names_the_command_that_makes_it(data: Path) -> None:
    (data / "base-model" / "config.json").unlink()
    with pytest.raises(UserError) as caught:
        check(LOCAL, OUTPUTS, data)
    assert "python -m training.small_model" in str(caught.value.next_command)


def test_rows_longer_than_the_base_model_was_made_for_are_refused(data: Path) -> None:
    check(recipes.load("local", ["max_length=512"]), OUTPUTS, data)
    with pytest.raises(UserError, match="at most 512"):
        check(recipes.load("local", ["max_length=513"]), OUTPUTS, data)


def test_the_base_model_is_a_folder_of_the_data_or_a_name_on_the_hub(data: Path) -> None:
    assert find_base_model(LOCAL, data) == data / "base-model"
    assert find_base_model(recipes.load("phi-3.5-mini"), data) == "microsoft/Phi-3.5-mini-instruct"


def test_an_environment_without_a_dockerfile_is_refused(data: Path) -> None:
    with pytest.raises(UserError, match="no Dockerfile"):
        check(recipes.load("local", ["environment=training/recipes"]), OUTPUTS, data)


@pytest.mark.parametrize("words", [[], ["--recipe", "local", "--list"], ["--recipe", "local", "--attach", "j"]])
def test_one_thing_at_a_time(words: list[str]) -> None:
    with pytest.raises(UserError, match="give one of") as caught:
        submit.main(words)
    assert caught.value.code == 2


def test_the_job_starts_from_its_snapshot_alone() -> None:
    """A module that the snapshot lacks is an ImportError, as on the node (the editable install is out of reach)."""
    with snapshot(recipes.load("local", ["seed=11"])) as folder:
        code = (
            "import sys; sys.meta_path[:] = [finder for finder in sys.meta_path if 'ditable' not in repr(finder)];"
            "import training.sft, training.node, training.recipe as r, importlib.util as u;"
            f"assert training.__file__.startswith({str(folder)!r});"
            "assert u.find_spec('infra.outputs') is None;"
            "assert r.load('training/recipes/local.yaml').sft['seed'] == 11"
        )
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, check=True)


# --- what a run is ----------------------------------------------------------------------------------------------------


def test_a_run_is_what_it_learns_from_what_and_not_how_long_it_may_take(data: Path, tmp_path: Path) -> None:
    key = check(LOCAL, OUTPUTS, data).key
    assert check(recipes.load("local", ["timeout_minutes=5"]), OUTPUTS, data).key == key
    assert check(recipes.load("local", ["seed=5"]), OUTPUTS, data).key != key
    other = make_data(tmp_path / "other")
    assert check(LOCAL, OUTPUTS, other).key != key
    (data / "base-model" / "weights").write_text("w")
    assert check(LOCAL, OUTPUTS, data).key != key


def test_the_nodes_command_checks_the_gpus_first_and_only_where_they_are_needed(data: Path) -> None:
    from training.cluster import Cluster

    cluster = Cluster("c", "Standard_X", 4, 96, "f", 1, False, "eastus2")
    source = "source=training/data/first-questions.jsonl"
    on_gpus = check(recipes.load("phi-3.5-mini", [source]), OUTPUTS, data).command(cluster)
    assert on_gpus.startswith("python -m training.node --gpus 4 && python -m training.sft --recipe ")
    assert "--model microsoft/Phi-3.5-mini-instruct" in on_gpus
    anywhere = check(LOCAL, OUTPUTS, data).command(cluster)
    assert anywhere.startswith("python -m training.sft ") and "--model ${{inputs.base_model}}" in anywhere
    assert "--price-per-hour" not in anywhere


def test_the_nodes_command_is_one_that_the_job_takes(data: Path) -> None:
    import shlex

    from training import sft
    from training.cluster import Cluster

    words = shlex.split(check(LOCAL, OUTPUTS, data).command(Cluster("c", "s", 0, 4, "f", 1, False, "eastus2")))
    assert sft._parser().parse_args(words[3:]).recipe == "training/recipes/local.yaml"


# --- from submission to model -----------------------------------------------------------------------------------------


def test_a_submitted_job_says_who_it_is_what_it_reads_and_how_long_it_may_take(
    run: Submit, azure: LocalAzure, two_clusters: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--detach", "--set", "shm_size=3g", "--set", "timeout_minutes=7", training_identity_client_id="me") == 0
    said = last_json(capsys.readouterr().out)
    job = _job(azure, two_clusters, said["job"])
    assert job["identity"]["clientId"] == "me" and job["environmentVariables"]["AZURE_CLIENT_ID"] == "me"
    assert job["resources"]["shmSize"] == "3g" and job["limits"]["timeout"] == "PT7M"
    assert job["computeId"].endswith("/computes/cpu")
    assert "/data/finetune-phi-data/versions/" in job["inputs"]["data"]["uri"]
    assert "/environments/finetune-phi-train/versions/" in job["environmentId"]
    assert job["outputs"]["model"]["mode"] == "ReadWriteMount"
    assert all(isinstance(value, str) for value in job["tags"].values())
    made = check(LOCAL, OUTPUTS, data)
    assert job["tags"]["data"] == f"finetune-phi-data:{made.data_version}"
    assert job["tags"]["train_hash"] == made.hashes["train"] and job["tags"]["git_commit"] != "unknown"


def test_a_job_on_several_gpus_and_nodes_is_distributed_by_azure_itself(
    run: Submit, azure: LocalAzure, two_clusters: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make_gpu_cluster(azure, two_clusters, "four", "Standard_NC96ads_A100_v4")
    source = ("--set", "source=training/data/first-questions.jsonl")
    assert run("--recipe", "phi-3.5-mini", *source, "--set", "instance_count=2", "--detach", compute="four") == 0
    job = _job(azure, two_clusters, last_json(capsys.readouterr().out)["job"])
    assert job["distribution"] == {"distributionType": "PyTorch", "processCountPerInstance": 4}
    assert job["resources"]["instanceCount"] == 2 and job["computeId"].endswith("/computes/four")


def test_a_node_knows_the_commit_that_its_code_is_of(
    run: Submit, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "git_state", lambda: GitState("0123456789abcdef", True))
    code = "from training import provenance; print(provenance.commit())"
    with_command(monkeypatch, f'python -c "{code}" && {SUCCEEDS}')
    assert run() == 0
    assert "  0123456789ab-dirty" in capsys.readouterr().err.splitlines()


def test_a_completed_job_becomes_a_registered_model_with_its_lineage(
    run: Submit, azure: LocalAzure, two_clusters: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--set", "registered_name=lineage") == 0
    captured = capsys.readouterr()
    said = last_json(captured.out)
    assert said["status"] == "Completed" and said["model"] == "lineage:1"
    assert "  done" in captured.err.splitlines()
    assert "\x1b" not in captured.err, "azure-ai-ml's colour codes"
    model = azure.request("GET", f"{two_clusters}/models/lineage/versions/1").json()["properties"]
    assert model["modelUri"].endswith(f"/paths/azureml/{said['job']}/model/")
    tags = model["tags"]
    assert tags["job"] == said["job"] and tags["approved"] == "true" and tags["eval_loss"] == "1.5"
    assert {"stack", "recipe", "recipe_hash", "data", "git_commit", "code_hash", "base_model"} <= set(tags)
    (record,) = runs.records()
    assert (record["job"], record["status"], record["model"]) == (said["job"], "Completed", "lineage:1")
    assert record["git_commit"] and record["data_hashes"]["train"] == tags["train_hash"]


def test_what_the_workspace_has_already_is_not_uploaded_again(run: Submit, azure: LocalAzure) -> None:
    assert run() == 0
    before = azure.run("-m", "emulator", "requests", "--match", "PUT").stdout.count("/azureml-blobstore")
    assert run("--fresh") == 0
    after = azure.run("-m", "emulator", "requests", "--match", "PUT").stdout.count("/azureml-blobstore")
    assert after == before


def test_the_same_run_with_the_same_code_is_reported_and_not_run_again(
    run: Submit, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run() == 0
    first = last_json(capsys.readouterr().out)
    assert run() == 0
    captured = capsys.readouterr()
    assert last_json(captured.out) == first
    assert "has done the same run with the same code" in captured.err and "submitting" not in captured.err
    monkeypatch.setattr(submission, "CODE", ("training",))
    assert run() == 0
    assert last_json(capsys.readouterr().out)["job"] == first["job"].removesuffix("-1") + "-2"


def test_a_run_that_failed_is_continued_at_the_place_of_its_first_job(
    run: Submit,
    azure: LocalAzure,
    two_clusters: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_command(monkeypatch, "exit 1")
    for _ in range(2):
        with pytest.raises(UserError):
            run()
    with_command(monkeypatch, "sleep 60")
    assert run("--detach") == 0
    captured = capsys.readouterr()
    third = last_json(captured.out)["job"]
    assert third.endswith("-3") and "going on from its newest checkpoint" in captured.err
    job, first = _job(azure, two_clusters, third), third.removesuffix("3") + "1"
    assert job["outputs"]["model"]["uri"].endswith(f"datastores/workspaceblobstore/paths/azureml/{first}/model/")
    assert job["tags"]["output_of"] == first
    assert run("--detach", "--fresh") == 0
    fresh = last_json(capsys.readouterr().out)["job"]
    assert fresh.endswith("-4") and _job(azure, two_clusters, fresh)["tags"]["output_of"] == fresh
    for name in (third, fresh):
        azure.request("POST", f"{two_clusters}/jobs/{name}/cancel")


def test_a_run_that_is_still_running_is_followed_and_not_started_twice(
    run: Submit,
    azure: LocalAzure,
    two_clusters: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_command(monkeypatch, f"sleep 3; {SUCCEEDS}")
    assert run("--detach") == 0
    first = last_json(capsys.readouterr().out)["job"]
    assert run() == 0
    captured = capsys.readouterr()
    assert last_json(captured.out)["job"] == first and "following it" in captured.err
    assert azure.request("GET", f"{two_clusters}/jobs/{first.removesuffix('1')}2").status_code == 404


def test_a_model_that_is_not_approved_is_registered_and_exits_with_3(
    run: Submit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_command(monkeypatch, SUCCEEDS.replace('"approved": true', '"approved": false'))
    assert run("--set", "registered_name=refused") == 3
    assert "not approved: better" in capsys.readouterr().err


# --- a dry run --------------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_would_be_submitted_and_uploads_nothing(
    run: Submit, azure: LocalAzure, two_clusters: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--dry-run") == 0
    said = last_json(capsys.readouterr().out)
    made = check(LOCAL, OUTPUTS, data)
    assert said["would"] == "begin" and said["compute"] == "cpu" and said["global_batch"] == 8
    assert said["inputs"]["data"] == f"finetune-phi-data:{made.data_version}"
    assert said["cost"]["hours"] == 0.01 and said["cost"]["expected"] is None
    kept = azure.request("GET", f"{two_clusters}/data/finetune-phi-data/versions/{made.data_version}")
    assert kept.status_code == 404
    assert azure.request("GET", f"{two_clusters}/jobs/{said['job']}").status_code == 404
    assert runs.records() == []


def test_a_dry_run_multiplies_hours_nodes_and_price(
    run: Submit, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from infra import prices

    price = prices.Price(2.0, "a test", "2026-01-01")
    priced = dataclasses.replace(prices.read(), regions={"eastus2": {"vm/Standard_NC24ads_A100_v4": price}})
    monkeypatch.setattr(prices, "read", lambda: priced)
    source = ("--set", "source=training/data/first-questions.jsonl")
    words = ("--recipe", "phi-3.5-mini", *source, "--set", "instance_count=2", "--dry-run")
    assert run(*words) == 0
    said = last_json(capsys.readouterr().out)
    assert said["cost"]["expected"] == round(2.0 * 0.12 * 2, 2) and said["cost"]["at_most"] == 2.0 * 6 * 2
    assert said["cost"]["currency"] == "USD" and said["global_batch"] == 32


def test_a_dry_run_for_a_reader_is_yaml_and_a_sentence_about_the_cost(
    run: Submit, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import yaml

    run("--dry-run")
    values = last_json(capsys.readouterr().out)
    dry_run.show(values, as_json=False)
    captured = capsys.readouterr()
    assert yaml.safe_load(captured.out) == values
    assert "unpriced" in captured.err and "make prices" in captured.err


# --- records ----------------------------------------------------------------------------------------------------------


def test_the_list_shows_every_record_the_newest_last(capsys: pytest.CaptureFixture[str]) -> None:
    assert submit.main(["--list"]) == 0
    assert "no job was submitted from here" in capsys.readouterr().out
    runs.record("late", {"submitted": "2026-02-01", "status": "Running"})
    runs.record("early", {"submitted": "2026-01-01", "status": "Submitted"})
    runs.record("early", {"status": "Completed", "model": "m:1"})
    assert submit.main(["--list"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[1] == ["2026-01-01", "-", "early", "Completed", "m:1"] and rows[2][2] == "late"


def test_a_damaged_record_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    runs.record("a", {})
    (runs.folder() / "a.json").write_text("{")
    with pytest.raises(UserError, match=r"a\.json is damaged"):
        submit.main(["--list"])


def test_a_record_that_cannot_be_written_costs_a_note_and_not_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RUN_RECORDS", str(tmp_path / "file"))
    runs.record("a", {})
    assert "cannot be written" in capsys.readouterr().err
