"""Images in folders, as torchvision's ImageFolder has them: ``.../class/image.png``; nobody's files are trusted."""

import warnings
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from routing_marl.errors import UserError
from routing_marl.partition import Instances

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".pgm", ".ppm", ".tif", ".tiff")
"""What counts as an image; other files are left alone."""

_GREY, _COLOUR = ("1", "L"), ("RGB", "RGBA", "P", "LA", "CMYK", "YCbCr")

Tasks = dict[str, Instances]


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, by name; hidden ones are left out."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def image_files(folder: Path) -> list[Path]:
    """The image files in a folder, by name; hidden ones are left out."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def read_images(files: Sequence[Path], size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "image ..."]:
    """Decodes images into one array: ``[n, H, W]`` where all are grey, else ``[n, H, W, 3]``.

    Args:
        files: at least one.
        size: height and width that they are resized to; None: all have the same, and keep it.

    Raises:
        UserError: a file is no readable image, or has another size, or is not of 8 bits a channel.
    """
    shapes, modes = [], set()
    for path in files:
        with _opened(path) as image:
            shapes.append((image.height, image.width))
            modes.add(image.mode)
            if image.mode not in _GREY + _COLOUR:
                raise UserError(f"{path}: an image of mode {image.mode}; grey or colour of 8 bits is needed")
    height, width = shapes[0] if size is None else size
    if size is None and (odd := [k for k, shape in enumerate(shapes) if shape != shapes[0]]):
        sizes = f"{_by(shapes[odd[0]])}, but {files[0]} is {_by(shapes[0])}"
        raise UserError(f"{files[odd[0]]}: {sizes}; images of one size are needed, or a size to bring them to")
    mode = "L" if modes <= {*_GREY} else "RGB"
    images = np.empty((len(files), height, width, *[3] * (mode == "RGB")), np.uint8)
    for path, out in zip(files, images, strict=True):
        with _opened(path) as image:
            try:
                converted = image.convert(mode)
            except Exception as error:  # damaged files raise whatever the decoder meets first
                raise _unreadable(path, error) from error
        if (converted.height, converted.width) != (height, width):
            converted = converted.resize((width, height), Image.Resampling.LANCZOS)
        out[:] = converted
    return images


def read_classes(
    folder: Path, classes: dict[str, list[Path]], size: tuple[int, int] | None = None
) -> UInt8[np.ndarray, "image ..."]:
    """Reads the files of each class, class after class; ``folder`` is what messages name."""
    if not classes:
        raise UserError(f"{folder}: no folders of classes in it")
    if empty := [name for name, files in classes.items() if not files]:
        raise UserError(f"{folder / empty[0]}: no images in it")
    return read_images([path for files in classes.values() for path in files], size)


def read_task_folders(
    root: Path, size: tuple[int, int] | None = None
) -> tuple[UInt8[np.ndarray, "image ..."], dict[str, Tasks], dict[str, list[str]]]:
    """Reads ``root/task/class/image``, or ``root/split/task/class/image`` with the splits ``train`` and ``test``.

    Classes are numbered by name. An image that stands in several tasks (its pixels tell) is stored once.

    Args:
        root: the folder.
        size: see :func:`read_images`.

    Returns:
        The images; by split ("" where there are no folders of splits) and task the indices of its images and their
        labels; and by task the names of its classes.

    Raises:
        UserError: a folder is empty or missing, a file is no good image, or an image stands twice in a task or in two
            splits.
    """
    if not root.is_dir():
        raise UserError(
            f"{root}: {'not a folder' if root.exists() else 'no such folder'}; root/task/class/image is needed"
        )
    names = {path.name for path in subfolders(root)}
    splits = [""]
    if {"train", "test"} <= names:
        splits = [part for part in ("train", "validation", "test") if part in names]
    if "train" in splits and (other := sorted(names - {*splits})):
        raise UserError(f"{root / other[0]}: beside folders train and test; there may be validation, and no other")
    parts = {part: _listing(root / part) for part in splits}
    class_names: dict[str, list[str]] = {}
    for tasks in parts.values():
        for task, classes in tasks.items():
            class_names[task] = sorted({*class_names.get(task, []), *classes})
    files = [path for tasks in parts.values() for classes in tasks.values() for c in classes.values() for path in c]
    images = read_images(files, size)
    stored = _stored_once(files, images)
    kept, number = np.unique(stored, return_inverse=True)
    split_of: dict[int, str] = {}
    found: dict[str, Tasks] = {}
    start = 0
    for part, tasks in parts.items():
        found[part] = {}
        for task, classes in tasks.items():
            labels = [class_names[task].index(name) for name, members in classes.items() for _ in members]
            index = number[start : start + len(labels)]
            for k in index.tolist():
                if split_of.setdefault(k, part) != part:
                    raise UserError(f"{files[kept[k]]}: in {part} too; an image belongs to one split")
            if len(np.unique(index)) < len(index):
                twin = next(k for k in range(len(index)) if index[k] in index[:k])
                first = files[start + int((index == index[twin]).argmax())]
                raise UserError(f"{files[start + twin]}: the same image as {first}; once in a task is enough")
            found[part][task] = index.astype(np.int64), np.array(labels, np.int64)
            start += len(labels)
    return images if len(kept) == len(images) else images[kept], found, class_names


def _listing(folder: Path) -> dict[str, dict[str, list[Path]]]:
    """Files by task and class."""
    found = {task.name: {c.name: image_files(c) for c in subfolders(task)} for task in subfolders(folder)}
    if not found:
        raise UserError(f"{folder}: no folders of tasks in it; root/task/class/image is needed")
    for task, classes in found.items():
        if not classes:
            raise UserError(f"{folder / task}: no folders of classes in it; root/task/class/image is needed")
        if empty := [name for name, files in classes.items() if not files]:
            raise UserError(f"{folder / task / empty[0]}: no images in it; files ending in {', '.join(SUFFIXES)} count")
    return found


def _stored_once(files: Sequence[Path], images: UInt8[np.ndarray, "image ..."]) -> np.ndarray:
    """For each image the first that has the same pixels."""
    first: dict[bytes, int] = {}
    return np.array([first.setdefault(blake2b(image, digest_size=16).digest(), k) for k, image in enumerate(images)])


def _opened(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(path)
    except Exception as error:  # PIL's decoders raise whatever they meet first
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = (str(error).splitlines() or [""])[0] or type(error).__name__
    return UserError(f"{path}: not a readable image ({reason.replace(repr(str(path)), 'it')})")


def _by(shape: tuple[int, int]) -> str:
    return f"{shape[0]} x {shape[1]}"
