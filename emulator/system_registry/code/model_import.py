"""Step 2: bring the foundation model into one plain folder that `from_pretrained` loads."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import step
import yaml


def main() -> None:
    args = step.arguments(
        huggingface_id=str, pytorch_model_path=Path, mlflow_model_path=Path, validation_output=Path, output_dir=Path
    )
    if args.pytorch_model_path:
        source, metadata = _folder_of(args.pytorch_model_path), {"base_model_name": args.pytorch_model_path.name}
    elif args.mlflow_model_path:
        described: dict[str, Any] = yaml.safe_load((args.mlflow_model_path / "MLmodel").read_text())
        source, metadata = _folder_of(args.mlflow_model_path), described.get("metadata") or {}
    elif args.huggingface_id:
        source, metadata = _downloaded(args.huggingface_id), {"base_model_name": args.huggingface_id}
    else:
        step.fail(
            "ACFTValidationException", "one of mlflow_model_path, pytorch_model_path and huggingface_id is needed"
        )
    shutil.copytree(source, args.output_dir, dirs_exist_ok=True)
    step.hand_over(None, args.output_dir, metadata={"base_model_task": "chat-completion", **metadata})
    print("imported:", metadata.get("base_model_name"))


def _folder_of(model: Path) -> Path:
    found = [path.parent for path in sorted(model.rglob("*.safetensors"))]
    if not found:
        step.fail("ACFTValidationException", f"{model.name} holds no weights")
    return found[0]


def _downloaded(name: str) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name))


if __name__ == "__main__":
    main()
