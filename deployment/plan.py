"""What a rollout does next, decided from what is there: pure functions, no Azure in here.

    no endpoint ─▶ CreateEndpoint ─▶ Create (0 %) ─▶ Smoke ─▶ Shift 100 % ─▶ Discard the old one ─▶ Done

Nothing is remembered between steps but what Azure itself shows (and whether this run has smoke-tested), so a rollout
that was killed anywhere goes on when it is started again: it looks, and takes the next step. More steps between Smoke
and Shift (mirroring, canary percentages with a gate) are more values in `Goal.steps` and more cases in `next_step`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

COLOURS = ("blue", "green")
MOVING = ("creating", "updating", "deleting", "scaling", "provisioning", "accepted")
"""Provisioning states that will change by themselves."""
GOOD = "succeeded"


@dataclass(frozen=True)
class Goal:
    """What shall serve: the model (`name:version`), the server (`name:version` of its environment), on which SKU.

    `steps` are the new deployment's traffic percentages in order; the last one is 100.
    """

    model: str
    environment: str
    instance_type: str
    steps: tuple[int, ...] = (100,)


@dataclass(frozen=True)
class Deployment:
    """A deployment as Azure shows it; `state` in lower case."""

    name: str
    model: str
    environment: str
    instance_type: str
    state: str = GOOD

    def serves(self, goal: Goal) -> bool:
        return (self.model, self.environment, self.instance_type) == (
            goal.model,
            goal.environment,
            goal.instance_type,
        )


@dataclass(frozen=True)
class Observed:
    """The endpoint as Azure shows it. `state` is None where there is no endpoint; traffic is in percent by name."""

    state: str | None = None
    traffic: Mapping[str, int] = field(default_factory=dict)
    deployments: tuple[Deployment, ...] = ()

    def share(self, name: str) -> int:
        return self.traffic.get(name, 0)


@dataclass(frozen=True)
class CreateEndpoint:
    pass


@dataclass(frozen=True)
class Wait:
    """Something moves by itself; look again later."""

    what: str


@dataclass(frozen=True)
class Create:
    deployment: str


@dataclass(frozen=True)
class Smoke:
    deployment: str


@dataclass(frozen=True)
class Shift:
    """Set the traffic; what is not named gets none."""

    traffic: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Discard:
    """Delete a deployment that has no traffic."""

    deployment: str


@dataclass(frozen=True)
class Done:
    deployment: str


Step: TypeAlias = CreateEndpoint | Wait | Create | Smoke | Shift | Discard | Done


def next_step(goal: Goal, seen: Observed, *, smoked: bool) -> Step:
    """The one step that brings `seen` nearer to `goal`. `smoked`: this run has tested the new deployment."""
    if seen.state is None or seen.state in ("failed", "canceled"):
        return CreateEndpoint()
    if waiting := _moving(seen):
        return Wait(waiting)
    target = _target(goal, seen)
    if target is None:
        return _make_room(seen) or Create(free_colour(seen))
    share = seen.share(target.name)
    if share == 100:
        rest = [other.name for other in seen.deployments if other.name != target.name]
        return Discard(rest[0]) if rest else Done(target.name)
    if not smoked:
        return Smoke(target.name)
    return Shift(_split(target.name, min(step for step in goal.steps if step > share), seen))


def free_colour(seen: Observed) -> str:
    """The colour that no deployment has."""
    taken = {deployment.name for deployment in seen.deployments}
    return next(colour for colour in COLOURS if colour not in taken)


def _moving(seen: Observed) -> str | None:
    """What is in a state that changes by itself, the endpoint first: Azure refuses changes meanwhile (409)."""
    if seen.state in MOVING:
        return f"the endpoint is {seen.state}"
    return next((f"{one.name} is {one.state}" for one in seen.deployments if one.state in MOVING), None)


def _target(goal: Goal, seen: Observed) -> Deployment | None:
    """The healthy deployment that serves the goal; of several the one with the most traffic."""
    fitting = [one for one in seen.deployments if one.serves(goal) and one.state == GOOD]
    return max(fitting, key=lambda one: seen.share(one.name), default=None)


def _make_room(seen: Observed) -> Step | None:
    """The step that leaves only what serves: leftovers of a killed or failed rollout go first."""
    idle = [one.name for one in seen.deployments if seen.share(one.name) == 0]
    if idle:
        return Discard(idle[0])
    if len(seen.deployments) > 1:  # a rollout of something else was killed midway: back to the bigger half
        best = max(seen.deployments, key=lambda one: (one.state == GOOD, seen.share(one.name)))
        return Shift(((best.name, 100),))
    return None


def _split(name: str, percent: int, seen: Observed) -> tuple[tuple[str, int], ...]:
    """`percent` for `name`, the rest for the one that serves most now; all for `name` where nothing else serves."""
    others = [one.name for one in seen.deployments if one.name != name and seen.share(one.name) > 0]
    if percent == 100 or not others:
        return ((name, 100),)
    return ((name, percent), (max(others, key=seen.share), 100 - percent))


def after(step: Step, goal: Goal, seen: Observed) -> Observed:
    """`seen` as it will be once `step` has succeeded: for dry runs and tests."""
    match step:
        case CreateEndpoint():
            return replace(seen, state=GOOD)
        case Wait():
            settled = tuple(replace(one, state=GOOD) for one in seen.deployments if one.state != "deleting")
            return replace(seen, state=None if seen.state == "deleting" else GOOD, deployments=settled)
        case Create(name):
            made = Deployment(name, goal.model, goal.environment, goal.instance_type)
            return replace(seen, deployments=(*seen.deployments, made))
        case Shift(traffic):
            return replace(seen, traffic=dict(traffic))
        case Discard(name):
            left = tuple(one for one in seen.deployments if one.name != name)
            return replace(seen, deployments=left)
        case Smoke() | Done():
            return seen


def foresee(goal: Goal, seen: Observed) -> list[Step]:
    """All steps from `seen` to the goal, if each succeeds; the last is Done."""
    steps: list[Step] = []
    smoked = False
    while not (steps and isinstance(steps[-1], Done)):
        step = next_step(goal, seen, smoked=smoked)
        smoked = smoked or isinstance(step, Smoke)
        seen = after(step, goal, seen)
        steps.append(step)
    return steps


def describe(step: Step) -> str:
    """One line for people."""
    match step:
        case CreateEndpoint():
            return "create the endpoint"
        case Wait(what):
            return f"wait: {what}"
        case Create(name):
            return f"create the deployment {name} at 0 % of the traffic"
        case Smoke(name):
            return f"smoke-test {name} through the gateway"
        case Shift(traffic):
            return "shift the traffic: " + ", ".join(f"{name} {percent} %" for name, percent in traffic)
        case Discard(name):
            return f"delete the deployment {name}, which has no traffic"
        case Done(name):
            return f"done: {name} serves"
