"""What a rollout has to remember, in the endpoint's own tags: they change with the traffic, in one request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

RETURNING, CAUSE, KEEP, BACK = "rollout-returning", "rollout-cause", "rollout-keep-until", "rolled-back"
LONGEST = 256
"""Characters of a tag's value: learn.microsoft.com/azure/azure-resource-manager/management/tag-resources"""


@dataclass(frozen=True)
class Record:
    """`returning`: the deployment that is being taken back, and the `cause`. `keep_until`: how long the one that served
    before stays, in seconds since the epoch. `rolled_back`: the model that was rolled back by hand.
    """

    returning: str = ""
    cause: str = ""
    keep_until: float | None = None
    rolled_back: str = ""

    @classmethod
    def read(cls, tags: Mapping[str, str]) -> Record:
        """From an endpoint's tags; a time that cannot be read is over."""
        until: float | None = None
        if given := tags.get(KEEP):
            try:
                until = datetime.fromisoformat(given).timestamp()
            except ValueError:
                until = 0.0
        return cls(tags.get(RETURNING, ""), tags.get(CAUSE, ""), until, tags.get(BACK, ""))

    def write(self, tags: Mapping[str, str]) -> dict[str, str]:
        """The endpoint's tags with this record in place of the one in them."""
        until = (
            "" if self.keep_until is None else datetime.fromtimestamp(self.keep_until, UTC).isoformat("T", "seconds")
        )
        own = {RETURNING: self.returning, CAUSE: self.cause[:LONGEST], KEEP: until, BACK: self.rolled_back[:LONGEST]}
        kept = {key: value for key, value in tags.items() if key not in own}
        return {**kept, **{key: value for key, value in own.items() if value}}
