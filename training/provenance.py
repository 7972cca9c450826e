"""Of what code and what packages a run is made, as far as this machine knows."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent
CODE = ("infra/__init__.py", "infra/cli.py", "training")
"""What a job is made of; its node needs nothing else of the project."""


@dataclass(frozen=True)
class GitState:
    """The commit of a checkout, `unknown` where there is no git, and whether the job's code differs from it."""

    commit: str
    dirty: bool

    def __str__(self) -> str:
        return self.commit[:12] + ("-dirty" if self.dirty else "")


def git_state() -> GitState:
    try:
        commit = _git("rev-parse", "HEAD").strip()
        return GitState(commit, bool(_git("status", "--porcelain", "--", *CODE).strip()))
    except (OSError, subprocess.SubprocessError):
        return GitState("unknown", False)


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=FOLDER, capture_output=True, text=True, check=True, timeout=30).stdout


def commit() -> str:
    """The git commit of this code, shortened, with `-dirty` if it was changed since.

    A job's node has a snapshot without git: whoever submits the job sets GIT_COMMIT in its environment.
    """
    return os.environ.get("GIT_COMMIT") or str(git_state())


def environment() -> str:
    """What this process runs on and with: Python, platform, GPUs, and every installed package, one a line."""
    found = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
    packages = sorted(f"{name}=={version}" for name, version in found.items() if name)
    head = [f"# Python {platform.python_version()}, {platform.platform()}", f"# {_gpus()}", f"# commit {commit()}"]
    return "\n".join([*head, *packages]) + "\n"


def _gpus() -> str:
    import torch

    if not torch.cuda.is_available():
        return "no GPU"
    return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
