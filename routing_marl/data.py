"""Where images come from: a data folder with .npz files, or torchvision's own files, everything checked.

MNIST: LeCun, Bottou, Bengio & Haffner (1998). CIFAR-100 and its superclasses: Krizhevsky (2009).
Nothing is downloaded unless :func:`download` is called.
"""

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Int64, Shaped, UInt8
from torch import Tensor

from routing_marl.errors import UserError

ENVIRONMENT_VARIABLE = "ROUTING_MARL_DATA"

_SUPERCLASSES = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}
CIFAR100_COARSE_NAMES = tuple(_SUPERCLASSES)
CIFAR100_FINE_NAMES = tuple(sorted(" ".join(_SUPERCLASSES.values()).split()))
"""CIFAR-100 numbers its fine classes in alphabetical order, and its superclasses too."""
_COARSE_OF = {fine: t for t, members in enumerate(_SUPERCLASSES.values()) for fine in members.split()}
CIFAR100_FINE_TO_COARSE = tuple(_COARSE_OF[fine] for fine in CIFAR100_FINE_NAMES)


@dataclass(frozen=True)
class _DataSet:
    """What is known in advance about a data set."""

    shape: tuple[int, ...]
    class_names: tuple[str, ...]
    torchvision_class: str
    torchvision_folder: str


DATA_SETS = {
    "mnist": _DataSet((28, 28), tuple("0123456789"), "MNIST", "MNIST/raw"),
    "cifar100": _DataSet((32, 32, 3), CIFAR100_FINE_NAMES, "CIFAR100", "cifar-100-python"),
}


@dataclass(frozen=True, eq=False)
class ImageArrays:
    """The checked arrays of one data set.

    Attributes:
        name: ``mnist`` or ``cifar100``.
        source: the file or folder that they were read from.
        x_train: training images, ``[n, 28, 28]`` or ``[n, 32, 32, 3]``.
        y_train: class of each (CIFAR-100: the fine class).
        x_test: test images.
        y_test: class of each.
        class_names: one per class.
    """

    name: str
    source: Path
    x_train: UInt8[np.ndarray, "train ..."]
    y_train: Int64[np.ndarray, " train"]
    x_test: UInt8[np.ndarray, "test ..."]
    y_test: Int64[np.ndarray, " test"]
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class DataRow:
    """One line of ``routing-marl data``.

    Attributes:
        name: the data set.
        found: whether it is there and in order.
        where: the file or folder that holds it, or else the places that were looked at.
        image_shape: ``(height, width)`` or ``(height, width, channel)``; None where not found.
        n_train: number of training images.
        n_test: number of test images.
        n_classes: number of classes.
        bytes_on_disk: size of the file or folder.
        problem: what is wrong, in one line; None where ``found``.
    """

    name: str
    found: bool
    where: str
    image_shape: tuple[int, ...] | None = None
    n_train: int = 0
    n_test: int = 0
    n_classes: int = 0
    bytes_on_disk: int = 0
    problem: str | None = None


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


def data_folder(data_dir: str | Path | None = None) -> Path:
    """The folder of the data: the argument, else ``$ROUTING_MARL_DATA``, else a cache folder of the user."""
    if data_dir is not None:
        return Path(data_dir).expanduser()
    if folder := os.environ.get(ENVIRONMENT_VARIABLE):
        return Path(folder).expanduser()
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("routing-marl"))


def find_arrays(name: str, data_dir: str | Path | None = None) -> ImageArrays:
    """Reads and checks a data set: ``<data dir>/<name>.npz``, else torchvision's files under the data dir.

    Args:
        name: ``mnist`` or ``cifar100``.
        data_dir: see :func:`data_folder`.

    Raises:
        UserError: it is not there (the message says where it was looked for, and how to get it) or damaged.
    """
    known, folder = _known(name), data_folder(data_dir)
    path, torchvision_folder = _places(name, folder)
    if path.exists():
        optional = ("class_names", "y_coarse_train", "y_coarse_test")
        arrays = read_npz(path, ("x_train", "y_train", "x_test", "y_test"), optional)
        return _checked(name, path, arrays)
    if torchvision_folder.is_dir():
        return _checked(name, torchvision_folder, _read_torchvision(known, folder, download=False))
    raise UserError(
        f"{name}: not found, neither {path} nor {torchvision_folder}; run "
        f"`routing-marl data --download {name}`, or write such a file with x_train, y_train, x_test, y_test"
    )


def download(name: str, data_dir: str | Path | None = None) -> ImageArrays:
    """Downloads a data set with torchvision into the data dir (unless it is there already), and reads it.

    Args:
        name: ``mnist`` or ``cifar100``.
        data_dir: see :func:`data_folder`; made where it does not exist.

    Raises:
        UserError: the download failed, or the data dir can't be written.
    """
    known, folder = _known(name), data_folder(data_dir)
    path, torchvision_folder = _places(name, folder)
    if path.exists():
        return find_arrays(name, data_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: can't be made ({error.strerror}); name another data folder") from error
    return _checked(name, torchvision_folder, _read_torchvision(known, folder, download=True))


def describe(data_dir: str | Path | None = None) -> list[DataRow]:
    """What data there is, one row per data set; reads each file that it finds. Never raises for bad files."""
    folder, rows = data_folder(data_dir), []
    for name in DATA_SETS:
        path, torchvision_folder = _places(name, folder)
        try:
            found = find_arrays(name, data_dir)
        except UserError as error:
            rows.append(DataRow(name, False, f"{path}, {torchvision_folder}", problem=str(error)))
            continue
        files = [found.source] if found.source.is_file() else [*found.source.rglob("*")]
        size = sum(file.stat().st_size for file in files if file.is_file())
        counts = len(found.y_train), len(found.y_test), len(found.class_names)
        rows.append(DataRow(name, True, str(found.source), found.x_train.shape[1:], *counts, size))
    return rows


def _known(name: str) -> _DataSet:
    if name not in DATA_SETS:
        raise UserError(f"no data set {name!r}; there are {', '.join(DATA_SETS)}")
    return DATA_SETS[name]


def _places(name: str, folder: Path) -> tuple[Path, Path]:
    return folder / f"{name}.npz", folder / DATA_SETS[name].torchvision_folder


def _read_torchvision(known: _DataSet, folder: Path, *, download: bool) -> dict[str, Shaped[np.ndarray, "..."]]:
    import torchvision.datasets  # takes a second, and most runs read an .npz file

    make = getattr(torchvision.datasets, known.torchvision_class)
    arrays = {}
    try:
        for part in ("train", "test"):
            data_set = make(folder, train=part == "train", download=download)
            arrays[f"x_{part}"] = np.asarray(data_set.data)
            arrays[f"y_{part}"] = np.asarray(data_set.targets)
    except Exception as error:  # whatever torchvision, urllib or the file system meet first
        place = folder / known.torchvision_folder
        action = "download failed" if download else "torchvision can't read it"
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{place}: {action} ({reason}); remove the folder and download again") from error
    return arrays


def _checked(name: str, source: Path, arrays: dict[str, Shaped[np.ndarray, "..."]]) -> ImageArrays:
    known, parts = DATA_SETS[name], {}
    for part in ("train", "test"):
        x, y = f"x_{part}", f"y_{part}"
        parts[x] = check_images(arrays[x], f"{source}: {x}", known.shape)
        n_classes = len(known.class_names)
        parts[y] = check_labels(arrays[y], f"{source}: {y}", len(parts[x]), n_classes=n_classes)
        coarse = f"y_coarse_{part}"
        if name == "cifar100" and coarse in arrays:
            told = check_labels(arrays[coarse], f"{source}: {coarse}", len(parts[x]))
            if (told != np.array(CIFAR100_FINE_TO_COARSE)[parts[y]]).any():
                raise UserError(f"{source}: {coarse} contradicts {y}; CIFAR-100's own superclasses are needed")
    names = arrays.get("class_names", np.array(known.class_names))
    if names.tolist() != list(known.class_names):
        raise UserError(f"{source}: class_names are not those of {name} in their usual order")
    return ImageArrays(name, source, class_names=known.class_names, **parts)
