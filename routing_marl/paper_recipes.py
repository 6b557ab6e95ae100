"""The suites of the paper (Rosenbaum, Klinger & Riemer, arXiv 1711.01239, section 4), and two made like them.

Which images go where is decided by a seed alone.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from routing_marl.class_names import CIFAR100_COARSE_NAMES, CIFAR100_FINE_NAMES, CIFAR100_FINE_TO_COARSE
from routing_marl.data import find_arrays, scikit_digits
from routing_marl.errors import UserError
from routing_marl.partition import Instances, check_fraction, check_tasks, hold_out, one_against_rest, yes_no
from routing_marl.randomness import check_seed
from routing_marl.suites import TaskSuite


def digits(seed: int = 0, validation: float = 0.2) -> TaskSuite:
    """Scikit-learn's 1,797 real 8x8 digits as ten one-against-rest tasks; needs no download.

    Every task has all images of a split, with label 1 ("yes") for its own digit and 0 ("no") for the others.
    A fifth of the images are the test split, in equal shares of every digit.

    Args:
        seed: decides which images go into which split.
        validation: fraction of all images in the validation split; the rest is the training split.
    """
    images, digit = scikit_digits()
    check_fraction(validation, "suite digits: validation", 0.8)
    tasks = one_against_rest(digit, 10)
    rest, test = hold_out(check_tasks(tasks, len(images), "digits"), len(images), 0.2, seed)
    return TaskSuite.from_arrays(
        "digits", images, rest, test, validation=validation / 0.8, class_names=yes_no(tasks), seed=seed
    )


def mnist_mtl(
    data_dir: str | Path | None = None, seed: int = 0, validation: float = 0.0, full_test: bool = False
) -> TaskSuite:
    """MNIST-MTL as in the paper: ten tasks "is it this digit?", one right instance in ten.

    A task trains on 1,000 images of every digit and is tested on 20 of every digit, drawn for each task on
    its own (so most of MNIST is used by one task or another).

    Args:
        data_dir: see :func:`routing_marl.data.data_folder`.
        seed: decides which images are drawn; the training split does not depend on the other arguments.
        validation: size of the validation split as a fraction of the training split. It comes from 1,000
            training images of every digit that no task trains on, and is the same for all tasks. 0: none.
        full_test: test every task on all test images, in MNIST's own proportions.
    """
    return _is_it("mnist_mtl", "mnist", data_dir, seed, validation, full_test)


def fashion_mtl(
    data_dir: str | Path | None = None, seed: int = 0, validation: float = 0.0, full_test: bool = False
) -> TaskSuite:
    """As :func:`mnist_mtl`, on the ten articles of Fashion-MNIST (Xiao, Rasul & Vollgraf, arXiv 1708.07747)."""
    return _is_it("fashion_mtl", "fashion_mnist", data_dir, seed, validation, full_test)


def _is_it(
    suite: str, data_set: str, data_dir: str | Path | None, seed: int, validation: float, full_test: bool
) -> TaskSuite:
    data = find_arrays(data_set, data_dir)
    check_fraction(validation, f"suite {suite}: validation")
    check_seed(seed)
    per_class, per_class_test = 1000, 20
    train_pool, test_pool = (
        _shuffled_by_class(data.y_train, seed, 0),
        _shuffled_by_class(data.y_test, seed, 1),
    )
    for what, pool, needed in (("training", train_pool, 2 * per_class), ("test", test_pool, per_class_test)):
        short = [digit for digit, members in enumerate(pool) if len(members) < needed]
        if short:
            found = f"{len(pool[short[0]])} {what} images of a {data.class_names[short[0]]}"
            raise UserError(f"{data.source}: {found}; {needed} are needed")
    held_out = np.concatenate([members[: round(per_class * validation)] for members in train_pool])
    rng = np.random.default_rng([seed, 2])
    train, test, held_out_tasks = {}, {}, {}
    for digit in range(10):
        learn = _drawn(rng, [members[per_class:] for members in train_pool], per_class)
        judge = _drawn(rng, test_pool, per_class_test)
        if full_test:
            judge = np.arange(len(data.y_test))
        task = "is_" + data.class_names[digit].lower().replace(" ", "_").replace("/", "_")
        train[task] = learn, (data.y_train[learn] == digit).astype(np.int64)
        test[task] = judge, (data.y_test[judge] == digit).astype(np.int64)
        held_out_tasks[task] = held_out, (data.y_train[held_out] == digit).astype(np.int64)
    return TaskSuite.from_arrays(
        suite,
        data.x_train,
        train,
        test,
        test_images=data.x_test,
        validation=held_out_tasks if len(held_out) else 0.0,
        class_names=yes_no(train),
    )


def cifar100_mtl(data_dir: str | Path | None = None, seed: int = 0, validation: float = 0.0) -> TaskSuite:
    """CIFAR-100-MTL as in the paper: each of the 20 superclasses is a task with five classes.

    The labels of a task are 0 to 4 in the order of CIFAR-100's (alphabetical) fine classes. All 2,500
    training and 500 test images of a task are used.

    Args:
        data_dir: see :func:`routing_marl.data.data_folder`.
        seed: decides which images are held out.
        validation: fraction of the training images to hold out, 0.1 being 50 of each class. 0: none, so that
            the numbers compare with the paper's.
    """
    data = find_arrays("cifar100", data_dir)
    coarse_of = np.array(CIFAR100_FINE_TO_COARSE)
    train: dict[str, Instances] = {}
    test: dict[str, Instances] = {}
    class_names = {}
    for task, name in enumerate(CIFAR100_COARSE_NAMES):
        fine = np.flatnonzero(coarse_of == task)
        class_names[name] = [CIFAR100_FINE_NAMES[label] for label in fine]
        for tasks, labels in ((train, data.y_train), (test, data.y_test)):
            index = np.flatnonzero(coarse_of[labels] == task)
            tasks[name] = index, np.searchsorted(fine, labels[index])
    return TaskSuite.from_arrays(
        "cifar100_mtl",
        data.x_train,
        train,
        test,
        test_images=data.x_test,
        validation=validation,
        class_names=class_names,
        seed=seed,
    )


def mini_imagenet_mtl(data_dir: str | Path | None = None, seed: int = 0, validation: float = 0.0) -> TaskSuite:
    """MIN-MTL as in the paper: ten tasks of five random classes each, out of 50; 84x84 pixels.

    The paper trains on 800 and tests on 50 images of each class; mini-ImageNet (Vinyals et al., arXiv 1606.04080) has
    600 of each, of which these are the first 500 and the last 100. Of more than 50 classes, 50 random ones are taken.

    Args:
        data_dir: see :func:`routing_marl.data.data_folder`.
        seed: decides which classes make up a task, and which images are held out.
        validation: fraction of the training images to hold out. 0: none.
    """
    data = find_arrays("mini_imagenet", data_dir)
    n_tasks, n_classes = 10, 5
    if len(data.class_names) < n_tasks * n_classes:
        raise UserError(f"{data.source}: {len(data.class_names)} classes; {n_tasks * n_classes} are needed")
    check_seed(seed)
    drawn = np.random.default_rng([seed, 4]).permutation(len(data.class_names))[: n_tasks * n_classes]
    task_of, label_of = np.full((2, len(data.class_names)), -1)
    task_of[drawn], label_of[drawn] = np.divmod(np.arange(len(drawn)), n_classes)
    parts = []
    for y in (data.y_train, data.y_test):
        index = [np.flatnonzero(task_of[y] == task) for task in range(n_tasks)]
        parts.append({f"task_{task}": (members, label_of[y[members]]) for task, members in enumerate(index)})
    return TaskSuite.from_arrays(
        "mini_imagenet_mtl",
        data.x_train,
        *parts,
        test_images=data.x_test,
        validation=validation,
        class_names={f"task_{t}": [data.class_names[k] for k in c] for t, c in enumerate(drawn.reshape(n_tasks, -1))},
        seed=seed,
    )


def _shuffled_by_class(labels: Int64[np.ndarray, " image"], seed: int, part: int) -> list[Any]:
    rng = np.random.default_rng([seed, part])
    return [rng.permutation(np.flatnonzero(labels == k)) for k in range(10)]


def _drawn(rng: np.random.Generator, pools: Sequence[Any], per_class: int) -> Int64[np.ndarray, " image"]:
    return np.concatenate([rng.choice(pool, per_class, replace=False) for pool in pools])
