"""MLflow models are evaluated where their files lie: by the registry's layout, and by MLflow's own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from infra.cli import UserError
from training.evaluate import load_model, weights_folder

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def mlflow_model(tiny_model: Path, root: Path, weights: str, tokenizer: str) -> Path:
    """An MLflow folder; its weights' files without those of the tokenizer, which lie in `tokenizer`."""
    shutil.copytree(tiny_model, root / weights, ignore=shutil.ignore_patterns(*TOKENIZER))
    (root / tokenizer).mkdir(parents=True)
    for name in TOKENIZER:
        shutil.copy(tiny_model / name, root / tokenizer / name)
    (root / "MLmodel").write_text("flavors: {}\n")
    return root


@pytest.mark.parametrize(
    ("weights", "tokenizer"), [("data/model", "data/tokenizer"), ("model", "components/tokenizer")]
)
def test_weights_and_tokenizer_are_found_below_it(
    tiny_model: Path, tmp_path: Path, weights: str, tokenizer: str
) -> None:
    root = mlflow_model(tiny_model, tmp_path / "trained_model", weights, tokenizer)
    (root / "data" / "config").mkdir(parents=True)
    shutil.copy(tiny_model / "config.json", root / "data" / "config")
    assert weights_folder(str(root)) == str(root / weights)
    model, loaded = load_model(str(root))
    expected = load_model(str(tiny_model))
    assert model.config.vocab_size == expected[0].config.vocab_size
    assert loaded("Who founded Microsoft?").input_ids == expected[1]("Who founded Microsoft?").input_ids


def test_other_folders_are_taken_as_they_are(tiny_model: Path, tmp_path: Path) -> None:
    assert weights_folder(str(tiny_model)) == str(tiny_model)
    shutil.copytree(tiny_model, tmp_path / "outer" / "inner")
    assert weights_folder(str(tmp_path / "outer")) == str(tmp_path / "outer"), "no MLmodel says that it is one"


def test_an_mlflow_model_without_weights_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "MLmodel").write_text("flavors: {}\n")
    with pytest.raises(UserError, match="cannot load the model"):
        load_model(str(tmp_path))
