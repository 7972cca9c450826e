"""What a rollout does next, decided from what is there: pure functions, no Azure in here.

    no endpoint ─▶ CreateEndpoint ─▶ Create (0 %) ─▶ Smoke ─▶ Ask the gate ─▶ Mirror ─▶ Soak
                     ─▶ Shift 10 % ─▶ Soak ─▶ Shift 50 % ─▶ Soak ─▶ Shift 100 % ─▶ Keep the old one
                     ─▶ Discard it ─▶ Done

    a step that fails ─▶ the traffic goes back, and `returning` says so ─▶ Discard the new one ─▶ Close, with the cause

Nothing is remembered but what the endpoint itself shows, its traffic and its tags (record.py), both changed by one
request. So a rollout that was killed anywhere goes on when it is started again: it looks, and takes the next step. What
this run has tested is `passed`; a new run tests again before it gives more traffic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from deployment.record import Record

COLOURS = ("blue", "green")
MOVING = ("creating", "updating", "deleting", "scaling", "provisioning", "accepted")
"""Provisioning states that will change by themselves."""
GOOD = "succeeded"
SMOKED, ASKED, MIRRORED = "smoke test", "gate command", "mirror"


@dataclass(frozen=True)
class Goal:
    """What shall serve: the model (`name:version`, or empty for a container alone), the server (`name:version` of its
    environment, or empty for an MLflow model without code), and how many nodes of which size.

    `steps` are the new deployment's traffic percentages in order, the last one 100; `mirror` is the percentage of
    requests that it gets copies of before, 0 for none; `gate` a command that has to agree, or empty.
    """

    model: str
    environment: str
    instance_type: str
    instances: int = 1
    steps: tuple[int, ...] = (100,)
    mirror: int = 0
    gate: str = ""


@dataclass(frozen=True)
class Deployment:
    """A deployment as Azure shows it; `state` in lower case."""

    name: str
    model: str
    environment: str
    instance_type: str
    state: str = GOOD
    instances: int = 1

    def serves(self, goal: Goal) -> bool:
        wanted = (goal.model, goal.environment, goal.instance_type, goal.instances)
        return (self.model, self.environment, self.instance_type, self.instances) == wanted


@dataclass(frozen=True)
class Observed:
    """The endpoint as Azure shows it. `state` is None where there is no endpoint; traffic is in percent by name."""

    state: str | None = None
    traffic: Mapping[str, int] = field(default_factory=dict)
    deployments: tuple[Deployment, ...] = ()
    mirror: Mapping[str, int] = field(default_factory=dict)
    record: Record = field(default_factory=Record)

    def share(self, name: str) -> int:
        return self.traffic.get(name, 0)

    def others(self, name: str) -> list[str]:
        """Who else has traffic, most of it first."""
        found = [one.name for one in self.deployments if one.name != name and self.share(one.name) > 0]
        return sorted(found, key=self.share, reverse=True)

    def without(self, name: str) -> dict[str, int]:
        """The traffic once `name` has none: all to who else has most, or else to who is well; nobody may be left."""
        well = [one.name for one in self.deployments if one.name != name and one.state == GOOD]
        left = self.others(name) or well
        return {left[0]: 100} if left else {}


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
class Ask:
    """Run the gate's command against a deployment."""

    deployment: str
    command: str


@dataclass(frozen=True)
class Mirror:
    """Let a deployment without traffic get copies of requests."""

    deployment: str
    percent: int


@dataclass(frozen=True)
class Soak:
    """Watch a deployment beside the one that served before; `passes` is what it has passed then."""

    deployment: str
    beside: str
    passes: str


@dataclass(frozen=True)
class Shift:
    """Set the traffic; what is not named gets none."""

    traffic: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Keep:
    """All traffic is on the new one; the old one is kept warm until `until`, seconds since the epoch."""

    deployment: str
    old: str
    until: float


@dataclass(frozen=True)
class Discard:
    """Delete a deployment that has no traffic."""

    deployment: str


@dataclass(frozen=True)
class Close:
    """A failed rollout is undone: forget it, and say what its cause was."""

    cause: str


@dataclass(frozen=True)
class Done:
    deployment: str


Step: TypeAlias = CreateEndpoint | Wait | Create | Smoke | Ask | Mirror | Soak | Shift | Keep | Discard | Close | Done


def next_step(goal: Goal, seen: Observed, *, passed: frozenset[str] = frozenset(), now: float = 0.0) -> Step:
    """The one step that brings `seen` nearer to `goal`. `passed`: what this run has tested of the new deployment."""
    if seen.state is None or seen.state in ("failed", "canceled"):
        return CreateEndpoint()
    if waiting := _moving(seen):
        return Wait(waiting)
    if seen.record.returning:
        return _give_back(seen, seen.record.returning)
    target = _target(goal, seen)
    if target is None:
        return _make_room(seen) or Create(free_colour(seen))
    if seen.share(target.name) == 100:
        return _settle(target.name, seen, now)
    return _try(target.name, goal, seen, passed)


def _try(name: str, goal: Goal, seen: Observed, passed: frozenset[str]) -> Step:
    """From 0 % to 100 %: nothing is given that the deployment has not passed the test for."""
    share, others = seen.share(name), seen.others(name)
    if SMOKED not in passed:
        return Smoke(name)
    if goal.gate and ASKED not in passed:
        return Ask(name, goal.gate)
    if not others:
        return Shift(((name, 100),))
    if goal.mirror and share == 0 and MIRRORED not in passed:
        if seen.mirror.get(name) != goal.mirror:
            return Mirror(name, goal.mirror)
        return Soak(name, others[0], MIRRORED)
    if share and at(share) not in passed:
        return Soak(name, others[0], at(share))
    percent = min(step for step in goal.steps if step > share)
    return Shift(((name, 100),) if percent == 100 else ((name, percent), (others[0], 100 - percent)))


def at(share: int) -> str:
    """What is passed by serving `share` percent well."""
    return f"{share} %"


def _settle(name: str, seen: Observed, now: float) -> Step:
    rest = [other.name for other in seen.deployments if other.name != name]
    if not rest:
        return Done(name)
    if seen.mirror:  # by hand, or of a rollout the other way: what gets copies cannot be deleted
        return Shift(((name, 100),))
    until = seen.record.keep_until
    return Keep(name, rest[0], until) if until is not None and now < until else Discard(rest[0])


def _give_back(seen: Observed, name: str) -> Step:
    """Undo what has failed: first its traffic, then itself."""
    if seen.share(name) or seen.mirror.get(name):
        return Shift(tuple(seen.without(name).items()))
    if any(one.name == name for one in seen.deployments):
        return Discard(name)
    return Close(seen.record.cause)


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
        return Shift(tuple(seen.traffic.items())) if seen.mirror.get(idle[0]) else Discard(idle[0])
    if len(seen.deployments) > 1:  # a rollout of something else was killed midway: back to the bigger half
        best = max(seen.deployments, key=lambda one: (one.state == GOOD, seen.share(one.name)))
        return Shift(((best.name, 100),))
    return None


def after(step: Step, goal: Goal, seen: Observed) -> Observed:
    """`seen` as it will be once `step` has succeeded: for dry runs and tests."""
    match step:
        case CreateEndpoint():
            return replace(seen, state=GOOD)
        case Wait():
            settled = tuple(replace(one, state=GOOD) for one in seen.deployments if one.state != "deleting")
            return replace(seen, state=None if seen.state == "deleting" else GOOD, deployments=settled)
        case Create(name):
            made = Deployment(name, goal.model, goal.environment, goal.instance_type, instances=goal.instances)
            return replace(seen, deployments=(*seen.deployments, made))
        case Mirror(name, percent):
            return replace(seen, mirror={name: percent})
        case Shift(traffic):
            return replace(seen, traffic=dict(traffic), mirror={})
        case Discard(name):
            left = tuple(one for one in seen.deployments if one.name != name)
            return replace(seen, deployments=left)
        case Keep():
            return replace(seen, record=replace(seen.record, keep_until=None))
        case Close():
            return replace(seen, record=Record())
        case Smoke() | Ask() | Soak() | Done():
            return seen


def passes(step: Step) -> str | None:
    """What the new deployment has passed once `step` has succeeded."""
    match step:
        case Smoke():
            return SMOKED
        case Ask():
            return ASKED
        case Soak(_, _, what):
            return what
        case _:
            return None


def foresee(goal: Goal, seen: Observed, *, now: float = 0.0, keep: float = 0.0) -> list[Step]:
    """All steps from `seen` to the goal, if each succeeds; the last is Done, or Close where a failed one is undone."""
    steps: list[Step] = []
    passed: frozenset[str] = frozenset()
    while not (steps and isinstance(steps[-1], Done | Close)):
        step = next_step(goal, seen, passed=passed, now=now)
        passed |= {passes(step) or ""}
        if keep and isinstance(step, Shift) and len(step.traffic) == 1 and seen.others(step.traffic[0][0]):
            seen = replace(seen, record=replace(seen.record, keep_until=now + keep))
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
        case Ask(name, command):
            return f"ask the gate about {name}: {command}"
        case Mirror(name, percent):
            return f"mirror {percent} % of the requests to {name}"
        case Soak(name, beside, what):
            return f"watch {name} beside {beside} ({what})"
        case Shift(()):
            return "take all traffic away"
        case Shift(traffic):
            return "shift the traffic: " + ", ".join(f"{name} {percent} %" for name, percent in traffic)
        case Keep(name, old, _):
            return f"watch {name}, with {old} kept warm"
        case Discard(name):
            return f"delete the deployment {name}, which has no traffic"
        case Close():
            return "close the failed rollout"
        case Done(name):
            return f"done: {name} serves"
