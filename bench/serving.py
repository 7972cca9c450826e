"""What our server is worth beside the guide's way, MLflow's scoring server, on the same model and machine.

    python -m bench.serving                      (about ten minutes: a model of 134 million random weights)
    python -m bench.serving --cores 1            (each server on one core, and with one thread)
    python -m bench.serving --table FILE         (a result again, as a table)

All servers are up at once and take turns: every round asks each of them, with 1, 4 and 16 clients, so that a machine
that slows down slows all. Each has the same cores and threads, and what is compared first is tokens for a second of the
processor's time, which the neighbours on a shared machine do not change. Only figures of one run are to be compared.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psutil

from bench.serving_load import NEW_TOKENS, Target, first_token, measure
from bench.serving_model import CORPUS, SHAPES
from infra import cli
from infra.cli import WRONG_USE, UserError

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results" / "serving"
CLIENTS = (1, 4, 16)
BASELINE = "guide fp32"
PACKAGES = ("torch", "transformers", "mlflow", "openvino", "openvino-genai", "uvicorn", "starlette")


@dataclass(frozen=True)
class Configuration:
    """A server to be measured: MLflow's (`guide`) or ours with an engine."""

    guide: bool = False
    engine: str = "transformers"
    dtype: str = "float32"


CONFIGURATIONS = {
    BASELINE: Configuration(guide=True),
    "guide bf16": Configuration(guide=True, dtype="bfloat16"),
    "transformers fp32": Configuration(),
    "transformers bf16": Configuration(dtype="bfloat16"),
    "openvino int8": Configuration(engine="openvino"),
}
# (what, configuration, key, clients, bar, at least that many times the guide's or at most that part of it)
BARS = (
    ("tokens, 1 client", "transformers fp32", "tokens_per_cpu_second", 1, 1.0),
    ("tokens, 16 clients", "transformers fp32", "tokens_per_cpu_second", 16, 4.0),
    ("tokens, 16 clients", "transformers bf16", "tokens_per_cpu_second", 16, 8.0),
    ("tokens, 1 client", "openvino int8", "tokens_per_cpu_second", 1, 5.0),
    ("tokens, 16 clients", "openvino int8", "tokens_per_cpu_second", 16, 12.0),
    ("p50 latency, 16 clients", "transformers bf16", "latency_p50", 16, 6.0),
    ("p50 latency, 16 clients", "openvino int8", "latency_p50", 16, 15.0),
)


def run(
    names: Sequence[str], rounds: int, shape: str, cores: int = 1, clients: Sequence[int] = CLIENTS
) -> dict[str, Any]:
    """Start the servers, measure them in turns, and say under what circumstances."""
    with tempfile.TemporaryDirectory(prefix="bench-") as place, ExitStack() as servers:
        folder = Path(place)
        parameters = int(_model("--folder", str(folder / "model"), "--shape", shape))
        targets = [servers.enter_context(_served(name, folder, cores)) for name in names]
        runs = list(_rounds(targets, rounds, clients))
        ours = [target for target in targets if not target.guide]
        first = {target.name: first_token(target) for target in ours}
        prompt = _prompt_tokens(ours[0]) if ours else 0
        words = ["--folder", str(folder / "model"), "--forward", str(prompt), "--threads", str(cores)]
        forward = {
            dtype: float(_model(*words, "--dtype", dtype))
            for dtype in sorted({CONFIGURATIONS[target.name].dtype for target in ours})
        }
        startup = {target.name: [round(seconds, 1) for seconds in target.startup] for target in targets}
    return {
        **circumstances(names, rounds, shape, parameters, cores),
        "startup_seconds": startup,
        "first_token": first,
        "prompt_tokens": prompt,
        "forward_pass": forward,
        "runs": runs,
    }


def _rounds(targets: Sequence[Target], rounds: int, clients: Sequence[int]) -> Iterator[dict[str, Any]]:
    for number in range(1, rounds + 1):
        for count in clients:
            for target in targets:
                found = measure(target, count, requests=max(2, count))
                cli.say(
                    f"round {number}, {count:>2} clients, {target.name}: {found['tokens_per_cpu_second']:.0f} tokens a "
                    f"CPU-second, {found['tokens_per_second']:.0f} a second, p50 {found['latency_p50']:.2f} s"
                )
                yield {"round": number, "clients": count, "config": target.name, **found}


def _model(*words: str) -> str:
    """bench.serving_model in a process of its own; the last line that it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.serving_model", *words], cwd=ROOT, env=_env(), capture_output=True, text=True
    )
    if done.returncode:
        raise UserError(f"the model could not be made: {(done.stderr.strip() or 'it said nothing').splitlines()[-1]}")
    return (done.stdout.strip() or "0").splitlines()[-1]


def _env(threads: int = 1) -> dict[str, str]:
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), **quiet}


@contextmanager
def _served(name: str, folder: Path, cores: int) -> Iterator[Target]:
    """The configuration's server, from its start until it is ready, and ended afterwards."""
    configuration, port, env = CONFIGURATIONS[name], _free_port(), _env(cores)
    cli.say(f"starting {name}")
    if configuration.guide:
        saved = folder / f"mlflow-{configuration.dtype}"
        _model("--folder", str(folder / "model"), "--mlflow", str(saved), "--dtype", configuration.dtype)
        # what `mlflow models serve --env-manager local` starts, with what it hands over by the environment
        command = ["-m", "uvicorn", "mlflow.pyfunc.scoring_server.app:app", "--port", str(port)]
        env["__pyfunc_model_path__"] = str(saved)
        env["MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT"] = "600"  # 60 s without it, too few for 16 clients that queue
    else:
        served = _exported(folder) if configuration.engine == "openvino" else folder / "model"
        command = ["-m", "deployment.server", "--model", str(served), "--port", str(port), "--threads", str(cores)]
        command += ["--engine", configuration.engine, "--dtype", configuration.dtype]
    log = (folder / f"{name}.log").open("w")
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=env,
        stdout=log,
        stderr=log,
        preexec_fn=lambda: os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-cores:]),
    )
    try:
        target = Target(name, f"http://127.0.0.1:{port}", psutil.Process(process.pid), configuration.guide)
        _wait(target, process, folder / f"{name}.log")
        target.startup = time.monotonic() - began, target.cpu_seconds()
        yield target
    finally:
        process.kill()
        process.wait()
        log.close()


def _exported(folder: Path) -> Path:
    out, held_out = folder / "openvino", folder / "held-out.jsonl"
    question, answer = ({"role": role, "content": CORPUS[0]} for role in ("user", "assistant"))
    held_out.write_text(json.dumps({"messages": [question, answer]}) + "\n")
    words = ["--model", str(folder / "model"), "--eval", str(held_out), "--out", str(out)]
    subprocess.run(
        [sys.executable, "-m", "deployment.server.openvino_export", *words], cwd=ROOT, env=_env(), check=True
    )
    return out


def _wait(target: Target, process: subprocess.Popen[bytes], log: Path) -> None:
    path = "/ping" if target.guide else "/ready"
    for _ in range(1200):
        try:
            if httpx.get(f"{target.url}{path}", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise UserError(f"{target.name} does not start: {(log.read_text().strip() or 'it said nothing').splitlines()[-1]}")


def _prompt_tokens(target: Target) -> int:
    path, body = target._request()
    reply = httpx.post(f"{target.url}{path}", json={**body, "max_tokens": 1}, trust_env=False, timeout=60)
    return int(reply.json()["usage"]["prompt_tokens"])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def circumstances(names: Sequence[str], rounds: int, shape: str, parameters: int, cores: int) -> dict[str, Any]:
    """Where, when, with what: a figure means nothing without."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit.stdout.strip(),
        "command": f"python -m bench.serving {' '.join(sys.argv[1:])}".strip(),
        "hardware": _cpu(),
        "cores": cores,
        "load": round(os.getloadavg()[0], 2),
        "shape": {"name": shape, "parameters": parameters, **SHAPES[shape]},
        "new_tokens": NEW_TOKENS,
        "rounds": rounds,
        "configs": list(names),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    kinds = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{name} ({', '.join(kinds)}), {os.cpu_count()} virtual cores"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def ratios(result: Mapping[str, Any], config: str, key: str, clients: int) -> list[float]:
    """Round by round: how many times the guide's tokens, or what part of its latency (as "times faster")."""
    found = {(one["round"], one["config"]): one[key] for one in result["runs"] if one["clients"] == clients}
    rounds = range(1, result["rounds"] + 1)
    pairs = [(found[number, config], found[number, BASELINE]) for number in rounds if (number, config) in found]
    return [theirs / ours if key.startswith("latency") else ours / theirs for ours, theirs in pairs]


def table(result: Mapping[str, Any]) -> str:
    """The result as Markdown: tokens a CPU-second by clients, what else was seen, and the bars."""
    counts = sorted({one["clients"] for one in result["runs"]})
    head = ["server", *(f"{count} client{'s' * (count > 1)}" for count in counts), "p50 latency", "health p50 (worst)"]
    rows: list[Sequence[str]] = [[*head, "memory", "start"]]
    rows += [_row(result, config, counts) for config in result["configs"]]
    return f"{_markdown(rows)}\n\n{_markdown(_bars(result))}"


def _row(result: Mapping[str, Any], config: str, counts: Sequence[int]) -> list[str]:
    runs = [one for one in result["runs"] if one["config"] == config]
    most = [one for one in runs if one["clients"] == counts[-1]]
    cells = [config]
    for count in counts:
        speeds = [one["tokens_per_cpu_second"] for one in runs if one["clients"] == count]
        times = median(ratios(result, config, "tokens_per_cpu_second", count))
        cells.append(f"{median(speeds):.0f} ({min(speeds):.0f} to {max(speeds):.0f}), {times:.1f} x")
    cells.append(f"{median(one['latency_p50'] for one in most):.2f} s")
    usual, worst = median(one["probe_p50"] for one in runs), max(one["probe_worst"] for one in runs)
    cells.append(f"{1000 * usual:.0f} ms ({1000 * worst:.0f})")
    cells.append(f"{max(one['memory'] for one in runs) / 1e9:.2f} GB")
    cells.append("{:.0f} s ({:.0f} CPU-s)".format(*result["startup_seconds"][config]))
    return cells


def _bars(result: Mapping[str, Any]) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [("bar", "server", "wanted", "median (each round)", "met")]
    for what, config, key, clients, bar in BARS:
        if config not in result["configs"] or BASELINE not in result["configs"]:
            continue
        found = ratios(result, config, key, clients)
        each = ", ".join(f"{one:.2f}" for one in found)
        wanted = f"1/{bar:g}" if key.startswith("latency") else f"{bar:g} x"
        rows.append((what, config, wanted, f"{median(found):.2f} ({each})", "yes" if median(found) >= bar else "no"))
    for config, first in result["first_token"].items():
        passes = first["least"] / result["forward_pass"][CONFIGURATIONS[config].dtype]
        met = "yes" if passes < 2 else "no"
        rows.append(("first token, 1 client", config, "2 forward passes", f"{passes:.2f} (the best of five)", met))
    return rows


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], f"|{' --- |' * len(rows[0])}", *lines[1:]])


def main(argv: list[str]) -> int:
    parser = cli.parser("bench.serving", "Measure our server beside MLflow's scoring server, in interleaved rounds.")
    parser.add_argument("--configs", metavar="A,B", help=f"of {', '.join(CONFIGURATIONS)} (default: all that can run)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default: %(default)s")
    parser.add_argument("--shape", choices=SHAPES, default="134m", help="of the model (default: %(default)s)")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--cores", type=int, default=cores, metavar="N", help="of each server (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: a new file in bench/results/serving")
    parser.add_argument("--table", type=Path, metavar="FILE", help="measure nothing; the tables of this result")
    given = parser.parse_args(argv)
    if given.table:
        print(table(json.loads(given.table.read_text())))
        return 0
    found = run(_names(given.configs), given.rounds, given.shape, given.cores)
    out = given.out or RESULTS / f"{datetime.now(UTC):%Y%m%d-%H%M}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")
    if given.json:
        cli.result({"result": str(out), **found}, as_json=True)
    else:
        print(f"{table(found)}\n\nresult: {out}")
    return 0


def _names(text: str | None) -> list[str]:
    if text is None:
        can = find_spec("openvino_genai") is not None
        return [name for name, one in CONFIGURATIONS.items() if one.engine != "openvino" or can]
    names = text.split(",")
    if wrong := [name for name in names if name not in CONFIGURATIONS]:
        raise UserError(f"{wrong[0]!r} is none of {', '.join(CONFIGURATIONS)}", code=WRONG_USE)
    if BASELINE not in names:
        raise UserError(f"{BASELINE!r}, which all others are compared with, is not among them", code=WRONG_USE)
    return names


if __name__ == "__main__":
    cli.run(main)
