"""`python -m training.node --gpus N`: whether this node can train on its GPUs, asked before anything is downloaded.

The image brings CUDA, the node its driver, and the two are chosen by different people at different times. A driver that
is too old would show minutes later, as an error of torch in the middle of its traceback.
"""

from __future__ import annotations

import importlib.util
import os
import runpy
import subprocess

from infra import cli
from infra.cli import UserError, say

# docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html: by CUDA's major version, the oldest driver
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
IMAGE = "choose another image in training/environment/Dockerfile, or another computeSize for the cluster"


def check(gpus: int) -> str:
    """A sentence about the node. Raises UserError if it cannot train on `gpus` GPUs."""
    found = installed_gpus()
    if not found:
        raise UserError(f"this node shows no NVIDIA GPU (nvidia-smi), and the job needs {gpus}", next_command=IMAGE)
    if len(found) < gpus:
        raise UserError(f"this node shows {len(found)} GPUs, and the job needs {gpus}", next_command=IMAGE)
    cuda, driver = torch_cuda(), found[0][1]
    if cuda is None:
        raise UserError("the image's torch is built without CUDA, and the job needs a GPU", next_command=IMAGE)
    oldest = OLDEST_DRIVER.get(int(cuda.split(".")[0]))
    if oldest is not None and int(driver.split(".")[0]) < oldest:
        raise UserError(
            f"the node's NVIDIA driver {driver} is too old for the image's CUDA {cuda}, which needs {oldest} or newer",
            next_command=IMAGE,
        )
    return f"node: {len(found)} x {found[0][0]}, driver {driver}, CUDA {cuda}"


def installed_gpus() -> list[tuple[str, str]]:
    """Name and driver version of each GPU; empty without a driver."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = done.stdout.strip().splitlines() if done.returncode == 0 else []
    return [(name.strip(), driver.strip()) for name, _, driver in (line.rpartition(",") for line in lines)]


def torch_cuda() -> str | None:
    """The CUDA version that torch was built with, without importing torch, which takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("the image has no torch", next_command=IMAGE)
    version = runpy.run_path(os.path.join(spec.submodule_search_locations[0], "version.py"))
    return version.get("cuda")


def main(argv: list[str]) -> int:
    parser = cli.parser("training.node", "Check that a node's driver and GPUs fit the image and the job.")
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="how many the job trains on (default: 1)")
    args = parser.parse_args(argv)
    sentence = check(args.gpus)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        say(sentence)
    return 0


if __name__ == "__main__":
    cli.run(main)
