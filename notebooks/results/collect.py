"""Keeps of a comparison what `reproduction.ipynb` is made from.

    python notebooks/results/collect.py FOLDER...

For each results folder of `routing-marl compare`, finished or not, two files here: NAME.parquet has the rows of
results.parquet without the training split, and those of single tasks after the last epoch only; NAME_runs.parquet has a
row per run: what it was computed with, its wall time, and how its routes came out.
"""

import json
import sys
from pathlib import Path

import pandas as pd

from routing_marl.diagnostics import ALL, diagnose
from routing_marl.environment import ENVIRONMENT
from routing_marl.results import KEY, MEAN_TASK, read_results, write_results
from routing_marl.routes import ROUTES
from routing_marl.training import RESULTS

HERE = Path(__file__).parent
SAID = ("commit", "processor", "cores", "threads", "torch")
MEASURES = ("blocks_in_use", "adjusted_mutual_information", "entropy")


def about(run: Path, rows: pd.DataFrame) -> dict[str, object]:
    """One line about a run."""
    last = rows[(rows["task"] == MEAN_TASK) & (rows["split"] == "test")].iloc[-1]
    line = {name: last[name] for name in ("run", "suite", "method", "settings", "seed", "epoch", "wall_s")}
    path = run / ENVIRONMENT
    environment = json.loads(path.read_text()) if path.exists() else {}
    line |= {name: environment.get(name) for name in SAID}
    if (run / ROUTES).exists():
        found = diagnose(run)
        found = found[found["epoch"] == found["epoch"].max()]
        for measure in MEASURES:
            values = found[found["measure"] == measure]
            whole = values[values["depth"] == ALL]
            line[measure] = (whole if len(whole) else values)["value"].mean()
    return line


def collect(folder: Path) -> None:
    """Writes the two files of one comparison."""
    paths = sorted(folder.glob(f"runs/*/{RESULTS}"))
    if not paths:
        sys.exit(f"{folder} has no runs; give folders that `routing-marl compare --out FOLDER` wrote")
    frames = {path.parent: read_results(path) for path in paths}
    rows = pd.concat(frames.values(), ignore_index=True)
    if len(twice := rows.loc[rows.duplicated(KEY), "run"].unique()):
        sys.exit(f"{folder} has {twice[0]} and another run of the same settings and seed; delete one of their folders")
    last = rows["epoch"] == rows.groupby("run")["epoch"].transform("max")
    kept = rows[(rows["split"] != "train") & (last | (rows["task"] == MEAN_TASK))]
    write_results(HERE / f"{folder.name}.parquet", kept.reset_index(drop=True))
    lines = pd.DataFrame([about(run, frame) for run, frame in frames.items()])
    lines.to_parquet(HERE / f"{folder.name}_runs.parquet", index=False)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        collect(Path(name))
