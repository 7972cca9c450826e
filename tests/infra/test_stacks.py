"""Pulumi's names for stacks, its failures in one sentence, and Ctrl-C while it works."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import Any

import pytest
from pulumi.automation._cmd import CommandResult
from pulumi.automation.errors import create_command_error

from infra import stacks
from infra.cli import WRONG_USE, UserError

REAL_FAILURE = """
 code: 255
 stdout: Updating (x):
 ~  azure-native:resources:ResourceGroup rg- **updating failed** [diff: ~tags]; error: ScopeLocked: it is locked
Diagnostics:
  pulumi:pulumi:Stack (finetune-phi-x):
    warning: using a plugin
    error: update failed

  azure-native:resources:ResourceGroup (rg-):
    error: ScopeLocked: it is locked

  azure-native:keyvault:Vault (kv-):
    error: Conflict: it is taken

Resources:
    1 errored
 stderr: """
REAL_LOCK = """
error: the stack is currently locked by 1 lock(s). Either wait for the other process(es) to end or delete the lock file
  file:///state/.pulumi/locks/organization/finetune-phi/x/1.json: created by root@host (pid 12) at 2026-11-21T15:00:00Z
"""
OUR_LOCK = "error: the stack is currently locked by another update of 'x' (process 12); wait until it has ended"


def rows(*names: str, current: str = "") -> list[Any]:
    return [SimpleNamespace(name=name, current=name == current) for name in names]


def test_a_stack_is_found_by_its_last_name_whatever_pulumi_puts_before_it() -> None:
    listed = rows("dev", "acme/test", "acme/finetune-phi/feat-x-79b4")
    for name, whole in (("dev", "dev"), ("test", "acme/test"), ("feat-x-79b4", "acme/finetune-phi/feat-x-79b4")):
        assert getattr(stacks.named(listed, name), "name", None) == whole
    assert stacks.named(listed, "acme/test") is listed[1] and stacks.named(listed, "x") is None


def test_a_name_that_two_organisations_have_is_asked_for_in_full() -> None:
    with pytest.raises(UserError, match="several stacks: acme/dev, other/dev") as error:
        stacks.named(rows("acme/dev", "other/dev"), "dev")
    assert error.value.code == WRONG_USE
    assert stacks.named(rows("dev", "other/dev"), "dev") is not None


def test_the_selected_stack_is_the_default() -> None:
    assert stacks.selected(rows("a", "b", current="b")) == "b"
    with pytest.raises(UserError, match="none is selected"):
        stacks.selected(rows("a"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (REAL_FAILURE, "ScopeLocked: it is locked; Conflict: it is taken"),
        ("\\n code: 1\\n stdout: a tree\\n stderr: info: this\\nerror: the name is taken\\n", "the name is taken"),
        ("\\n code: 1\\n stdout: half\\n done\\n stderr: ", "pulumi failed: done"),
        ("", "pulumi failed: it gave no reason"),
    ],
)
def test_a_failure_is_one_sentence(text: str, said: str) -> None:
    assert stacks.reason(text.replace("\\n", "\n")) == said


@pytest.mark.parametrize(("text", "holder"), [(REAL_LOCK, "root@host (pid 12) at 2026"), (OUR_LOCK, "process 12")])
def test_a_locked_stack_is_said_with_its_holder_and_the_command_that_unlocks(text: str, holder: str) -> None:
    locked = create_command_error(CommandResult(stdout="", stderr=text, code=255))
    with pytest.raises(UserError) as error, stacks.pulumi_ends("x"):
        raise locked
    assert holder in error.value.message and "pulumi cancel --yes --stack x" in str(error.value)


def test_an_interrupt_waits_for_pulumi_and_then_ends_the_verb(capsys: pytest.CaptureFixture[str]) -> None:
    went_on = False
    with pytest.raises(KeyboardInterrupt), stacks.pulumi_ends("x"):
        signal.raise_signal(signal.SIGINT)
        went_on = True
        raise create_command_error(CommandResult(stdout="", stderr="error: update cancelled", code=255))
    assert went_on and "waiting until pulumi" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
