"""Step 1: refuse what cannot work before anything costs time."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import step
import yaml


def main() -> None:
    args = step.arguments(
        mlflow_model_path=Path,
        train_file_path=Path,
        validation_file_path=Path,
        test_file_path=Path,
        validation_info=Path,
    )
    if args.mlflow_model_path:
        _check_model(args.mlflow_model_path)
    if args.train_file_path is None:
        step.fail("ACFTValidationException", "train_file_path is needed (tables of type mltable are not emulated)")
    files = [args.train_file_path, args.validation_file_path, args.test_file_path]
    counts = {path.name: len(step.read_rows(path)) for path in files if path}
    args.validation_info.write_text(json.dumps({"task": "chat-completion", "rows": counts}))
    print("validated:", counts)


def _check_model(folder: Path) -> None:
    description = folder / "MLmodel"
    if not description.is_file():
        step.fail("ACFTValidationException", f"mlflow_model_path is no MLflow model: {folder.name} has no file MLmodel")
    metadata: dict[str, Any] = yaml.safe_load(description.read_text()).get("metadata") or {}
    if metadata.get("base_model_task") != "chat-completion":
        step.fail(
            "ACFTValidationException", f"the model's task is {metadata.get('base_model_task')}, not chat-completion"
        )
    allowed, size = metadata.get("finetune_compute_allow_list") or [], os.environ.get("EMULATOR_VM_SIZE", "")
    if allowed and size.lower() not in [one.lower() for one in allowed]:
        step.fail("ACFTValidationException", f"VM size {size} is not among those the model is fine-tuned on: {allowed}")


if __name__ == "__main__":
    main()
