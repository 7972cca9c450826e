"""The engine: it answers the program's registrations and makes the stack's resources follow them.

Preview and up take the same way: the same checks, the same decisions, the same steps. A preview only leaves out the
calls that change something and answers with what it can know.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from emulator.pulumi_cli import paths
from emulator.pulumi_cli.errors import CliError
from emulator.pulumi_cli.state import Resource, Stack
from emulator.pulumi_provider.arm import ArmError
from emulator.pulumi_provider.provider import AzureNative, ProviderError

Values = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """One thing done to a resource, or in a preview one that would be done."""

    op: str  # same, create, update, replace, delete, read: Pulumi's own words
    urn: str
    type: str
    name: str
    parent: str
    changed: tuple[str, ...] = ()
    seconds: float = 0.0
    resource: Resource | None = None


@dataclass
class Goal:
    """What the program wants of one resource."""

    urn: str
    type: str
    name: str
    custom: bool
    parent: str
    inputs: Values
    dependencies: list[str]
    property_dependencies: dict[str, list[str]]
    protect: bool = False
    retain_on_delete: bool = False
    deleted_with: str = ""
    delete_before_replace: bool = False
    ignore_changes: list[str] = field(default_factory=list)
    replace_on_changes: list[str] = field(default_factory=list)

    def resource(self, inputs: Values, identifier: str = "", outputs: Values | None = None) -> Resource:
        return Resource(
            self.urn,
            self.type,
            self.name,
            self.custom,
            identifier,
            self.parent,
            inputs,
            outputs or {},
            self.dependencies,
            self.property_dependencies,
            self.protect,
            self.retain_on_delete,
            self.deleted_with,
        )


class Engine:
    """One preview, update or destroy of one stack.

    Registrations come from several threads at once, each with its inputs resolved; so everything a resource depends on
    is done before it is asked for.
    """

    def __init__(
        self, stack: Stack, provider: AzureNative, *, preview: bool, on_step: Callable[[Step], None] | None = None
    ) -> None:
        self.stack, self.provider, self.preview = stack, provider, preview
        self.steps: list[Step] = []
        self.failures: list[str] = []
        self._before = copy.deepcopy(stack.snapshot)
        self._seen: set[str] = set()
        self._on_step = on_step
        self._changed = threading.Condition()
        self._running = 0

    # --- registrations ------------------------------------------------------------------------------------------

    def register(self, goal: Goal) -> tuple[str, Values]:
        """Make the resource follow its goal; its id and outputs, as far as they are known."""
        with self._changed:
            if self.failures:
                raise CliError("the update is stopping after an earlier failure")
            if goal.urn in self._seen:
                raise CliError(f"two resources have the same URN: {goal.urn}; give one another name")
            self._seen.add(goal.urn)
            self._running += 1
        try:
            return self._custom(goal) if goal.custom else self._component(goal)
        except (ArmError, ProviderError, OSError) as error:
            message = f"{goal.type} {goal.name}: {error}"
            self.failures.append(message)
            raise CliError(message) from None
        except CliError as error:
            self.failures.append(str(error))
            raise
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def again(self) -> None:
        """Decide anew from what the stack holds now: a refresh came first."""
        self._before = copy.deepcopy(self.stack.snapshot)
        self.steps.clear()

    def settle(self) -> None:
        """Wait until no operation is in flight, so that what ARM was asked for is recorded."""
        with self._changed:
            self._changed.wait_for(lambda: self._running == 0)

    def _component(self, goal: Goal) -> tuple[str, Values]:
        old = self._before.live(goal.urn)
        made = goal.resource(goal.inputs)
        self._keep(made)
        self._step("same" if old else "create", made)
        return "", goal.inputs

    def _custom(self, goal: Goal) -> tuple[str, Values]:
        old = self._before.live(goal.urn)
        pending = next((one for one in self._before.pending if one.urn == goal.urn), None)
        known = old or pending
        if old:
            goal.inputs = paths.keep(old.inputs, goal.inputs, goal.ignore_changes)
        inputs = self.provider.check(goal.type, goal.name, goal.inputs, known.inputs if known else None)
        if old is None:
            again = (
                pending is not None and not self.preview and pending.id == self.provider.identifier(goal.type, inputs)
            )
            return self._create(goal, inputs, adopt=again)
        diff = self.provider.diff(goal.type, goal.name, old.inputs, inputs)
        forced = paths.differ(old.inputs, inputs, goal.replace_on_changes)
        if diff.replacing or forced:
            return self._replace(goal, old, diff.changed)
        if diff.changed:
            return self._update(goal, old, inputs, diff.changed)
        same = goal.resource(inputs, old.id, old.outputs)
        self._keep(same)
        self._step("same", same)
        return old.id, old.outputs

    def _create(
        self, goal: Goal, inputs: Values, *, adopt: bool, op: str = "create", changed: tuple[str, ...] = ()
    ) -> tuple[str, Values]:
        began = time.monotonic()
        if self.preview:
            made = goal.resource(inputs, "", self.provider.preview(goal.type, inputs))
        else:
            # Recorded before ARM is asked: if this process dies in between, the next update goes on with this name.
            with self.stack.changing() as snapshot:
                snapshot.pending = _without(snapshot.pending, goal.urn)
                snapshot.pending.append(goal.resource(inputs, self.provider.identifier(goal.type, inputs)))
            try:
                identifier, outputs = self.provider.create(goal.type, inputs, adopt=adopt)
            except ProviderError:  # it was not begun, so there is nothing to go on with
                self._forget_pending(goal.urn)
                raise
            made = goal.resource(inputs, identifier, outputs)
            self._keep(made)
        self._step(op, made, changed, time.monotonic() - began)
        return made.id, made.outputs

    def _update(self, goal: Goal, old: Resource, inputs: Values, changed: tuple[str, ...]) -> tuple[str, Values]:
        began = time.monotonic()
        if self.preview:
            outputs = {**old.outputs, **self.provider.preview(goal.type, inputs)}
        else:
            outputs = self.provider.update(goal.type, old.id, inputs)
        made = goal.resource(inputs, old.id, outputs)
        self._keep(made)
        self._step("update", made, changed, time.monotonic() - began)
        return made.id, made.outputs

    def _replace(self, goal: Goal, old: Resource, changed: tuple[str, ...]) -> tuple[str, Values]:
        """A new resource for an old one; the old one goes first, or with the other deletions at the end."""
        if old.protect:
            raise CliError(f"{goal.urn} is protected and would have to be replaced because of {', '.join(changed)}")
        inputs = self.provider.check(goal.type, goal.name, goal.inputs, None)
        # With a fixed name both cannot exist at once.
        same_place = not self.preview and self.provider.identifier(goal.type, inputs) == old.id
        if not self.preview:
            if goal.delete_before_replace or same_place:
                self._remove(old)
            else:
                self._set_aside(old)
        return self._create(goal, inputs, adopt=False, op="replace", changed=changed)

    def _forget_pending(self, urn: str) -> None:
        with self.stack.changing() as snapshot:
            snapshot.pending = _without(snapshot.pending, urn)

    def _set_aside(self, old: Resource) -> None:
        with self.stack.changing() as snapshot:
            for one in snapshot.resources:
                if one.urn == old.urn:
                    one.delete = True

    def _keep(self, made: Resource) -> None:
        """Record a resource in the place of its earlier self; the order of the list is the order of creation."""
        if self.preview:
            return
        with self.stack.changing() as snapshot:
            snapshot.pending = _without(snapshot.pending, made.urn)
            snapshot.resources = [one for one in snapshot.resources if one.urn != made.urn or one.delete]
            snapshot.resources.append(made)

    # --- deletions ----------------------------------------------------------------------------------------------

    def delete_rest(self) -> None:
        """Delete what the program no longer declares, and what was replaced, dependents first."""
        gone = [one for one in self._doomed() if one.delete or one.urn not in self._seen]
        self._delete_all(gone)

    def destroy(self) -> None:
        """Delete everything."""
        self._delete_all(self._doomed())
        if not self.preview:
            with self.stack.changing() as snapshot:
                snapshot.outputs, snapshot.secret_outputs = {}, []

    def _doomed(self) -> list[Resource]:
        snapshot = self._before if self.preview else self.stack.snapshot
        orphans = [one for one in snapshot.pending if one.urn not in {two.urn for two in snapshot.resources}]
        return [*snapshot.resources, *orphans]

    def _delete_all(self, resources: list[Resource]) -> None:
        if protected := [one.urn for one in resources if one.protect]:
            self.failures.append(f"{protected[0]} is protected; unprotect it in the program first")
            raise CliError(self.failures[-1])
        leaving = {one.urn for one in resources}
        for one in _dependents_first(resources):
            began = time.monotonic()
            if not self.preview:
                try:
                    self._remove(one, with_owner=one.deleted_with in leaving)
                except (ArmError, ProviderError, OSError) as error:
                    self.failures.append(f"deleting {one.type} {one.name}: {error}")
                    raise CliError(self.failures[-1]) from None
            self._step("delete-replaced" if one.delete else "delete", one, (), time.monotonic() - began)

    def _remove(self, one: Resource, *, with_owner: bool = False) -> None:
        if one.custom and one.id and not one.retain_on_delete and not with_owner:
            self.provider.delete(one.type, one.id)
        with self.stack.changing() as snapshot:
            snapshot.resources = [two for two in snapshot.resources if not (two.urn == one.urn and two.id == one.id)]
            snapshot.pending = _without(snapshot.pending, one.urn)

    # --- refresh ------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Read every resource again; what is gone leaves the state, what drifted shows as a change at the next up."""
        for one in list(self.stack.snapshot.resources):
            if not one.custom:
                continue
            found = self.provider.read(one.type, one.id, one.inputs, one.outputs)
            if found is None:
                if not self.preview:
                    with self.stack.changing() as snapshot:
                        snapshot.resources.remove(one)
                self._step("delete", one)
                continue
            inputs, outputs = found
            changed = self.provider.diff(one.type, one.name, one.inputs, inputs).changed
            if changed and not self.preview:
                with self.stack.changing():
                    one.inputs, one.outputs = inputs, outputs
            self._step("update" if changed else "same", one, changed)

    # --- reporting ----------------------------------------------------------------------------------------------

    def finish(self, outputs: Values, secret: set[str]) -> None:
        """The program ended: record what it exports."""
        if not self.preview:
            with self.stack.changing() as snapshot:
                snapshot.outputs, snapshot.secret_outputs = outputs, sorted(secret)

    def counts(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for step in self.steps:
            found[step.op] = found.get(step.op, 0) + 1
        return found

    def _step(self, op: str, one: Resource, changed: tuple[str, ...] = (), seconds: float = 0.0) -> None:
        step = Step(op, one.urn, one.type, one.name, one.parent, changed, seconds, one)
        with self._changed:
            self.steps.append(step)
        if self._on_step:
            self._on_step(step)


def _without(resources: list[Resource], urn: str) -> list[Resource]:
    return [one for one in resources if one.urn != urn]


def _dependents_first(resources: list[Resource]) -> list[Resource]:
    """Reverse order of need: a resource before what it depends on, a child before its parent."""
    by_urn: dict[str, list[Resource]] = {}
    for one in resources:
        by_urn.setdefault(one.urn, []).append(one)
    ordered: list[Resource] = []
    seen: set[int] = set()

    def visit(one: Resource) -> None:
        if id(one) in seen:
            return
        seen.add(id(one))
        needs = [one.parent, *one.dependencies, *(urn for urns in one.property_dependencies.values() for urn in urns)]
        for urn in needs:
            for other in by_urn.get(urn, []):
                visit(other)
        ordered.append(one)

    for one in resources:
        visit(one)
    return ordered[::-1]


__all__ = ["Engine", "Goal", "Step"]
