"""The notebooks for beginners run from top to bottom, and show what their text says of them."""

import os
import re
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")
pytestmark = [pytest.mark.notebook, pytest.mark.filterwarnings("ignore")]

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def executed(name: str, folder: Path) -> tuple[str, str, int]:
    """What the cells printed, what the tables show, and the number of pictures."""
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    printed = "".join(output.get("text", "") for output in outputs)
    shown = "".join(output.get("data", {}).get("text/plain", "") for output in outputs)
    return printed, shown, sum("image/png" in output.get("data", {}) for output in outputs)


def test_quickstart(tmp_path: Path) -> None:
    printed, shown, pictures = executed("quickstart.ipynb", tmp_path)
    assert "over: True" in printed and "collaboration_reward" in shown
    assert re.search(r"observation  \[0 0 0 1 0 0 0 0 0 0 1 0 0 0\] of task_3", printed)
    assert re.search(r"action mask  \[1 1 1 1 1 0\]", printed)
    scores = {name: float(score) for name, score in re.findall(r"(\w+): ([\d.]+) % balanced", printed)}
    assert scores["WPL"] > 75 and abs(scores["random"] - 50) < 5  # specialised blocks against those of everybody
    assert pictures == 6


def test_comparison(tmp_path: Path) -> None:
    printed, shown, pictures = executed("comparison.ipynb", tmp_path)
    assert "0 failed; ['results.parquet', 'runs']" in printed
    assert "'wpl': (6, 10)" in printed and "probability" in printed and "area under the curve" in shown
    assert re.search(r"with 6 seeds each: .* with probability [01]\.\d\d \(95 % interval", printed)
    assert pictures == 5


def test_reproduction() -> None:
    printed, shown, pictures = executed("reproduction.ipynb", NOTEBOOKS)
    margins = re.findall(
        r"^(.+: wpl - \w+): ([+-][\d.]+) points, 95 % interval ([+-][\d.]+) to ([+-][\d.]+)", printed, re.M
    )
    found = {name: (float(mean), float(low), float(high)) for name, mean, low, high in margins}
    assert found["CIFAR-MTL: wpl - task_specific_1_fc"][1] > 1  # intervals that exclude zero
    assert abs(found["CIFAR-MTL: wpl - task_specific_all_fc"][0]) < 1
    assert abs(found["paper_mini_imagenet, accuracy: wpl - task_specific_all_fc"][0]) < 1
    assert found["agents: wpl - single_agent"][1] > 1
    assert found["all images: wpl - random_fixed"][1] > 20
    assert abs(found["few images: wpl - task_specific_all_fc"][0]) < 1  # equally tuned
    assert found["few images: wpl - random_fixed"][1] > 20
    assert "AMI" in shown and pictures == 8
    assert re.search(r"0 +3 +68.1 % +1020 +never +never", shown)
    assert "gumbel_matrix, 48 filters: -11 % errors (-21 to -1, 3 seeds) against single_task" in printed
    assert "AMI of gumbel_softmax - random_fixed: +0.64, 95 % interval +0.35 to +0.94 (5 seeds)" in printed
    for path in (NOTEBOOKS / "results").glob("*_runs.parquet"):
        assert f"routing-marl compare --grid {path.stem.removesuffix('_runs')}" in printed


@pytest.mark.parametrize("name", ["quickstart.ipynb", "comparison.ipynb", "reproduction.ipynb"])
def test_outputs_are_stripped(name: str) -> None:
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
