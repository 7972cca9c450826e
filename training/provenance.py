"""Of what code and what packages a run is made, as far as this machine knows."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

UNKNOWN = "unknown"


def commit() -> str:
    """The git commit of this code, with `-dirty` if it was changed since; `unknown` where neither is on record.

    A job's node has a snapshot without git: whoever submits the job sets GIT_COMMIT in its environment.
    """
    if told := os.environ.get("GIT_COMMIT"):
        return told
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return UNKNOWN
    return done.stdout.strip() or UNKNOWN


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
