from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.small import FIRST_QUESTIONS


@pytest.fixture(autouse=True, scope="session")
def without_mlflow() -> Iterator[None]:
    """Runs by hand log to a database in the working directory; the tests of tracking say where."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("DISABLE_MLFLOW_INTEGRATION", "TRUE")
        yield


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    from training.small_model import corpus_from, make_tokenizer

    return make_tokenizer(corpus_from([FIRST_QUESTIONS]))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights, small enough for tests that train."""
    from training.small_model import corpus_from, make_small_model

    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_small_model(folder, corpus_from([FIRST_QUESTIONS]), hidden=128, layers=2)
    return folder
