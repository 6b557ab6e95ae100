"""From the rows of a comparison to a line per method."""

import math

import pandas as pd

from routing_marl.errors import UserError
from routing_marl.results import MEAN_TASK
from routing_marl.statistics import (
    FEW,
    area_under_curve,
    bootstrap_interval,
    half_interval,
    interquartile_mean,
    score_matrix,
)

METHOD = ["suite", "method", "settings"]
"""The columns that tell lines of a summary apart."""


def final_scores(frame: pd.DataFrame, split: str = "test") -> pd.DataFrame:
    """The last epoch's mean over tasks: one row per suite, method, settings and seed."""
    rows = frame[(frame["split"] == split) & (frame["task"] == MEAN_TASK)]
    last = rows.groupby([*METHOD, "seed"])["epoch"].transform("max")
    return rows[rows["epoch"] == last]


def summarise(frame: pd.DataFrame, split: str = "test") -> pd.DataFrame:
    """A row per suite, method and settings, the best of each suite first.

    Means over seeds; ``*_ci`` are half widths of Student's 95 % intervals over seeds (nan for a single seed). ``iqm``
    is the interquartile mean of the accuracy over seeds and tasks, from ``iqm_low`` to ``iqm_high`` with 95 %
    confidence, by a bootstrap over seeds (nan for fewer than five, which are too few). ``auc`` is the mean height of
    the learning curve of the accuracy.
    """
    scores = final_scores(frame, split)
    metrics = ["accuracy", "balanced_accuracy", "loss", "wall_s", "instances_per_s"]
    metrics += ["parameters", "multiply_adds", "dropped"]
    grouped = scores.groupby(METHOD)
    summary = grouped[metrics].mean()
    for metric in metrics[:3]:
        summary[f"{metric}_ci"] = grouped[metric].apply(half_interval)
    summary.insert(0, "seeds", grouped.size())
    summary["auc"] = area_under_curve(frame, "accuracy", split).groupby(METHOD).mean()
    iqms = {key: _iqm(runs, split) for key, runs in frame.groupby(METHOD)}
    for column, name in enumerate(("iqm", "iqm_low", "iqm_high")):
        summary[name] = [iqms[key][column] for key in summary.index]
    order = ["suite", "accuracy", "balanced_accuracy"]
    return summary.reset_index().sort_values(order, ascending=[True, False, False]).reset_index(drop=True)


def labelled(frame: pd.DataFrame) -> pd.DataFrame:
    """The same rows with ``method`` followed by those settings that not all rows have, where there are any."""
    words = {settings: settings.split() for settings in frame["settings"].unique()}
    common = set.intersection(*map(set, words.values())) if words else set()
    own = {settings: " ".join(word for word in found if word not in common) for settings, found in words.items()}
    return frame.assign(method=(frame["method"] + " " + frame["settings"].map(own)).str.strip())


def _iqm(runs: pd.DataFrame, split: str) -> tuple[float, float, float]:
    try:
        scores = score_matrix(runs, "accuracy", split)
    except UserError:  # recorded by somebody who has no scores per task
        return math.nan, math.nan, math.nan
    if len(scores) < FEW:
        return float(interquartile_mean(scores)), math.nan, math.nan
    return bootstrap_interval(scores)
