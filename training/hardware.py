"""What a process of the job computes on: device, memory, whether it computes in bfloat16, and how fast at most."""

from __future__ import annotations

import ctypes
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from training import ranks

GIB = 2**30

# Dense bfloat16 FLOP/s of one GPU, by a part of its name; the first that fits counts. From the makers' data sheets,
# half of the figure "with sparsity" where only that is given.
PEAK_FLOPS = {
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "GH200": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100": 989e12,
    "H800": 989e12,
    "GB200": 2500e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A800": 312e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "MI300X": 1307e12,
}


@dataclass(frozen=True)
class Hardware:
    """One process's share of a node. `memory` in bytes; `peak` in dense bfloat16 FLOP/s, None where it is not known."""

    kind: str
    name: str
    memory: int
    bf16: bool
    peak: float | None

    def __str__(self) -> str:
        return f"{self.name}, {self.memory / GIB:.0f} GiB{' each' if self.kind == 'cuda' else ''}"


def detect(processes: int = 1) -> Hardware:
    """The GPU of this process, or its share of the CPU where `processes` of them are on a node."""
    import torch

    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(ranks.local_rank())
        return Hardware(
            "cuda", device.name, device.total_memory, torch.cuda.is_bf16_supported(False), peak_flops(device.name)
        )
    bf16 = bool(torch.cpu._is_avx512_bf16_supported())
    return Hardware("cpu", f"{platform.machine()} CPU", _memory() // processes, bf16, None)


def peak_flops(gpu: str) -> float | None:
    """Dense bfloat16 FLOP/s of a GPU by the name that its driver gives it."""
    return next((peak for part, peak in PEAK_FLOPS.items() if part in gpu), None)


def _memory() -> int:
    """Bytes of memory that this machine, or the container it is, may use."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return whole
    return min(whole, int(limit)) if limit.isdigit() else whole


def keep_freed_memory() -> None:
    """Tell glibc not to give freed memory back: 1.9 times the speed on a virtual machine's CPU, where page faults are
    dear (M_MMAP_MAX, M_TRIM_THRESHOLD and M_TOP_PAD of mallopt(3)). Other C libraries keep their own ways."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 256 * 2**20)):
            libc.mallopt(option, value)
