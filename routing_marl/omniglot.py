"""Omniglot's alphabets as tasks (Lake, Salakhutdinov & Tenenbaum 2015), as multi-task papers use them.

Which alphabets, in which order and with which splits: Maziarz et al., arXiv 1910.04915 (the Gumbel-Matrix paper), and
the authors' published code.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from routing_marl.class_names import OMNIGLOT_ALPHABETS
from routing_marl.data import ImageArrays, find_arrays
from routing_marl.errors import UserError
from routing_marl.partition import Instances, check_fraction, rank_within_class
from routing_marl.pixels import resized
from routing_marl.randomness import check_seed
from routing_marl.suites import TaskSuite

Labels = Int64[np.ndarray, " _"]


def omniglot_mtl(
    data_dir: str | Path | None = None, seed: int = 0, validation: float = 0.2, size: int = 28
) -> TaskSuite:
    """Twenty alphabets of Omniglot, each a task, with its characters as classes; as in the Gumbel-Matrix paper.

    Of the 20 drawings of each character, 10 are to train on, 4 for validation and 6 to test on. Ink is white on black.

    Args:
        data_dir: see :func:`routing_marl.data.data_folder`.
        seed: decides which drawings go where.
        validation: fraction of all drawings in the validation split; the test split has 0.3, training the rest.
        size: height and width of the images; 105 is their own.
    """
    name = "omniglot_mtl" if size == 28 else f"omniglot_mtl_{size}"
    check_fraction(validation, f"suite {name}: validation", 0.7)
    check_seed(seed)
    images, labels = alphabets(find_arrays("omniglot", data_dir), OMNIGLOT_ALPHABETS, size)
    parts: dict[str, dict[str, Instances]] = {"test": {}, "validation": {}, "train": {}}
    start = 0
    for task, (alphabet, label) in enumerate(labels.items()):
        rank, count = rank_within_class(label, np.random.default_rng([seed, 5, task]))
        n_test = np.round(0.3 * count)
        n_held = np.round(validation * count)
        part_of = (rank >= n_test).astype(int) + (rank >= n_test + n_held)
        for number, tasks in enumerate(parts.values()):
            members = np.flatnonzero(part_of == number)
            tasks[alphabet] = start + members, label[members]
        start += len(label)
    return TaskSuite.from_arrays(
        name,
        images,
        parts["train"],
        parts["test"],
        validation=parts["validation"] if validation else 0.0,
        class_names={task: character_names(label) for task, label in labels.items()},
    )


def omniglot_mtl_105(data_dir: str | Path | None = None, seed: int = 0, validation: float = 0.2) -> TaskSuite:
    """:func:`omniglot_mtl` in the images' own 105 x 105 pixels, as published."""
    return omniglot_mtl(data_dir, seed, validation, size=105)


def alphabets(
    data: ImageArrays, names: Sequence[str], size: int
) -> tuple[UInt8[np.ndarray, "image {size} {size}"], dict[str, Labels]]:
    """The images of some alphabets, one after the other, white on black; and by alphabet the labels of its images."""
    alphabet_of = np.array([name.split("/")[0] for name in data.class_names])
    images, labels = [], {}
    for alphabet in names:
        characters = np.flatnonzero(alphabet_of == alphabet)
        both = ((data.x_train, data.y_train), (data.x_test, data.y_test))
        found = [(x[index], y[index]) for x, y in both if len(index := np.flatnonzero(np.isin(y, characters)))]
        if not found:
            raise UserError(f"{data.source}: no characters of the alphabet {alphabet}; all of Omniglot is needed")
        images += [255 - (x if size == x.shape[1] else resized(x, size)) for x, _ in found]
        labels[alphabet] = np.searchsorted(characters, np.concatenate([y for _, y in found]))
    return np.concatenate(images), labels


def character_names(label: Labels) -> list[str]:
    """As Omniglot's folders have them."""
    return [f"character{k + 1:02}" for k in range(int(label.max()) + 1)]
