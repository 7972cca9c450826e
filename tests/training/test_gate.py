"""The gate: every condition on its own, and what is said of it."""

from __future__ import annotations

import math

import pytest

from training.gate import judge
from training.likelihood import Gain

NAN = float("nan")


@pytest.mark.parametrize(
    ("before", "after", "min_gain", "failed"),
    [
        (2.0, 1.5, 0.02, ()),
        (2.0, 1.75, 0.25, ()),
        (2.0, 1.99, 0.02, ("gain",)),
        (2.0, 2.0, 0.0, ("certainty",)),
        (1.5, 2.0, 0.02, ("gain", "certainty")),
        (2.0, NAN, 0.02, ("gain", "certainty")),
        (NAN, 1.0, 0.02, ("gain", "certainty")),
        (2.0, math.inf, 0.02, ("gain", "certainty")),
    ],
)
def test_the_loss_must_fall_by_the_margin(
    before: float, after: float, min_gain: float, failed: tuple[str, ...]
) -> None:
    verdict = judge(before, after, min_gain)
    assert (verdict.failed, verdict.approved) == (failed, not failed)


@pytest.mark.parametrize(
    ("error", "failed"), [(0.1, ()), (0.24, ()), (0.25, ("certainty",)), (1.0, ("certainty",)), (NAN, ("certainty",))]
)
def test_the_gain_must_be_more_than_two_standard_errors(error: float, failed: tuple[str, ...]) -> None:
    assert judge(2.0, 1.5, 0.02, error=error).failed == failed


def test_one_conversation_is_too_few() -> None:
    verdict = judge(2.0, 1.5, 0.02, error=math.inf)
    assert verdict.failed == ("certainty",)
    assert "one held-out conversation is too few" in verdict.reason


@pytest.mark.parametrize(
    ("gain", "limit", "failed"),
    [
        (0.3, 0.05, ()),
        (-0.05, 0.05, ()),
        (-0.051, 0.05, ("forgetting",)),
        (NAN, 0.05, ("forgetting",)),
        (-9.0, None, ()),
    ],
)
def test_forgetting_is_held_against_its_limit(gain: float, limit: float | None, failed: tuple[str, ...]) -> None:
    assert judge(2.0, 1.0, 0.02, forgetting=Gain(gain, 0.0), max_forgetting=limit).failed == failed


def test_a_limit_on_forgetting_that_was_not_measured_is_not_met() -> None:
    assert judge(2.0, 1.0, 0.02, max_forgetting=0.05).failed == ("forgetting",)


def test_forgetting_that_is_not_judged_is_said_to_be_so() -> None:
    assert "gate_max_forgetting is null" in judge(2.0, 1.0, 0.02).reason


@pytest.mark.parametrize(("bad", "failed"), [(0, ()), (1, ("samples",)), (12, ("samples",))])
def test_one_degenerate_sample_is_one_too_many(bad: int, failed: tuple[str, ...]) -> None:
    assert judge(2.0, 1.0, 0.02, degenerate=(bad, 12)).failed == failed


def test_the_verdict_names_all_that_failed_with_the_numbers() -> None:
    verdict = judge(2.0, 1.99, 0.25, error=0.125, forgetting=Gain(-0.5, 0.1), max_forgetting=0.05, degenerate=(3, 12))
    assert verdict.reason.startswith("failed: gain, certainty, forgetting, samples. ")
    for part in ("from 2.000 to 1.990", "0.25 would be needed", "(0.250)", "by +0.500", "+0.05", "3 of 12"):
        assert part in verdict.reason
