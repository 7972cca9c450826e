"""Step 6: the fine-tuned model as an MLflow model, which Azure ML deploys without code."""

from __future__ import annotations

from pathlib import Path

import mlflow_folder
import step


def main() -> None:
    args = step.arguments(model_path=Path, evaluation_result=Path, mlflow_model_folder=Path)
    metadata = {**step.told(args.model_path)["metadata"], "is_finetuned_model": True}
    mlflow_folder.write(args.model_path, args.mlflow_model_folder, metadata)
    print("written:", *sorted(path.name for path in args.mlflow_model_folder.iterdir()))


if __name__ == "__main__":
    main()
