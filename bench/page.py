"""docs/performance.md, made of the results that exist.

python -m bench.page            (writes it)
python -m bench.page --check    (exit code 1 if it is not what the results say)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from infra import cli
from infra.cli import FAILED

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
PAGE = ROOT / "docs" / "performance.md"
BASELINE = "guide"
NOT_MEASURED = "not measured"
CPU_BAR, GPU_BAR, MFU_BAR, LORA_BAR = 3.0, 2.2, 0.5, 28_000

Result = Mapping[str, Any]

# Computed from the shape of Phi-3.5-mini, for 8,192 tokens on one H200 (989 TFLOP/s dense bfloat16, of which 790 are
# taken as attainable; 4.3 TB/s; flash attention at 350 TFLOP/s): no run of ours.
MODELLED = (
    ("the guide's settings (eager attention, gradient checkpointing, bf16)", "9,100", "22 %"),
    ("+ flash attention", "14,600", "35 %"),
    ("+ no gradient checkpointing", "19,200", "46 %"),
    ("+ fused norms, SwiGLU and rotary embedding (compiled layers)", "23,500", "56 %"),
    ("+ packed documents, 32,768 tokens a step", "24,800", "59 %"),
    ("LoRA, rank 16 on all linear modules, no gradient checkpointing", "31,200", "51 %, of 4 FLOPs a parameter"),
)
INTRODUCTION = """# Performance

Made by `python -m bench.page` of the results in [bench/results](../bench/results): change nothing here by hand. A
figure stands beside the conditions it was measured under; ratios are of one run, in which the configurations took
turns. Tokens are useful ones: padding is not counted."""
BENCH = """## Measure it yourself

    make bench                                                        # a CPU: a small model
    python -m bench.training --minutes 10 --configs guide,ours,lora   # a GPU: Phi-3.5-mini's shape, random weights

`guide` and `ours` are the recipes [guide](../training/recipes/guide.yaml) and
[phi-3.5-mini](../training/recipes/phi-3.5-mini.yaml) with the batch of the workload: the same tokens a step for all.
`guide` runs under the C library's own memory management, as the guide's script does; the job keeps freed memory.
On a GPU host without network, torch, transformers and accelerate are enough, with trl, datasets and peft unpacked on
PYTHONPATH."""


def good(result: Mapping[str, Any], workload: str, config: str) -> list[Mapping[str, Any]]:
    """The rounds of a configuration that did not fail."""
    return [
        one for one in result["runs"] if (one["workload"], one["config"]) == (workload, config) and "error" not in one
    ]


def ratios(result: Mapping[str, Any], workload: str, config: str, key: str) -> list[float]:
    """How many times the guide's settings, round by round: a round's processes ran one after the other."""
    theirs = {one["round"]: one[key] for one in good(result, workload, BASELINE)}
    return [one[key] / theirs[one["round"]] for one in good(result, workload, config) if one["round"] in theirs]


def speed_key(result: Mapping[str, Any]) -> str:
    return "tokens_per_second" if result["device"] == "cuda" else "tokens_per_cpu_second"


def table(result: Mapping[str, Any]) -> str:
    """A run as tables in Markdown: speed of each configuration, then what it learned."""
    workloads = dict.fromkeys(one["workload"] for one in result["runs"])
    return "\n\n".join(_losses(result, name) if name == "loss" else _speeds(result, name) for name in workloads)


def _speeds(result: Mapping[str, Any], workload: str) -> str:
    key = speed_key(result)
    unit = "tokens/s" if key == "tokens_per_second" else "tokens per CPU-second"
    rows = [("configuration", f"{unit}: median (least to most)", "x guide, by round", "MFU", "peak memory")]
    for config in result["configs"]:
        runs = good(result, workload, config)
        if not runs:
            rows.append((config, _failure(result, workload, config), "", "", ""))
            continue
        speeds = [one[key] for one in runs]
        times = ", ".join(f"{ratio:.2f}" for ratio in ratios(result, workload, config, key))
        mfus = [one["mfu"] for one in runs if one["mfu"]]
        rows.append(
            (
                config,
                f"{median(speeds):,.0f} ({min(speeds):,.0f} to {max(speeds):,.0f})",
                times or "not measured",
                f"{median(mfus):.1%}" if mfus else "no peak on record",
                f"{max(one['peak_memory'] for one in runs) / 1e9:.2f} GB",
            )
        )
    return _markdown(rows)


def _failure(result: Mapping[str, Any], workload: str, config: str) -> str:
    errors = [one["error"] for one in result["runs"] if (one["workload"], one["config"]) == (workload, config)]
    return f"failed: {errors[0]}".replace("|", "\\|") if errors else "not measured"


def _losses(result: Mapping[str, Any], workload: str) -> str:
    rows = [("configuration", "tokens", "held-out loss before", "after", "change", "CPU-seconds")]
    for config in result["configs"]:
        for one in good(result, workload, config):
            change = one["loss_after"] - one["loss_before"]
            before, after = f"{one['loss_before']:.3f}", f"{one['loss_after']:.3f}"
            spent = f"{one['cpu_seconds']:,.0f}"
            rows.append((config, f"{one['tokens_in_all']:,}", before, after, f"{change:+.3f}", spent))
    return _markdown(rows)


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], f"|{' --- |' * len(rows[0])}", *lines[1:]])


def read_results(folder: Path = RESULTS) -> list[Result]:
    """All results, the newest first."""
    found: list[Result] = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    return sorted(found, key=lambda result: str(result["date"]), reverse=True)


def page(results: Sequence[Result]) -> str:
    """The whole of docs/performance.md."""
    sections = [INTRODUCTION, "## The bars", _bars(results), *map(_section, results), _modelled(), BENCH]
    return "\n\n".join(sections) + "\n"


def _bars(results: Sequence[Result]) -> str:
    cpu = next((result for result in results if result["device"] == "cpu" and result["shape"] == "small"), None)
    gpu = next((result for result in results if result["device"] == "cuda" and result["shape"] == "phi-3.5-mini"), None)
    rows = [
        ("bar", "measured", "met"),
        (f"CPU: useful tokens per CPU-second, {CPU_BAR:g} x the guide's settings", *_ratio(cpu, "ours", CPU_BAR)),
        ("CPU: lower held-out loss after the same number of tokens", *_lower(cpu)),
        (f"one H100 or H200, full fine-tune: {MFU_BAR:.0%} MFU", *_best(gpu, "mfu", ("ours", "compiled"), MFU_BAR)),
        (f"one H100 or H200, full fine-tune: {GPU_BAR:g} x the guide's settings", *_ratio(gpu, "ours", GPU_BAR)),
        (f"one H100 or H200, LoRA: {LORA_BAR:,} tokens/s", *_best(gpu, "tokens_per_second", ("lora",), LORA_BAR)),
    ]
    return _markdown(rows)


def _speed(result: Result) -> str:
    return f"speed-{'gpu' if result['device'] == 'cuda' else 'cpu'}"


def _ratio(result: Result | None, config: str, bar: float) -> tuple[str, str]:
    """The ratio of the medians of all rounds."""
    if result is None:
        return NOT_MEASURED, ""
    ours, theirs = (good(result, _speed(result), name) for name in (config, BASELINE))
    if not ours or not theirs:
        return NOT_MEASURED, ""
    key = speed_key(result)
    times = median(one[key] for one in ours) / median(one[key] for one in theirs)
    return f"{times:.2f} x", _yes(times >= bar)


def _lower(result: Result | None) -> tuple[str, str]:
    runs = {name: good(result, "loss", name) for name in ("ours", BASELINE)} if result else {}
    if not runs or not all(runs.values()):
        return NOT_MEASURED, ""
    ours, theirs = (one[0]["loss_after"] - one[0]["loss_before"] for one in (runs["ours"], runs[BASELINE]))
    return f"{ours:+.3f} nats, the guide's {theirs:+.3f}", _yes(ours < theirs)


def _best(result: Result | None, key: str, configs: Sequence[str], bar: float) -> tuple[str, str]:
    """The median of the fastest configuration."""
    runs = [good(result, _speed(result), name) for name in configs] if result else []
    figures = [median(one[key] for one in found) for found in runs if found and found[0][key] is not None]
    if not figures:
        return NOT_MEASURED, ""
    best = max(figures)
    return f"{best:.1%}" if key == "mfu" else f"{best:,.0f}", _yes(best >= bar)


def _yes(met: bool) -> str:
    return "yes" if met else "no"


def _section(result: Result) -> str:
    packages = ", ".join(f"{name} {found}" for name, found in result["packages"].items())
    dirty = ", with changes that were not committed" if result["uncommitted"] else ""
    trained = f", pre-trained for {result['pretraining_steps']} steps" if result["pretraining_steps"] else ""
    conditions = [
        f"- hardware: {result['hardware']}; its load at the end: {result['load']:g}, of which the benchmark is 1",
        f"- model: {result['shape']}, {result['parameters']:,} parameters, random weights{trained}",
        f"- date: {result['date']}; commit {result['commit'] or 'unknown'}{dirty}",
        f"- versions: Python {result['python']}, {packages}",
        f"- command: `{result['command']}`",
        f"- {result['flops']}",
    ]
    title = f"## Measured on {'a GPU' if result['device'] == 'cuda' else 'a CPU'}, {result['date'][:10]}"
    return "\n\n".join([title, "\n".join(conditions), table(result)])


def _modelled() -> str:
    rows = [("configuration", "tokens/s, modelled", "MFU, modelled"), *MODELLED]
    text = "Computed from the shape of the model for one H200 (989 TFLOP/s dense bfloat16). None of it was measured."
    return f"## Modelled: Phi-3.5-mini on one H200\n\n{text}\n\n{_markdown(rows)}"


def main(argv: list[str]) -> int:
    parser = cli.parser("bench.page", "Write docs/performance.md from the results in bench/results.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if it would change")
    args = parser.parse_args(argv)
    text = page(read_results())
    current = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
    if not args.check:
        PAGE.write_text(text, encoding="utf-8")
    cli.result({"page": str(PAGE), "current": current}, as_json=args.json)
    return FAILED if args.check and not current else 0


if __name__ == "__main__":
    cli.run(main)
