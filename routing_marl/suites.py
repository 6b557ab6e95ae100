"""Task suites: sets of classification tasks over images that are stored once.

Built in are ``digits``, and the paper's MNIST-MTL and CIFAR-100-MTL (Rosenbaum, Klinger & Riemer,
arXiv 1711.01239, section 4). Own arrays come in through :meth:`TaskSuite.from_arrays`, own files through
:func:`load_npz`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, Shaped, UInt8
from torch import Tensor

from routing_marl.data import (
    CIFAR100_COARSE_NAMES,
    CIFAR100_FINE_NAMES,
    CIFAR100_FINE_TO_COARSE,
    Array,
    as_array,
    check_images,
    check_integers,
    check_labels,
    find_arrays,
    read_npz,
)
from routing_marl.errors import UserError
from routing_marl.randomness import check_seed

SUITES = ("digits", "mnist_mtl", "cifar100_mtl")
SPLITS = ("train", "validation", "test")

Instances = tuple[Int64[np.ndarray, " _"], Int64[np.ndarray, " _"]]
"""The instances of one task: which images, and their labels."""


@dataclass(frozen=True, eq=False)
class Split:
    """Which images each task has, one task after the other. Immutable: copies are the object itself.

    Attributes:
        image: index into the images of the suite.
        label: label within the task, 0 .. n_classes - 1.
        offset: task ``t`` owns the positions ``offset[t] .. offset[t + 1] - 1``.
        sizes: instances of each task, known on the host.
    """

    image: Int64[Tensor, " total"]
    label: Int64[Tensor, " total"]
    offset: Int64[Tensor, " bound"]
    sizes: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", tuple(self.offset.diff().tolist()))

    def __copy__(self) -> "Split":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Split":
        return self

    @classmethod
    def of(cls, tasks: Sequence[Instances]) -> "Split":
        """Joins the instances of all tasks."""
        images, labels = [image for image, _ in tasks], [label for _, label in tasks]
        offset = torch.tensor([0, *(len(image) for image in images)]).cumsum(0)
        return cls(torch.from_numpy(_joined(images)), torch.from_numpy(_joined(labels)), offset)

    def to(self, device: torch.device | str) -> "Split":
        """The same split on another device."""
        return Split(self.image.to(device), self.label.to(device), self.offset.to(device))


@dataclass(frozen=True, eq=False)
class TaskSuite:
    """Tasks over images that are stored once. Immutable, so copies (deep ones too) are the object itself.

    :meth:`from_arrays` is the way to make one; it fills in ``mean`` and ``std``. Pickles hold the images.

    Attributes:
        name: the suite.
        images: all images of all tasks and splits, channels last.
        task_names: one per task.
        n_classes: classes of each task; they may differ.
        train: instances to learn from.
        test: instances for the final evaluation.
        mean: mean of each channel over the training images, in [0, 1].
        std: standard deviation likewise; 1 where a channel is constant.
        validation: instances for choices made during training; None where none were held out.
        class_names: names of the classes of each task, or None.

    Raises:
        UserError: no task, a task with fewer than two classes in its training split, a task without
            instances, a label or index out of range, or an image that stands in more than one split.
    """

    name: str
    images: UInt8[Tensor, "image height width channel"]
    task_names: tuple[str, ...]
    n_classes: tuple[int, ...]
    train: Split
    test: Split
    mean: Float32[Tensor, " channel"]
    std: Float32[Tensor, " channel"]
    validation: Split | None = None
    class_names: tuple[tuple[str, ...], ...] | None = None

    def __post_init__(self) -> None:
        n_tasks = len(self.task_names)
        if n_tasks == 0:
            raise UserError(f"suite {self.name}: zero tasks; at least one is needed")
        if len(set(self.task_names)) < n_tasks:
            raise UserError(f"suite {self.name}: two tasks of one name; names must differ")
        named = self.n_classes if self.class_names is None else tuple(map(len, self.class_names))
        if len(self.n_classes) != n_tasks or named != self.n_classes:
            raise UserError(f"suite {self.name}: task_names, n_classes and class_names do not fit together")
        used: dict[str, Bool[Tensor, " image"]] = {}
        for part, split in self.splits.items():
            self._check_split(part, split)
            used[part] = torch.zeros(len(self.images), dtype=torch.bool, device=self.images.device)
            used[part][split.image] = True
            for other in used.keys() - {part}:
                if (both := used[part] & used[other]).any():
                    raise UserError(
                        f"suite {self.name}: image {int(both.int().argmax())} is in {other} and in {part}; "
                        "an image belongs to one split"
                    )

    def _check_split(self, part: str, split: Split) -> None:
        if len(split.sizes) != len(self.task_names):
            raise UserError(f"suite {self.name}: {part} has {len(split.sizes)} tasks, not {len(self.task_names)}")
        for task, instances in enumerate(split.offset.unfold(0, 2, 1).tolist()):
            image, label = split.image[slice(*instances)], split.label[slice(*instances)]
            where = f"suite {self.name}, task {self.task_names[task]}, {part}"
            if len(image) == 0:
                raise UserError(f"{where}: no instances; at least one is needed")
            if image.min() < 0 or image.max() >= len(self.images):
                raise UserError(f"{where}: image index out of range; there are {len(self.images)} images")
            if label.min() < 0 or label.max() >= self.n_classes[task]:
                worst = int(label.min() if label.min() < 0 else label.max())
                raise UserError(f"{where}: label {worst}; labels go from 0 to {self.n_classes[task] - 1}")
            if part == "train" and (label == label[0]).all():
                raise UserError(f"{where}: one class only; at least two are needed")

    def __copy__(self) -> "TaskSuite":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "TaskSuite":
        return self

    @property
    def n_tasks(self) -> int:
        """Number of tasks T."""
        return len(self.task_names)

    @property
    def max_classes(self) -> int:
        """Classes of the task that has most of them."""
        return max(self.n_classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        height, width, channels = self.images.shape[1:]
        return height, width, channels

    @cached_property
    def class_mask(self) -> Bool[Tensor, "task class_"]:
        """True where a task has the class."""
        n_classes = torch.tensor(self.n_classes, device=self.images.device)
        return torch.arange(self.max_classes, device=self.images.device) < n_classes[:, None]

    @property
    def splits(self) -> dict[str, Split]:
        """The splits that there are, by name."""
        every = {"train": self.train, "validation": self.validation, "test": self.test}
        return {part: split for part, split in every.items() if split is not None}

    def split(self, name: str) -> Split:
        """The split of that name, or UserError where there is none."""
        if name not in SPLITS:
            raise UserError(f"no split {name!r}; there are {', '.join(SPLITS)}")
        if name not in self.splits:
            raise UserError(f"suite {self.name} has no validation split; build it with, say, validation=0.1")
        return self.splits[name]

    def to(self, device: torch.device | str) -> "TaskSuite":
        """The same suite on another device; itself where it is there already."""
        if torch.empty(0, device=device).device == self.images.device:
            return self
        moved = {name: getattr(self, name).to(device) for name in ("images", "train", "test", "mean", "std")}
        validation = None if self.validation is None else self.validation.to(device)
        return replace(self, validation=validation, **moved)

    @classmethod
    def from_arrays(
        cls,
        name: str,
        images: Array,
        train: Mapping[str, Any],
        test: Mapping[str, Any],
        *,
        test_images: Array | None = None,
        validation: Mapping[str, Any] | float = 0.0,
        class_names: Mapping[str, Sequence[str]] | None = None,
        seed: int = 0,
    ) -> "TaskSuite":
        """Makes a suite of your own arrays (numpy or torch), which are copied.

        The tasks of a split are a mapping from the task's name to either

        - labels, one per image, with -1 for "this image is not in this task" (or not in this split), or
        - a tuple ``(indices, labels)``: the images of this task, each at most once, and their labels.

        Two tasks over the same images, and a tenth of the training images held out::

            suite = TaskSuite.from_arrays(
                "numbers", x_train, {"odd": y_train % 2, "large": y_train > 4},
                test_images=x_test, test={"odd": y_test % 2, "large": y_test > 4}, validation=0.1)

        Args:
            name: of the suite.
            images: uint8 ``[n, H, W]`` or ``[n, H, W, C]``, 0 to 255.
            train: the tasks' training instances. Labels are 0 .. n_classes - 1.
            test: the same tasks' test instances.
            test_images: what ``test`` speaks of; None where that is ``images`` too.
            validation: the same tasks' validation instances in ``images``; or the fraction of the training
                images to hold out. Held out are whole images, for all tasks, in equal shares of every
                combination of task and class. 0: there is no validation split.
            class_names: by task, which then also tells the number of classes. Without it, the training labels
                tell, and none may be left out.
            seed: decides which images are held out.

        Raises:
            UserError: anything is not as described here or at :class:`TaskSuite`.
        """
        pixels = [check_images(images, f"suite {name}: images")]
        if test_images is not None:
            pixels.append(check_images(test_images, f"suite {name}: test_images"))
            if pixels[0].shape[1:] != pixels[1].shape[1:]:
                shapes = f"{list(pixels[0].shape[1:])} and {list(pixels[1].shape[1:])}"
                raise UserError(f"suite {name}: images and test_images of shapes {shapes}; they must be the same")
        n_train, n_test = len(pixels[0]), len(pixels[-1])
        parts = {"train": _instances(train, n_train, f"suite {name}, train")}
        test_parts = _instances(test, n_test, f"suite {name}, test")
        if test_images is not None:
            test_parts = {task: (index + n_train, label) for task, (index, label) in test_parts.items()}
        parts["test"] = test_parts
        if isinstance(validation, Mapping):
            parts["validation"] = _instances(validation, n_train, f"suite {name}, validation")
        elif _check_fraction(validation, f"suite {name}: validation"):
            parts["train"], parts["validation"] = _hold_out(parts["train"], n_train, validation, seed)
        for part, tasks in parts.items():
            if odd := sorted(tasks.keys() ^ train.keys()):
                raise UserError(f"suite {name}: task {odd[0]} is not both in train and in {part}")
        n_classes = {
            task: len(class_names[task]) if class_names else _count_classes(label, f"suite {name}, task {task}")
            for task, (_, label) in parts["train"].items()
            if class_names is None or task in class_names
        }
        if len(n_classes) < len(train):
            raise UserError(f"suite {name}: class_names lacks a task; they are needed for all or none")
        stored = torch.from_numpy(np.concatenate(pixels))
        stored = stored if stored.ndim == 4 else stored[..., None]
        mean, std = _channel_statistics(stored, parts["train"])
        return cls(
            name,
            stored,
            tuple(train),
            tuple(n_classes[task] for task in train),
            mean=mean,
            std=std,
            class_names=tuple(tuple(class_names[task]) for task in train) if class_names else None,
            **{part: Split.of([tasks[task] for task in train]) for part, tasks in parts.items()},
        )


@dataclass(frozen=True)
class CountRow:
    """How many instances of each class one task has in one split."""

    suite: str
    task: str
    split: str
    total: int
    per_class: tuple[int, ...]


def count_rows(suite: TaskSuite) -> list[CountRow]:
    """The counts of a suite, task by task and split by split."""
    rows = []
    for task, (name, n_classes) in enumerate(zip(suite.task_names, suite.n_classes, strict=True)):
        for part, split in suite.splits.items():
            label = split.label[split.offset[task] : split.offset[task + 1]]
            per_class = tuple(label.bincount(minlength=n_classes).tolist())
            rows.append(CountRow(suite.name, name, part, len(label), per_class))
    return rows


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
    _check_fraction(validation, "suite digits: validation", 0.8)
    tasks = _one_against_rest(digit, 10)
    rest, test = _hold_out(_instances(tasks, len(images), "digits"), len(images), 0.2, seed)
    return TaskSuite.from_arrays(
        "digits", images, rest, test, validation=validation / 0.8, class_names=_yes_no(tasks), seed=seed
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
    _check_fraction(validation, "suite mnist_mtl: validation")
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
        class_names=_yes_no(train),
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


def load_npz(path: str | Path, seed: int = 0, validation: float = 0.0) -> TaskSuite:
    """A suite from an .npz file of your own (``numpy.savez``); nothing in it is unpickled.

    Keys:
        ``x_train``, ``x_test``: uint8 images, ``[n, H, W]`` or ``[n, H, W, C]``.
        ``y_train``, ``y_test``: whole numbers, in one of three ways. ``[n, T]``: the label 0, 1, ... of each
            image in each of T tasks, -1 for "not in this task". ``[n]`` together with the next two keys: the
            label within the image's task. ``[n]`` alone: the class, for one task per class that asks whether
            the image is of this class (1) or not (0).
        ``task_train``, ``task_test``: optional, ``[n]``: the task 0 .. T - 1 of each image.
        ``task_names``: optional, ``[T]`` strings.

    Args:
        path: the file; its name without ``.npz`` is the name of the suite.
        seed: decides which images are held out.
        validation: fraction of the training images to hold out, see :meth:`TaskSuite.from_arrays`.
    """
    path = Path(path)
    optional = ("task_train", "task_test", "task_names")
    arrays = read_npz(path, ("x_train", "y_train", "x_test", "y_test"), optional)
    if ("task_train" in arrays) != ("task_test" in arrays):
        raise UserError(f"{path}: only one of task_train and task_test; both or none are needed")
    parts = {part: _tasks_of_file(path, part, arrays) for part in ("train", "test")}
    n_tasks = len(parts["train"])
    names = list(parts["train"])
    if "task_names" in arrays:
        told = arrays["task_names"]
        if told.dtype.kind != "U" or told.shape != (n_tasks,) or len(set(told.tolist())) < n_tasks:
            raise UserError(f"{path}: task_names must be {n_tasks} different strings, one per task")
        names = told.tolist()
    if len(parts["test"]) != n_tasks:
        raise UserError(f"{path}: {n_tasks} tasks for training and {len(parts['test'])} for testing; same needed")
    train, test = (dict(zip(names, tasks.values(), strict=True)) for tasks in parts.values())
    return TaskSuite.from_arrays(
        path.stem,
        arrays["x_train"],
        train,
        test,
        test_images=arrays["x_test"],
        validation=validation,
        seed=seed,
    )


def _tasks_of_file(path: Path, part: str, arrays: dict[str, Shaped[np.ndarray, "..."]]) -> dict[str, Any]:
    n_images = len(check_images(arrays[f"x_{part}"], f"{path}: x_{part}"))
    what = f"{path}: y_{part}"
    labels = check_integers(arrays[f"y_{part}"], what)
    if labels.ndim not in (1, 2) or len(labels) != n_images:
        raise UserError(f"{what}: shape {list(labels.shape)} for {n_images} images; [n] or [n, T] is needed")
    if f"task_{part}" in arrays:
        labels = check_labels(labels, what, n_images)
        tasks = check_labels(arrays[f"task_{part}"], f"{path}: task_{part}", n_images)
        order, n_tasks = np.argsort(tasks, kind="stable"), int(tasks.max()) + 1
        if n_tasks > n_images:
            raise UserError(f"{path}: task_{part} names task {n_tasks - 1}; tasks are 0 .. T - 1, none left out")
        members = np.split(order, np.bincount(tasks).cumsum()[:-1])
        return {f"task_{task}": (index, labels[index]) for task, index in enumerate(members)}
    if labels.ndim == 2:
        return {f"task_{task}": labels[:, task] for task in range(labels.shape[1])}
    labels = check_labels(labels, what, n_images)
    n_classes = int(check_integers(arrays["y_train"], what).max(initial=-1)) + 1
    if n_classes > n_images and part == "train":
        raise UserError(f"{what}: label {n_classes - 1} among {n_images} images; classes are numbered 0, 1, ...")
    if labels.max() >= n_classes:
        raise UserError(f"{what}: label {labels.max()}; the labels of y_train end at {n_classes - 1}")
    return _one_against_rest(labels, n_classes)


def _instances(tasks: Mapping[str, Any], n_images: int, where: str) -> dict[str, Instances]:
    """Checks the tasks of one split as a user gives them, and brings them into one form."""
    found = {}
    for task, given in tasks.items():
        what = f"{where}, task {task}"
        if isinstance(given, tuple):
            if len(given) != 2:
                raise UserError(f"{what}: a tuple of {len(given)}; (indices, labels) is needed")
            index = check_integers(given[0], f"{what}: indices")
            if index.ndim != 1 or (index.size and (index.min() < 0 or index.max() >= n_images)):
                raise UserError(f"{what}: indices out of range; they are [n], from 0 to {n_images - 1}")
            if len(np.unique(index)) < len(index):
                raise UserError(f"{what}: an image stands there twice; each may at most once")
            label = check_labels(given[1], f"{what}: labels", len(index))
        else:
            every = check_labels(as_array(given, what), what, n_images, lowest=-1)
            index = np.flatnonzero(every >= 0)
            label = every[index]
        found[task] = index, label
    return found


def _count_classes(label: Int64[np.ndarray, " instance"], where: str) -> int:
    seen = np.unique(label)
    if len(seen) > 1 and len(seen) <= seen[-1]:
        missing = next(k for k, value in enumerate([*seen.tolist(), -1]) if k != value)
        raise UserError(f"{where}: no training label {missing}, but {seen[-1]}; labels are 0, 1, ..., all of them")
    return int(seen.max(initial=-1)) + 1  # where there are fewer than two, the suite itself complains


def _check_fraction(fraction: float, what: str, limit: float = 1.0) -> float:
    if not 0 <= fraction < limit:
        raise UserError(f"{what} is {fraction}; a fraction from 0 to below {limit} is needed")
    return fraction


def _hold_out(
    tasks: Mapping[str, Instances], n_images: int, fraction: float, seed: int
) -> tuple[dict[str, Instances], dict[str, Instances]]:
    """Splits tasks by whole images: those that stay, and a fraction in equal shares of each combination.

    Images with the same labels in the same tasks form a stratum, known by a random 64-bit number. Stratum by
    stratum, shuffled within each, images are held out at regular distances (reckoned in whole numbers: where
    the share of a stratum is whole, it is met exactly).
    """
    check_seed(seed)
    rng = np.random.default_rng([seed, 3])
    stratum, used = np.zeros(n_images, np.uint64), np.zeros(n_images, bool)
    for index, label in tasks.values():
        names = rng.integers(2**64, size=int(label.max(initial=0)) + 1, dtype=np.uint64)
        stratum[index] += names[label]
        used[index] = True
    images = np.flatnonzero(used)
    images = images[np.lexsort((rng.random(len(images)), stratum[images]))]
    position, count = np.arange(len(images)), round(fraction * len(images))
    chosen = np.zeros(n_images, bool)
    chosen[images] = (position + 1) * count // max(1, len(images)) > position * count // max(1, len(images))
    stay = {task: (index[~chosen[index]], label[~chosen[index]]) for task, (index, label) in tasks.items()}
    held = {task: (index[chosen[index]], label[chosen[index]]) for task, (index, label) in tasks.items()}
    return stay, held


def _one_against_rest(labels: Int64[np.ndarray, " image"], n_classes: int) -> dict[str, Any]:
    return {f"is_{k}": (labels == k).astype(np.int64) for k in range(n_classes)}


def _yes_no(tasks: Mapping[str, Any]) -> dict[str, Sequence[str]]:
    return dict.fromkeys(tasks, ("no", "yes"))


def _shuffled_by_class(labels: Int64[np.ndarray, " image"], seed: int, part: int) -> list[Any]:
    rng = np.random.default_rng([seed, part])
    return [rng.permutation(np.flatnonzero(labels == k)) for k in range(10)]


def _drawn(rng: np.random.Generator, pools: Sequence[Any], per_class: int) -> Int64[np.ndarray, " image"]:
    return np.concatenate([rng.choice(pool, per_class, replace=False) for pool in pools])


def _joined(arrays: Sequence[Int64[np.ndarray, " _"]]) -> Int64[np.ndarray, " total"]:
    return np.concatenate([np.zeros(0, np.int64), *arrays])


def _channel_statistics(
    images: UInt8[Tensor, "image height width channel"], tasks: Mapping[str, Instances]
) -> tuple[Float32[Tensor, " channel"], Float32[Tensor, " channel"]]:
    """Mean and deviation of the images that the tasks use, each counted once; exact, in whole numbers."""
    index = np.unique(_joined([image for image, _ in tasks.values()]))
    channels = images.shape[-1]
    histogram = np.zeros((channels, 256))
    for start in range(0, len(index), 2048):
        pixels = images.numpy()[index[start : start + 2048]].reshape(-1, channels)
        for channel in range(channels):
            histogram[channel] += np.bincount(pixels[:, channel], minlength=256)
    share, value = histogram / max(1, histogram[0].sum()), np.arange(256) / 255
    mean = share @ value
    std = np.sqrt((share * (value - mean[:, None]) ** 2).sum(1))
    std[std < 1e-6] = 1.0
    return torch.from_numpy(mean).float(), torch.from_numpy(std).float()
