"""What a comparison allows one to say: aggregates over runs and tasks, with intervals.

After Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice" (arXiv 2108.13264),
with two changes, both for coverage: tasks of one run share a network, so that runs, not single scores, are resampled;
and percentile intervals, which are too short for few runs, are widened (the "expanded percentile interval" of
Hesterberg 2015, "What teachers should know about the bootstrap", The American Statistician 69(4)).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import integrate, stats

from routing_marl.errors import UserError
from routing_marl.results import MEAN_TASK

Scores = Float[np.ndarray, "_run _task"]
"""One row per run (seed), one column per task; of several, each may have its own numbers of them."""
Statistic = Callable[..., Any]
"""Maps pooled scores ``[..., score]`` to ``[...]``, given ``axis=-1``, as ``np.mean`` does."""

FEW = 5
"""With fewer runs than that, an interval rests on its assumptions more than on the data."""

_RESAMPLES = 9999


class Interval(NamedTuple):
    """An estimate and the ends of its confidence interval (nan where there is but one run)."""

    estimate: float
    low: float
    high: float


def score_matrix(runs: pd.DataFrame, metric: str = "accuracy", split: str = "test") -> Scores:
    """The last epoch's scores of one method on one suite.

    Args:
        runs: rows of results.parquet, of one suite, method and settings.
        metric: which column.
        split: which split.

    Raises:
        UserError: rows of several methods, suites or settings, or a task that is missing in some of the runs.
    """
    rows = runs[(runs["split"] == split) & (runs["task"] != MEAN_TASK)]
    several = [name for name in ("suite", "method", "settings") if rows[name].nunique() > 1]
    if several:
        raise UserError(f"rows of several {several[0]}s: {', '.join(rows[several[0]].unique())}; select one")
    last = rows[rows["epoch"] == rows.groupby("seed")["epoch"].transform("max")]
    matrix = last.pivot(index="seed", columns="task", values=metric).to_numpy(dtype=float)
    if len(matrix) < runs["seed"].nunique() or np.isnan(matrix).any():
        raise UserError(f"not all runs have a {split} {metric} for each task; leave out those that don't")
    return matrix


def interquartile_mean(scores: Float[np.ndarray, "..."], axis: int | None = None) -> Any:
    """The mean of the middle half: less noisy than a median, less moved by outliers than a mean."""
    return stats.trim_mean(scores, 0.25, axis=axis)


def student_interval(values: Sequence[float] | Float[np.ndarray, " run"], level: float = 0.95) -> Interval:
    """Student's interval for the mean; exact for normal values, and close to it for others."""
    mean, half = float(np.mean(values)) if len(values) else math.nan, half_interval(values, level)
    return Interval(mean, mean - half, mean + half)


def half_interval(
    values: "Sequence[float] | Float[np.ndarray, ' run'] | pd.Series[float]", level: float = 0.95
) -> float:
    """Half the width of Student's confidence interval for the mean; nan for fewer than two values."""
    n = len(values)
    if n < 2:
        return math.nan
    return float(stats.t.ppf((1 + level) / 2, n - 1) * np.std(values, ddof=1) / math.sqrt(n))


def bootstrap_interval(
    scores: Scores | Sequence[Scores],
    statistic: Statistic = interquartile_mean,
    *,
    resample: Literal["runs", "scores"] = "runs",
    level: float = 0.95,
    n_resamples: int = _RESAMPLES,
    seed: int = 0,
) -> Interval:
    """A stratified bootstrap interval for a statistic of all scores.

    Args:
        scores: a matrix; or one per suite, each of which is a stratum.
        statistic: of the pooled scores.
        resample: ``"runs"``: all tasks of a run together, as is right where they share a network; ``"scores"``: each
            task is a stratum, as in the paper, which is right only where tasks are trained independently.
        level: of confidence.
        n_resamples: number of bootstrap samples.
        seed: of the resampling.
    """
    suites = [scores] if isinstance(scores, np.ndarray) else [*scores]
    strata = suites if resample == "runs" else [column[:, None] for suite in suites for column in suite.T]
    pooled = np.concatenate([stratum.ravel() for stratum in strata])
    weights = [stratum.size / pooled.size for stratum in strata]
    rows = [weight * stratum.mean(1) for weight, stratum in zip(weights, strata, strict=True)]

    def resampled(*indices: np.ndarray, axis: int = -1) -> Any:
        drawn = [stratum[index.astype(int)] for stratum, index in zip(strata, indices, strict=True)]
        return statistic(np.concatenate([part.reshape(*part.shape[:-2], -1) for part in drawn], -1), axis=axis)

    return Interval(float(statistic(pooled, axis=-1)), *_bootstrap(resampled, rows, level, n_resamples, seed))


def probability_of_improvement(
    ours: Scores, theirs: Scores, *, level: float = 0.95, n_resamples: int = _RESAMPLES, seed: int = 0
) -> Interval:
    """The probability that a run of ours beats one of theirs on the same task, averaged over tasks; a tie counts half.

    A sample without a single defeat has the interval [1, 1], which no finite sample warrants.
    """
    if ours.shape[1] != theirs.shape[1]:
        raise UserError(f"{ours.shape[1]} tasks against {theirs.shape[1]}; only scores on the same tasks compare")
    sign = np.sign(ours[:, None] - theirs[None])
    wins = (0.5 * (sign + 1)).mean(-1)

    def resampled(i: np.ndarray, j: np.ndarray, axis: int = -1) -> Any:
        return wins[i.astype(int)[..., :, None], j.astype(int)[..., None, :]].mean((-2, -1))

    rows = [wins.mean(1), wins.mean(0)]
    return Interval(float(wins.mean()), *_bootstrap(resampled, rows, level, n_resamples, seed))


class Profile(NamedTuple):
    """A performance profile: at each threshold the share of scores above it, and the ends of its intervals."""

    threshold: Float[np.ndarray, " threshold"]
    share: Float[np.ndarray, " threshold"]
    low: Float[np.ndarray, " threshold"]
    high: Float[np.ndarray, " threshold"]


def performance_profile(
    scores: Scores,
    thresholds: Float[np.ndarray, " threshold"],
    *,
    level: float = 0.95,
    n_resamples: int = _RESAMPLES,
    seed: int = 0,
) -> Profile:
    """The share of (run, task) scores above each threshold, with pointwise bootstrap intervals over runs."""
    above = (scores[:, :, None] > thresholds).mean(1)  # [run, threshold]
    share = above.mean(0)

    def resampled(index: np.ndarray, axis: int = -1) -> Any:
        return np.moveaxis(above[index.astype(int)].mean(-2), -1, 0)

    if len(scores) < 2:
        return Profile(thresholds, share, np.full_like(share, math.nan), np.full_like(share, math.nan))
    widened = _widened_level([scores.mean(1)], level)
    low, high = _percentiles(resampled, [len(scores)], widened, n_resamples, seed)
    return Profile(thresholds, share, low, high)


def time_to_accuracy(
    runs: pd.DataFrame, target: float, *, metric: str = "accuracy", unit: str = "epoch", split: str = "test"
) -> "pd.Series[float]":
    """When each run's mean over tasks first reaches the target; inf where it never does. Indexed like :func:`run_keys`.

    Args:
        runs: rows of results.parquet.
        target: say 0.9; for ``metric="loss"`` it is reached from above.
        metric: which column.
        unit: ``"epoch"`` or ``"wall_s"``.
        split: which split.
    """
    rows = _means(runs, split)
    reached = rows[metric] <= target if metric == "loss" else rows[metric] >= target
    times = rows[unit].astype(float).where(reached, math.inf)
    return times.groupby([rows[name] for name in RUN]).min()


def median_times(
    runs: pd.DataFrame, n_targets: int, *, metric: str = "accuracy", unit: str = "epoch", split: str = "test"
) -> pd.DataFrame:
    """The median over runs of :func:`time_to_accuracy`: a row per method, a column per target; inf for "not half".

    Args:
        runs: rows of results.parquet, of one suite.
        n_targets: number of targets, evenly spread between the lowest and the highest mean over tasks.
        metric: ``"accuracy"`` or ``"balanced_accuracy"``.
        unit: ``"epoch"`` or ``"wall_s"``.
        split: which split.
    """
    scores = _means(runs, split)[metric]
    targets = np.unique(np.linspace(scores.min(), scores.max(), n_targets))
    times = {target: time_to_accuracy(runs, target, metric=metric, unit=unit, split=split) for target in targets}
    return pd.DataFrame(times).groupby("method").median()


def area_under_curve(runs: pd.DataFrame, metric: str = "accuracy", split: str = "test") -> "pd.Series[float]":
    """The mean height of each run's learning curve over its epochs (trapezoids; the value itself for one epoch)."""
    rows = _means(runs, split).sort_values("epoch")

    def height(curve: pd.DataFrame) -> float:
        epochs, values = curve["epoch"].to_numpy(float), curve[metric].to_numpy(float)
        if len(curve) == 1:
            return float(values[0])
        return float(integrate.trapezoid(values, epochs) / (epochs[-1] - epochs[0]))

    return rows.groupby(RUN)[["epoch", metric]].apply(height)


def caveat(n_runs: int) -> str | None:
    """What has to be said beside numbers from so few runs; None where there are enough."""
    if n_runs >= FEW:
        return None
    if n_runs < 2:
        return "one seed: nothing can be said about chance"
    return f"{n_runs} seeds: intervals assume normal scores; differences are hints, not findings (take {FEW} or more)"


RUN = ["suite", "method", "settings", "seed"]
"""The columns that tell runs apart."""


def _means(runs: pd.DataFrame, split: str) -> pd.DataFrame:
    return runs[(runs["split"] == split) & (runs["task"] == MEAN_TASK)]


def _bootstrap(
    statistic: Statistic, rows: Sequence[Float[np.ndarray, " _run"]], level: float, n_resamples: int, seed: int
) -> tuple[float, float]:
    """The interval of a statistic of one vector of run indices per stratum.

    Args:
        statistic: maps indices ``[..., run]``, one array per stratum, to ``[...]``.
        rows: per stratum, what each run adds to the statistic, up to a constant and to first order.
        level: of confidence.
        n_resamples: number of bootstrap samples.
        seed: of the resampling.
    """
    if min(map(len, rows)) < 2:
        return math.nan, math.nan
    low, high = _percentiles(statistic, [*map(len, rows)], _widened_level(rows, level), n_resamples, seed)
    return float(low), float(high)


def _percentiles(
    statistic: Statistic, sizes: Sequence[int], level: float, n_resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    found = stats.bootstrap(
        [np.arange(size) for size in sizes],
        statistic,
        vectorized=True,
        method="percentile",
        confidence_level=level,
        n_resamples=n_resamples,
        batch=1000,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return np.asarray(found.low), np.asarray(found.high)


def _widened_level(rows: Sequence[Float[np.ndarray, " _run"]], level: float) -> float:
    """The level at which a percentile interval is as long as Student's for the sum over strata of the means of rows.

    The bootstrap's variance is (n - 1) / n of the unbiased one, and its quantiles are nearly normal instead of
    Student's. The degrees of freedom of several strata are Satterthwaite's.
    """
    n = np.array([*map(len, rows)], float)
    variance = np.array([row.var(ddof=1) for row in rows]) / n
    share = variance / variance.sum() if variance.sum() > 0 else np.full_like(n, 1 / len(n))
    freedom = 1 / (share**2 / (n - 1)).sum()
    shrunk = (share * (n - 1) / n).sum()
    quantile = stats.t.ppf((1 + level) / 2, freedom) / math.sqrt(shrunk)
    return min(float(2 * stats.norm.cdf(quantile) - 1), 1 - 1e-9)
