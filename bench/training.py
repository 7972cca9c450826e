"""What our recipe is worth beside the guide's own settings, on today's libraries and this machine.

    python -m bench.training                                        (a CPU: about ten minutes, a small model)
    python -m bench.training --minutes 10 --configs guide,ours,lora (a GPU: random weights of Phi-3.5-mini's shape)

Every round runs each configuration once, each in a process of its own; only figures of one run are to be compared. On a
CPU the configurations also train on the same tokens from the same small pre-trained model: `loss`. The result is one
JSON file; `python -m bench.page` makes docs/performance.md of all that lie in bench/results/.

It needs torch, transformers, accelerate, datasets and trl (peft for `lora`), wherever they lie on PYTHONPATH, and no
network. The path on a GPU has not run on one yet.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench.measure import CONFIGURATIONS, WORKLOADS
from bench.page import table
from bench.synthetic import SHAPES
from infra import cli
from infra.cli import WRONG_USE, UserError

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
PACKAGES = ("torch", "transformers", "trl", "accelerate", "peft", "datasets")
FLOPS = (
    "model FLOPs: 6 a parameter that is multiplied (4 where frozen, 6 in adapters), attention as causal within a "
    "document; what checkpointing computes again is not counted; of the dense bfloat16 peak"
)


@dataclass(frozen=True)
class Request:
    """What to measure. `seconds`: for one process, None as long as its steps take."""

    configs: tuple[str, ...]
    workloads: tuple[str, ...]
    rounds: int
    shape: str
    device: str
    seconds: float | None
    pretraining: int
    out: Path


def measure_all(request: Request) -> dict[str, Any]:
    """Every run, and the circumstances. One that fails is noted with its last line; the rest goes on."""
    runs = []
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        weights = _pretrained(request, folder)
        for workload, number, config in _rounds(request):
            cli.say(f"{workload}, round {number}: {config}")
            found = _in_a_process(request, config, workload, weights, folder / "result.json")
            cli.say(f"  {_line(found)}")
            runs.append({"workload": workload, "round": number, "config": config, **found})
    return {**circumstances(request), "runs": runs}


def _rounds(request: Request) -> Iterator[tuple[str, int, str]]:
    """Configurations interleaved, so that a machine that slows down slows all; the loss needs one round."""
    for workload in request.workloads:
        for number in range(1, 1 + (1 if workload == "loss" else request.rounds)):
            for config in request.configs:
                yield workload, number, config


def _pretrained(request: Request, folder: Path) -> Path | None:
    if not request.pretraining:
        return None
    cli.say(f"pre-training the small model on another domain: {request.pretraining} steps")
    out = folder / "weights"
    failed = _call(["--shape", request.shape, "--pretrain", str(request.pretraining), "--out", str(out)], None)
    if failed:
        raise UserError(f"the pre-training failed: {failed}")
    return out


def _in_a_process(request: Request, config: str, workload: str, weights: Path | None, out: Path) -> dict[str, Any]:
    out.unlink(missing_ok=True)
    words = ["--config", config, "--workload", workload, "--shape", request.shape, "--device", request.device]
    words += ["--weights", str(weights)] if weights else []
    words += ["--seconds", str(request.seconds)] if request.seconds else []
    if failed := _call([*words, "--out", str(out)], request.seconds):
        return {"error": failed}
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def _call(words: Sequence[str], seconds: float | None) -> str | None:
    """Run bench.measure; the last line that it said if it failed. One that hangs is ended at twice its time."""
    threads = {} if "cuda" in words else {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "bench.measure", *words],
            cwd=ROOT,
            env={**os.environ, **threads, **quiet},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=2 * seconds + 60 if seconds else None,
        )
    except subprocess.TimeoutExpired:
        return f"it was ended after {2 * (seconds or 0) + 60:.0f} s"
    lines = ended.stderr.strip().splitlines() or ["it said nothing"]
    return lines[-1][:300] if ended.returncode else None


def _line(found: dict[str, Any]) -> str:
    if "error" in found:
        return f"failed: {found['error']}"
    mfu = f", MFU {found['mfu']:.1%}" if found["mfu"] else ""
    return (
        f"{found['tokens_per_second']:,.0f} tokens/s, {found['tokens_per_cpu_second']:,.0f} a CPU-second{mfu}, "
        f"{found['peak_memory'] / 1e9:.2f} GB, held-out loss {found['loss_before']} to {found['loss_after']}"
    )


def circumstances(request: Request) -> dict[str, Any]:
    """Where, when, with what: a figure means nothing without. `load`: the machine's, over the last 5 minutes."""
    from bench.synthetic import configuration
    from training import hardware
    from training.estimate import shape_of

    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _git("rev-parse", "--short", "HEAD"),
        "uncommitted": bool(_git("status", "--porcelain", "--", "training", "bench")),
        "command": f"python -m bench.training {' '.join(sys.argv[1:])}".strip(),
        "device": request.device,
        "hardware": str(hardware.detect()) if request.device == "cuda" else _cpu(),
        "shape": request.shape,
        "parameters": shape_of(configuration(request.shape).to_dict()).parameters,
        "configs": {name: _described(name) for name in request.configs},
        "pretraining_steps": request.pretraining,
        "flops": FLOPS,
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "rounds": request.rounds,
        "load": round(os.getloadavg()[1], 1),
    }


def _described(name: str) -> dict[str, Any]:
    one = CONFIGURATIONS[name]
    return {"recipe": one.recipe, "changes": list(one.changes), "keeps_memory": one.keeps_memory}


def _cpu() -> str:
    """The processor's name, as Linux gives it, and how many this machine has; one of them is used."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
    return f"{name}, {os.cpu_count()} virtual cores, 1 thread"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*words: str) -> str:
    """What git says, or nothing where there is none."""
    try:
        said = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return said.stdout.strip()


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    request = _request(args)
    begun = time.monotonic()
    found = measure_all(request)
    request.out.parent.mkdir(parents=True, exist_ok=True)
    request.out.write_text(json.dumps(found, indent=1) + "\n")
    cli.say(f"{time.monotonic() - begun:.0f} s; next: python -m bench.page")
    if args.json:
        cli.result({"result": str(request.out), **found}, as_json=True)
    else:
        print(table(found))
        print(f"result: {request.out}")
    return 0 if all("error" not in one for one in found["runs"]) else cli.FAILED


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("bench.training", "Measure our recipe beside the guide's settings, in interleaved rounds.")
    add = parser.add_argument
    add("--configs", metavar="A,B", help=f"of {', '.join(CONFIGURATIONS)} (default: guide,ours; on a GPU all)")
    add("--rounds", type=int, default=3, metavar="N", help="default: %(default)s")
    add("--minutes", type=float, metavar="M", help="divided among all processes (on a GPU 10 without it)")
    add("--device", choices=("cpu", "cuda"), help="default: the GPU, where there is one")
    add("--shape", choices=SHAPES, help="of the model (default: phi-3.5-mini on a GPU, else small)")
    add("--workloads", metavar="A,B", help=f"of {', '.join(WORKLOADS)} (default: by the device)")
    add("--pretraining", type=int, metavar="STEPS", help="of the small model (default: 150; none on a GPU)")
    add("--out", type=Path, metavar="FILE", help="default: a new file in bench/results")
    return parser


def _request(args: argparse.Namespace) -> Request:
    import torch

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    cuda = device == "cuda"
    configs = _names(args.configs or (",".join(CONFIGURATIONS) if cuda else "guide,ours"), CONFIGURATIONS)
    workloads = _names(args.workloads or ("speed-gpu" if cuda else "speed-cpu,loss"), WORKLOADS)
    if args.rounds < 1 or (args.minutes is not None and args.minutes <= 0):
        raise UserError("--rounds and --minutes must be more than 0", code=WRONG_USE)
    minutes = args.minutes or (10 if cuda else None)
    pretraining = args.pretraining if args.pretraining is not None else 0 if cuda else 150
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M")
    count = len(configs) * sum(1 if one == "loss" else args.rounds for one in workloads)
    return Request(
        configs=configs,
        workloads=workloads,
        rounds=args.rounds,
        shape=args.shape or ("phi-3.5-mini" if cuda else "small"),
        device=device,
        seconds=60 * minutes / count if minutes else None,
        pretraining=pretraining,
        out=args.out or RESULTS / f"training-{device}-{stamp}.json",
    )


def _names(text: str, known: Any) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in known:
            raise UserError(f"{name!r} is none of {', '.join(known)}", code=WRONG_USE)
    return names


if __name__ == "__main__":
    cli.run(main)
