"""Which engine generates, and why. All of them stand behind the same contract.

| engine | for | needs |
|---|---|---|
| transformers | any machine; in float32 exactly the model's own text | torch, transformers |
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deployment.server.model import LoadedModel

NAMES = ("transformers",)


def choose(wanted: str, folder: Path) -> tuple[str, str]:
    """(engine, why) for the model in `folder` where `wanted` is `auto`."""
    if wanted != "auto":
        return wanted, "asked for"
    return "transformers", "the model's folder holds weights as training wrote them"


def load(engine: str, folder: Path, *, dtype: str, threads: int | None) -> LoadedModel:
    """Load the model for `engine`. Raises UserError if it is not there."""
    from deployment.server import transformers_engine

    return transformers_engine.load(folder, dtype=dtype, threads=threads)
