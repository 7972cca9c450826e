"""Whether a model may be deployed: what was measured, held against a recipe's limits."""

from __future__ import annotations

import math
from dataclasses import dataclass

from training.likelihood import Gain

DEFAULT_MIN_GAIN = 0.02
DEFAULT_MAX_FORGETTING = 0.05
STANDARD_ERRORS = 2.0


@dataclass(frozen=True)
class Limits:
    """A recipe's: both in nats per token. `max_forgetting` is None where forgetting is not judged."""

    min_gain: float = DEFAULT_MIN_GAIN
    max_forgetting: float | None = DEFAULT_MAX_FORGETTING


@dataclass(frozen=True)
class Verdict:
    """Whether a model may be deployed, and why in a sentence; `failed` names the conditions that were not met."""

    approved: bool
    reason: str
    failed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Condition:
    """One of the gate's: met, not met, or not judged (None), and the numbers."""

    name: str
    met: bool | None
    sentence: str


def judge(
    before: float,
    after: float,
    min_gain: float,
    *,
    error: float = 0.0,
    forgetting: Gain | None = None,
    max_forgetting: float | None = None,
    degenerate: tuple[int, int] | None = None,
) -> Verdict:
    """The gate. A figure that is no number never passes.

    Args:
        before: the held-out loss of the base model, nats per token; `after` that of the trained one.
        min_gain: by how much it must fall at least.
        error: the gain's standard error; the gain must also be more than two of them.
        forgetting: the gain on a second domain, which is a loss where negative.
        max_forgetting: what that loss may be; None: it is not judged.
        degenerate: how many sample replies are empty or repeat themselves, and of how many; None: there are none.
    """
    conditions = (
        _gained(before, after, min_gain),
        _certain(before - after, error),
        _remembers(forgetting, max_forgetting),
        _speaks(degenerate),
    )
    failed = tuple(one.name for one in conditions if one.met is False)
    verdict = f"failed: {', '.join(failed)}. " if failed else ""
    return Verdict(not failed, verdict + "; ".join(one.sentence for one in conditions), failed)


def _gained(before: float, after: float, min_gain: float) -> Condition:
    gain = before - after
    met = gain >= min_gain  # False for NaN
    return Condition(
        "gain",
        met,
        f"the held-out loss went from {before:.3f} to {after:.3f} nats: a gain of {gain:.3f}, "
        f"{min_gain:g} {'was' if met else 'would be'} needed",
    )


def _certain(gain: float, error: float) -> Condition:
    if math.isinf(error):
        return Condition("certainty", False, "one held-out conversation is too few to say how certain that is")
    bar = STANDARD_ERRORS * error
    met = gain > bar
    return Condition(
        "certainty", met, f"the gain is {'more' if met else 'not more'} than two standard errors ({bar:.3f})"
    )


def _remembers(forgetting: Gain | None, limit: float | None) -> Condition:
    if limit is None:
        return Condition("forgetting", None, "forgetting is not judged (gate_max_forgetting is null)")
    if forgetting is None:
        return Condition("forgetting", False, "forgetting was not measured: there was no second domain")
    lost = 0.0 - forgetting.nats
    met = lost <= limit
    return Condition(
        "forgetting",
        met,
        f"on the second domain the loss changed by {lost:+.3f} nats, at most {limit:+g} {'is' if met else 'would be'} "
        "allowed",
    )


def _speaks(degenerate: tuple[int, int] | None) -> Condition:
    if degenerate is None:
        return Condition("samples", None, "no samples were drawn")
    bad, of = degenerate
    return Condition("samples", bad == 0, f"{bad or 'none'} of {of} sample replies {_are(bad)} empty or repetitive")


def _are(count: int) -> str:
    return "is" if count <= 1 else "are"
