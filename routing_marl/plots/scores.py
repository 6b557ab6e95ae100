"""Pictures of what a comparison allows one to say: intervals, performance profiles, time to accuracy."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from routing_marl.plots.lines import legend_below, style, with_legend
from routing_marl.statistics import Interval, Profile, median_times


def intervals(
    panels: Mapping[str, Mapping[str, Interval]], label: str, *, scale: float = 100.0, mark: float | None = None
) -> Figure:
    """Estimates with their intervals, a row each; where there is no interval, the estimate alone.

    Args:
        panels: by title, what :mod:`routing_marl.statistics` found, by name; the same names in all panels.
        label: of the horizontal axis.
        scale: factor on all numbers: 100 for percent.
        mark: where a dotted line goes, 0.5 for probabilities of improvement.
    """
    n_rows = max(map(len, panels.values()))
    figure = Figure(figsize=(1.8 + 3.4 * len(panels), 0.9 + 0.32 * n_rows), layout="constrained")
    row_of_axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (title, found) in zip(row_of_axes, panels.items(), strict=True):
        for row, (estimate, low, high) in enumerate(found.values()):
            colour = style(row)["color"]
            axes.plot([scale * low, scale * high], [row, row], lw=6, alpha=0.35, color=colour, solid_capstyle="butt")
            axes.plot(scale * estimate, row, "|", ms=14, mew=2.5, color=colour)
        if mark is not None:
            axes.axvline(scale * mark, color="0.5", ls=":")
        axes.set(title=title, yticks=range(len(found)), yticklabels=found, ylim=(len(found) - 0.5, -0.5), xlabel=label)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def performance_profiles(profiles: Mapping[str, Profile], label: str, *, scale: float = 100.0) -> Figure:
    """The share of scores above each threshold, a line per method, with bands.

    Args:
        profiles: by method (:func:`routing_marl.statistics.performance_profile`).
        label: of the horizontal axis.
        scale: factor on the thresholds.
    """
    figure = with_legend(6.4, 3.0, len(profiles))
    axes = figure.subplots()
    for number, (name, profile) in enumerate(profiles.items()):
        thresholds, line = scale * profile.threshold, style(number)
        axes.plot(thresholds, profile.share, label=name, **line)
        axes.fill_between(thresholds, profile.low, profile.high, alpha=0.15, lw=0, color=line["color"])
    axes.set(xlabel=label, ylabel="share of (run, task)", ylim=(-0.02, 1.02))
    axes.spines[["top", "right"]].set_visible(False)
    legend_below(figure)
    return figure


def time_to_accuracy(
    frame: pd.DataFrame, split: str = "test", metric: str = "accuracy", unit: str = "epoch", n_targets: int = 41
) -> Figure:
    """When a method's runs first reach each score: the median over seeds; no line where half of them never do.

    Args:
        frame: rows of results.parquet, of one suite.
        split: which split.
        metric: ``"accuracy"`` or ``"balanced_accuracy"``.
        unit: ``"epoch"`` or ``"wall_s"``.
        n_targets: scores between the lowest and the highest that was measured.
    """
    medians = median_times(frame, n_targets, metric=metric, unit=unit, split=split)
    figure = with_legend(6.4, 3.0, len(medians))
    axes = figure.subplots()
    for number, method in enumerate(dict.fromkeys(frame["method"])):
        if method in medians.index:
            times = medians.loc[method].replace(np.inf, np.nan)
            axes.step(100 * times.index.to_numpy(float), times, where="pre", label=method, **style(number))
    axes.set(xlabel=f"{split} {metric.replace('_', ' ')} / %", ylabel="epochs" if unit == "epoch" else "training / s")
    axes.yaxis.set_major_locator(MaxNLocator(integer=unit == "epoch"))
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    legend_below(figure)
    return figure
