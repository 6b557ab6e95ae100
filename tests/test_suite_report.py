import numpy as np
import pytest
from test_suites import small, stamped

from routing_marl.paper_recipes import digits
from routing_marl.suite_report import contact_sheet

CLUSTERS = {"which": 1, "odd": 0}


def shown(axes):
    """The picture in a panel, or None."""
    return np.asarray(axes.images[0].get_array()) if axes.images else None


def test_a_sheet_shows_training_images_below_their_class():
    y = np.arange(40) % 4
    names = {"which": ["north", "east", "south", "west"], "odd": ["even", "odd"]}
    suite = small(
        train={"which": y, "odd": y % 2}, test={"which": y[:8], "odd": y[:8] % 2}, class_names=names, clusters=CLUSTERS
    )
    figure = contact_sheet(suite, columns=6)
    assert "small" in figure.get_suptitle()
    panels = np.array(figure.axes).reshape(2, 6)
    assert [axes.get_ylabel().split("\n") for axes in panels[:, 0]] == [
        ["which", "(cluster 1)"],
        ["odd", "(cluster 0)"],
    ]
    for row, task in zip(panels, ("which", "odd"), strict=True):
        seen = set()
        for axes in row:
            number = int(shown(axes).ravel()[:2] @ [256, 1])  # the stamp; test images have other ones
            label = y[number] if task == "which" else y[number] % 2
            assert axes.get_title() == names[task][label]
            seen.add(number)
        assert len(seen) == 6
    assert [axes.get_title() for axes in panels[0]] == ["north", "east", "south", "west", "north", "east"]


def test_a_sheet_of_few_images_and_colour_leaves_gaps():
    y = np.array([0, 0, 0, 1])
    suite = small(images=stamped(4, (5, 6, 3)), train={"a": y}, test={"a": y}, test_images=stamped(4, (5, 6, 3)))
    panels = contact_sheet(suite, columns=6).axes
    assert [axes.get_title() for axes in panels] == ["0", "1", "0", "", "0", ""]
    assert shown(panels[0]).shape == (5, 6, 3) and shown(panels[3]) is None


def test_examples_are_of_all_of_the_class():
    suite = digits()
    panels = np.array(contact_sheet(suite, columns=6).axes).reshape(10, 6)
    image, label = suite.train.image[: suite.train.sizes[0]], suite.train.label[: suite.train.sizes[0]]
    members = [suite.images[k, ..., 0].numpy() for k in image[label == 0]]
    places = [next(n for n, m in enumerate(members) if np.array_equal(m, shown(axes))) for axes in panels[0, ::2]]
    assert places == pytest.approx(np.arange(3) * len(members) / 3, abs=1)
