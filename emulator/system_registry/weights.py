"""Makes the foundation models' folders: tiny Phi models that know nothing, as MLflow models.

python -m emulator.system_registry.weights FOLDER
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from emulator.hub_content import TEMPLATE, conversation, make_tokenizer, texts_of, write_model
from emulator.system_registry.catalogue import models
from emulator.system_registry.code import mlflow_folder

# wide enough that what such a model says does not go round in circles, which a gate would rightly refuse
DEVIATIONS = (0.12, 0.08)
PHI_4 = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)


def main(folder: Path) -> None:
    dice = random.Random(7)
    tokenizer = make_tokenizer(texts_of([conversation(dice, number) for number in range(400)]))
    for name, facts in models().items():
        _make(folder / name, tokenizer, name, facts)


def _make(folder: Path, tokenizer: dict[str, Any], name: str, facts: dict[str, Any]) -> None:
    with TemporaryDirectory() as plain:
        template = PHI_4 if facts.get("template") == "phi-4" else TEMPLATE
        write_model(Path(plain), tokenizer, template, DEVIATIONS)
        metadata = {
            "base_model_name": name,
            "base_model_task": "chat-completion",
            "model_provider_name": "microsoft",
            "finetune_compute_allow_list": facts["finetune"],
        }
        mlflow_folder.write(Path(plain), folder, metadata)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
