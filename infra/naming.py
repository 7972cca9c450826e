"""Resource names: CAF abbreviations, cut to Azure's limits.

https://learn.microsoft.com/azure/cloud-adoption-framework/ready/azure-best-practices/resource-abbreviations
https://learn.microsoft.com/azure/azure-resource-manager/management/resource-name-rules

Pulumi's provider appends eight random hex digits to each of these names. So a stack that is destroyed and brought up
again does not collide with its own soft-deleted workspace and key vault, whose names stay taken for days.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

SUFFIX = 8  # the provider's random digits

# The longest whole name that Azure takes, suffix included.
LIMITS = {
    "resource_group": 90,
    "storage_account": 24,
    "key_vault": 24,
    "log_analytics": 63,
    "application_insights": 255,
    "container_registry": 50,
    "identity": 128,
    "training_identity": 128,
    "serving_identity": 128,
    "github_identity": 128,
    "workspace": 33,
    "chat_store": 44,
    "budget": 63,
}


@dataclass(frozen=True)
class Names:
    """The names of one stack's resources, without the provider's suffix."""

    resource_group: str
    storage_account: str
    key_vault: str
    log_analytics: str
    application_insights: str
    container_registry: str
    identity: str
    training_identity: str
    serving_identity: str
    github_identity: str
    workspace: str
    chat_store: str
    budget: str

    @classmethod
    def of(cls, workload: str, stack: str) -> Names:
        """The names for a workload's stack; any stack name will do, however long."""
        middle = f"{workload}-{slug(stack)}"
        return cls(
            resource_group=_dashed("rg", middle, "resource_group"),
            storage_account=_plain("st", middle, "storage_account"),
            key_vault=_dashed("kv", middle, "key_vault"),
            log_analytics=_dashed("log", middle, "log_analytics"),
            application_insights=_dashed("appi", middle, "application_insights"),
            container_registry=_plain("cr", middle, "container_registry"),
            identity=_dashed("id", middle, "identity"),
            training_identity=_dashed("id-train", middle, "training_identity"),
            serving_identity=_dashed("id-serve", middle, "serving_identity"),
            github_identity=_dashed("id-github", middle, "github_identity"),
            workspace=_dashed("mlw", middle, "workspace"),
            chat_store=_dashed("cosno", middle, "chat_store"),
            budget=_dashed("budget", middle, "budget"),
        )


def slug(text: str) -> str:
    """`text` in lower-case letters, digits and single hyphens: Feature/Ünicode → feature-unicode."""
    ascii_only = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", ascii_only.lower()).strip("-") or "x"


def _dashed(abbreviation: str, middle: str, kind: str) -> str:
    """`kv-phi-dev-`: a key vault's name may not hold two hyphens in a row, so a cut never leaves one at the end."""
    room = LIMITS[kind] - SUFFIX - len(abbreviation) - 2
    return f"{abbreviation}-{middle[:room].rstrip('-')}-"


def _plain(abbreviation: str, middle: str, kind: str) -> str:
    """`stphidev`: storage accounts and registries take letters and digits only."""
    return (abbreviation + middle.replace("-", ""))[: LIMITS[kind] - SUFFIX]


COMPUTE_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9-]{1,22}[a-zA-Z0-9]")


def compute_name_problem(name: str) -> str | None:
    """Why Azure ML would refuse `name` for a cluster, or None.

    https://learn.microsoft.com/azure/machine-learning/how-to-create-attach-compute-cluster
    """
    if not COMPUTE_NAME.fullmatch(name):
        return "needs 3-24 letters, digits and hyphens, a letter first and no hyphen last"
    if re.search(r"-\d+$", name):
        return "may not end in a hyphen and digits"
    return None
