"""Pictures of results: learning curves, and who took which block."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure

from routing_marl.files import write_whole
from routing_marl.results import MEAN_TASK
from routing_marl.statistics import half_interval

Usage = Float[np.ndarray, "depth task action"]

_COLOURS = matplotlib.colormaps["tab10"].colors  # type: ignore[attr-defined]


def learning_curves(
    frame: pd.DataFrame,
    split: str = "test",
    metrics: Sequence[str] = ("accuracy", "balanced_accuracy"),
    floors: Mapping[str, float] | None = None,
) -> Figure:
    """Mean over seeds of each metric against epochs, one line per method, with 95 % bands.

    Args:
        frame: rows as in results.parquet.
        split: which split.
        metrics: one panel each.
        floors: for a metric, what "always the commonest class" scores: a dotted line.
    """
    rows = frame[(frame["split"] == split) & (frame["task"] == MEAN_TASK)]
    methods = list(dict.fromkeys(rows["method"]))
    figure = Figure(figsize=(5.2 * len(metrics), 4.4), layout="constrained")
    for axes, metric in zip(np.atleast_1d(figure.subplots(1, len(metrics))), metrics, strict=True):
        scale, most, unit = (1, np.inf, "") if metric == "loss" else (100, 100, " / %")
        means: list[float] = []
        for number, method in enumerate(methods):
            by_epoch = rows[rows["method"] == method].groupby("epoch")[metric]
            mean, half = scale * by_epoch.mean(), scale * by_epoch.apply(half_interval)
            means += [*mean]
            colour = _COLOURS[number % len(_COLOURS)]
            axes.plot(mean.index, mean, color=colour, label=method, marker="." if len(mean) < 30 else None)
            axes.fill_between(mean.index, mean - half, (mean + half).clip(upper=most), color=colour, alpha=0.15)
        if floors and metric in floors:
            axes.axhline(scale * floors[metric], color="grey", linestyle=":", label="always the commonest class")
        # By the means: with few seeds a 95 % band can be wider than everything else in the picture.
        room = 0.08 * (max(means) - min(means)) + 0.005 * scale
        axes.set_ylim(min(means) - room, min(max(means) + room, most + 0.5))
        axes.set(xlabel="epoch", ylabel=f"{split} {metric.replace('_', ' ')}{unit}")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


def route_matrices(usages: Mapping[str, Usage], task_names: Sequence[str]) -> Figure:
    """For each router, task x action per depth: the share of the task's decisions that took the action.

    Args:
        usages: by a router's name, the shares; the last columns are PASS and, where there is one, STOP.
        task_names: labels of the rows.
    """
    depths = max(len(usage) for usage in usages.values())
    n_tasks = len(task_names)
    height = min(0.9 + 0.16 * n_tasks, 8)
    figure = Figure(figsize=(1.6 + 2.4 * depths, height * len(usages)), layout="constrained")
    panels = figure.subplots(len(usages), depths, squeeze=False, sharey=True)
    image: Any = None
    for number, (name, usage) in enumerate(usages.items()):
        for depth, axes in enumerate(panels[number]):
            if depth >= len(usage):
                axes.set_axis_off()
                continue
            image = axes.imshow(usage[depth], vmin=0, vmax=1, cmap="Blues", aspect="auto")
            if depth == 0:
                axes.set_ylabel(name)
                if n_tasks <= 40:
                    axes.set_yticks(range(n_tasks), task_names, fontsize=7)
            if number == 0:
                axes.set_title(f"depth {depth}", fontsize=9)
            if number == len(usages) - 1:
                axes.set_xlabel("block (last: PASS)", fontsize=8)
            axes.tick_params(axis="x", labelsize=7)
    figure.colorbar(image, ax=panels, label="share of decisions", shrink=0.6, aspect=30)
    return figure


def cost_curves(curves: Mapping[str, Mapping[int, float]]) -> Figure:
    """Milliseconds per instance of a training step against the number of tasks; one line per method."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for number, (name, points) in enumerate(curves.items()):
        axes.plot(list(points), list(points.values()), marker="o", color=_COLOURS[number], label=name)
    axes.set(xscale="log", yscale="log", xlabel="tasks", ylabel="training step, ms per instance")
    ticks = sorted({n for points in curves.values() for n in points})
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Writes a figure, whole or not at all, in the format of the path's suffix."""
    write_whole(path, lambda temporary: figure.savefig(temporary, format=path.suffix[1:], dpi=150))
