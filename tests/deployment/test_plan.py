"""The rollout's decisions: from anything that Azure may show, to the goal, never without traffic on the way."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployment.plan import (
    Ask,
    Close,
    Create,
    CreateEndpoint,
    Deployment,
    Discard,
    Done,
    Goal,
    Keep,
    Mirror,
    Observed,
    Shift,
    Smoke,
    Soak,
    Step,
    Wait,
    after,
    describe,
    foresee,
    free_colour,
    next_step,
    passes,
)
from deployment.record import Record

GOAL = Goal("phi:2", "phi-server:abc", "Standard_E4s_v3")
CAREFUL = replace(GOAL, steps=(10, 50, 100), mirror=20, gate="check")
OLD = Deployment("blue", "phi:1", "phi-server:abc", "Standard_E4s_v3")
NEW = Deployment("green", GOAL.model, GOAL.environment, GOAL.instance_type)
SERVING = Observed("succeeded", {"blue": 100}, (OLD,))
BOTH = replace(SERVING, deployments=(OLD, NEW))


def test_from_nothing_to_serving() -> None:
    steps = foresee(CAREFUL, Observed())
    ask = Ask("blue", "check")
    assert steps == [CreateEndpoint(), Create("blue"), Smoke("blue"), ask, Shift((("blue", 100),)), Done("blue")]


def test_a_new_model_goes_to_the_other_colour_and_replaces_the_old() -> None:
    assert foresee(GOAL, SERVING) == [
        Create("green"),
        Smoke("green"),
        Shift((("green", 100),)),
        Discard("blue"),
        Done("green"),
    ]


def test_a_careful_one_earns_each_step_of_its_traffic_and_keeps_the_old_one_warm() -> None:
    assert foresee(CAREFUL, SERVING, now=1000, keep=60)[1:] == [
        Smoke("green"),
        Ask("green", "check"),
        Mirror("green", 20),
        Soak("green", "blue", "mirror"),
        Shift((("green", 10), ("blue", 90))),
        Soak("green", "blue", "10 %"),
        Shift((("green", 50), ("blue", 50))),
        Soak("green", "blue", "50 %"),
        Shift((("green", 100),)),
        Keep("green", "blue", 1060),
        Discard("blue"),
        Done("green"),
    ]


def test_what_serves_already_is_left_alone() -> None:
    assert foresee(GOAL, Observed("succeeded", {"green": 100}, (NEW,))) == [Done("green")]


def test_a_rollout_killed_at_ten_percent_tests_again_before_it_goes_on() -> None:
    steps = foresee(CAREFUL, replace(BOTH, traffic={"green": 10, "blue": 90}))
    assert steps[:4] == [
        Smoke("green"),
        Ask("green", "check"),
        Soak("green", "blue", "10 %"),
        Shift((("green", 50), ("blue", 50))),
    ]


def test_a_rollout_killed_while_it_mirrors_watches_the_mirror_again() -> None:
    steps = foresee(CAREFUL, replace(BOTH, mirror={"green": 20}))
    assert steps[2] == Soak("green", "blue", "mirror")


def test_a_rollout_killed_while_the_old_one_is_kept_keeps_it_to_the_end() -> None:
    seen = replace(BOTH, traffic={"green": 100}, record=Record(keep_until=50))
    assert next_step(GOAL, seen, now=49) == Keep("green", "blue", 50)
    assert next_step(GOAL, seen, now=50) == Discard("blue")


def test_one_that_failed_is_undone_first_its_traffic_then_itself_then_its_note() -> None:
    seen = replace(BOTH, traffic={"green": 10, "blue": 90}, record=Record("green", "it was slow"))
    assert foresee(GOAL, seen) == [Shift((("blue", 100),)), Discard("green"), Close("it was slow")]
    mirrored = replace(BOTH, mirror={"green": 20}, record=Record("green", "it was slow"))
    assert next_step(GOAL, mirrored) == Shift((("blue", 100),))


def test_a_failed_leftover_is_removed_first() -> None:
    failed = replace(NEW, state="failed")
    assert foresee(GOAL, replace(SERVING, deployments=(OLD, failed)))[:2] == [Discard("green"), Create("green")]


def test_a_leftover_of_another_goal_that_is_mirrored_to_loses_that_first() -> None:
    other = replace(NEW, model="phi:3")
    seen = replace(SERVING, deployments=(OLD, other), mirror={"green": 20})
    assert foresee(GOAL, seen)[:2] == [Shift((("blue", 100),)), Discard("green")]


def test_an_old_one_that_is_mirrored_to_loses_that_before_it_goes() -> None:
    seen = replace(BOTH, traffic={"green": 100}, mirror={"blue": 20})
    assert foresee(GOAL, seen) == [Shift((("green", 100),)), Discard("blue"), Done("green")]


@pytest.mark.parametrize(
    "seen", [replace(SERVING, state="updating"), replace(BOTH, deployments=(OLD, replace(NEW, state="creating")))]
)
def test_what_moves_is_waited_for(seen: Observed) -> None:
    assert isinstance(next_step(GOAL, seen), Wait)


def test_another_count_of_nodes_is_another_deployment() -> None:
    assert foresee(replace(GOAL, instances=2), Observed("succeeded", {"green": 100}, (NEW,)))[0] == Create("blue")


def test_the_colour_without_a_deployment_is_free() -> None:
    assert free_colour(Observed("succeeded", {}, ())) == "blue"
    assert free_colour(SERVING) == "green"


def test_every_step_can_be_said_in_one_line() -> None:
    for step in (*foresee(CAREFUL, SERVING, now=1, keep=9), CreateEndpoint(), Wait("x"), Close("y"), Shift(())):
        assert describe(step) and "\n" not in describe(step)


@given(
    returning=st.sampled_from(["", "blue", "green"]),
    cause=st.text(max_size=400),
    until=st.none() | st.integers(0, 4_000_000_000),
    others=st.dictionaries(st.sampled_from(["project", "stack", "expires-on"]), st.text(max_size=9)),
)
def test_a_record_comes_back_from_tags_and_leaves_the_others_alone(
    returning: str, cause: str, until: int | None, others: dict[str, str]
) -> None:
    record = Record(returning, cause, until, "phi:2")
    tags = record.write({**others, "rollout-cause": "of before"})
    assert Record.read(tags) == replace(record, cause=cause[:256])
    assert {key: tags[key] for key in others} == others
    assert all(len(value) <= 256 for value in tags.values())
    assert Record().write(tags) == others


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
    mirror=st.sampled_from([0, 20]),
    goal=st.sampled_from([GOAL, CAREFUL]),
    record=st.builds(Record, st.sampled_from(["", "blue", "green"]), keep_until=st.none() | st.just(50.0)),
    keep=st.sampled_from([0, 60]),
)
def test_every_state_leads_to_the_goal_and_traffic_never_goes_to_what_was_not_tested(
    state: str | None, found: list[Deployment], share: int, mirror: int, goal: Goal, record: Record, keep: float
) -> None:
    seen = _shown(state, found, share, mirror, record)
    back = seen.record
    served = {name for name, part in seen.traffic.items() if part}
    tested: set[str] = set()
    for step in foresee(goal, seen, now=10, keep=keep):
        _check(step, seen, tested, served)
        tested |= {step.deployment} if passes(step) and hasattr(step, "deployment") else set()
        seen = after(step, goal, seen)
    if seen.state and back.returning:
        assert back.returning not in {one.name for one in seen.deployments}
    else:
        assert [one.model for one in seen.deployments] == [goal.model]
        assert dict(seen.traffic) == {seen.deployments[0].name: 100}


def _shown(state: str | None, found: list[Deployment], share: int, mirror: int, record: Record) -> Observed:
    """What Azure may show: traffic adds up, goes to what is there, and is not mirrored to what has some."""
    if state is None:
        return Observed()
    stable = [one.name for one in found if one.state != "deleting"]
    traffic = dict(zip(stable, (share, 100 - share) if len(stable) == 2 else (100,), strict=False))
    idle = [name for name in stable if not traffic[name]]
    return Observed(
        state,
        {name: part for name, part in traffic.items() if part},
        tuple(found),
        {idle[0]: mirror} if idle and mirror else {},
        record,
    )


def _check(step: Step, seen: Observed, tested: set[str], served: set[str]) -> None:
    names = {one.name for one in seen.deployments}
    if isinstance(step, Discard):
        assert seen.share(step.deployment) == 0 and not seen.mirror.get(step.deployment)
    if isinstance(step, Mirror):
        assert seen.share(step.deployment) == 0 and step.deployment in tested
    if isinstance(step, Soak):
        assert step.beside in names and step.deployment in names
    if isinstance(step, Shift):
        assert sum(part for _, part in step.traffic) == 100 or seen.record.returning
        given_to = {name for name, _ in step.traffic}
        assert given_to <= names
        assert given_to <= tested | served or seen.record.returning
