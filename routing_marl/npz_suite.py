"""Suites from .npz files of one's own."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from routing_marl.arrays import check_images, check_integers, check_labels, read_npz
from routing_marl.errors import UserError
from routing_marl.partition import one_against_rest
from routing_marl.suites import TaskSuite


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
    return one_against_rest(labels, n_classes)
