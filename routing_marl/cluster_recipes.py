"""Suites whose tasks fall into known clusters, so that routes can be scored against the truth."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int64, Shaped, UInt8

from routing_marl.class_names import CIFAR100_COARSE_NAMES, CIFAR100_FINE_TO_COARSE, OMNIGLOT_ALPHABETS
from routing_marl.data import find_arrays, scikit_digits
from routing_marl.errors import UserError
from routing_marl.omniglot import alphabets, character_names
from routing_marl.partition import Instances, check_fraction, hold_out, rank_within_class
from routing_marl.pixels import framed, in_colour
from routing_marl.randomness import check_seed
from routing_marl.suites import TaskSuite

Labels = Int64[np.ndarray, " image"]
Digits = UInt8[np.ndarray, "image height width"]


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
    - MNIST, in a black frame: low (0 to 4), high, even and odd digits; 500 images per class to train on and 100 to
      test, none of them in two tasks.
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

    In every world all tasks are the same, to tell ten digits, but each has its own third of the images: to share with
    the own world is to have three times the data. The worlds are the digits as they are, turned by 90 degrees, and with
    their pixels in another order; each world numbers the digits in an order of its own, so that to share with another
    world is to be told contradictions. A fifth of the digits are test images in all worlds, and only there.

    Args:
        seed: decides the orders, and which images go where.
        validation: fraction of the training images to hold out, in all worlds the same digits. 0: none.
    """
    check_fraction(validation, "suite digit_clusters: validation")
    pixels, digit = scikit_digits()
    check_seed(seed)
    rng = np.random.default_rng([seed, 6])
    everything = {"digit": (np.arange(len(digit)), digit)}
    rest, test = hold_out(everything, len(digit), 0.2, seed)
    rest, held = hold_out(rest, len(digit), validation, seed)
    order = rng.permutation(pixels[0].size)
    worlds: dict[str, Callable[[Digits], Digits]] = {
        "plain": lambda images: images,
        "turned": lambda images: np.rot90(images, axes=(1, 2)),
        "permuted": lambda images: images.reshape(len(images), -1)[:, order].reshape(images.shape),
    }
    parts: dict[str, dict[str, Instances]] = {"train": {}, "validation": {}, "test": {}}
    names, cluster = {}, {}
    for number, world in enumerate(worlds):
        numbering = rng.permutation(10) if number else np.arange(10)
        for part, source in (("train", rest), ("validation", held), ("test", test)):
            index, label = source["digit"]
            third = rank_within_class(label, rng)[0] % 3
            for k in range(3):
                mine = index[third == k] if part == "train" else index
                parts[part][f"{world}_{k}"] = number * len(digit) + mine, numbering[digit[mine]]
        for k in range(3):
            names[f"{world}_{k}"] = [str(d) for d in np.argsort(numbering)]
            cluster[f"{world}_{k}"] = number
    return TaskSuite.from_arrays(
        "digit_clusters",
        np.concatenate([change(pixels) for change in worlds.values()]),
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
    pools = [[rng.permutation(np.flatnonzero(y == k)) for k in range(10)] for y in (data.y_train, data.y_test)]
    low, high, even, odd = range(5), range(5, 10), range(0, 10, 2), range(1, 10, 2)
    for name, members in (("low_digits", low), ("high_digits", high), ("even_digits", even), ("odd_digits", odd)):
        parts = []
        for x, pool, count in ((data.x_train, pools[0], 500), (data.x_test, pools[1], 100)):
            for digit in members:
                taken, pool[digit] = pool[digit][:count], pool[digit][count:]
                if len(taken) < count:
                    raise UserError(f"{data.source}: too few images of a {digit}; {2 * count} of each are needed")
                parts.append(x[taken])
        label = np.concatenate([np.full(len(part), k % 5) for k, part in enumerate(parts)])
        pixels = in_colour(framed(np.concatenate(parts), 32))
        yield name, pixels, label, np.arange(len(label)) >= 5 * 500, [str(digit) for digit in members]


def _omniglot_world(data_dir: str | Path | None, seed: int) -> World:
    images, labels = alphabets(find_arrays("omniglot", data_dir), OMNIGLOT_ALPHABETS[:4], 32)
    start = 0
    for task, (alphabet, label) in enumerate(labels.items()):
        rank, count = rank_within_class(label, np.random.default_rng([seed, 5, task]))
        pixels = in_colour(images[start : start + len(label)])
        yield alphabet, pixels, label, rank < np.round(0.3 * count), character_names(label)
        start += len(label)
