"""Names stay within Azure's limits, whatever the stack is called."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.naming import LIMITS, SUFFIX, Names, compute_name_problem, slug

RULES = {
    "resource_group": r"[-\w.()]{1,90}",
    "storage_account": r"[a-z0-9]{3,24}",
    "key_vault": r"(?=.{3,24}$)[a-zA-Z](-?[a-zA-Z0-9])*",
    "log_analytics": r"[a-zA-Z0-9][a-zA-Z0-9-]{2,61}[a-zA-Z0-9]",
    "application_insights": r"[-\w.()]{1,254}",
    "container_registry": r"[a-zA-Z0-9]{5,50}",
    "identity": r"[a-zA-Z0-9][-\w]{2,127}",
    "training_identity": r"[a-zA-Z0-9][-\w]{2,127}",
    "serving_identity": r"[a-zA-Z0-9][-\w]{2,127}",
    "github_identity": r"[a-zA-Z0-9][-\w]{2,127}",
    "chat_store": r"[a-z0-9][a-z0-9-]{1,42}[a-z0-9]",
    "budget": r"[a-zA-Z0-9_-]{1,63}",
    "workspace": r"[a-zA-Z0-9][-\w]{2,32}",
}


@given(st.text(min_size=1, max_size=60), st.from_regex(r"[a-z][a-z0-9]{1,7}", fullmatch=True))
def test_every_name_with_the_providers_suffix_obeys_its_rule(stack: str, workload: str) -> None:
    names = Names.of(workload, stack)
    assert set(RULES) == set(LIMITS)
    for kind, rule in RULES.items():
        name = getattr(names, kind) + "0" * SUFFIX
        assert re.fullmatch(rule, name), (kind, name)
        assert len(name) <= LIMITS[kind]


def test_names_carry_cafs_abbreviations() -> None:
    names = Names.of("phi", "dev")
    assert (names.resource_group, names.workspace, names.key_vault) == ("rg-phi-dev-", "mlw-phi-dev-", "kv-phi-dev-")
    assert (names.storage_account, names.container_registry) == ("stphidev", "crphidev")


@pytest.mark.parametrize(("text", "wanted"), [("Feature/Ünicode_X", "feature-unicode-x"), ("", "x"), ("日本", "x")])
def test_a_slug_is_plain(text: str, wanted: str) -> None:
    assert slug(text) == wanted


@pytest.mark.parametrize("name", ["gpu-cluster", "abc", "gpu1", "a" * 24, "gpu-1a"])
def test_good_cluster_names(name: str) -> None:
    assert compute_name_problem(name) is None


@pytest.mark.parametrize("name", ["gpu-1", "ab", "1gpu", "a" * 25, "gpu_x", "gpu-", "gpu-007"])
def test_bad_cluster_names(name: str) -> None:
    assert compute_name_problem(name)
