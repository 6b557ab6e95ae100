"""The notebook that compares libraries runs from top to bottom, and says what its last cells assert."""

import os
from pathlib import Path

import pytest
from toys import need

os.environ.setdefault("OMP_NUM_THREADS", "1")
need("torchrl", "stable_baselines3", "nbclient", "nbformat", "ipykernel")
pytestmark = [pytest.mark.notebook, pytest.mark.filterwarnings("ignore")]

import nbclient  # noqa: E402
import nbformat  # noqa: E402

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "plug_in_your_algorithm.ipynb"


def test_it_runs(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = str([cell.get("outputs") for cell in notebook.cells])
    for method in ("wpl", "boltzmann (own)", "torchrl ppo", "sb3 ppo", "random"):
        assert method in shown
    assert "image/png" in shown
