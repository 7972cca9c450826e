"""The benchmark itself, on a tiny model: it runs the job's own code, and counts what it says it counts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import mean

import pytest

from bench import measure, synthetic, training
from bench.measure import CONFIGURATIONS, WORKLOADS, recipe_for, rows_for
from infra.cli import UserError
from training import packing
from training.prompt import IGNORED


def test_chats_have_the_lengths_and_shares_of_the_real_ones() -> None:
    chats = synthetic.conversations("b", 400_000, 0)
    lengths = sorted(len(ids) for ids, _ in chats)
    assert mean(lengths) == pytest.approx(synthetic.MEAN_LENGTH, rel=0.1)
    assert lengths[int(0.95 * len(lengths))] == pytest.approx(2470, rel=0.15)
    asked = sum(label == IGNORED for _, labels in chats for label in labels)
    assert asked / sum(lengths) == pytest.approx(0.22, abs=0.01)


def test_domains_differ_and_the_same_seed_gives_the_same_chats() -> None:
    one = synthetic.conversations("b", 5000, 0)
    assert one == synthetic.conversations("b", 5000, 0)
    assert one != synthetic.conversations("b", 5000, 1) != synthetic.conversations("a", 5000, 1)
    assert synthetic._followers("a") != synthetic._followers("b")


def test_the_large_shape_is_phi_3_5_minis() -> None:
    from training.estimate import shape_of

    shape = shape_of(synthetic.configuration("phi-3.5-mini").to_dict())
    assert (shape.parameters, shape.heads, shape.head_size) == (3_821_079_552, 32, 96)


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("workload", ["speed-cpu", "speed-gpu", "loss"])
def test_all_configurations_take_the_same_tokens_a_step(name: str, workload: str) -> None:
    sft = recipe_for(CONFIGURATIONS[name], WORKLOADS[workload]).sft
    tokens = sft["max_length"] * sft["per_device_train_batch_size"] * sft["gradient_accumulation_steps"]
    assert tokens == WORKLOADS[workload].tokens_per_step


def test_the_guides_settings_stay_the_guides() -> None:
    recipe = recipe_for(CONFIGURATIONS["guide"], WORKLOADS["speed-cpu"])
    assert (recipe.model.dtype, recipe.model.attn_implementation) == ("bfloat16", "eager")
    wanted = {"packing_strategy": "wrapped", "assistant_only_loss": False, "gradient_checkpointing": True}
    wanted |= {"learning_rate": 5e-6, "max_length": 2048, "per_device_train_batch_size": 4}
    assert {key: recipe.sft[key] for key in wanted} == wanted
    assert not CONFIGURATIONS["guide"].keeps_memory


def test_rows_are_labelled_as_each_recipe_learns() -> None:
    chats = synthetic.conversations("b", 5000, 0, mean_length=100)
    guide, ours = (
        packing.facts(len(chats), packing.prepared(rows_for(recipe, chats), recipe))
        for recipe in (recipe_for(CONFIGURATIONS[name], WORKLOADS["test"]) for name in ("guide", "ours"))
    )
    assert guide.learned == guide.tokens
    assert ours.learned / ours.tokens == pytest.approx(0.78, abs=0.02)


def test_both_configurations_are_measured_in_turns_and_written_down(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    words = ["--device", "cpu", "--shape", "tiny", "--workloads", "test", "--rounds", "1", "--pretraining", "1"]
    subprocess.run([sys.executable, "-m", "bench.training", *words, "--out", str(out)], check=True, cwd=training.ROOT)
    found = json.loads(out.read_text())
    assert [(one["config"], one["round"]) for one in found["runs"]] == [("guide", 1), ("ours", 1)]
    for one in found["runs"]:
        assert one["steps"] == 3
        assert one["tokens"] == pytest.approx(2 * WORKLOADS["test"].tokens_per_step, rel=0.05)
        assert one["tokens_per_cpu_second"] == pytest.approx(one["tokens"] / one["cpu_seconds"], rel=0.02)
        assert one["mfu"] is None and one["peak_memory"] > 1e8
    losses = [one["loss_before"] for one in found["runs"]]
    assert losses[0] == pytest.approx(losses[1], abs=0.02), "both begin with the same weights"
    assert found["packages"]["torch"] and found["hardware"] and found["parameters"] == 624_960


def test_a_run_ends_near_its_time_whatever_its_steps(tmp_path: Path) -> None:
    found = measure.run("ours", WORKLOADS["test"], "tiny", "cpu", None, seconds=0, begun=0)
    assert found["steps"] == WORKLOADS["test"].warm + 2


def test_a_configuration_that_fails_is_noted_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_call", lambda words, seconds: "no memory" if "lora" in words else _found(words))
    words = [
        "--device",
        "cpu",
        "--shape",
        "tiny",
        "--configs",
        "lora,guide",
        "--workloads",
        "test",
        "--pretraining",
        "0",
    ]
    args = training._parser().parse_args([*words, "--rounds", "2"])
    runs = training.measure_all(training._request(args))["runs"]
    assert [one.get("error") for one in runs] == ["no memory", None, "no memory", None]


def _found(words: list[str]) -> None:
    figures = {"tokens_per_second": 1, "tokens_per_cpu_second": 1, "mfu": None, "peak_memory": 1}
    Path(words[words.index("--out") + 1]).write_text(json.dumps({**figures, "loss_before": 1, "loss_after": 1}))


def test_the_minutes_are_divided_among_all_processes() -> None:
    args = training._parser().parse_args(["--device", "cuda", "--minutes", "8", "--rounds", "2"])
    assert training._request(args).seconds == 60
    with pytest.raises(UserError, match="none of"):
        training._request(training._parser().parse_args(["--configs", "guide,fastest"]))
