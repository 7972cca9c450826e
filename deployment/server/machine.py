"""What this machine, or the container on it, offers: CPUs, memory, kinds of arithmetic."""

from __future__ import annotations

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
FAST_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")
"""CPU flags (the last one ARM's) without which bfloat16 is slower than float32."""


def cpu_quota() -> int:
    """CPUs that this process may use: its affinity mask, cut by the container's quota (cgroup v2), at least 1.

    More torch threads than that make every step wait for descheduled ones: 2 threads on one contended core were
    measured 20 times slower than one.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cpus = len(affinity(0)) if affinity else (os.cpu_count() or 1)
    try:
        quota, period = (CGROUP / "cpu.max").read_text().split()
        cpus = min(cpus, int(quota) // int(period))
    except (OSError, ValueError):
        pass  # no cgroup v2, or no quota ("max")
    return max(1, cpus)


def bfloat16_flag(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """The flag by which this CPU computes in bfloat16, None where it does not, or does not say."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return None
    flags = next((line.split() for line in lines if line.startswith(("flags", "Features"))), [])
    return next((flag for flag in FAST_BFLOAT16 if flag in flags), None)


def free_memory() -> int | None:
    """Bytes that may still be had: the machine's, cut by the container's limit (cgroup v2); None where unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return min(free, int(limit) - int(used))
    except (OSError, ValueError):
        return free  # no cgroup v2, or no limit ("max")
