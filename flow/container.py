"""`python -m flow.container DIR`: the flow's build context, for `python -m deployment.rollout --source DIR`."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

from infra import cli
from infra.cli import WRONG_USE, UserError
from infra.outputs import PROJECT

AT_THE_TOP = ("Dockerfile", "requirements.txt", "smoke.json")


def context_files() -> dict[str, Path]:
    """Every file of the build context: its path in there → where it lies in the project."""
    flow = PROJECT / "flow"
    files = {name: flow / name for name in AT_THE_TOP}
    modules = set(_imported(flow / "serve.py")) | set(_imported(flow / "flow_tool.py"))
    packages = {path.parent / "__init__.py" for path in modules}
    others = [flow / "flow.dag.yaml", *(flow / "page").iterdir()]
    return files | {str(path.relative_to(PROJECT)): path for path in sorted({*modules, *packages, *others})}


def _imported(path: Path, seen: set[Path] | None = None) -> Iterator[Path]:
    """The project's modules that a module needs, itself included, by its import statements and theirs."""
    seen = set() if seen is None else seen
    if path in seen:
        return
    seen.add(path)
    yield path
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            for name in (node.module, *(f"{node.module}.{one.name}" for one in node.names)):
                found = PROJECT / (name.replace(".", "/") + ".py")
                if found.is_file():
                    yield from _imported(found, seen)


def main(argv: list[str]) -> int:
    parser = cli.parser("flow.container", "Write the flow's build context into a folder, for rollout --source.")
    parser.add_argument("folder", type=Path, metavar="DIR", help="made; has to be new or empty")
    given = parser.parse_args(argv)
    folder: Path = given.folder
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} is not empty", next_command="name a new folder", code=WRONG_USE)
    for name, source in context_files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / name)
    values = {"context": str(folder), "files": len(context_files())}
    cli.result(values, as_json=given.json)
    cli.say(f"  next: python -m deployment.rollout --source {folder}")
    return 0


if __name__ == "__main__":
    cli.run(main)
