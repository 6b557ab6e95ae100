"""Pictures of learning dynamics show the numbers that they are given, in the right places."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import LineCollection
from test_diagnostics import toy

from routing_marl import plots
from routing_marl.diagnostics import diagnose, route_similarity
from routing_marl.errors import UserError


@pytest.fixture(autouse=True)
def nothing_is_left_open():
    yield
    assert not plt.get_fignums()


def ends(axes):
    """Where the paths begin and end, by their markers."""
    markers = [line for line in axes.lines if line.get_marker() == "o"]
    return [tuple(float(v[0]) for v in line.get_data()) for line in markers]


def test_corners_of_the_triangle_are_pure_policies():
    history = np.eye(3)[[[0, 1], [1, 2], [2, 0]]]  # time, line, action: each line visits all corners
    figure = plots.simplex({"a": history}, names=["x", "y"], targets=np.full((1, 3), 1 / 3))
    (axes,) = figure.axes
    top = (0.5, pytest.approx(np.sqrt(0.75)))
    assert ends(axes) == [(0, 0), top, (1, 0), (0, 0)]
    star = next(line for line in axes.lines if line.get_marker() == "*")
    assert star.get_xdata()[0] == pytest.approx(0.5) and star.get_ydata()[0] == pytest.approx(np.sqrt(0.75) / 3)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["x", "y"]
    figure.canvas.draw()


def test_two_actions_are_a_probability_over_time():
    history = np.array([[[0.2, 0.8]], [[0.7, 0.3]]])
    figure = plots.simplex({"a": history, "b": history[:1].repeat(3, 0)}, actions=["heads", "tails"])
    first, second = figure.axes
    assert first.lines[0].get_ydata().tolist() == [0.2, 0.7] and second.lines[0].get_ydata().tolist() == [0.2] * 3
    assert first.get_ylabel() == "P(heads)"


def test_other_numbers_of_actions_are_refused():
    with pytest.raises(UserError, match="histories have 4 actions; all must have 2, or all 3"):
        plots.simplex({"a": np.zeros((2, 1, 4))})


def test_a_phase_portrait_has_a_player_on_each_axis():
    history = np.array([[[[0.9, 0.1], [0.6, 0.4]]], [[[0.5, 0.5], [0.2, 0.8]]]])  # time, game, player, action
    figure = plots.phase_portrait({"a": history}, action="heads", target=(0.5, 0.5))
    (axes,) = figure.axes
    assert ends(axes) == [(0.9, 0.6), (0.5, 0.2)]
    (path,) = [artist for artist in axes.collections if isinstance(artist, LineCollection)]
    assert np.allclose(path.get_segments()[0], [[0.9, 0.6], [0.5, 0.2]])


def test_diagnostics_are_means_over_tasks_by_epoch():
    frame = diagnose(toy())
    figure = plots.diagnostics_over_epochs(frame, ["flip", "adjusted_mutual_information"])
    flips, information = figure.axes
    by_label = {line.get_label(): line for line in flips.lines}
    assert by_label["depth 0"].get_xdata().tolist() == [2, 3]
    assert by_label["depth 1"].get_ydata().tolist() == pytest.approx([0, 2 / 3])
    assert {line.get_label() for line in information.lines} == {"whole route", "depth 0", "depth 1"}
    assert len(plots.diagnostics_over_epochs(frame).axes) >= 12  # all that change with the epoch
    with pytest.raises(UserError, match="measure is 'fun'; there are entropy, kl"):
        plots.diagnostics_over_epochs(frame, ["fun"])


def test_similar_routes_stand_side_by_side():
    # Tasks a and c do the same, b and d too.
    usage = np.eye(3)[[[0, 1, 0, 1], [2, 0, 2, 0]]]
    figure = plots.route_similarity(route_similarity(usage), list("abcd"), np.array([5, 7, 5, 7]))
    axes = figure.axes[1]
    order = "".join(label.get_text() for label in axes.get_yticklabels())
    assert order in ("acbd", "cabd", "acdb", "cadb", "bdac", "bdca", "dbac", "dbca")
    shown = axes.images[0].get_array()
    assert np.array_equal(shown, np.kron(np.eye(2), np.ones((2, 2))))
    colours = {label.get_text(): label.get_color() for label in axes.get_yticklabels()}
    assert colours["a"] == colours["c"] != colours["b"] == colours["d"]
    # Rows of the picture and leaves of the tree go the same way: the tree's first leaf is at the bottom.
    low, high = figure.axes[0].get_ylim()
    assert low < high and axes.get_ylim()[0] > axes.get_ylim()[1]
