"""Pictures of scores and routes show the numbers that they are given, in the right places."""

import math
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import PathPatch, Rectangle
from test_statistics import rows

from routing_marl import plots
from routing_marl.plots import lines
from routing_marl.plots.lines import style
from routing_marl.statistics import Interval, Profile, median_times


def test_intervals_have_a_row_per_name_and_a_panel_per_title():
    found = {"a": Interval(0.5, 0.4, 0.7), "b": Interval(0.9, math.nan, math.nan)}
    figure = plots.intervals({"mean": found, "other": found}, "accuracy / %", mark=0.5)
    first, second = figure.axes
    assert (first.get_title(), second.get_title()) == ("mean", "other")
    bar, estimate, _, lonely, mark = first.lines
    assert bar.get_xdata() == pytest.approx([40, 70]) and set(bar.get_ydata()) == {0}
    assert estimate.get_xdata()[0] == 50 and (lonely.get_xdata()[0], lonely.get_ydata()[0]) == (90, 1)
    assert set(mark.get_xdata()) == {50}
    figure.canvas.draw()
    assert [text.get_text() for text in first.get_yticklabels()] == ["a", "b"]
    assert first.yaxis_inverted()


def test_profiles_are_drawn_with_their_bands():
    profile = Profile(np.array([0.5, 0.9]), np.array([1.0, 0.25]), np.array([1.0, 0.0]), np.array([1.0, 0.5]))
    figure = plots.performance_profiles({"a": profile}, "accuracy above / %")
    (axes,) = figure.axes
    assert axes.lines[0].get_xdata().tolist() == [50, 90] and axes.lines[0].get_ydata().tolist() == [1, 0.25]
    band = axes.collections[0].get_paths()[0].vertices
    assert {(90.0, 0.0), (90.0, 0.5)} <= set(map(tuple, band))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a"]


CURVES = rows(
    [
        *(("a", 0, epoch, -1, accuracy, 10.0 * epoch) for epoch, accuracy in ((1, 0.5), (2, 1.0))),
        *(("a", 1, epoch, -1, accuracy, 10.0 * epoch) for epoch, accuracy in ((1, 0.75), (2, 0.75))),
        ("a", 2, 1, -1, 0.0, 10.0),
        ("b", 0, 3, -1, 0.5, 30.0),
        ("b", 0, 3, 0, 0.99, 30.0),  # a task alone counts for nothing
    ]
)


def test_median_times_by_hand():
    medians = median_times(CURVES, 5)
    assert medians.columns.tolist() == [0, 0.25, 0.5, 0.75, 1]
    # a: epochs 1, 1, 1; then 1, 1, never; at 0.75 2, 1, never; 1 is reached by one of three.
    assert medians.loc["a"].tolist() == [1, 1, 1, 2, math.inf]
    assert medians.loc["b"].tolist() == [3, 3, 3, math.inf, math.inf]


def test_time_to_accuracy_ends_where_half_of_the_runs_never_get():
    figure = plots.time_to_accuracy(CURVES, unit="wall_s", n_targets=5)
    a, b = figure.axes[0].lines
    assert a.get_xdata().tolist() == [0, 25, 50, 75, 100]
    np.testing.assert_array_equal(a.get_ydata(), [10, 10, 10, 20, np.nan])
    np.testing.assert_array_equal(b.get_ydata(), [30, 30, 30, np.nan, np.nan])
    assert figure.axes[0].get_ylabel() == "training / s"


def test_a_flow_is_as_high_as_the_shares():
    # Two tasks: both take block 1 at depth 0; then task 0 takes PASS, and task 1 PASS or block 0, half and half.
    usage = np.array([[[0, 1, 0], [0, 1, 0]], [[0, 0, 1], [0.5, 0, 0.5]]], float)
    figure = plots.route_flow(usage, ["x", "y"], n_blocks=2)
    (axes,) = figure.axes
    nodes = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert [text.get_text() for text in axes.texts] == ["x", "y", "0·1", "1·0", "PASS"]
    assert [node.get_height() for node in nodes] == pytest.approx([1, 1, 2, 0.5, 1.5])
    ribbons = [patch.get_path().vertices for patch in axes.patches if isinstance(patch, PathPatch)]
    assert len(ribbons) == 5
    for column, heights in ((0.02, [1, 1]), (0.98, [1, 1]), (1.02, [0.5, 0.5, 1]), (1.98, [0.5, 0.5, 1])):
        ends = [of[np.isclose(of[:, 0], column), 1] for of in ribbons]
        spans = sorted((min(end), max(end)) for end in ends if len(end))
        assert sorted(high - low for low, high in spans) == pytest.approx(heights)
        assert all(high <= low + 1e-9 for (_, high), (low, _) in pairwise(spans))  # none overlap
        inside = [node for node in nodes if abs(node.get_x() + 0.02 - round(column)) < 0.1]
        assert all(
            any(node.get_y() - 1e-9 <= low and high <= node.get_y() + node.get_height() + 1e-9 for node in inside)
            for low, high in spans
        )
    figure.canvas.draw()


def test_forty_lines_can_be_told_apart():
    assert len({(str(line["color"]), line["linestyle"]) for line in map(style, range(40))}) == 40


@pytest.mark.parametrize("name", ["a", "a method of a long name, 48 filters"])
def test_legends_are_no_wider_than_their_figure(name):
    figure = lines.with_legend(5.2, 4.0, 4)
    axes = figure.subplots()
    for number in range(4):
        axes.plot([0, 1], [0, number], label=f"{name} {number}")
    lines.legend_below(figure)
    FigureCanvasAgg(figure).draw()
    (legend,) = figure.legends
    assert legend.get_window_extent().width <= figure.bbox.width
    assert axes.get_window_extent().height > 0.7 * 4.0 * figure.dpi  # the plot keeps its room
