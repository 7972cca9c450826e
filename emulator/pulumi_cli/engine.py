"""The engine: it answers the program's registrations and makes the stack's resources follow them.

Preview and up take the same way: the same checks, the same decisions, the same steps, the same changes of the snapshot.
A preview only leaves out the calls that change Azure, answers with what it can know, and forgets its snapshot.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Iterable, Mapping

from emulator.pulumi_cli import paths
from emulator.pulumi_cli.errors import CliError
from emulator.pulumi_cli.goal import Goal, Step, Values
from emulator.pulumi_cli.policies import Policies
from emulator.pulumi_cli.state import Resource, Stack
from emulator.pulumi_cli.targets import EVERYTHING, Targets
from emulator.pulumi_provider.arm import ArmError
from emulator.pulumi_provider.changes import Kind
from emulator.pulumi_provider.provider import AzureNative, Diff, ProviderError
from emulator.pulumi_provider.values import UNKNOWN


class Engine:
    """One preview, update, refresh or destroy of one stack.

    Registrations come from several threads at once, each with its inputs resolved; so everything a resource depends on
    is done before it is asked for.
    """

    def __init__(
        self,
        stack: Stack,
        provider: AzureNative,
        *,
        preview: bool,
        targets: Targets | None = None,
        policies: Policies | None = None,
        on_step: Callable[[Step], None] | None = None,
    ) -> None:
        self.stack, self.provider, self.preview = stack, provider, preview
        self.targets, self.policies = targets or EVERYTHING, policies or Policies([])
        self.steps: list[Step] = []
        self.failures: list[str] = []
        self.seen: set[str] = set()
        self.renamed: dict[str, str] = {}  # URN -> the alias under which the resource was found
        self.before = copy.deepcopy(stack.snapshot)
        self._recreated: set[str] = set()  # deleted with what they depend on; their registration makes them again
        self._skipped: set[str] = set()
        self._on_step = on_step
        self._changed = threading.Condition()
        self._running = 0

    # --- registrations ------------------------------------------------------------------------------------------

    def register(self, goal: Goal) -> Resource | None:
        """Make the resource follow its goal. None for one that --target leaves out and that is not there yet."""
        self._begin(goal.urn)
        try:
            return self._follow(goal)
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

    def _begin(self, urn: str) -> None:
        with self._changed:
            if self.failures:
                raise CliError("the update is stopping after an earlier failure")
            if urn in self.seen:
                self.failures.append(f"two resources have the same URN: {urn}; give one another name")
                raise CliError(self.failures[-1])
            self.seen.add(urn)
            self._running += 1

    def stop(self, reason: str) -> None:
        """Begin nothing more."""
        with self._changed:
            self.failures.append(reason)

    def settle(self) -> None:
        """Wait until no operation is in flight, so that what ARM was asked for is recorded."""
        with self._changed:
            self._changed.wait_for(lambda: self._running == 0)

    def again(self) -> None:
        """Decide anew from what the stack holds now: a refresh came first."""
        self.before = copy.deepcopy(self.stack.snapshot)
        self.steps.clear()

    def _follow(self, goal: Goal) -> Resource | None:
        old = self._old(goal)
        if not goal.custom:
            inputs = self.policies.judge(goal, goal.inputs)
            made = goal.resource(inputs, outputs=inputs)
            self.keep(made)
            self.step(Step("same" if old else "create", old, made))
            return made
        if not self.targets.include(goal.urn):
            return self._leave(goal, old)
        if missing := self._skipped & {*goal.dependencies, goal.parent}:
            raise CliError(f"{goal.urn} depends on {min(missing)}, which is neither there nor named by --target")
        return self._custom(goal, old)

    def _old(self, goal: Goal) -> Resource | None:
        """The resource as it was, found by its URN or one of its aliases."""
        for urn in (goal.urn, *goal.aliases):
            if self.before.live(urn) is None:
                continue
            if urn != goal.urn:
                with self.stack.changing() as snapshot:
                    snapshot.rename(urn, goal.urn)
                    self.before.rename(urn, goal.urn)
                    self.renamed[goal.urn] = urn
            return self.before.live(goal.urn)
        return None

    def _leave(self, goal: Goal, old: Resource | None) -> Resource | None:
        if old is None:
            self._skipped.add(goal.urn)
            return None
        self.keep(copy.deepcopy(old))
        self.step(Step("same", old, old))
        return old

    def _custom(self, goal: Goal, old: Resource | None) -> Resource:
        begun = self.before.begun(goal.urn)
        known = None if goal.urn in self._recreated else old or begun
        if old and known:
            goal.inputs = paths.keep(old.inputs, goal.inputs, goal.ignore_changes)
        inputs = self.provider.check(goal.type, goal.name, goal.inputs, known.inputs if known else None)
        inputs = self.policies.judge(goal, inputs)
        if old is None:
            return self._create(goal, inputs, begun=begun)
        diff = self.provider.diff(goal.type, goal.name, old.inputs, inputs)
        if known is None:
            return self._create(goal, inputs, old=old, differing=diff.paths)
        if is_replacing(diff, goal.replace_on_changes):
            return self._replace(goal, old, diff)
        if diff.paths:
            return self._update(goal, old, inputs, diff)
        same = goal.resource(inputs, old.id, old.outputs)
        same.secrets = sorted({*same.secrets, *old.secrets})
        self.keep(same)
        self.step(Step("same", old, same))
        return same

    def _create(
        self,
        goal: Goal,
        inputs: Values,
        *,
        begun: Resource | None = None,
        old: Resource | None = None,
        differing: Mapping[str, Kind] | None = None,
    ) -> Resource:
        """Create the resource; `begun` is an earlier attempt that was cut off, `old` what the new one replaces."""
        since = time.monotonic()
        if self.preview:
            made = goal.resource(inputs, "", self.provider.preview(goal.type, inputs))
        else:
            made = goal.resource(inputs, *self._create_in_azure(goal, inputs, begun))
        self.keep(made)
        op = "replace" if old else "create"
        self.step(Step(op, old, made, differing or {}, time.monotonic() - since))
        return made

    def _create_in_azure(self, goal: Goal, inputs: Values, begun: Resource | None) -> tuple[str, Values]:
        identifier = self.provider.identifier(goal.type, inputs)
        adopt = begun is not None and begun.id == identifier
        with self.stack.changing() as snapshot:
            if begun and not adopt:  # begun under another name, perhaps made: it goes with the other deletions
                snapshot.resources.append(copy.deepcopy(begun))
                snapshot.resources[-1].delete = True
            # Recorded before ARM is asked: if this process dies in between, the next update goes on with this name.
            snapshot.pending = without(snapshot.pending, goal.urn)
            snapshot.pending.append(goal.resource(inputs, identifier))
        try:
            return self.provider.create(goal.type, inputs, adopt=adopt)
        except (ProviderError, ArmError) as error:
            if isinstance(error, ProviderError) or (error.refused and not adopt):  # there is nothing to go on with
                with self.stack.changing() as snapshot:
                    snapshot.pending = without(snapshot.pending, goal.urn)
            raise

    def _update(self, goal: Goal, old: Resource, inputs: Values, diff: Diff) -> Resource:
        since = time.monotonic()
        if self.preview:
            outputs = {**old.outputs, **self.provider.preview(goal.type, inputs)}
        else:
            outputs = self.provider.update(goal.type, old.id, inputs)
        made = goal.resource(inputs, old.id, outputs)
        self.keep(made)
        self.step(Step("update", old, made, diff.paths, time.monotonic() - since))
        return made

    # --- replacements -------------------------------------------------------------------------------------------

    def _replace(self, goal: Goal, old: Resource, diff: Diff) -> Resource:
        """A new resource for an old one; the old one goes first, or with the other deletions at the end."""
        if old.protect and goal.protect:
            raise CliError(f"{goal.urn} is protected and would have to be replaced because of {', '.join(diff.paths)}")
        inputs = self.provider.check(goal.type, goal.name, goal.inputs, None)
        # With a fixed name both cannot exist at once, whatever the program says.
        if goal.delete_before_replace or self.provider.identifier(goal.type, inputs) == old.id:
            self._delete_first(old)
        else:
            with self.stack.changing() as snapshot:
                for one in snapshot.resources:
                    one.delete = one.delete or one.urn == old.urn
        return self._create(goal, inputs, old=old, differing=diff.paths)

    def _delete_first(self, old: Resource) -> None:
        """Delete a resource and, before it, those that depend on it in such a way that they are replaced with it."""
        dependents = self._replaced_with(old)
        if protected := [one.urn for one in dependents if one.protect]:
            raise CliError(f"{protected[0]} is protected and would have to be replaced together with {old.urn}")
        going = [old, *dependents]
        for one in reversed(going):
            self.remove(one, with_owner=one.deleted_with in {other.urn for other in going})
            self.step(Step("delete-replaced", one, None))
        self._recreated |= {one.urn for one in dependents}

    def _replaced_with(self, root: Resource) -> list[Resource]:
        """What has to go before `root` can: deleted with it, or with an argument from it that needs a new resource.

        The list is in the order of creation, in which nothing comes before what it depends on.
        """
        replaced, found = {root.urn}, []
        for one in self.before.resources:
            if not one.custom or one.delete or one.urn in self.seen:
                continue
            if one.deleted_with in replaced or self._follows(one, replaced):
                replaced.add(one.urn)
                found.append(one)
        return found

    def _follows(self, one: Resource, replaced: set[str]) -> bool:
        unknown = {key for key, urns in one.property_dependencies.items() if replaced & set(urns) and key in one.inputs}
        if not unknown:
            return False
        inputs = {key: UNKNOWN if key in unknown else value for key, value in one.inputs.items()}
        return is_replacing(self.provider.diff(one.type, one.name, one.inputs, inputs), one.replace_on_changes)

    # --- the snapshot -------------------------------------------------------------------------------------------

    def keep(self, made: Resource) -> None:
        """Record a resource in the place of its earlier self; the order of the list is the order of creation."""
        with self.stack.changing() as snapshot:
            snapshot.pending = without(snapshot.pending, made.urn)
            snapshot.resources = [one for one in snapshot.resources if one.urn != made.urn or one.delete]
            snapshot.resources.append(made)

    def remove(self, one: Resource, *, with_owner: bool = False) -> None:
        """Delete a resource, unless it stays or goes with its owner, and forget it."""
        stays = self.preview or not one.custom or not one.id or one.retain_on_delete
        if not (stays or with_owner):
            self.provider.delete(one.type, one.id)
        with self.stack.changing() as snapshot:
            snapshot.resources = [other for other in snapshot.resources if not other.is_same(one)]
            snapshot.pending = [other for other in snapshot.pending if not other.is_same(one)]

    def export(self, urn: str, outputs: Values, secret: Iterable[str]) -> None:
        """Record what a component or, with the stack's own URN, the program gives out."""
        with self.stack.changing() as snapshot:
            if made := snapshot.live(urn):
                made.outputs, made.secrets = outputs, sorted({*made.secrets, *secret})

    def finish(self, outputs: Values, secret: Iterable[str]) -> None:
        """The program ended: record what it exports."""
        known = {key: value for key, value in outputs.items() if value is not UNKNOWN}
        with self.stack.changing() as snapshot:
            snapshot.outputs, snapshot.secret_outputs = known, sorted(set(secret) & set(known))

    # --- reporting ----------------------------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """How many resources got which operation. A replacement counts once, a lookup not at all, as with Pulumi."""
        found: dict[str, int] = {}
        for step in self.steps:
            if step.op not in ("delete-replaced", "read"):
                found[step.op] = found.get(step.op, 0) + 1
        return found

    def step(self, step: Step) -> None:
        with self._changed:
            self.steps.append(step)
        if self._on_step:
            self._on_step(step)


def is_replacing(diff: Diff, replace_on_changes: Iterable[str]) -> bool:
    """Whether a difference needs a new resource, by the provider's rules or by the program's."""
    return bool(diff.replacing) or any(
        paths.contains(pattern, path) for pattern in replace_on_changes for path in diff.paths
    )


def without(resources: list[Resource], urn: str) -> list[Resource]:
    return [one for one in resources if one.urn != urn]
