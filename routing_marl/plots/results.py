"""Pictures of results: learning curves, and who took which block."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path as Outline
from matplotlib.ticker import LogLocator

from routing_marl.files import write_whole
from routing_marl.plots.lines import COLOURS, legend_below, style, with_legend
from routing_marl.results import MEAN_TASK
from routing_marl.statistics import half_interval

Usage = Float[np.ndarray, "depth task action"]

_LEAST = 0.02
"""Shares below that are not drawn in flows."""


def learning_curves(
    frame: pd.DataFrame,
    split: str = "test",
    metrics: Sequence[str] = ("accuracy", "balanced_accuracy"),
    floors: Mapping[str, float] | None = None,
    unit: str = "epoch",
) -> Figure:
    """Mean over seeds of each metric after each epoch, one line per method, with 95 % bands.

    Args:
        frame: rows as in results.parquet.
        split: which split.
        metrics: one panel each.
        floors: for a metric, what "always the commonest class" scores: a dotted line.
        unit: ``"epoch"``, or ``"wall_s"`` for the training time until then, likewise averaged over seeds.
    """
    rows = frame[(frame["split"] == split) & (frame["task"] == MEAN_TASK)]
    methods = list(dict.fromkeys(rows["method"]))
    figure = with_legend(5.2 * len(metrics), 4.0, len(methods) + bool(floors))
    for axes, metric in zip(np.atleast_1d(figure.subplots(1, len(metrics))), metrics, strict=True):
        scale, most, suffix = (1, np.inf, "") if metric == "loss" else (100, 100, " / %")
        means: list[float] = []
        for number, method in enumerate(methods):
            by_epoch = rows[rows["method"] == method].groupby("epoch")
            mean, half = scale * by_epoch[metric].mean(), scale * by_epoch[metric].apply(half_interval)
            means += [*mean]
            line, x = style(number), mean.index if unit == "epoch" else by_epoch[unit].mean()
            axes.plot(x, mean, **line, label=method, marker="." if len(mean) < 30 else None)
            axes.fill_between(x, mean - half, (mean + half).clip(upper=most), color=line["color"], alpha=0.15)
        if floors and metric in floors:
            axes.axhline(scale * floors[metric], color="grey", linestyle=":", label="always the commonest class")
        # By the means: with few seeds a 95 % band can be wider than everything else in the picture.
        room = 0.08 * (max(means) - min(means)) + 0.005 * scale
        axes.set_ylim(min(means) - room, min(max(means) + room, most + 0.5))
        x_label = "epoch" if unit == "epoch" else "training / s"
        axes.set(xlabel=x_label, ylabel=f"{split} {metric.replace('_', ' ')}{suffix}")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    legend_below(figure)
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
                axes.set_ylabel(name.replace(" ", "\n"), fontsize=9)  # settings of a method: a line each
                if n_tasks <= 40:
                    axes.set_yticks(range(n_tasks), task_names, fontsize=7)
            if number == 0:
                axes.set_title(f"depth {depth}", fontsize=9)
            if number == len(usages) - 1:
                axes.set_xlabel("block (last: PASS)", fontsize=8)
            axes.tick_params(axis="x", labelsize=7)
    figure.colorbar(image, ax=panels, label="share of decisions", shrink=0.6, aspect=30)
    return figure


def route_flow(usage: Usage, task_names: Sequence[str], n_blocks: int) -> Figure:
    """Routes as a flow from tasks through the depths, a ribbon per task; a node is an action, as high as its share.

    Between two depths a ribbon has the product of both shares, which is exact where an agent takes the same route for
    all images.

    Args:
        usage: the shares.
        task_names: labels of the ribbons' beginnings.
        n_blocks: number of blocks; the actions behind them are PASS and, where there is one, STOP.
    """
    n_tasks = len(task_names)
    stages = [np.eye(n_tasks), *usage]
    gap = 0.04 * n_tasks
    tops: list[dict[int, float]] = []  # of the nodes of each stage; the vertical axis points down
    figure = Figure(figsize=(2 + 2.4 * len(usage), 1 + 0.3 * n_tasks), layout="constrained")
    axes = figure.subplots()
    for column, shares in enumerate(stages):
        used = np.flatnonzero(shares.sum(0) > _LEAST)
        heights = shares.sum(0)[used]
        top = (n_tasks - heights.sum() - gap * (len(used) - 1)) / 2
        tops.append({})
        for node, height in zip(used.tolist(), heights, strict=True):
            tops[-1][node] = top
            action = f"{column - 1}·{node}" if node < n_blocks else ("PASS", "STOP")[node - n_blocks]
            colour = "0.35" if column else COLOURS[node % len(COLOURS)]
            axes.add_patch(Rectangle((column - 0.02, top), 0.04, height, color=colour, lw=0))
            x, side = (-0.04, "right") if column == 0 else (column + 0.04, "left")
            label = action if column else task_names[node]
            axes.text(x, top + height / 2, label, ha=side, va="center", fontsize=8, zorder=3)
            top += height + gap
    for column, (shares, following) in enumerate(pairwise(stages)):
        links = [
            (task, node, after, shares[task, node] * following[task, after])
            for task in range(n_tasks)
            for node in tops[column]
            for after in tops[column + 1]
            if shares[task, node] * following[task, after] > _LEAST
        ]
        leaving, entering = ({**tops[column]}, {**tops[column + 1]})
        starts = {}
        for task, node, after, width in sorted(links, key=lambda link: (link[1], link[2], link[0])):
            starts[task, node, after] = leaving[node]
            leaving[node] += width
        for task, node, after, width in sorted(links, key=lambda link: (link[2], link[1], link[0])):
            ends = (column + 0.02, column + 0.98)
            _ribbon(axes, ends, starts[task, node, after], entering[after], width, COLOURS[task % len(COLOURS)])
            entering[after] += width
    room = gap * max(map(len, tops)) / 2
    axes.set(xlim=(-0.5, len(usage) + 0.25), ylim=(n_tasks + room, -room))
    axes.set_axis_off()
    return figure


def _ribbon(axes: Axes, ends: tuple[float, float], start: float, end: float, width: float, colour: Any) -> None:
    left, right = ends
    middle = (left + right) / 2
    above = [(left, start), (middle, start), (middle, end), (right, end)]
    below = [(right, end + width), (middle, end + width), (middle, start + width), (left, start + width)]
    codes = [Outline.MOVETO, *[Outline.CURVE4] * 3, Outline.LINETO, *[Outline.CURVE4] * 3]
    axes.add_patch(PathPatch(Outline([*above, *below], codes), color=colour, alpha=0.45, lw=0))


def cost_curves(curves: Mapping[str, Mapping[int, float]]) -> Figure:
    """Milliseconds per instance of a training step against the number of tasks; one line per method."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for number, (name, points) in enumerate(curves.items()):
        axes.plot(list(points), list(points.values()), marker="o", **style(number), label=name)
    axes.set(xscale="log", yscale="log", xlabel="tasks", ylabel="training step, ms per instance")
    ticks = sorted({n for points in curves.values() for n in points})
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Writes a figure, whole or not at all, in the format of the path's suffix."""
    write_whole(path, lambda temporary: figure.savefig(temporary, format=path.suffix[1:], dpi=150))
