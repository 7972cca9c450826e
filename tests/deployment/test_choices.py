"""Which model goes out, under which endpoint name, in which image."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deployment import image
from deployment.endpoint import endpoint_name
from deployment.model_choice import ModelVersion, choose
from deployment.observe import asset_name
from infra.cli import REFUSED, UserError
from infra.outputs import StackOutputs


def outputs(**changes: str) -> StackOutputs:
    values = {field.name: field.name for field in dataclasses.fields(StackOutputs)}
    return StackOutputs(**{**values, "workspace_id": "/subscriptions/s/workspaces/w", "stack": "dev", **changes})


def version(name: str, number: str, day: int, approved: str | None = "true") -> ModelVersion:
    tags = {} if approved is None else {"approved": approved}
    return ModelVersion(name, number, datetime(2026, 1, day, tzinfo=UTC), tags)


VERSIONS = [version("a", "9", 1), version("a", "10", 2), version("b", "1", 3), version("b", "2", 4, "false")]


@pytest.mark.parametrize(("wanted", "chosen"), [(None, "b:1"), ("a", "a:10"), ("a:9", "a:9"), ("b", "b:1")])
def test_the_newest_approved_version_goes_out(wanted: str | None, chosen: str) -> None:
    assert str(choose(VERSIONS, wanted, stack="dev")) == chosen


def test_of_equally_old_ones_the_higher_number_goes_out() -> None:
    assert str(choose([version("a", "10", 1), version("a", "9", 1)], None, stack="dev")) == "a:10"


@pytest.mark.parametrize("approved", ["false", None, "True"])
def test_an_unapproved_version_is_refused(approved: str | None) -> None:
    with pytest.raises(UserError, match="not approved") as refused:
        choose([version("a", "1", 1, approved)], "a:1", stack="dev")
    assert refused.value.code == REFUSED


@pytest.mark.parametrize("wanted", [None, "c", "a:7"])
def test_a_missing_model_names_the_next_command(wanted: str | None) -> None:
    with pytest.raises(UserError) as missing:
        choose([] if wanted is None else VERSIONS, wanted, stack="dev")
    assert missing.value.next_command == "make train STACK=dev"


@pytest.mark.parametrize("stack", ["dev", "x" * 80, "Feature_Branch/7", "é", "9"])
def test_endpoint_names_keep_azures_rules(stack: str) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9-]{1,30}[a-z0-9]", endpoint_name(outputs(stack=stack)))


@pytest.mark.parametrize("app", ["phi", "flow", "x" * 40, "7", "Über-App", "-", "a_b.c"])
def test_endpoints_of_other_apps_keep_them_too(app: str) -> None:
    for stack in ("dev", "x" * 80):
        assert re.fullmatch(r"[a-z][a-z0-9-]{1,30}[a-z0-9]", endpoint_name(outputs(stack=stack), app))


def test_endpoint_names_differ_by_workspace_stack_and_app() -> None:
    names = {
        endpoint_name(outputs(), "flow"),
        endpoint_name(outputs()),
        endpoint_name(outputs(workspace_id="/subscriptions/s/workspaces/other")),
        endpoint_name(outputs(stack="x" * 40)),
        endpoint_name(outputs(stack="x" * 41)),
    }
    assert len(names) == 5


def test_assets_are_named_alike_however_azure_writes_them() -> None:
    arm = "/subscriptions/s/resourceGroups/g/providers/Microsoft.MachineLearningServices/workspaces/w"
    assert asset_name(f"{arm}/models/phi/versions/3") == asset_name("azureml:phi:3") == "phi:3"


def test_the_image_holds_all_that_the_server_imports_and_nothing_else(tmp_path: Path) -> None:
    context = image.stage_context(tmp_path / "context")
    code = (
        "import sys; sys.path[:] = ['.', *(p for p in sys.path if 'site-packages' in p or '/lib' in p)];"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in str(f).lower()];"
        "import deployment.server.__main__, deployment.server.app, deployment.server.model;"
        "mine = [m for m in sys.modules.values() if (m.__name__.split('.')[0] in ('infra', 'training', 'deployment'))];"
        "print(*sorted({m.__file__ for m in mine}), sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=context, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    used = {str(Path(line).resolve().relative_to(context.resolve())) for line in done.stdout.splitlines()}
    staged = {name for name in image.context_files() if name.endswith(".py")}
    assert used <= staged
    assert all(name.startswith("deployment/server/") for name in staged - used)  # what is imported when it is needed


def test_the_images_version_follows_its_content(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = image.of_server().version
    assert before == image.of_server().version
    other = tmp_path / "prompt.py"
    other.write_text("# another\n")
    files = {**image.context_files(), "training/prompt.py": other}
    monkeypatch.setattr(image, "context_files", lambda engine: files)
    assert image.of_server().version != before


def test_a_folders_image_is_its_files_without_what_is_hidden(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM x\nEXPOSE 8080\n")
    (tmp_path / "smoke.json").write_text("{}")
    for hidden in (".env", "__pycache__"):
        (tmp_path / hidden).mkdir()
        (tmp_path / hidden / "secret").write_text("x")
    made = image.of_folder(tmp_path)
    assert (set(made.files), made.port) == ({"Dockerfile", "smoke.json"}, 8080)
    assert made.question == tmp_path / "smoke.json"
    version = made.version
    (tmp_path / ".env" / "secret").write_text("y")
    assert image.of_folder(tmp_path).version == version
    (tmp_path / "smoke.json").write_text("[]")
    assert image.of_folder(tmp_path).version != version


def test_an_mlflow_model_is_wanted_where_mlflow_serves() -> None:
    mlflow = ModelVersion("c", "1", datetime(2026, 1, 1, tzinfo=UTC), {"approved": "true"}, "mlflow_model")
    assert str(choose([*VERSIONS, mlflow], None, stack="dev", kind="mlflow_model")) == "c:1"
    with pytest.raises(UserError, match="no model a is registered as mlflow_model"):
        choose(VERSIONS, "a", stack="dev", kind="mlflow_model")


@pytest.mark.parametrize("engine", image.OF_ENGINE)
def test_each_engines_image_has_what_its_dockerfile_copies_and_the_port_of_the_routes(engine: str) -> None:
    made = image.of_server(engine)
    dockerfile = made.files["Dockerfile"].read_text()
    assert f"PORT={made.port} " in dockerfile
    for source in re.findall(r"^COPY (\S+)", dockerfile, re.MULTILINE):
        assert any(name == source or name.startswith(source) for name in made.files), source
    if "start.sh" in dockerfile:
        assert "deployment/server/vllm/start.sh" in made.files


VERBS = ["rollout", "rollback", "access", "doctor", "load", "smoke", "status", "logs", "teardown", "server"]


@pytest.mark.parametrize("verb", VERBS)
def test_help_needs_no_heavy_import(verb: str) -> None:
    module = "deployment.server.__main__" if verb == "server" else f"deployment.{verb}"
    code = (
        f"import sys, {module}; "
        "print([name for name in ('torch', 'transformers', 'azure.ai.ml', 'promptflow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
