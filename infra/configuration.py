"""`python -m infra.configuration`: the stack's configuration keys as a table, from their one home in Pulumi.yaml.

docs/configuration.md is its output; a test compares the two.
"""

from __future__ import annotations

import json
from typing import Any

from infra.cli import Parser, run
from infra.outputs import PROJECT

HEAD = """# Configuration of a stack

Every key has its type, default and meaning in `Pulumi.yaml`, from which this page is made. A stack's own values stand
in `Pulumi.<stack>.yaml`; set one with `pulumi config set KEY VALUE`. What is wrong is said before anything is created.

| key | type | default | meaning |
|---|---|---|---|
"""


def table(schema: dict[str, Any]) -> str:
    """The page: one row for each key of Pulumi.yaml's `config`, in its order."""
    rows = [
        f"| `{key}` | {rule['type']} | {_default(rule['default'])} | {' '.join(rule['description'].split())} |\n"
        for key, rule in schema.items()
    ]
    return HEAD + "".join(rows)


def _default(value: Any) -> str:
    return "" if value in ("", []) else f"`{value if isinstance(value, str) else json.dumps(value)}`"


def main(argv: list[str]) -> int:
    Parser(prog="python -m infra.configuration", description="Print the table of configuration keys.").parse_args(argv)
    import yaml

    print(table(yaml.safe_load((PROJECT / "Pulumi.yaml").read_text())["config"]), end="")
    return 0


if __name__ == "__main__":
    run(main)
