from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from training import provenance
from training.provenance import GitState


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, in the place of this one."""
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "code.py").write_text("1\n")
    for name in ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"):
        monkeypatch.setenv(name, "a@b.c")
    monkeypatch.delenv("GIT_COMMIT", raising=False)
    monkeypatch.setattr(provenance, "FOLDER", tmp_path)
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    return tmp_path


def test_the_commit_is_that_of_the_checkout(checkout: Path) -> None:
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=True).stdout
    assert provenance.git_state() == GitState(head.strip(), False)
    assert provenance.commit() == head[:12]


def test_code_that_was_changed_since_is_dirty_and_other_files_are_not(checkout: Path) -> None:
    (checkout / "notes.md").write_text("x")
    assert not provenance.git_state().dirty
    (checkout / "training" / "code.py").write_text("2\n")
    assert provenance.git_state().dirty and provenance.commit().endswith("-dirty")


def test_a_node_without_git_knows_what_it_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "FOLDER", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("GIT_COMMIT", raising=False)
    assert provenance.commit() == "unknown"
    monkeypatch.setenv("GIT_COMMIT", "abc-dirty")
    assert provenance.commit() == "abc-dirty"
