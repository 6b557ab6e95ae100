"""Task suites: sets of classification tasks over images that are stored once.

The built-in ones are in :mod:`routing_marl.recipes`. Own arrays come in through :meth:`TaskSuite.from_arrays`,
own files through :meth:`TaskSuite.from_folder` and :func:`routing_marl.npz_suite.load_npz`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor

from routing_marl.arrays import Array, check_images
from routing_marl.errors import UserError
from routing_marl.image_folders import read_task_folders
from routing_marl.partition import Split, channel_statistics, check_fraction, check_tasks, count_classes, hold_out

SPLITS = ("train", "validation", "test")


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
        clusters: where it is known which tasks belong together, the number of each task's cluster, 0, 1, ...: the truth
            that routes can be scored against. No method sees it.

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
    clusters: Int64[Tensor, " task"] | None = None

    def __post_init__(self) -> None:
        n_tasks = len(self.task_names)
        if n_tasks == 0:
            raise UserError(f"suite {self.name}: zero tasks; at least one is needed")
        if len(set(self.task_names)) < n_tasks:
            raise UserError(f"suite {self.name}: two tasks of one name; names must differ")
        named = self.n_classes if self.class_names is None else tuple(map(len, self.class_names))
        if len(self.n_classes) != n_tasks or named != self.n_classes:
            raise UserError(f"suite {self.name}: task_names, n_classes and class_names do not fit together")
        if self.clusters is not None:
            told = sorted(set(self.clusters.tolist()))
            if len(self.clusters) != n_tasks or told != [*range(len(told))]:
                raise UserError(f"suite {self.name}: clusters must be {n_tasks} numbers of 0, 1, ..., none left out")
        used: dict[str, Bool[Tensor, " image"]] = {}
        for part, split in self.splits.items():
            split.check(f"suite {self.name}", part, self.task_names, self.n_classes, len(self.images))
            used[part] = torch.zeros(len(self.images), dtype=torch.bool, device=self.images.device)
            used[part][split.image] = True
            for other in used.keys() - {part}:
                if (both := used[part] & used[other]).any():
                    raise UserError(
                        f"suite {self.name}: image {int(both.int().argmax())} is in {other} and in {part}; "
                        "an image belongs to one split"
                    )

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
        may_lack = ("validation", "clusters")
        moved |= {name: None if (value := getattr(self, name)) is None else value.to(device) for name in may_lack}
        return replace(self, **moved)

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
        clusters: Mapping[str, int] | None = None,
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
            clusters: the cluster of each task, see :class:`TaskSuite`.
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
        parts = {"train": check_tasks(train, n_train, f"suite {name}, train")}
        test_parts = check_tasks(test, n_test, f"suite {name}, test")
        if test_images is not None:
            test_parts = {task: (index + n_train, label) for task, (index, label) in test_parts.items()}
        parts["test"] = test_parts
        if isinstance(validation, Mapping):
            parts["validation"] = check_tasks(validation, n_train, f"suite {name}, validation")
        elif check_fraction(validation, f"suite {name}: validation"):
            parts["train"], parts["validation"] = hold_out(parts["train"], n_train, validation, seed)
        for part, tasks in parts.items():
            if odd := sorted(tasks.keys() ^ train.keys()):
                raise UserError(f"suite {name}: task {odd[0]} is not both in train and in {part}")
        n_classes = {
            task: len(class_names[task]) if class_names else count_classes(label, f"suite {name}, task {task}")
            for task, (_, label) in parts["train"].items()
            if class_names is None or task in class_names
        }
        if len(n_classes) < len(train):
            raise UserError(f"suite {name}: class_names lacks a task; they are needed for all or none")
        if clusters is not None and clusters.keys() != train.keys():
            raise UserError(f"suite {name}: clusters are not of the tasks; one number per task is needed")
        stored = torch.from_numpy(np.concatenate(pixels))
        stored = stored if stored.ndim == 4 else stored[..., None]
        mean, std = channel_statistics(stored, parts["train"])
        return cls(
            name,
            stored,
            tuple(train),
            tuple(n_classes[task] for task in train),
            mean=mean,
            std=std,
            class_names=tuple(tuple(class_names[task]) for task in train) if class_names else None,
            clusters=None if clusters is None else torch.tensor([clusters[task] for task in train]),
            **{part: Split.of([tasks[task] for task in train]) for part, tasks in parts.items()},
        )

    @classmethod
    def from_folder(
        cls,
        root: str | Path,
        *,
        size: tuple[int, int] | None = None,
        test: float = 0.2,
        validation: float = 0.0,
        seed: int = 0,
    ) -> "TaskSuite":
        """Makes a suite of images in folders, ``root/task/class/image``; the folder's name is the suite's.

        With folders ``root/train`` and ``root/test`` (and perhaps ``root/validation``) that hold the tasks, these are
        the splits. An image that stands in several tasks is stored once, and all of it in one split.

        Args:
            root: the folder.
            size: height and width that the images are brought to; None: they have one size already.
            test: fraction of the images to test on, in equal shares of every class; without a folder of test images.
            validation: fraction of the training images to hold out; without a folder of validation images.
            seed: decides which images are held out.

        Raises:
            UserError: a folder or a file is not as described; the message names it.
        """
        root = Path(root)
        images, tasks, class_names = read_task_folders(root, size)
        if "" in tasks:
            check_fraction(test, f"suite {root.name}: test")
            tasks["train"], tasks["test"] = hold_out(tasks.pop(""), len(images), test, seed)
        held_out = tasks.get("validation", validation)
        return cls.from_arrays(
            root.resolve().name,
            images,
            tasks["train"],
            tasks["test"],
            validation=held_out,
            class_names=class_names,
            seed=seed,
        )
