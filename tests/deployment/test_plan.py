"""The rollout's decisions: from anything that Azure may show, to the goal, never without traffic on the way."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deployment.plan import (
    Create,
    CreateEndpoint,
    Deployment,
    Discard,
    Done,
    Goal,
    Observed,
    Shift,
    Smoke,
    Wait,
    after,
    foresee,
    free_colour,
    next_step,
)

GOAL = Goal("phi:2", "phi-server:abc", "Standard_E4s_v3")
OLD = Deployment("blue", "phi:1", "phi-server:abc", "Standard_E4s_v3")
NEW = Deployment("green", GOAL.model, GOAL.environment, GOAL.instance_type)


def test_from_nothing_to_serving() -> None:
    steps = foresee(GOAL, Observed())
    assert steps == [CreateEndpoint(), Create("blue"), Smoke("blue"), Shift((("blue", 100),)), Done("blue")]


def test_a_new_model_goes_to_the_other_colour_and_replaces_the_old() -> None:
    seen = Observed("succeeded", {"blue": 100}, (OLD,))
    assert foresee(GOAL, seen) == [
        Create("green"),
        Smoke("green"),
        Shift((("green", 100),)),
        Discard("blue"),
        Done("green"),
    ]


def test_what_serves_already_is_left_alone() -> None:
    assert foresee(GOAL, Observed("succeeded", {"green": 100}, (NEW,))) == [Done("green")]


def test_a_rollout_killed_before_the_shift_tests_again_and_shifts() -> None:
    seen = Observed("succeeded", {"blue": 100}, (OLD, NEW))
    assert foresee(GOAL, seen)[:2] == [Smoke("green"), Shift((("green", 100),))]


def test_a_rollout_killed_after_the_shift_removes_the_old_one() -> None:
    assert foresee(GOAL, Observed("succeeded", {"green": 100}, (OLD, NEW))) == [Discard("blue"), Done("green")]


def test_a_failed_leftover_is_removed_first() -> None:
    failed = Deployment("green", GOAL.model, GOAL.environment, GOAL.instance_type, "failed")
    assert foresee(GOAL, Observed("succeeded", {"blue": 100}, (OLD, failed)))[:2] == [Discard("green"), Create("green")]


def test_what_moves_is_waited_for() -> None:
    creating = Deployment("green", GOAL.model, GOAL.environment, GOAL.instance_type, "creating")
    assert isinstance(next_step(GOAL, Observed("updating", {}, ()), smoked=False), Wait)
    assert isinstance(next_step(GOAL, Observed("succeeded", {"blue": 100}, (OLD, creating)), smoked=False), Wait)


def test_canary_percentages_are_only_more_steps() -> None:
    goal = Goal(GOAL.model, GOAL.environment, GOAL.instance_type, steps=(10, 50, 100))
    shifts = [step for step in foresee(goal, Observed("succeeded", {"blue": 100}, (OLD,))) if isinstance(step, Shift)]
    assert shifts == [
        Shift((("green", 10), ("blue", 90))),
        Shift((("green", 50), ("blue", 50))),
        Shift((("green", 100),)),
    ]


def test_the_colour_without_a_deployment_is_free() -> None:
    assert free_colour(Observed("succeeded", {}, ())) == "blue"
    assert free_colour(Observed("succeeded", {}, (OLD,))) == "green"


deployments = st.builds(
    Deployment,
    name=st.sampled_from(["blue", "green"]),
    model=st.sampled_from(["phi:1", "phi:2"]),
    environment=st.just(GOAL.environment),
    instance_type=st.just(GOAL.instance_type),
    state=st.sampled_from(["succeeded", "failed", "creating", "updating", "deleting"]),
)


@given(
    state=st.sampled_from([None, "succeeded", "failed", "updating", "creating"]),
    found=st.lists(deployments, max_size=2, unique_by=lambda one: one.name),
    share=st.sampled_from([0, 10, 50, 90, 100]),
    steps=st.sampled_from([(100,), (10, 50, 100)]),
)
def test_every_state_leads_to_the_goal_and_traffic_never_goes_to_nothing(
    state: str | None, found: list[Deployment], share: int, steps: tuple[int, ...]
) -> None:
    goal = Goal(GOAL.model, GOAL.environment, GOAL.instance_type, steps)
    seen = Observed()
    if state is not None:
        stable = [one.name for one in found if one.state != "deleting"]
        traffic = dict(zip(stable, (share, 100 - share) if len(stable) == 2 else (100,), strict=False))
        seen = Observed(state, {name: part for name, part in traffic.items() if part}, tuple(found))
    tested: set[str] = set()
    for step in foresee(goal, seen):
        if isinstance(step, Discard):
            assert seen.share(step.deployment) == 0
        if isinstance(step, Smoke):
            tested.add(step.deployment)
        if isinstance(step, Shift):
            assert sum(part for _, part in step.traffic) == 100
            assert {name for name, _ in step.traffic} <= {one.name for one in seen.deployments}
        seen = after(step, goal, seen)
    assert [one.model for one in seen.deployments] == [goal.model]
    assert dict(seen.traffic) == {seen.deployments[0].name: 100}
