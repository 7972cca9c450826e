"""A new stack's settings: copied from the template with its comments, without what is the template's alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from infra.cli import UserError
from infra.stack_file import MADE, copy_of, encryption_of, is_made, restored, with_values

TEMPLATE = """\
# The template's own story.

encryptionsalt: v1:abc=:v1:def
config:
  # Where it is.
  finetune-phi:location: eastus2  # near
  finetune-phi:branch: main
  finetune-phi:ttlHours: 8

  azure-native:subscriptionId: s
environment:
  - shared
"""


def settings(text: str) -> dict[str, object]:
    found: dict[str, object] = yaml.safe_load(text)["config"]
    return found


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "Pulumi.template.yaml"
    path.write_text(text)
    return path


def test_a_copy_keeps_comments_and_other_sections_and_drops_what_is_the_templates_alone(tmp_path: Path) -> None:
    made = copy_of(written(tmp_path, TEMPLATE), namespace="finetune-phi")
    assert settings(made) == {"finetune-phi:location": "eastus2", "azure-native:subscriptionId": "s"}
    assert "  # Where it is.\n  finetune-phi:location: eastus2  # near\n" in made and "environment:\n  - shared" in made
    assert "story" not in made and "encryptionsalt" not in made
    assert made.startswith(f"{MADE} from Pulumi.template.yaml")


def test_secrets_come_along_with_the_key_that_opens_them(tmp_path: Path) -> None:
    secret = TEMPLATE.replace("config:\n", "config:\n  finetune-phi:token:\n    secure: v1:xyz\n")
    made = copy_of(written(tmp_path, secret), namespace="finetune-phi")
    assert encryption_of(made) == "encryptionsalt: v1:abc=:v1:def\n"
    assert settings(made)["finetune-phi:token"] == {"secure": "v1:xyz"}


def test_secrets_that_only_the_template_can_read_are_refused(tmp_path: Path) -> None:
    text = "config:\n  finetune-phi:list:\n    - secure: abc\n"
    with pytest.raises(UserError, match="the secret finetune-phi:list, which Pulumi Cloud") as error:
        copy_of(written(tmp_path, text), namespace="finetune-phi")
    assert "abc" not in str(error.value)


def test_a_template_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no Pulumi\.x\.yaml"):
        copy_of(tmp_path / "Pulumi.x.yaml", namespace="finetune-phi")


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_is_read_back_as_it_was_set(value: str) -> None:
    text = with_values("config:\n  p:a: 1 # kept\n", {"p:branch": value, "p:n": 3}, namespace="p")
    assert settings(text) == {"p:a": 1, "p:branch": value, "p:n": 3} and "# kept" in text


@pytest.mark.parametrize("value", ["no", "1e3", "2026-11-30", "2026-11-30T12:00:00Z", "null", "", "a: b # c", "'\""])
def test_text_that_yaml_would_take_for_something_else_stays_text(value: str) -> None:
    assert settings(with_values("", {"p:branch": value}, namespace="p")) == {"p:branch": value}


def test_a_key_that_is_there_changes_in_its_place() -> None:
    text = "config:\n  p:a: 1\n  branch: old  # without namespace\n  p:c: 3\nother: x\n"
    assert with_values(text, {"p:branch": "new"}, namespace="p") == (
        'config:\n  p:a: 1\n  p:branch: "new"\n  p:c: 3\nother: x\n'
    )


@pytest.mark.parametrize("text", ["config: {p:a: 1}\n", "config:\n  p:branch: >-\n    folded\n"])
def test_a_file_in_another_style_is_left_alone(text: str) -> None:
    with pytest.raises(UserError, match="was left alone"):
        with_values(text, {"p:branch": "x"}, namespace="p")


def test_a_lost_file_is_restored_from_the_last_update_without_defaults() -> None:
    schema: dict[str, dict[str, Any]] = {
        "n": {"type": "integer", "default": 1},
        "on": {"type": "boolean", "default": False},
        "who": {"default": "x"},
    }
    schema |= {"mails": {"type": "array", "default": []}}
    last = {"p:n": "2", "p:on": "false", "p:who": "1e3", "p:mails": '["a@b.c"]', "azure-native:location": "x"}
    found = settings(restored(last, schema, namespace="p"))
    assert found == {"p:n": 2, "p:who": "1e3", "p:mails": ["a@b.c"], "azure-native:location": "x"}


@pytest.mark.parametrize(
    ("text", "ours"),
    [
        (f"{MADE} from x\nconfig:\n  p:a: 1\n", True),
        ("config:\n  p:branch: x\n", True),
        ("config:\n  branch: x\n", True),
        ("encryptionsalt: abc\n", True),
        ("config:\n  p:a: 1\n", False),
        ("config:\n  p:branch: ''\n  p:a: 1\n", False),
    ],
)
def test_a_users_own_file_is_told_from_one_that_was_made_for_a_stack(tmp_path: Path, text: str, ours: bool) -> None:
    assert is_made(written(tmp_path, text), "p") is ours
