"""A stack's settings outside of the program: what is wrong with them is one sentence that names the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.cli import UserError
from infra.stack_config import settings_of

ROOT = Path(__file__).resolve().parents[2]


def project(folder: Path, config: str) -> Path:
    (folder / "Pulumi.yaml").write_text((ROOT / "Pulumi.yaml").read_text())
    (folder / "Pulumi.x.yaml").write_text(f"config:\n{config}")
    return folder


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("  finetune-phi:computeMaxNode: 2\n", r"Pulumi\.x\.yaml sets the unknown configuration key `computeMaxNode`"),
        ("  computeMaxNode: 2\n", "unknown configuration key `computeMaxNode`; known are branch, budgetAmount"),
        ("  finetune-phi:computeMaxNodes: many\n", '`computeMaxNodes` to "many" .str., which is no integer'),
        ("  finetune-phi:computeMaxNodes: true\n", "`computeMaxNodes` to true .bool., which is no integer"),
        ("  finetune-phi:chatStore: maybe\n", '`chatStore` to "maybe" .str., which is no boolean'),
        ("  finetune-phi:budgetEmails: a@b.io\n", '`budgetEmails` to "a@b.io" .str., which is no array'),
        ("  finetune-phi:owner: 3\n", "`owner` to 3 .int., which is no string"),
        ("  finetune-phi:budgetStart: 2026-11-01\n", '`budgetStart` to "2026-11-01" .date., which is no string'),
        ("  finetune-phi:computeName: gpu-1\n", "`computeName` cannot be 'gpu-1'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, config: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        settings_of("x", project=project(tmp_path, config))
    assert error.value.next_command


def test_text_as_pulumi_writes_it_is_read_by_its_type(tmp_path: Path) -> None:
    config = '  finetune-phi:computeMaxNodes: "3"\n  finetune-phi:chatStore: "true"\n  azure-native:anything: 1\n'
    found = settings_of("x", project=project(tmp_path, config))
    assert (found.compute.max_nodes, found.chat_store) == (3, True)
