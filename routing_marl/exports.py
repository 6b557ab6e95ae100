"""Results for other tools: CSV, and the JSON layout of marl-eval (Gorsane et al. 2022, arXiv 2209.10485)."""

from pathlib import Path
from typing import Any

import pandas as pd

from routing_marl.errors import UserError
from routing_marl.files import write_json, write_whole
from routing_marl.results import MEAN_TASK, SCHEMA

METRICS = ("accuracy", "balanced_accuracy", "loss")


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Writes all rows; numbers keep all their digits."""
    write_whole(path, lambda temporary: frame.to_csv(temporary, index=False))


def read_csv(path: Path) -> pd.DataFrame:
    """Reads what :func:`write_csv` has written, to the bit."""
    words = pd.read_csv(path, dtype=str, keep_default_na=False)
    floats = {
        name: [float(word or "nan") for word in words[name]] for name, kind in SCHEMA.items() if kind == "float64"
    }
    return words.assign(**floats).astype(SCHEMA)


def marl_eval(frame: pd.DataFrame, split: str = "test") -> dict[str, Any]:
    """The scores of one split as ``environment -> task -> algorithm -> run -> step -> metric``.

    An environment is a suite, an algorithm a method with its settings, a run a seed. Steps count epochs
    (``step_count``). The absolute metrics are those of the last epoch: picking the best one would be picking by the
    very data that is scored. Environments and tasks are in small letters, as marl-eval looks them up.
    """
    rows = frame[(frame["split"] == split) & (frame["task"] != MEAN_TASK)].sort_values(["epoch", "task"], kind="stable")
    if rows.empty:
        raise UserError(f"there are no scores per task of the {split} split; choose another --split")
    layout: dict[str, Any] = {}
    for row in rows.to_dict("records"):
        tasks = layout.setdefault(row["suite"].lower(), {})
        runs = tasks.setdefault(f"task_{row['task']}", {}).setdefault(f"{row['method']} {row['settings']}".strip(), {})
        steps = runs.setdefault(f"seed_{row['seed']}", {})
        steps.pop("absolute_metrics", None)  # which have to stand last
        metrics = {metric: [row[metric]] for metric in METRICS}
        steps[f"step_{len(steps) + 1}"] = {"step_count": row["epoch"], **metrics}
        steps["absolute_metrics"] = metrics
    return layout


def write_marl_eval(path: Path, frame: pd.DataFrame, split: str = "test") -> None:
    """Writes :func:`marl_eval`."""
    write_json(path, marl_eval(frame, split))


def uneven(frame: pd.DataFrame, split: str = "test") -> str | None:
    """What differs between the methods of a suite that marl-eval wants to be the same; None where nothing does."""
    rows = frame[(frame["split"] == split) & (frame["task"] != MEAN_TASK)]
    for suite, of_suite in rows.groupby("suite"):
        runs = of_suite.groupby(["method", "settings"])["seed"].nunique()
        if runs.nunique() > 1:
            return f"{suite} has {runs.min()} to {runs.max()} seeds per method"
        epochs = of_suite.groupby(["method", "settings", "seed"])["epoch"].nunique()
        if epochs.nunique() > 1:
            return f"{suite} has {epochs.min()} to {epochs.max()} epochs per run"
    return None
