"""The notebook on convergence runs from top to bottom, and its numbers and pictures are there."""

import os
import re
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")
pytestmark = [pytest.mark.notebook, pytest.mark.filterwarnings("ignore")]

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "convergence.ipynb"


def test_it_runs(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    printed = "".join(output.get("text", "") for output in outputs)
    assert "both play heads with 1.0: gaps [0.0, 2.0]" in printed
    # What the text says of the trap: the averaged advantage finds 2/5, the sampled one goes to 1/2.
    ends = {name: float(heads) for name, heads in re.findall(r"original, (\w+): ends at heads with ([\d.]+)", printed)}
    assert abs(ends["averaged"] - 0.4) < 0.07 and abs(ends["sampled"] - 0.5) < 0.04
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 10


def test_its_outputs_are_stripped() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
