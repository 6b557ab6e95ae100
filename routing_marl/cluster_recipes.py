"""Suites whose tasks fall into known clusters, so that routes can be scored against the truth."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int64, Shaped

from routing_marl.class_names import CIFAR100_COARSE_NAMES, CIFAR100_FINE_TO_COARSE, OMNIGLOT_ALPHABETS
from routing_marl.data import find_arrays, scikit_digits
from routing_marl.errors import UserError
from routing_marl.omniglot import alphabets, character_names
from routing_marl.partition import Instances, check_fraction, hold_out, rank_within_class
from routing_marl.pixels import framed, in_colour
from routing_marl.randomness import check_seed
from routing_marl.suites import TaskSuite

Labels = Int64[np.ndarray, " image"]


def mnist_rotated(data_dir: str | Path | None = None, seed: int = 0, validation: float = 0.0) -> TaskSuite:
    """The four tasks of the Gumbel-Matrix paper: MNIST twice, and twice MNIST turned by 90 degrees counter-clockwise.

    Maziarz et al., arXiv 1910.04915; the angle is from the authors' published code. A task is to tell the ten digits,
    with all of MNIST's 60,000 training and 10,000 test images. The two tasks of a pair have the same images; they
    differ in the order that these come in. The pairs are the clusters.

    Args:
        data_dir: see :func:`routing_marl.data.data_folder`.
        seed: decides which images are held out.
        validation: fraction of the training images to hold out, the same for both tasks of a pair. 0: none.
    """
    data = find_arrays("mnist", data_dir)
    train: dict[str, Instances] = {}
    test: dict[str, Instances] = {}
    for number, world in enumerate(("plain", "rotated")):
        for copy in (1, 2):
            for tasks, label in ((train, data.y_train), (test, data.y_test)):
                tasks[f"{world}_{copy}"] = number * len(label) + np.arange(len(label)), label
    turned = {part: np.rot90(images, axes=(1, 2)) for part, images in (("train", data.x_train), ("test", data.x_test))}
    return TaskSuite.from_arrays(
        "mnist_rotated",
        np.concatenate([data.x_train, turned["train"]]),
        train,
        test,
        test_images=np.concatenate([data.x_test, turned["test"]]),
        validation=validation,
        class_names=dict.fromkeys(train, data.class_names),
        clusters={task: int(task.startswith("rotated")) for task in train},
        seed=seed,
    )


def clusters(data_dir: str | Path | None = None, seed: int = 0, validation: float = 0.0) -> TaskSuite:
    """Twelve tasks from three worlds, four each, in 32 x 32 pixels and colour; the worlds are the clusters.

    - CIFAR-100: the superclasses flowers, fruit and vegetables, insects and trees; 2,500 images to train on, 500 to
      test.
    - MNIST, in a black frame: four times the ten digits; each task has 250 images of each to train on and 50 to test,
      of its own.
    - Omniglot, brought to this size, white on black: the alphabets Gujarati, Sylheti, Arcadian and Tibetan, with all
      their characters (26 to 48); 14 drawings of each to train on and 6 to test.

    Args:
        data_dir: see :func:`routing_marl.data.data_folder`.
        seed: decides which digits and drawings are taken, and which images are held out.
        validation: fraction of the training images to hold out, in equal shares of every class. 0: none.
    """
    check_seed(seed)
    train: dict[str, Instances] = {}
    test: dict[str, Instances] = {}
    images, names, cluster = [], {}, {}
    start = 0
    for number, world in enumerate((_cifar_world, _mnist_world, _omniglot_world)):
        for task, pixels, label, is_test, class_names in world(data_dir, seed):
            images.append(pixels)
            for tasks, members in ((train, np.flatnonzero(~is_test)), (test, np.flatnonzero(is_test))):
                tasks[task] = start + members, label[members]
            names[task], cluster[task] = class_names, number
            start += len(label)
    stored = np.concatenate(images)
    images.clear()
    return TaskSuite.from_arrays(
        "clusters", stored, train, test, validation=validation, class_names=names, clusters=cluster, seed=seed
    )


def digit_clusters(seed: int = 0, validation: float = 0.0) -> TaskSuite:
    """Nine tasks from three worlds, three each, made of scikit-learn's 8x8 digits: clusters without a download.

    Each task is to tell ten digits. The worlds number them in three orders, no digit alike in two of them, so that a
    network shared by all worlds is told contradictions, and is right a third of the time at best. The three tasks of a
    world are the same question, but each has its own third of the training images: to share with the own world is to
    have three times the data. A fifth of the images are the test split of all tasks.

    Worlds that differ in their pixels instead (turned, permuted) would be no such test: a net with all blocks shared
    tells them apart by itself, and is as good as one with the true clusters.

    Args:
        seed: decides the orders, and which images go where.
        validation: fraction of the training images to hold out, the same for all tasks. 0: none.
    """
    check_fraction(validation, "suite digit_clusters: validation")
    check_seed(seed)
    images, digit = scikit_digits()
    rng = np.random.default_rng([seed, 6])
    rest, test = hold_out({"": (np.arange(len(digit)), digit)}, len(digit), 0.2, seed)
    rest, held = hold_out(rest, len(digit), validation, seed)
    parts: dict[str, dict[str, Instances]] = {"train": {}, "validation": {}, "test": {}}
    order, names, cluster = rng.permutation(10), {}, {}
    for world in range(3):
        numbering = (order + 3 * world) % 10
        index, label = rest[""]
        third = rank_within_class(label, rng)[0] % 3
        for k in range(3):
            task = f"order_{'abc'[world]}_{k + 1}"
            for part, members in (("train", index[third == k]), ("validation", held[""][0]), ("test", test[""][0])):
                parts[part][task] = members, numbering[digit[members]]
            names[task], cluster[task] = [*map(str, np.argsort(numbering))], world
    return TaskSuite.from_arrays(
        "digit_clusters",
        images,
        parts["train"],
        parts["test"],
        validation=parts["validation"] if validation else 0.0,
        class_names=names,
        clusters=cluster,
    )


World = Iterator[tuple[str, Shaped[np.ndarray, "..."], Labels, Shaped[np.ndarray, " image"], list[str]]]
"""Of each task: name, images, labels, which ones are test images, names of the classes."""


def _cifar_world(data_dir: str | Path | None, seed: int) -> World:
    data = find_arrays("cifar100", data_dir)
    for name in ("flowers", "fruit_and_vegetables", "insects", "trees"):
        fine = np.flatnonzero(np.array(CIFAR100_FINE_TO_COARSE) == CIFAR100_COARSE_NAMES.index(name))
        learn, judge = (np.flatnonzero(np.isin(y, fine)) for y in (data.y_train, data.y_test))
        label = np.searchsorted(fine, np.concatenate([data.y_train[learn], data.y_test[judge]]))
        pixels = np.concatenate([data.x_train[learn], data.x_test[judge]])
        yield name, pixels, label, np.arange(len(label)) >= len(learn), [data.class_names[k] for k in fine]


def _mnist_world(data_dir: str | Path | None, seed: int) -> World:
    data = find_arrays("mnist", data_dir)
    rng = np.random.default_rng([seed, 7])
    n_tasks, sizes = 4, (250, 50)
    drawn = []
    for x, y, size in ((data.x_train, data.y_train, sizes[0]), (data.x_test, data.y_test, sizes[1])):
        rank, _ = rank_within_class(y, rng)
        if np.bincount(y[rank < n_tasks * size], minlength=10).min() < n_tasks * size:
            raise UserError(f"{data.source}: too few images of a digit; {n_tasks * sizes[0]} to train on are needed")
        drawn.append([(x[index], y[index]) for k in range(n_tasks) if len(index := np.flatnonzero(rank // size == k))])
    for k, ((x_train, y_train), (x_test, y_test)) in enumerate(zip(*drawn, strict=True)):
        pixels = in_colour(framed(np.concatenate([x_train, x_test]), 32))
        is_test = np.arange(len(pixels)) >= len(x_train)
        yield f"digits_{k + 1}", pixels, np.concatenate([y_train, y_test]), is_test, [*data.class_names]


def _omniglot_world(data_dir: str | Path | None, seed: int) -> World:
    images, labels = alphabets(find_arrays("omniglot", data_dir), OMNIGLOT_ALPHABETS[:4], 32)
    start = 0
    for task, (alphabet, label) in enumerate(labels.items()):
        rank, count = rank_within_class(label, np.random.default_rng([seed, 5, task]))
        pixels = in_colour(images[start : start + len(label)])
        yield alphabet, pixels, label, rank < np.round(0.3 * count), character_names(label)
        start += len(label)
