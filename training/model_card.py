"""The README.md of a trained model: what it is, what it was made of, how good it is, what it is not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from training.recipe import Recipe

CARD = "README.md"


def write_card(
    output: Path, recipe: Recipe, base: str, identity: Mapping[str, str], metrics: Mapping[str, Any] | None
) -> None:
    """Write the card. Without metrics it says that nothing was measured yet. Raises OSError."""
    (output / CARD).write_text(card(recipe, base, identity, metrics), encoding="utf-8")


def card(recipe: Recipe, base: str, identity: Mapping[str, str], metrics: Mapping[str, Any] | None) -> str:
    head = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["phi3", "sft", "trl"]}
    if not Path(base).is_dir():
        head["base_model"] = base  # a name on the hub; a folder of this machine would mean nothing to others
    trained = {
        "recipe": f"{recipe.name} ({recipe.fingerprint}), whole in recipe.yaml",
        "base model": recipe.model.model_name_or_path,
        "data": recipe.data.source + (f", {recipe.data.split}" if recipe.data.split else ""),
        "training file (SHA-256)": identity["train"],
        "held-out file (SHA-256)": identity["eval"],
        "method": "adapters (LoRA), merged into the weights" if recipe.model.use_peft else "all weights trained",
        "learned": "all tokens"
        if recipe.sft.get("assistant_only_loss") is False
        else "what the assistant says, `<|end|>` included",
    }
    sections = [
        f"# {recipe.model.registered_name}",
        f"{recipe.model.model_name_or_path}, fine-tuned on conversations.",
        "## Training",
        _table(trained),
        "## Measured",
        _table(metrics) if metrics else "Nothing yet: the model was saved before its evaluation.",
        "The losses are nats per token that the assistant says in the held-out conversations."
        if metrics
        else "The job's next start evaluates it.",
        "## Limits",
        "- It was measured on conversations of its own data's kind; on others it may do worse than its base model.\n"
        "- Fine-tuning can weaken what the base model learned about refusing harmful requests.\n"
        "- It can state falsehoods with confidence, as its base model can.\n"
        "- A chat must be built as `chat_template.jinja` says; replies end with `<|end|>`.",
    ]
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n" + "\n\n".join(sections) + "\n"


def _table(values: Mapping[str, Any]) -> str:
    rows = ((name, str(value).replace("|", "\\|")) for name, value in values.items())
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)])
