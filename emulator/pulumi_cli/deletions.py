"""What goes, in which order, and what Azure deletes by itself."""

from __future__ import annotations

import time

from emulator.pulumi_cli.engine import Engine
from emulator.pulumi_cli.errors import CliError
from emulator.pulumi_cli.goal import Step
from emulator.pulumi_cli.state import Resource
from emulator.pulumi_provider.arm import ArmError
from emulator.pulumi_provider.provider import ProviderError


def delete_rest(engine: Engine) -> None:
    """Delete what the program no longer declares, and what was replaced, dependents first."""
    gone = [one for one in _all(engine) if one.delete or one.urn not in engine.seen]
    _delete(engine, [one for one in gone if one.delete or engine.targets.include(one.urn)])


def destroy(engine: Engine) -> None:
    """Delete everything, or what --target names."""
    engine.targets.check(engine.stack.snapshot.resources)
    _delete(engine, engine.targets.to_delete(_all(engine)))
    if not engine.stack.snapshot.resources:
        engine.finish({}, ())


def _all(engine: Engine) -> list[Resource]:
    """Every resource; one whose creation was cut off may be there, so it counts."""
    snapshot = engine.stack.snapshot
    begun = [one for one in snapshot.pending if not any(one.is_same(other) for other in snapshot.resources)]
    return [*snapshot.resources, *begun]


def _delete(engine: Engine, resources: list[Resource]) -> None:
    if protected := [one.urn for one in resources if one.protect and not one.delete]:
        raise CliError(
            f"{protected[0]} cannot be deleted because it is protected; remove `protect` in the program and run "
            "`pulumi up` first"
        )
    going = {one.urn for one in resources}
    for one in dependents_first(resources):
        since = time.monotonic()
        try:
            # As Pulumi does it: whether the owner goes in this operation counts, not whether it has gone already.
            engine.remove(one, with_owner=one.deleted_with in going)
        except (ArmError, ProviderError, OSError) as error:
            raise CliError(f"deleting {one.type} {one.name}: {error}") from None
        engine.step(Step("delete-replaced" if one.delete else "delete", one, None, {}, time.monotonic() - since))


def dependents_first(resources: list[Resource]) -> list[Resource]:
    """Reverse order of need: a resource before what it depends on, is a child of, or is deleted with."""
    by_urn: dict[str, list[Resource]] = {}
    for one in resources:
        by_urn.setdefault(one.urn, []).append(one)
    ordered: list[Resource] = []
    seen: set[int] = set()

    def visit(one: Resource) -> None:
        if id(one) in seen:
            return
        seen.add(id(one))
        for urn in one.needs():
            for other in by_urn.get(urn, []):
                visit(other)
        ordered.append(one)

    for one in resources:
        visit(one)
    return ordered[::-1]
