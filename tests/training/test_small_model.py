from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.cli import UserError
from training.small_model import CONTROL_TOKENS, main, make_small_model

CORPUS = ["Who founded Microsoft?", "Microsoft was founded in 1975.", "When?"]


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_corpus_and_seed_give_the_same_files(tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("other", 3), ("third", 4)):
        make_small_model(tmp_path / name, CORPUS, seed, hidden=32, layers=1)
    assert _contents(tmp_path / "one") == _contents(tmp_path / "other")
    assert _contents(tmp_path / "one")["model.safetensors"] != _contents(tmp_path / "third")["model.safetensors"]


def test_it_is_a_phi_3_model_with_phi_3s_control_tokens(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    make_small_model(tmp_path / "m", CORPUS, hidden=32, layers=1)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert json.loads((tmp_path / "m" / "config.json").read_text())["model_type"] == "phi3"
    ids = [tokenizer.convert_tokens_to_ids(token) for token in CONTROL_TOKENS]
    assert ids == list(range(len(tokenizer) - len(ids), len(tokenizer)))
    assert set(model.generation_config.eos_token_id) == {ids[0], tokenizer.convert_tokens_to_ids("<|end|>")}
    assert tokenizer.decode(tokenizer.encode("Ökologie 東京 😀", add_special_tokens=False)) == "Ökologie 東京 😀"


@pytest.mark.parametrize("content", [None, "", "{}", "not json"])
def test_a_corpus_without_text_is_one_sentence(tmp_path: Path, content: str | None) -> None:
    corpus = tmp_path / "train.jsonl"
    if content is not None:
        corpus.write_text(content)
    with pytest.raises(UserError) as caught:
        main(["--out", str(tmp_path / "m"), "--corpus", str(corpus)])
    assert caught.value.code == 2
    assert not (tmp_path / "m").exists()


def test_a_folder_that_is_no_model_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UserError):
        main(["--out", str(tmp_path), "--corpus", __file__])
    assert (tmp_path / "mine.txt").exists()
