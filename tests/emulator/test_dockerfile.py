"""A Dockerfile followed without Docker."""

from __future__ import annotations

from pathlib import Path

import pytest

from emulator.arm.schema import ArmError
from emulator.runner.dockerfile import build
from emulator.runner.jobs import parse_duration, substitute


def image(tmp_path: Path, text: str, **files: str):  # type: ignore[no-untyped-def]
    context = tmp_path / "context"
    context.mkdir()
    (context / "Dockerfile").write_text(text)
    for name, content in files.items():
        (context / name).write_text(content)
    return build(context, "Dockerfile", tmp_path / "root")


def test_copy_workdir_env_and_cmd_are_followed_and_run_is_skipped(tmp_path: Path) -> None:
    text = '# a comment\nFROM x\nWORKDIR /app\nCOPY one two sub/\nENV A=1 B="two words"\nRUN false\nCMD ["go", "now"]\n'
    made = image(tmp_path, text, one="1", two="2")
    assert made.argv == ["go", "now"]
    assert made.env == {"A": "1", "B": "two words"}
    assert made.skipped == ["false"]
    assert (made.cwd / "sub" / "two").read_text() == "2"


def test_the_shell_form_runs_in_a_shell(tmp_path: Path) -> None:
    assert image(tmp_path, "FROM x\nCMD echo $HOME\n").argv == ["/bin/sh", "-c", "echo $HOME"]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("FROM x\nCOPY missing /\nCMD a\n", "missing"),
        ("FROM x\n", "CMD"),
        ("FROM x\nWORKDIR ../../..\nCOPY Dockerfile /../../x\nCMD a", "leads out"),
    ],
)
def test_a_build_that_would_fail_fails(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(ArmError, match=word):
        image(tmp_path, text)


def test_a_command_gets_its_inputs_and_drops_what_is_optional() -> None:
    command = "run ${{inputs.a}} ${{ outputs.m }} $[[--b ${{inputs.b}}]] $[[--a ${{inputs.a}}]]"
    assert substitute(command, {"a": "1"}, {"m": "/out"}) == "run 1 /out  --a 1"
    with pytest.raises(ArmError, match=r"inputs\.b"):
        substitute("${{inputs.b}}", {}, {})


@pytest.mark.parametrize(("text", "seconds"), [("PT1H30M", 5400.0), ("PT0.5S", 0.5), ("P1DT1S", 86401.0), (None, None)])
def test_durations_are_seconds(text: str | None, seconds: float | None) -> None:
    assert parse_duration(text) == seconds
