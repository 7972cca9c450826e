"""The policy packs of one operation: started as Pulumi starts them, each in an environment of its own, and asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from emulator.pulumi_cli.errors import CliError
from emulator.pulumi_cli.goal import Goal, Values
from emulator.pulumi_cli.policy_pack import About, Pack, Violation
from emulator.pulumi_cli.project import read_yaml
from emulator.pulumi_cli.state import Resource


class Policies:
    """The packs of one operation, and what they found so far. `judge` may be called from any thread."""

    def __init__(self, packs: Sequence[Pack], *, stop: bool = False) -> None:
        self.packs, self._stop = packs, stop
        self.violations: list[Violation] = []
        self._lock = threading.Lock()

    def judge(self, goal: Goal, inputs: Values) -> Values:
        """The inputs, mended where a policy does that.

        Raises CliError for a mandatory violation if this operation changes something; a preview goes on.
        """
        for pack in self.packs:
            inputs = pack.mend(goal, inputs)
        self._note([one for pack in self.packs for one in pack.judge(goal, inputs)])
        return inputs

    def judge_stack(self, resources: Sequence[Resource], stack_urn: str) -> None:
        self._note([one for pack in self.packs for one in pack.judge_stack(resources, stack_urn)])

    def _note(self, found: list[Violation]) -> None:
        with self._lock:
            self.violations += found
        if self._stop and any(one.mandatory for one in found):
            raise CliError(refusal(found))


def refusal(violations: Iterable[Violation]) -> str:
    """The sentence that ends an operation because of mandatory violations."""
    names = sorted({one.policy for one in violations if one.mandatory})
    return f"refused by mandatory policies: {', '.join(names)}"


@contextmanager
def running(folders: Sequence[Path], configs: Sequence[Path], about: About) -> Iterator[list[Pack]]:
    """The packs of these folders, started, configured, and ended with the block."""
    with ExitStack() as ending:
        packs = []
        for number, folder in enumerate(folders):
            pack = Pack(folder.resolve(), ending.enter_context(_started(folder.resolve(), about)), about)
            pack.configure(_given(configs[number]) if configs else {})
            packs.append(pack)
        yield packs


@contextmanager
def _started(folder: Path, about: About) -> Iterator[int]:
    """The pack's process; gives its port."""
    command = [str(_interpreter(folder)), "-u", "-m", "pulumi.policy", "127.0.0.1:1", str(folder)]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, **_environment(about)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for us; we end the pack
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline().strip()
        if not line.isdecimal():
            process.kill()
            words = (line + process.stdout.read() + process.stderr.read()).strip() or "it ended without a word"
            raise CliError(f"the policy pack {folder} did not start: {words.splitlines()[-1]}{_install_hint(folder)}")
        for stream in (process.stdout, process.stderr):
            threading.Thread(target=_drain, args=(stream,), daemon=True).start()
        yield int(line)
    finally:
        process.kill()
        process.wait()


def _drain(stream: Any) -> None:
    """What the pack prints, to stderr; a pipe that nobody reads would stop it."""
    for line in stream:
        print(line, end="", file=sys.stderr, flush=True)


def _interpreter(folder: Path) -> Path:
    file = folder / "PulumiPolicy.yaml"
    if not file.is_file():
        raise CliError(f"{folder} is no policy pack: it has no PulumiPolicy.yaml")
    runtime = read_yaml(file).get("runtime")
    settings: dict[str, Any] = runtime if isinstance(runtime, dict) else {"name": runtime}
    if settings.get("name") != "python":
        raise CliError(f"{file}: this local pulumi runs policy packs in Python only, not {settings.get('name')!r}")
    environment = (settings.get("options") or {}).get("virtualenv")
    if not environment:
        return Path(sys.executable)
    found = folder / str(environment) / "bin" / "python"
    if not found.exists():
        raise CliError(f"the policy pack {folder} has no environment yet{_install_hint(folder)}")
    return found


def _install_hint(folder: Path) -> str:
    return f"\n  next: pulumi install --cwd {folder}"


def _environment(about: About) -> dict[str, str]:
    config = {key: entry.text for key, entry in about.config.items()}
    return {
        "PULUMI_ORGANIZATION": "organization",
        "PULUMI_PROJECT": about.project,
        "PULUMI_STACK": about.stack,
        "PULUMI_DRY_RUN": "true" if about.preview else "false",
        "PULUMI_CONFIG": json.dumps(config),
    }


def _given(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text() or "{}")
    except (OSError, ValueError) as error:
        raise CliError(f"cannot read the policies' configuration {file}: {error}") from None
    if not isinstance(values, dict):
        raise CliError(f"the policies' configuration {file} is not a JSON object")
    return values
