"""Nobody who asks the endpoint notices a rollout: not a good one, not a bad one, and not one that is killed.

Real processes throughout: the emulator, the small servers, twenty clients through the gateway, the command itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import apps
from tests.support.clients import clients, read
from tests.support.stack import Stack, stack

pytestmark = pytest.mark.slow

QUICK = ("--yes", "--soak", "3", "--keep", "0.05", "--canary", "10,50,100")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack whose endpoint `app` serves."""
    folder = tmp_path_factory.mktemp("load")
    with stack(folder, "local-load") as made:
        apps.write(folder / "app", "first")
        made.json("deployment.rollout", "--source", str(folder / "app"), *QUICK)
        yield made


def url(served: Stack) -> str:
    return str(served.json("deployment.status", "--app", "app")["scoring_uri"])


def traffic(served: Stack) -> tuple[dict[str, int], int]:
    seen = served.json("deployment.status", "--app", "app")
    shares, deployments = seen["traffic"], seen["deployments"]
    assert isinstance(shares, dict) and isinstance(deployments, dict)
    return shares, len(deployments)


def test_a_good_version_takes_over_without_one_failed_request(served: Stack, tmp_path: Path) -> None:
    app = apps.write(served.folder / "app", "good")
    with clients(served.azure, url(served), tmp_path / "answers"):
        done = served.verb("deployment.rollout", "--source", str(app), *QUICK, "--mirror", "20", "--gate", "true")
    assert done.returncode == 0, done.stderr
    good, bad = read(tmp_path / "answers")
    assert bad == []
    assert any(text.endswith("good") for text in good)


@pytest.mark.parametrize(
    ("kind", "code", "says"),
    [
        ("crash", 1, "this version crashes"),
        ("never ready", 1, "did not become ready in time"),
        ("garbage", 1, "no chat completion"),
        ("killed", 1, "137"),
    ],
)
def test_a_bad_version_reaches_nobody_and_is_undone(
    served: Stack, tmp_path: Path, kind: str, code: int, says: str
) -> None:
    before = traffic(served)
    app = apps.write(served.folder / "app", kind, kind)
    with clients(served.azure, url(served), tmp_path / "answers"):
        words = ("--source", str(app), *QUICK, "--ready-within", "0.2")
        done = served.verb("deployment.rollout", *words)
    assert done.returncode == code, done.stderr
    assert (
        says in done.stderr
        and "left as it was" in done.stderr
        and "Traceback (most" not in done.stderr.split("---")[-1]
    )
    good, bad = read(tmp_path / "answers")
    assert bad == [] and not any(text.endswith(kind) for text in good)
    assert traffic(served) == before


REGISTER = """
import sys
from pathlib import Path
from azure.ai.ml.entities import Model
from infra.client import ml_client
from infra.outputs import load_outputs
from training.small_model import make_small_model
folder = Path(sys.argv[2]) / "model"
corpus = ("Who founded Microsoft? Bill Gates and Paul Allen did.", "Hello everyone, this is what they say in Paris.")
make_small_model(folder, corpus, seed=int(sys.argv[3]), hidden=64, layers=2)
model = Model(path=str(folder), name="small", type="custom_model", tags={"approved": "true"})
ml_client(load_outputs(file=Path(sys.argv[1]))).models.create_or_update(model)
"""


def test_a_real_model_takes_over_from_another_without_one_failed_request(served: Stack, tmp_path: Path) -> None:
    for seed in (1, 2):
        folder = tmp_path / str(seed)
        folder.mkdir()
        made = served.azure.run("-c", REGISTER, str(served.outputs), str(folder), str(seed))
        assert made.returncode == 0, made.stderr[-2000:]
        if seed == 1:
            served.json("deployment.rollout", *QUICK, "--ready-within", "3")
    address = str(served.json("deployment.status")["scoring_uri"])
    with clients(served.azure, address, tmp_path / "answers"):
        done = served.verb("deployment.rollout", *QUICK, "--ready-within", "3", "--max-slowdown", "5", timeout=580)
    assert done.returncode == 0, done.stderr
    good, bad = read(tmp_path / "answers")
    assert bad == []
    assert any(text.startswith("green") for text in good) and any(text.startswith("blue") for text in good)


UP = (
    "before Create 1", "during Create 1", "before Smoke 1", "before Ask 1", "before Mirror 1", "during Mirror 1",
    "before Soak 1", "before Shift 1", "during Shift 1", "before Soak 1", "before Shift 1", "none",
)  # fmt: skip
SETTLING = ("during Shift 2", "before Keep 1", "over", "before Discard 1", "during Discard 1", "none")
"""From the moment at which all traffic is on the new one; `over` ends the time for which the old one is kept."""


@pytest.mark.parametrize(("boundaries", "keep"), [(UP, "0"), (SETTLING, "30")], ids=["up", "settling"])
def test_a_rollout_that_is_killed_at_every_boundary_goes_on_and_nobody_notices(
    served: Stack, tmp_path: Path, boundaries: tuple[str, ...], keep: str
) -> None:
    app = apps.write(served.folder / "app", f"often killed, {keep}")
    words = ["--source", str(app), "--yes", "--soak", "2", "--keep", keep, "--canary", "50,100"]
    words += ["--mirror", "20", "--gate", "true", "--outputs", str(served.outputs)]
    with clients(served.azure, url(served), tmp_path / "answers"):
        for boundary in boundaries:
            if boundary == "over":
                end_keeping(served)
                continue
            done = served.azure.run("-m", "tests.support.killed_rollout", boundary, *words)
            print(boundary, done.returncode, flush=True)
            assert done.returncode == (0 if boundary == "none" else -9), f"{boundary}: {done.stderr}"
    good, bad = read(tmp_path / "answers")
    assert bad == []
    assert any("often killed" in text for text in good)
    shares, count = traffic(served)
    assert list(shares.values()) == [100] and count == 1


def end_keeping(served: Stack) -> None:
    """As if the time had passed for which the old deployment is kept."""
    name = served.json("deployment.status", "--app", "app")["endpoint"]
    path = f"{served.workspace}/onlineEndpoints/{name}?api-version=2024-04-01"
    tags = served.azure.request("GET", path).json()["tags"]
    assert tags["rollout-keep-until"]
    tags["rollout-keep-until"] = "2026-01-01T00:00:00+00:00"
    assert served.azure.request("PATCH", path, json={"tags": tags}).status_code == 202


UNDOING = ("back", "before Discard 1", "during Discard 1", "before Close 1")


def test_a_failing_rollout_that_is_killed_while_it_is_undone_is_undone(served: Stack, tmp_path: Path) -> None:
    before = traffic(served)
    app = apps.write(served.folder / "app", "bad", "garbage")
    with clients(served.azure, url(served), tmp_path / "answers"):
        for boundary in (*UNDOING, "none"):
            done = served.azure.run(
                "-m", "tests.support.killed_rollout", boundary, "--source", str(app), *QUICK,
                "--outputs", str(served.outputs),
            )  # fmt: skip
            print(boundary, done.returncode)
            assert done.returncode == (1 if boundary == "none" else -9), f"{boundary}: {done.stderr}"
    good, bad = read(tmp_path / "answers")
    assert bad == [] and not any(text.endswith("bad") for text in good)
    assert "an earlier rollout had failed" in done.stderr
    assert traffic(served) == before
