"""The flow's container: its context holds what its command needs, and the command serves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from emulator.runner.dockerfile import build
from flow.container import main
from infra.cli import UserError
from tests.deployment.conftest import free_port
from tests.flow.serving import environment, wait_ready
from tests.support.stub_endpoint import stub_endpoint

# `python -m` puts the working directory first, so modules of the project come from the context, or not at all.
ALONE = """
import sys
sys.path = [one for one in sys.path if "finetune" not in one]
sys.meta_path = [one for one in sys.meta_path if "editable" not in repr(one).lower()]
"""


def test_the_command_of_the_image_serves_with_the_files_of_the_context_alone(tmp_path: Path) -> None:
    main([str(tmp_path / "context")])
    image = build(tmp_path / "context", "Dockerfile", tmp_path / "root")
    port = str(free_port())
    assert image.env["HOST"] == "0.0.0.0" and image.env["PORT"] == "5001"
    command = [sys.executable if word == "python" else word for word in image.argv]
    with stub_endpoint() as stub:
        env = environment(tmp_path / "env", stub.url, **image.env | {"HOST": "127.0.0.1", "PORT": port})
        watch = tmp_path / "env" / "sitecustomize.py"
        watch.write_text(watch.read_text() + ALONE)
        outputs = (tmp_path / "env" / "outputs.json").read_text()
        del env["STACK_OUTPUTS"]
        env["STACK_OUTPUTS_JSON"] = outputs
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(command, cwd=image.cwd, env=env, stdout=log, stderr=log)
        try:
            for route in ("health", "ready"):
                wait_ready(f"http://127.0.0.1:{port}/{route}", process, tmp_path / "log")
            url, elsewhere = f"http://127.0.0.1:{port}/score", {"Host": "flow.eastus2.inference.ml.azure.com"}
            smoke = (tmp_path / "context" / "smoke.json").read_bytes()
            headers = {**elsewhere, "Content-Type": "application/json"}
            answer = httpx.post(url, content=smoke, headers=headers, trust_env=False)
            assert answer.json() == {"answer": "Hello, who are you?"}
        finally:
            process.terminate()
            process.wait(20)


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        main([str(tmp_path)])
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_the_context_holds_no_more_than_the_chat_needs(tmp_path: Path) -> None:
    main([str(tmp_path / "context")])
    names = {path.relative_to(tmp_path / "context").as_posix() for path in (tmp_path / "context").rglob("*")}
    assert "deployment/endpoint.py" in names and "infra/outputs.py" in names and "flow/page/page.js" in names
    assert not any("rollout" in name or "evaluation" in name or "training" in name for name in names)
