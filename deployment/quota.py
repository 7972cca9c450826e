"""What a rollout costs and whether the quota has room for it, asked before anything is made.

Managed endpoints keep 20 % of the cores free for upgrades, so a deployment counts 1.2 times:
learn.microsoft.com/azure/machine-learning/how-to-manage-quotas (virtual machine quota allocation for deployment).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra import prices
from infra.cli import UserError

if TYPE_CHECKING:
    from azure.ai.ml import MLClient

    from deployment.plan import Goal

RESERVE = 1.2


@dataclass(frozen=True)
class Need:
    """What one deployment of a goal takes. `used` and `limit` are cores of the family; None where Azure lists none."""

    size: str
    instances: int
    cores: int
    family: str
    used: int | None
    limit: int | None
    price: float | None
    currency: str

    @property
    def needed(self) -> int:
        return math.ceil(self.cores * self.instances * RESERVE)

    @property
    def is_short(self) -> bool:
        return self.used is not None and self.limit is not None and self.limit - self.used < self.needed

    def cost(self) -> str:
        """Of an hour, in words."""
        if self.price is None:
            return f"{self.instances} × {self.size}: its price is not known (make prices)"
        total = self.price * self.instances
        return f"{self.instances} × {self.size}: {total:.2f} {self.currency} an hour, twice that while both stand"

    def quota(self) -> str:
        if self.used is None or self.limit is None:
            return f"Azure lists no quota of {self.family or self.size}: it is not checked"
        left = self.limit - self.used
        return f"{self.needed} cores of {self.family} with the 20 % reserve; {left} of {self.limit} are free"


def need(ml: MLClient, goal: Goal, location: str) -> Need:
    """Raises UserError for a size that Azure does not offer in the region."""
    sizes = {str(one.name).lower(): one for one in ml.compute.list_sizes(location=location)}
    size = sizes.get(goal.instance_type.lower())
    if size is None and sizes:
        raise UserError(
            f"Azure ML offers no size {goal.instance_type} in {location}",
            next_command="--instance-type with one of: az vm list-sizes, or Standard_E4s_v3",
            code=2,
        )
    family = str(_field(size, "family") or "")
    used, limit = _usage(ml, family, location)
    known = prices.read()
    price = known.price(f"vm/{goal.instance_type}", location)
    cores = int(_field(size, "v_cp_us", "vCPUs") or 0)
    amount = price.amount if price else None
    return Need(goal.instance_type, goal.instances, cores, family, used, limit, amount, known.currency)


def check(wanted: Need) -> None:
    """Raises UserError if the quota has no room."""
    if wanted.is_short:
        raise UserError(
            f"the quota has no room for {wanted.instances} × {wanted.size}: {wanted.quota()}",
            next_command="ask for more at https://ml.azure.com/quota, or --instance-type another one",
        )


def _usage(ml: MLClient, family: str, location: str) -> tuple[int | None, int | None]:
    """The subscription's row for a VM family; rows of single workspaces stand beside it."""
    for row in ml.compute.list_usage(location=location):
        if not family or "/workspaces/" in str(row.id or "").lower():
            continue
        name: Any = row.name if isinstance(row.name, dict) else vars(row.name)
        if any(_plain(str(text)).startswith(_plain(family)) for text in name.values() if text):
            used, limit = _field(row, "current_value", "currentValue"), _field(row, "limit")
            return (None if used is None else int(used)), (None if limit is None else int(limit))
    return None, None


def _field(of: Any, *names: str) -> Any:
    """The first of these that is there: azure-ai-ml 1.35 keeps Azure's spelling and answers None under its own."""
    return next((value for name in names if (value := getattr(of, name, None)) is not None), None)


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())
