"""Rules of the whole repository that no single test would notice broken."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.cli import Parser

ROOT = Path(__file__).resolve().parents[1]
PRODUCT = ("infra", "training", "deployment", "flow")
ABOVE = {"infra": (), "training": ("infra",), "deployment": ("infra", "training"), "flow": PRODUCT[:3], "emulator": ()}
HEAVY = {"torch", "transformers", "mlflow", "azure.ai.ml", "promptflow", "pulumi", "datasets"}
VERBS = (
    "infra.environment",
    "infra.preflight",
    "infra.cost",
    "training.dataset",
    "training.small_model",
    "training.recipe",
    "training.sft",
    "training.evaluate",
    "training.submit",
    "training.promote",
    "deployment.rollout",
    "deployment.smoke",
    "deployment.status",
    "deployment.logs",
    "deployment.teardown",
    "deployment.rollback",
    "deployment.doctor",
    "deployment.access",
    "deployment.load",
    "deployment.server",
    "deployment.server.openvino_export",
    "flow.chat",
    "flow.serve",
    "flow.evaluation",
    "flow.container",
    "emulator",
)


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("folder", [*PRODUCT, "emulator"])
def test_arrows_point_one_way(folder: str) -> None:
    others = {*ABOVE} - {folder, *ABOVE[folder]}
    for path in (ROOT / folder).rglob("*.py"):
        assert not (wrong := others & set(imports(path))), f"{path.relative_to(ROOT)} imports {wrong}"


@pytest.mark.parametrize("folder", PRODUCT)
def test_no_product_module_asks_whether_it_runs_locally(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        text = path.read_text()
        found = re.search(r"EMULATOR|emulator\.|127\.0\.0\.1.*proxy|== ['\"]local['\"]", text)
        assert found is None, f"{path.relative_to(ROOT)}: {found}"


@pytest.mark.parametrize("module", VERBS)
def test_help_comes_at_once_and_loads_nothing_heavy(module: str) -> None:
    code = (
        "import runpy, sys\n"
        "sys.argv = ['x', '--help']\n"
        f"try: runpy.run_module({module!r}, run_name='__main__')\n"
        "except SystemExit as done: assert done.code in (0, None), done.code\n"
        f"heavy = {HEAVY!r} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "usage: python -m " + module in done.stdout


def test_help_takes_under_half_a_second_at_its_best() -> None:
    """The best of three, so that a busy machine does not decide."""
    slow = {}
    for module in VERBS:
        best = min(_seconds(module) for _ in range(3))
        if best >= 0.5:
            slow[module] = best
    assert not slow


def _seconds(module: str) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, check=True)
    return time.perf_counter() - begun


def test_the_lock_has_hashes_and_names_no_index() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock and "--index" not in lock and "--find-links" not in lock
    names = re.findall(r"^[a-zA-Z0-9._-]+==", lock, re.MULTILINE)
    assert len(names) > 100
    assert len(re.findall(r"^    --hash=sha256:", lock, re.MULTILINE)) >= len(names)


def test_a_wrong_use_is_one_sentence_with_the_help() -> None:
    with pytest.raises(SystemExit) as left:
        Parser(prog="python -m x").parse_args(["--nonsense"])
    assert left.value.code == 2


def test_readme_shows_the_commands_that_exist() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for command in re.findall(r"`?make ((?:[a-z-]+ ?)+)", (ROOT / "README.md").read_text()):
        for word in command.split():
            assert word in targets, f"README names `make {word}`, which the Makefile does not have"
