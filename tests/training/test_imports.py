from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "training"
VERBS = ("dataset", "recipe", "small_model", "sft", "evaluate", "register", "submit", "promote", "node")


@pytest.mark.parametrize("verb", VERBS)
def test_help_needs_no_heavy_import(verb: str) -> None:
    code = (
        "import sys, runpy; sys.argv[1:] = ['--help']\n"
        f"try: runpy.run_module('training.{verb}', run_name='__main__')\n"
        "except SystemExit as left: assert left.code == 0\n"
        "assert not {'torch', 'transformers', 'trl', 'datasets', 'azure.ai.ml'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_training_imports_no_later_stage(path: Path) -> None:
    tree = ast.parse(path.read_text())
    names = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert not {name.split(".")[0] for name in names} & {"emulator", "deployment", "flow"}
