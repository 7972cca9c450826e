"""Microsoft's guide to the system registry's chat-completion component, cell by cell, from imports to deleted endpoint.

The notebook is a reader's own copy (`notebook.py`, cells between lines `# %%`) in the folder that GUIDE names: this
repository has none of it. Written here is only what the guide itself leaves to its reader: the ids of the workspace,
the head of the cell with the cluster, which the guide prints without it, and the helper that downloads the data set.
"""

from __future__ import annotations

import os
import textwrap
import time
from pathlib import Path

import pytest

from tests.support.local_azure import LocalAzure

GUIDE = Path(os.environ.get("GUIDE", ""))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("GUIDE") or not (GUIDE / "notebook.py").is_file(),
        reason="GUIDE does not name a folder with the guide's notebook.py; `make guide GUIDE=FOLDER`",
    ),
]
HELPER = """
import argparse, json, pathlib
from datasets import get_dataset_split_names, load_dataset

parser = argparse.ArgumentParser()
parser.add_argument("--dataset")
parser.add_argument("--download_dir", type=pathlib.Path)
parser.add_argument("--dataset_split_pc", type=int)
args = parser.parse_args()
args.download_dir.mkdir(exist_ok=True)
for split in get_dataset_split_names(args.dataset):
    rows = load_dataset(args.dataset, split=f"{split}[:{args.dataset_split_pc}%]")
    rows.to_json(args.download_dir / f"{split}.jsonl")
"""
CLUSTER = """
compute_cluster, compute_cluster_size = "gpu-cluster", "Standard_NC24ads_A100_v4"
try:
    compute = workspace_ml_client.compute.get(compute_cluster)
except Exception:
    try:
        compute = AmlCompute(name=compute_cluster, size=compute_cluster_size, max_instances=1)
        workspace_ml_client.compute.begin_create_or_update(compute).wait()
    except Exception as e:
"""
RUNNER = """
import pathlib, sys, time
scope = {"__name__": "__main__"}
for number, cell in enumerate(pathlib.Path(sys.argv[1]).read_text().split("# %%\\n")):
    started = time.time()
    exec(compile(cell, f"cell {number}", "exec"), scope)
    print(f"-- cell {number} took {time.time() - started:.1f} s", flush=True)
"""


def filled_in(notebook: str, workspace: str) -> str:
    """The notebook with its placeholders filled and the head of its cluster cell put back."""
    parts = workspace.split("/")
    for name, value in (("SUBSCRIPTION_ID", parts[2]), ("RESOURCE_GROUP", parts[4]), ("WORKSPACE_NAME", parts[8])):
        assert f"<{name}>" in notebook
        notebook = notebook.replace(f"<{name}>", value)
    cells = notebook.split("# %%\n")
    cut = [number for number, cell in enumerate(cells) if "print(e)" in cell.split("\n\n")[0]]
    assert len(cut) == 1, "one cell begins inside an `except`"
    inside, _, rest = cells[cut[0]].partition("\n\n")
    cells[cut[0]] = CLUSTER + textwrap.indent(inside, " " * 8) + "\n\n" + rest
    return "# %%\n".join(cells)


def test_every_cell_of_the_guide_runs_and_the_tuned_model_answers(tmp_path: Path) -> None:
    patch = pytest.MonkeyPatch()
    patch.setenv("OMP_NUM_THREADS", "1")
    azure = LocalAzure.start(tmp_path / "azure", hub=True)
    try:
        workspace = azure.make_workspace("rg-second")
        (tmp_path / "download-dataset.py").write_text(HELPER)
        (tmp_path / "notebook.py").write_text(filled_in((GUIDE / "notebook.py").read_text(), workspace))
        (tmp_path / "runner.py").write_text(RUNNER)
        started = time.monotonic()
        done = azure.run("runner.py", "notebook.py", cwd=tmp_path, timeout=1200)
        print(done.stdout, f"\nthe notebook took {time.monotonic() - started:.0f} s")
        assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
        assert "Number of GPU's in compute Standard_NC24ads_A100_v4: 1" in done.stdout
        assert "-bs1-cosine-ds2-lora-save_limit1-seqlen-1" in done.stdout
        answer = done.stdout.split("raw response: \n")[1].split("\n")[0]
        assert answer.strip().startswith('{"output": "') and len(answer) > len('{"output": ""}') + 20
        models = azure.request("GET", f"{workspace}/models").json()["value"]
        assert [model["name"] for model in models] == ["Phi-3-mini-4k-instruct-ultrachat-200k"]
        assert azure.request("GET", f"{workspace}/onlineEndpoints").json()["value"] == []
    finally:
        azure.stop()
        patch.undo()
