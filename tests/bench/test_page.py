"""docs/performance.md says what the results say, and what has no result is not measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench import page


def run(config: str, number: int, speed: float, workload: str = "speed-cpu", **more: Any) -> dict[str, Any]:
    figures = {
        "tokens_per_cpu_second": speed,
        "tokens_per_second": speed / 2,
        "mfu": None,
        "peak_memory": 2_000_000_000,
    }
    losses = {"loss_before": 9.0, "loss_after": 8.5, "tokens_in_all": 1000, "cpu_seconds": 10.0}
    return {"config": config, "round": number, "workload": workload, **figures, **losses, **more}


def result(runs: list[dict[str, Any]], device: str = "cpu") -> dict[str, Any]:
    return {
        "date": "2026-01-02 03:04 UTC",
        "commit": "abc1234",
        "uncommitted": False,
        "command": "python -m bench.training",
        "device": device,
        "hardware": "a processor",
        "shape": "small" if device == "cpu" else "phi-3.5-mini",
        "parameters": 1000,
        "configs": dict.fromkeys(one["config"] for one in runs),
        "pretraining_steps": 0,
        "flops": "counted so",
        "python": "3.11",
        "packages": {"torch": "2"},
        "load": 1.5,
        "runs": runs,
    }


CPU = result(
    [
        *(run("guide", number, speed) for number, speed in ((1, 100.0), (2, 120.0), (3, 110.0))),
        *(run("ours", number, speed) for number, speed in ((1, 400.0), (2, 300.0), (3, 440.0))),
        run("guide", 1, 100.0, "loss", loss_after=8.99),
        run("ours", 1, 100.0, "loss"),
    ]
)


def test_the_page_in_docs_is_what_the_results_say() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.page(page.read_results()), "run: python -m bench.page"


def test_without_results_every_bar_is_not_measured() -> None:
    bars = page._bars([]).splitlines()[2:]
    assert len(bars) == 5
    assert all(line.split("|")[2].strip() == page.NOT_MEASURED for line in bars)


def test_a_result_on_a_cpu_says_nothing_about_a_gpu() -> None:
    bars = page._bars([CPU]).splitlines()[2:]
    assert [page.NOT_MEASURED in line for line in bars] == [False, False, True, True, True]


def test_the_ratio_is_that_of_the_medians() -> None:
    assert page._ratio(CPU, "ours", 3.0) == ("3.64 x", "yes")
    assert page._ratio(CPU, "ours", 3.7) == ("3.64 x", "no")


def test_rounds_are_compared_with_their_own_round() -> None:
    assert page.ratios(CPU, "speed-cpu", "ours", "tokens_per_cpu_second") == [4.0, 2.5, 4.0]


def test_the_table_says_median_spread_and_ratio() -> None:
    lines = page.table(CPU).splitlines()
    assert "| ours | 400 (300 to 440) | 4.00, 2.50, 4.00 | no peak on record | 2.00 GB |" in lines
    assert "| guide | 1,000 | 9.000 | 8.990 | -0.010 | 10 |" in lines


def test_a_loss_that_is_not_lower_does_not_meet_its_bar() -> None:
    worse = result([run("guide", 1, 1.0, "loss", loss_after=8.0), run("ours", 1, 1.0, "loss")])
    assert page._lower(worse)[1] == "no"
    assert page._lower(CPU) == ("-0.500 nats, the guide's -0.010", "yes")


def test_the_machines_load_stands_with_its_name() -> None:
    assert "- hardware: a processor; its load at the end: 1.5, of which the benchmark is 1\n" in page.page([CPU])


def test_a_failed_configuration_is_named_and_the_others_stay() -> None:
    lora = {"config": "lora", "round": 1, "workload": "speed-gpu", "error": "no module a|b"}
    full = run("compiled", 1, 50_000.0, "speed-gpu", mfu=0.55)
    found = result([full, lora], device="cuda")
    assert "failed: no module a\\|b" in page.table(found)
    assert page._best(found, "mfu", ("ours", "compiled"), 0.5) == ("55.0%", "yes")
    assert page._best(found, "tokens_per_second", ("lora",), 28_000) == (page.NOT_MEASURED, "")


def test_modelled_figures_are_called_modelled() -> None:
    text = page.page([])
    heading, rest = text.split("## Modelled", 1)
    assert "24,800" not in heading and "24,800" in rest
    assert "None of it was measured" in rest


def test_check_finds_a_page_that_was_changed_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "PAGE", tmp_path / "performance.md")
    assert page.main(["--check"]) == 1
    assert page.main([]) == 0
    assert page.main(["--check"]) == 0
    page.PAGE.write_text(page.PAGE.read_text().replace("modelled", "measured"))
    assert page.main(["--check"]) == 1
