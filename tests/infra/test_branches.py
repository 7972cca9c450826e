"""The name of a branch's stack, and how long an environment lives."""

from __future__ import annotations

import re
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra import branches
from infra.branches import LONGEST, canonical, expiry, heads_of_origin, is_pull_request, moment, relative, stack_of
from infra.cli import WRONG_USE, UserError
from infra.naming import LIMITS, SUFFIX, Names

# What git lets a branch be called is stricter; a stack's name has to do for all of it.
BRANCHES = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=120)
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


@given(BRANCHES)
def test_every_branch_has_a_stack_name_that_pulumi_takes(branch: str) -> None:
    name = stack_of(branch)
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) and len(name) <= LONGEST
    assert stack_of(branch) == name == stack_of(f"refs/heads/{branch}") or is_pull_request(branch)


# One pair of a slug in 65,536 shares its four digits too (`up` looks for that), so these are always the same branches.
@settings(derandomize=True)
@given(BRANCHES, BRANCHES, st.sampled_from(["", "-", "/", "_", ".", "ß", "日"]))
def test_different_branches_have_different_stacks(one: str, other: str, between: str) -> None:
    alike = [
        one,
        other,
        f"{one}{between}{other}",
        f"{one}-{other}",
        f"{one}/{other}",
        one.swapcase(),
        f"{one}{between}",
    ]
    distinct = {canonical(branch) for branch in alike}
    assert len({stack_of(branch) for branch in distinct}) == len(distinct)


@pytest.mark.parametrize(
    ("one", "other"),
    [("feat/x", "feat-x"), ("Feat/x", "feat/x"), ("a" * 50, "a" * 51), ("ü", "u"), ("日本", "中国"), ("x_y", "x-y")],
)
def test_branches_that_look_alike_do_not_share_a_stack(one: str, other: str) -> None:
    assert stack_of(one) != stack_of(other)


@pytest.mark.parametrize("ref", ["refs/pull/12/merge", "refs/pull/12/head", "pr-12"])
def test_a_pull_request_is_named_by_its_number(ref: str) -> None:
    assert stack_of(ref) == canonical(ref) == "pr-12" and is_pull_request(ref)


@pytest.mark.parametrize("branch", ["pr-12-fix", "pr-x", "refs/pull/x/merge", "mypr-12"])
def test_a_branch_that_begins_like_a_pull_request_is_none(branch: str) -> None:
    assert not is_pull_request(branch) and re.search(r"-[0-9a-f]{4}$", stack_of(branch))


@pytest.mark.parametrize("branch", ["", "refs/heads/", "x" * 257, "a\nb"])
def test_what_can_be_no_branch_is_wrong_use(branch: str) -> None:
    with pytest.raises(UserError, match="is no branch") as error:
        stack_of(branch)
    assert error.value.code == WRONG_USE


@given(BRANCHES)
def test_the_names_in_azure_keep_their_limits(branch: str) -> None:
    names = vars(Names.of("workload", f"local-{stack_of(branch)}"))
    assert all(len(name) + SUFFIX <= LIMITS[kind] for kind, name in names.items())


# --- time -----------------------------------------------------------------------------------------------------------


def test_an_expiry_is_written_in_utc_and_read_back() -> None:
    elsewhere = NOW.astimezone(datetime.fromisoformat("2026-01-01T00:00:00+05:30").tzinfo)
    assert expiry(26, elsewhere) == "2026-11-22T14:00:00Z"
    assert moment("2026-11-22T14:00:00Z") == NOW + timedelta(hours=26)
    assert moment("2026-11-22T14:00:00") == moment("2026-11-22T14:00:00Z")


@pytest.mark.parametrize("text", ["", "soon", "2026-13-01T00:00:00Z"])
def test_what_is_no_time_is_none(text: str) -> None:
    assert moment(text) is None


@pytest.mark.parametrize(
    ("hours", "text"),
    [(-3, "3 h ago"), (5, "in 5 h"), (24, "in 24 h"), (72, "in 3 d"), (-0.5, "30 min ago"), (0.001, "in a moment")],
)
def test_a_distance_reads_as_people_say_it(hours: float, text: str) -> None:
    assert relative(NOW + timedelta(hours=hours), NOW) == text


# --- git ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with an `origin` that has the branches main and feat/x; one more is only here."""

    def git(*words: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path / "here"), *words], check=True, capture_output=True)

    subprocess.run(["git", "init", "-q", "--bare", str(tmp_path / "origin")], check=True)
    subprocess.run(["git", "init", "-q", "-b", "main", str(tmp_path / "here")], check=True)
    git("-c", "user.name=x", "-c", "user.email=x@y.z", "commit", "-q", "--allow-empty", "-m", "first")
    git("remote", "add", "origin", str(tmp_path / "origin"))
    for branch in ("feat/x", "unpushed"):
        git("branch", branch)
    git("push", "-q", "origin", "main", "feat/x")
    monkeypatch.setattr(branches, "PROJECT", tmp_path / "here")
    return tmp_path


def test_the_branches_of_origin_are_those_that_were_pushed(clone: Path) -> None:
    assert heads_of_origin() == {"main", "feat/x"}


def test_a_remote_that_does_not_answer_is_not_one_without_branches(clone: Path) -> None:
    (clone / "origin").rename(clone / "elsewhere")
    assert heads_of_origin() is None
