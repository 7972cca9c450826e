"""The page of configuration keys is what Pulumi.yaml says, and Pulumi.yaml says enough."""

from __future__ import annotations

import re

import pytest
import yaml

from infra.configuration import table
from infra.outputs import PROJECT

SCHEMA = yaml.safe_load((PROJECT / "Pulumi.yaml").read_text())["config"]


def test_the_page_is_made_from_pulumi_yaml() -> None:
    page = (PROJECT / "docs" / "configuration.md").read_text()
    assert page == table(SCHEMA), "run: python -m infra.configuration > docs/configuration.md"


@pytest.mark.parametrize("key", SCHEMA)
def test_every_key_has_a_type_a_default_and_a_meaning(key: str) -> None:
    assert set(SCHEMA[key]) >= {"type", "default", "description"}


def test_the_program_reads_every_key_and_no_other() -> None:
    text = (PROJECT / "infra" / "settings.py").read_text()
    read = set(re.findall(r'config, "(\w+)"|config\.require\w*\("(\w+)"\)', text))
    assert {one or other for one, other in read} == set(SCHEMA)
