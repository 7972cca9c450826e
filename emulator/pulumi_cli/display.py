"""What a person reads: one tree of the resources, their differences, violations, the exports, a line that counts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from emulator.pulumi_cli import paths
from emulator.pulumi_cli.goal import Step
from emulator.pulumi_cli.policy_pack import Violation
from emulator.pulumi_provider import wire
from emulator.pulumi_provider.changes import Kind

_SIGNS = {
    "create": "+",
    "update": "~",
    "replace": "+-",
    "delete": "-",
    "delete-replaced": "-",
    "same": " ",
    "read": ">",
}
_DONE = {
    "create": "created",
    "update": "updated",
    "replace": "replaced",
    "delete": "deleted",
    "same": "unchanged",
}
_PLANNED = {
    "create": "to create",
    "update": "to update",
    "replace": "to replace",
    "delete": "to delete",
    "same": "unchanged",
}
_KINDS: Mapping[Kind, str] = {"add": "+", "delete": "-", "update": "~"}
_UNKNOWN = "[unknown]"
_LONGEST = 100  # characters of a value; ids are longer than a line


def tree(steps: Sequence[Step], *, preview: bool, diff: bool) -> str:
    """The resources as a tree under the stack: what changes, and what it is below; the unchanged rest is counted."""
    shown = _worth_a_row(steps)
    known = {step.resource.urn for step in shown}
    children: dict[str, list[Step]] = {}
    for step in shown:
        children.setdefault(step.resource.parent if step.resource.parent in known else "", []).append(step)
    for below in children.values():  # steps end in the order of their luck; a tree reads best in a fixed one
        below.sort(key=lambda step: (step.resource.type, step.resource.name, step.op))
    rows: list[tuple[str, str]] = []

    def walk(parent: str, indent: str, *, top: bool = False) -> None:
        below = children.get(parent, [])
        for number, step in enumerate(below):
            last = number == len(below) - 1
            branch = "" if top else "└─ " if last else "├─ "
            rows.append((f"{_SIGNS[step.op]:>2} {indent}{branch}{_label(step)}", _detail(step, preview=preview)))
            under = "" if top else "   " if last else "│  "
            if diff:
                rows.extend((f"{'':3}{indent}{under}      {line}", "") for line in _differences(step))
            walk(step.resource.urn, indent + under)

    walk("", "", top=True)
    width = max((len(line) for line, detail in rows if detail), default=0)
    return "\n".join(f"{line:<{width}}  {detail}".rstrip() for line, detail in rows)


def _worth_a_row(steps: Sequence[Step]) -> list[Step]:
    """What changed, once each, with all that it is below."""
    of = {step.resource.urn: step for step in steps if step.op != "delete-replaced"}
    for step in steps:
        of.setdefault(step.resource.urn, step)  # deleted and, after all, not made again
    wanted = set()
    for step in of.values():
        urn = step.resource.urn
        while step.op != "same" and urn in of and urn not in wanted:
            wanted.add(urn)
            urn = of[urn].resource.parent
    return [step for urn, step in of.items() if urn in wanted or not step.resource.parent]


def _label(step: Step) -> str:
    """`storage:StorageAccount  st`, without the provider's name, which is the same everywhere."""
    return f"{step.resource.type.removeprefix('azure-native:')}  {step.resource.name}"


def _detail(step: Step, *, preview: bool) -> str:
    if step.op in ("same", "read"):
        return ""
    op = "delete" if step.op == "delete-replaced" else step.op
    word = (_PLANNED if preview else _DONE)[op]
    why = f" [{', '.join(step.changed)}]" if step.changed else ""
    return f"{word}{why}" + (f" ({step.seconds:.1f} s)" if step.seconds >= 0.05 else "")


def _differences(step: Step) -> list[str]:
    """`~ properties.scaleSettings.maxNodeCount: 1 => 3` for each property that differs."""
    old = wire.shown(step.old.inputs, step.old.secrets, unknown=_UNKNOWN) if step.old else {}
    new = wire.shown(step.new.inputs, step.new.secrets, unknown=_UNKNOWN) if step.new else {}
    lines = []
    for path, kind in step.paths.items():
        before, after = (_text(_at(side, paths.split(path))) for side in (old, new))
        values = {"add": after, "delete": before, "update": f"{before} => {after}"}[kind]
        lines.append(f"{_KINDS[kind]} {path}: {values}")
    return lines


def _at(values: Mapping[str, Any], parts: list[str]) -> Any:
    """The value at a path; anything inside of a secret is one."""
    return wire.HIDDEN if values.get(parts[0]) == wire.HIDDEN else paths.value(values, parts)


def _text(value: Any) -> str:
    text = value if value in (_UNKNOWN, wire.HIDDEN) else _UNKNOWN if value is paths.MISSING else json.dumps(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def outputs(values: Mapping[str, Any], secret: Iterable[str]) -> str:
    """The stack's exports, secrets hidden."""
    width = max((len(key) for key in values), default=0)
    shown = wire.shown(values, set(secret), unknown=_UNKNOWN)
    return "\n".join(
        f"    {key:<{width}} : {value if isinstance(value, str) else json.dumps(value)}"
        for key, value in sorted(shown.items())
    )


def policies(packs: Mapping[str, str], violations: Iterable[Violation]) -> str:
    """Each pack, and what it found: the mandatory first."""
    found = sorted(violations, key=lambda one: (not one.mandatory, one.policy, one.urn))
    lines = ["Policies:"]
    for name, version in packs.items():
        of_pack = [one for one in found if one.pack == name]
        lines.append(f"    {name}@v{version}: {_tally(of_pack)}")
        for one in of_pack:
            level = "mandatory" if one.mandatory else "advisory"
            lines.append(f"      - [{level}]  {one.policy}  ({_short_urn(one.urn)})")
            lines.extend(f"        {line}" for line in one.message.splitlines())
    return "\n".join(lines)


def _tally(violations: list[Violation]) -> str:
    mandatory = sum(one.mandatory for one in violations)
    advisory = len(violations) - mandatory
    parts = [f"{count} {word}" for count, word in ((mandatory, "mandatory"), (advisory, "advisory")) if count]
    return f"{' and '.join(parts)} violations" if parts else "nothing against it"


def _short_urn(urn: str) -> str:
    parts = urn.split("::", 3)
    if len(parts) < 4:
        return urn
    return f"{parts[2].rsplit('$', 1)[-1].removeprefix('azure-native:')}: {parts[3]}"


def summary(counts: Mapping[str, int], *, preview: bool, seconds: float) -> str:
    """`16 created, 2 unchanged in 1.2 s`."""
    words = _PLANNED if preview else _DONE
    parts = [f"{counts[op]} {words[op]}" for op in words if counts.get(op)]
    return f"{', '.join(parts) or 'nothing to do'} in {seconds:.1f} s"
