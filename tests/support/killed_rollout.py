"""A rollout that is killed (SIGKILL) at one of its boundaries.

    python -m tests.support.killed_rollout BOUNDARY ARGUMENTS OF deployment.rollout …

BOUNDARY is `before Shift 2` (before the second step of that kind), `during Create 1` (when Azure has taken the request
and nobody has waited for it yet), `back` (before the request that takes the traffic back), or `none`. The lease lasts
15 s instead of 60, Azure's shortest.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from deployment import lock, rollout, steps
from infra import cli


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arrange(boundary: str) -> None:
    when, _, rest = boundary.partition(" ")
    kind, _, number = rest.partition(" ")
    seen = {"count": 0, "inside": False}
    do, finish, back = steps.Rollout._do, steps.finish, steps.Rollout._take_back

    def _do(self: Any, step: Any) -> None:
        if type(step).__name__ == kind:
            seen["count"] += 1
            if seen["count"] == int(number):
                if when == "before":
                    kill()
                seen["inside"] = True
        do(self, step)
        seen["inside"] = False

    def _finish(*words: Any) -> None:
        if when == "during" and seen["inside"]:
            kill()
        finish(*words)

    def _back(self: Any, *words: Any) -> None:
        if when == "back":
            kill()
        back(self, *words)

    steps.Rollout._do, steps.finish, steps.Rollout._take_back = _do, _finish, _back  # type: ignore[method-assign]


if __name__ == "__main__":
    lock.SECONDS = 15
    arrange(sys.argv.pop(1))
    cli.run(rollout.main)
