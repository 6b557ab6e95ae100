"""The built-in suites by name: ``digits``, and the paper's MNIST-MTL and CIFAR-100-MTL.

The paper: Rosenbaum, Klinger & Riemer, arXiv 1711.01239, section 4.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from routing_marl.data import CIFAR100_COARSE_NAMES, CIFAR100_FINE_NAMES, CIFAR100_FINE_TO_COARSE, find_arrays
from routing_marl.errors import UserError
from routing_marl.npz_suite import load_npz
from routing_marl.partition import Instances, check_fraction, check_tasks, hold_out, one_against_rest, yes_no
from routing_marl.randomness import check_seed
from routing_marl.suites import TaskSuite

SUITES = ("digits", "mnist_mtl", "cifar100_mtl")


def make_suite(
    suite: str | Path | TaskSuite,
    data_dir: str | Path | None = None,
    seed: int = 0,
    *,
    validation: float | None = None,
    full_test: bool = False,
) -> TaskSuite:
    """The suite of that name, or of that .npz file; a ready suite passes through unchanged.

    Args:
        suite: ``digits``, ``mnist_mtl``, ``cifar100_mtl``, the path of an .npz file (see :func:`load_npz`),
            or a suite (the other arguments are not looked at then).
        data_dir: see :func:`routing_marl.data.data_folder`.
        seed: decides which images go where.
        validation: size of the validation split; None for the suite's own default (see each).
        full_test: all test images for each task instead of the paper's 200 (``mnist_mtl`` only).

    Raises:
        UserError: there is no such suite, or its data is missing or wrong.
    """
    if isinstance(suite, TaskSuite):
        return suite
    chosen = {} if validation is None else {"validation": validation}
    if full_test and suite != "mnist_mtl":
        raise UserError(f"suite {suite}: full_test is for mnist_mtl; this suite tests on all there is anyway")
    if suite == "digits":
        return digits(seed, **chosen)
    if suite == "mnist_mtl":
        return mnist_mtl(data_dir, seed, full_test=full_test, **chosen)
    if suite == "cifar100_mtl":
        return cifar100_mtl(data_dir, seed, **chosen)
    if isinstance(suite, Path) or suite.endswith(".npz") or "/" in suite or "\\" in suite:
        return load_npz(suite, seed, **chosen)
    close = get_close_matches(suite, SUITES, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise UserError(f"no suite {suite!r}; there are {', '.join(SUITES)}, and any path of an .npz file{hint}")


def digits(seed: int = 0, validation: float = 0.2) -> TaskSuite:
    """Scikit-learn's 1,797 real 8x8 digits as ten one-against-rest tasks; needs no download.

    Every task has all images of a split, with label 1 ("yes") for its own digit and 0 ("no") for the others.
    A fifth of the images are the test split, in equal shares of every digit.

    Args:
        seed: decides which images go into which split.
        validation: fraction of all images in the validation split; the rest is the training split.
    """
    from sklearn.datasets import load_digits

    pixels, digit = load_digits(return_X_y=True)
    images = np.round(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
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
    data = find_arrays("mnist", data_dir)
    check_fraction(validation, "suite mnist_mtl: validation")
    check_seed(seed)
    per_class, per_class_test = 1000, 20
    train_pool, test_pool = (
        _shuffled_by_class(data.y_train, seed, 0),
        _shuffled_by_class(data.y_test, seed, 1),
    )
    for what, pool, needed in (("training", train_pool, 2 * per_class), ("test", test_pool, per_class_test)):
        short = [digit for digit, members in enumerate(pool) if len(members) < needed]
        if short:
            raise UserError(f"{data.source}: {len(pool[short[0]])} {what} images of a {short[0]}; {needed} are needed")
    held_out = np.concatenate([members[: round(per_class * validation)] for members in train_pool])
    rng = np.random.default_rng([seed, 2])
    train, test, held_out_tasks = {}, {}, {}
    for digit in range(10):
        learn = _drawn(rng, [members[per_class:] for members in train_pool], per_class)
        judge = _drawn(rng, test_pool, per_class_test)
        if full_test:
            judge = np.arange(len(data.y_test))
        task = f"is_{digit}"
        train[task] = learn, (data.y_train[learn] == digit).astype(np.int64)
        test[task] = judge, (data.y_test[judge] == digit).astype(np.int64)
        held_out_tasks[task] = held_out, (data.y_train[held_out] == digit).astype(np.int64)
    return TaskSuite.from_arrays(
        "mnist_mtl",
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


def _shuffled_by_class(labels: Int64[np.ndarray, " image"], seed: int, part: int) -> list[Any]:
    rng = np.random.default_rng([seed, part])
    return [rng.permutation(np.flatnonzero(labels == k)) for k in range(10)]


def _drawn(rng: np.random.Generator, pools: Sequence[Any], per_class: int) -> Int64[np.ndarray, " image"]:
    return np.concatenate([rng.choice(pool, per_class, replace=False) for pool in pools])
