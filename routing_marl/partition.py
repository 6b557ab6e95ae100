"""Which images each task has: checked, counted, and partitioned into splits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from routing_marl.arrays import as_array, check_integers, check_labels
from routing_marl.errors import UserError
from routing_marl.randomness import check_seed

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
        return cls(torch.from_numpy(joined(images)), torch.from_numpy(joined(labels)), offset)

    def check(self, where: str, part: str, tasks: Sequence[str], n_classes: Sequence[int], n_images: int) -> None:
        """Raises UserError where a task has no instances, an index or a label is out of range, or all is one class."""
        if len(self.sizes) != len(tasks):
            raise UserError(f"{where}: {part} has {len(self.sizes)} tasks, not {len(tasks)}")
        for task, instances in enumerate(self.offset.unfold(0, 2, 1).tolist()):
            image, label = self.image[slice(*instances)], self.label[slice(*instances)]
            what = f"{where}, task {tasks[task]}, {part}"
            if len(image) == 0:
                raise UserError(f"{what}: no instances; at least one is needed")
            if image.min() < 0 or image.max() >= n_images:
                raise UserError(f"{what}: image index out of range; there are {n_images} images")
            if label.min() < 0 or label.max() >= n_classes[task]:
                worst = int(label.min() if label.min() < 0 else label.max())
                raise UserError(f"{what}: label {worst}; labels go from 0 to {n_classes[task] - 1}")
            if part == "train" and (label == label[0]).all():
                raise UserError(f"{what}: one class only; at least two are needed")

    def to(self, device: torch.device | str) -> "Split":
        """The same split on another device."""
        return Split(self.image.to(device), self.label.to(device), self.offset.to(device))


def check_tasks(tasks: Mapping[str, Any], n_images: int, where: str) -> dict[str, Instances]:
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


def count_classes(label: Int64[np.ndarray, " instance"], where: str) -> int:
    """Number of classes that the training labels of a task tell; none may be left out."""
    seen = np.unique(label)
    if len(seen) > 1 and len(seen) <= seen[-1]:
        missing = next(k for k, value in enumerate([*seen.tolist(), -1]) if k != value)
        raise UserError(f"{where}: no training label {missing}, but {seen[-1]}; labels are 0, 1, ..., all of them")
    return int(seen.max(initial=-1)) + 1  # where there are fewer than two, the suite itself complains


def check_fraction(fraction: float, what: str, limit: float = 1.0) -> float:
    """Returns the fraction, or raises UserError where it is not from 0 to below ``limit``."""
    if not 0 <= fraction < limit:
        raise UserError(f"{what} is {fraction}; a fraction from 0 to below {limit} is needed")
    return fraction


def hold_out(
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


def rank_within_class(
    label: Int64[np.ndarray, " image"], rng: np.random.Generator
) -> tuple[Int64[np.ndarray, " image"], Int64[np.ndarray, " image"]]:
    """Each image's place, from 0, in a random order of its class; and the size of its class."""
    order = np.lexsort((rng.random(len(label)), label))
    sizes = np.bincount(label)
    rank = np.empty(len(label), np.int64)
    rank[order] = np.arange(len(label)) - np.repeat(sizes.cumsum() - sizes, sizes)
    return rank, sizes[label]


def one_against_rest(labels: Int64[np.ndarray, " image"], n_classes: int) -> dict[str, Any]:
    """One task per class, as labels of all images: 1 where the image is of the class."""
    return {f"is_{k}": (labels == k).astype(np.int64) for k in range(n_classes)}


def yes_no(tasks: Mapping[str, Any]) -> dict[str, Sequence[str]]:
    """Class names of tasks that ask whether an image is of a class."""
    return dict.fromkeys(tasks, ("no", "yes"))


def joined(arrays: Sequence[Int64[np.ndarray, " _"]]) -> Int64[np.ndarray, " total"]:
    """One array of all; of none, an empty one."""
    return np.concatenate([np.zeros(0, np.int64), *arrays])


def channel_statistics(
    images: UInt8[Tensor, "image height width channel"], tasks: Mapping[str, Instances]
) -> tuple[Float32[Tensor, " channel"], Float32[Tensor, " channel"]]:
    """Mean and deviation of the images that the tasks use, each counted once; exact, in whole numbers."""
    index = np.unique(joined([image for image, _ in tasks.values()]))
    flat = images.numpy().reshape(len(images), -1)
    total, squares = np.zeros((2, flat.shape[1]), np.int64)
    for start in range(0, len(index), 256):
        pixels = flat[index[start : start + 256]].astype(np.uint32)
        total += pixels.sum(0, dtype=np.int64)
        squares += np.einsum("ij,ij->j", pixels, pixels).astype(np.int64)
    n = max(1, len(index)) * images.shape[1] * images.shape[2]
    per_channel = zip(*(sums.reshape(-1, images.shape[-1]).sum(0).tolist() for sums in (total, squares)), strict=True)
    mean, std = zip(*((one / n / 255, sqrt(n * two - one**2) / n / 255) for one, two in per_channel), strict=True)
    return torch.tensor(mean), torch.tensor([1.0 if deviation < 1e-6 else deviation for deviation in std])
