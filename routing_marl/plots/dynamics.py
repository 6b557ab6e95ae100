"""Pictures of learning dynamics: policies on their simplex, diagnostics over epochs, who shares routes with whom."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.cluster import hierarchy

from routing_marl.diagnostics import ALL, MEASURES, route_tree
from routing_marl.errors import UserError
from routing_marl.plots.lines import COLOURS

History = Float[np.ndarray, "time line action"]

_CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(0.75)]])


def simplex(
    histories: Mapping[str, History],
    *,
    names: Sequence[str] | None = None,
    actions: Sequence[str] | None = None,
    targets: Float[np.ndarray, "point action"] | None = None,
) -> Figure:
    """Policies on their way: in a triangle for three actions, the first one's probability over time for two.

    Args:
        histories: one panel each. A circle is the beginning, a filled dot the end.
        names: of the lines, for a legend.
        actions: names of the actions.
        targets: policies to mark with a star, the equilibrium say.
    """
    sizes = {history.shape[-1] for history in histories.values()}
    if not sizes <= {2, 3} or len(sizes) != 1:
        raise UserError(f"histories have {', '.join(map(str, sorted(sizes)))} actions; all must have 2, or all 3")
    three = sizes == {3}
    figure, panels = _panels(len(histories), (3.1, 3.0) if three else (3.6, 2.7))
    for axes, (title, history) in zip(panels, histories.items(), strict=True):
        axes.set_title(title, fontsize=10)
        (_triangle if three else _unit_interval)(axes, actions, targets, history)
        for line in range(history.shape[1]):
            colour = COLOURS[line % len(COLOURS)]
            label = None if names is None else names[line]
            if three:
                _path(axes, history[:, line] @ _CORNERS, colour, label)
            else:
                axes.plot(history[:, line, 0], color=colour, label=label, lw=1.3)
    if names is not None:
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 5), frameon=False)
    return figure


def phase_portrait(
    histories: Mapping[str, Float[np.ndarray, "time game 2 2"]],
    *,
    action: str = "action 0",
    target: tuple[float, float] | None = None,
) -> Figure:
    """Two players of two actions against each other: how probable action 0 is to each, as a path in the unit square.

    Args:
        histories: one panel each, one path per game (:func:`routing_marl.matrix_engine.play` makes them). A circle is
            the beginning, a filled dot the end.
        action: name of action 0.
        target: the equilibrium, marked with a star.
    """
    figure, panels = _panels(len(histories), (3.1, 3.1))
    for axes, (title, history) in zip(panels, histories.items(), strict=True):
        axes.set_title(title, fontsize=10)
        axes.axhline(0.5, color="0.85", lw=0.8, zorder=0)
        axes.axvline(0.5, color="0.85", lw=0.8, zorder=0)
        for game in range(history.shape[1]):
            _path(axes, history[:, game, :, 0], COLOURS[game % len(COLOURS)])
        if target is not None:
            axes.plot(*target, marker="*", ms=14, color="black", mfc="gold", zorder=5)
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal", xlabel=f"player 0: P({action})")
    panels[0].set_ylabel(f"player 1: P({action})")
    return figure


def diagnostics_over_epochs(frame: pd.DataFrame, measures: Sequence[str] | None = None) -> Figure:
    """One panel per measure over epochs, a line per depth: the mean over tasks, with all of their range as a band.

    Args:
        frame: as :func:`routing_marl.diagnostics.diagnose` returns it.
        measures: which; None for all that change with the epoch.
    """
    there = [name for name in MEASURES if name != "settled_after" and name in set(frame["measure"])]
    chosen = list(measures or there)
    if unknown := [name for name in chosen if name not in there]:
        raise UserError(f"measure is {unknown[0]!r}; there are {', '.join(there)}")
    figure, panels = _panels(len(chosen), (3.4, 2.5), columns=4)
    for axes, measure in zip(panels, chosen, strict=True):
        rows = frame[frame["measure"] == measure].replace([np.inf, -np.inf], np.nan)
        for depth, of_depth in rows.groupby("depth"):
            by_epoch = of_depth.groupby("epoch")["value"]
            mean = by_epoch.mean()
            whole = depth == ALL
            colour = "black" if whole else COLOURS[int(str(depth)) % len(COLOURS)]
            label = "whole route" if whole else f"depth {depth}"
            axes.plot(mean.index, mean, color=colour, label=label, marker="." if len(mean) < 30 else None)
            if (of_depth["task"] != ALL).any():
                axes.fill_between(mean.index, by_epoch.min(), by_epoch.max(), color=colour, alpha=0.12, lw=0)
        axes.set_title(measure.replace("_", " "), fontsize=10)
        axes.set_xlabel("epoch")
        if measure in ("flip", "pass_share", "route_overlap"):  # often all the same: then no scale would be chosen well
            axes.set_ylim(-0.03, 1.03)
        axes.set_xlim(frame["epoch"].min() - 0.1, frame["epoch"].max() + 0.1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    legend: dict[str, Any] = {}
    for axes in panels:
        legend |= {str(label): handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(legend.values()), list(legend), loc="outside lower center", ncols=6, frameon=False)
    return figure


def route_similarity(
    similarity: Float[np.ndarray, "task task"],
    task_names: Sequence[str],
    clusters: Int[np.ndarray, " task"] | None = None,
) -> Figure:
    """How much of their routes each two tasks share, in the order of the tree that groups them.

    Args:
        similarity: as :func:`routing_marl.diagnostics.route_similarity` returns it; of two tasks at least.
        task_names: labels of the rows.
        clusters: the known structure, shown as colours of the names.
    """
    n_tasks = len(task_names)
    size = 2.6 + 0.24 * n_tasks
    figure = Figure(figsize=(size + 1.6, size), layout="constrained")
    tree_axes, axes = figure.subplots(1, 2, width_ratios=(1, 3.2))
    tree = hierarchy.dendrogram(
        route_tree(similarity),
        orientation="left",
        ax=tree_axes,
        no_labels=True,
        color_threshold=0,
        above_threshold_color="0.3",
    )
    order = tree["leaves"][::-1]  # the tree grows upwards, rows go down
    tree_axes.set(xlabel="share that differs", xlim=(1.02, -0.02))
    tree_axes.spines[["top", "right", "left"]].set_visible(False)
    image = axes.imshow(similarity[np.ix_(order, order)], vmin=0, vmax=1, cmap="Blues", aspect="auto")
    axes.set_xticks(range(n_tasks), [task_names[task] for task in order], rotation=90, fontsize=8)
    axes.set_yticks(range(n_tasks), [task_names[task] for task in order], fontsize=8)
    axes.yaxis.tick_right()
    axes.tick_params(length=0)
    if clusters is not None:
        groups = np.unique(clusters, return_inverse=True)[1]
        for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
            for label, task in zip(labels, order, strict=True):
                label.set_color(COLOURS[groups[task] % len(COLOURS)])
    figure.colorbar(image, ax=axes, label="share of depths with the same action", location="top", shrink=0.7, aspect=30)
    return figure


def _panels(count: int, size: tuple[float, float], columns: int = 5) -> tuple[Figure, list[Axes]]:
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows + 0.3), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, panels[:count]


def _path(axes: Axes, points: Float[np.ndarray, "time 2"], colour: Any, label: str | None = None) -> None:
    """A line that grows from faint to strong, a circle where it begins, and a dot where it ends."""
    segments = np.stack([points[:-1], points[1:]], axis=1)
    strength = np.linspace(0.25, 1.0, len(segments))
    axes.add_collection(LineCollection(list(segments), colors=[(*colour[:3], alpha) for alpha in strength], lw=1.2))
    axes.plot(*points[0], marker="o", mfc="white", mec=colour, ms=6, ls="none", zorder=4)
    axes.plot(*points[-1], marker="o", color=colour, ms=6, ls="none", label=label, zorder=4)


def _triangle(axes: Axes, actions: Sequence[str] | None, targets: Any, history: History) -> None:
    corners = _CORNERS[[0, 1, 2, 0]]
    axes.plot(*corners.T, color="0.6", lw=1, zorder=0)
    words = actions or [f"action {action}" for action in range(3)]
    for corner, word, (dx, dy, side) in zip(
        _CORNERS, words, [(-0.02, -0.05, "center"), (0.02, -0.05, "center"), (0, 0.03, "center")], strict=True
    ):
        axes.text(corner[0] + dx, corner[1] + dy, word, ha=side, va="bottom" if dy > 0 else "top", fontsize=8)
    if targets is not None:
        axes.plot(*(targets @ _CORNERS).T, marker="*", ms=13, color="black", mfc="gold", ls="none", zorder=5)
    axes.set(xlim=(-0.12, 1.12), ylim=(-0.14, 0.98), aspect="equal")
    axes.set_axis_off()


def _unit_interval(axes: Axes, actions: Sequence[str] | None, targets: Any, history: History) -> None:
    for target in [] if targets is None else targets:
        axes.axhline(target[0], color="black", ls=":", lw=1)
    axes.set(xlim=(0, len(history) - 1), ylim=(-0.03, 1.03), xlabel="time")
    axes.set_ylabel(f"P({actions[0] if actions else 'action 0'})")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
