"""What a person reads: one tree of the resources, the exports, one line that counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from emulator.pulumi_cli.engine import Step
from emulator.pulumi_provider import wire

_SIGNS = {"create": "+", "update": "~", "replace": "+-", "delete": "-", "delete-replaced": "-", "same": " "}
_DONE = {
    "create": "created",
    "update": "updated",
    "replace": "replaced",
    "delete": "deleted",
    "delete-replaced": "deleted (replaced)",
    "same": "unchanged",
}
_PLANNED = {
    "create": "to create",
    "update": "to update",
    "replace": "to replace",
    "delete": "to delete",
    "delete-replaced": "to delete (replaced)",
    "same": "unchanged",
}


def tree(root: str, steps: Iterable[Step], *, preview: bool) -> str:
    """The resources as a tree under the stack, each with what was done to it."""
    words = _PLANNED if preview else _DONE
    steps = list(steps)
    known = {step.urn for step in steps}
    children: dict[str, list[Step]] = {}
    for step in steps:
        children.setdefault(step.parent if step.parent in known else "", []).append(step)
    for below in children.values():  # steps end in the order of their luck; a tree reads best in a fixed one
        below.sort(key=lambda step: (step.type, step.name, step.op))
    rows: list[tuple[str, str]] = []

    def walk(parent: str, indent: str) -> None:
        below = children.get(parent, [])
        for number, step in enumerate(below):
            last = number == len(below) - 1
            line = f"{_SIGNS[step.op]:>2} {indent}{'└─ ' if last else '├─ '}{_short(step.type)}  {step.name}"
            rows.append((line, _detail(step, words[step.op])))
            if step.op != "delete-replaced":
                walk(step.urn, indent + ("   " if last else "│  "))

    walk("", "")
    width = max((len(line) for line, _ in rows), default=0)
    return "\n".join([f"   {root}", *(f"{line:<{width}}  {detail}".rstrip() for line, detail in rows)])


def outputs(values: Mapping[str, Any], secret: Iterable[str]) -> str:
    """The stack's exports, secrets hidden."""
    hidden = set(secret)
    width = max((len(key) for key in values), default=0)
    shown = {key: "[secret]" if key in hidden else wire.shown(value) for key, value in sorted(values.items())}
    return "\n".join(f"    {key:<{width}} : {value!s}" for key, value in shown.items())


def summary(counts: Mapping[str, int], *, preview: bool, seconds: float) -> str:
    """`16 created, 2 unchanged in 1.2 s`."""
    words = _PLANNED if preview else _DONE
    parts = [f"{counts[op]} {words[op]}" for op in words if counts.get(op)]
    return f"{', '.join(parts) or 'nothing to do'} in {seconds:.1f} s"


def _short(token: str) -> str:
    """`azure-native:storage:StorageAccount` without the provider's name, which is the same everywhere."""
    return token.removeprefix("azure-native:")


def _detail(step: Step, word: str) -> str:
    if step.op == "same":
        return ""
    why = f" [{', '.join(step.changed)}]" if step.changed else ""
    return f"{word}{why}" + (f" ({step.seconds:.1f} s)" if step.seconds >= 0.05 else "")
