"""Arrays that come from outside, checked: images, whole numbers, labels, .npz files."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Int64, Shaped, UInt8
from torch import Tensor

from routing_marl.errors import UserError

Array: TypeAlias = Any
"""Anything that numpy makes an array of: numpy, torch (on any device), nested lists. Checked by value."""


def as_array(values: Array, what: str) -> Shaped[np.ndarray, "..."]:
    """Returns ``values`` as a numpy array without Python objects in it, or raises UserError."""
    try:
        array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    except ValueError as error:
        raise UserError(f"{what}: rows of unequal length; one regular array is needed") from error
    if array.dtype.hasobject:
        raise UserError(f"{what}: an object array; an array of plain numbers is needed")
    return array


def check_images(values: Array, what: str, shape: tuple[int, ...] | None = None) -> UInt8[np.ndarray, "image ..."]:
    """Returns images as they came, or raises UserError where not uint8 ``[n, H, W]`` or ``[n, H, W, C]``.

    Args:
        values: the images.
        what: their name in messages.
        shape: the exact shape of one image, where it is known.
    """
    images = as_array(values, what)
    if images.dtype.kind == "f" and np.isnan(images).any():
        raise UserError(f"{what}: holds NaN; images are uint8, 0 to 255")
    if images.dtype != np.uint8:
        raise UserError(
            f"{what}: {images.dtype} images; uint8 from 0 to 255 is needed, "
            "for floats in [0, 1] say (255 * images).round().astype('uint8')"
        )
    if images.ndim not in (3, 4) or 0 in images.shape or (shape is not None and images.shape[1:] != shape):
        wanted = "[n, H, W] or [n, H, W, C]" if shape is None else f"[n, {', '.join(map(str, shape))}]"
        raise UserError(f"{what}: images of shape {list(images.shape)}; {wanted} is needed, none of them 0")
    return images


def check_integers(values: Array, what: str) -> Int64[np.ndarray, "..."]:
    """Returns whole numbers as int64, or raises UserError where they are anything else (floats, text)."""
    numbers = as_array(values, what)
    if numbers.dtype.kind == "f" and np.isnan(numbers).any():
        raise UserError(f"{what}: holds NaN; whole numbers are needed")
    if numbers.dtype.kind not in "iub" and numbers.size:
        raise UserError(f"{what}: {numbers.dtype}; whole numbers (an integer dtype) are needed")
    return numbers.astype(np.int64)


def check_labels(
    values: Array, what: str, n_images: int, lowest: int = 0, n_classes: int | None = None
) -> Int64[np.ndarray, " image"]:
    """Returns one label per image as int64, or raises UserError.

    Args:
        values: the labels.
        what: their name in messages.
        n_images: how many there must be.
        lowest: the smallest label allowed (-1 where that means "not in this task").
        n_classes: number of classes, where it is known.
    """
    labels = check_integers(values, what)
    if labels.shape != (n_images,):
        raise UserError(f"{what}: shape {list(labels.shape)} for {n_images} images; [{n_images}] is needed")
    if labels.size and labels.min() < lowest:
        raise UserError(f"{what}: label {labels.min()}; labels start at {lowest}")
    if n_classes is not None and labels.size and labels.max() >= n_classes:
        raise UserError(f"{what}: label {labels.max()}; labels go from {lowest} to {n_classes - 1}")
    return labels


def read_npz(
    path: str | Path, required: Collection[str], optional: Collection[str] = ()
) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Reads the named arrays of an .npz file; nothing in it is unpickled.

    Args:
        path: the file.
        required: keys that must be there.
        optional: keys that are read where they are there. Others are left alone.

    Raises:
        UserError: the file is missing, damaged or no .npz, or lacks a key, or a key holds Python objects.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: {'not a file' if path.exists() else 'no such file'}; an .npz file is needed")
    key = ""
    try:
        # Opened here because np.load leaves a file open when it turns out to be no archive.
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise UserError(f"{path}: a single array, no .npz file; write one with numpy.savez")
            if missing := [key for key in required if key not in archive.files]:
                held = ", ".join(archive.files) or "nothing"
                raise UserError(f"{path}: lacks {', '.join(missing)}; it holds {held}")
            arrays = {}
            for key in (*required, *(key for key in optional if key in archive.files)):
                arrays[key] = archive[key]
            return arrays
    except UserError:
        raise
    except Exception as error:  # damaged archives raise whatever zipfile, zlib or numpy's parser meets first
        if "Object arrays" in str(error):
            raise UserError(f"{path}: {key} is an object array; plain numbers are needed") from error
        raise UserError(f"{path}: not a readable .npz file ({type(error).__name__}); is it complete?") from error
