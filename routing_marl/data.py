"""Where images come from: a data folder with .npz files, or torchvision's own files, everything checked.

MNIST: LeCun, Bottou, Bengio & Haffner (1998). CIFAR-100: Krizhevsky (2009). Fashion-MNIST: Xiao, Rasul & Vollgraf,
arXiv 1708.07747. Omniglot: Lake, Salakhutdinov & Tenenbaum (2015). mini-ImageNet: Vinyals et al., arXiv 1606.04080.
Nothing is downloaded unless :func:`download` is called.
"""

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped, UInt8

from routing_marl.arrays import check_images, check_labels, read_npz
from routing_marl.class_names import CIFAR100_FINE_NAMES, CIFAR100_FINE_TO_COARSE, FASHION_NAMES
from routing_marl.errors import UserError
from routing_marl.image_folders import image_files, read_classes, subfolders

ENVIRONMENT_VARIABLE = "ROUTING_MARL_DATA"

Arrays = dict[str, Shaped[np.ndarray, "..."]]


@dataclass(frozen=True)
class _DataSet:
    """What is known in advance about a data set.

    Attributes:
        shape: of an image.
        folder: where torchvision puts it, or where folders of classes are looked for.
        torchvision_class: what downloads it; None where nothing does.
        class_names: None where the file tells them.
    """

    shape: tuple[int, ...]
    folder: str
    torchvision_class: str | None
    class_names: tuple[str, ...] | None = None


DATA_SETS = {
    "mnist": _DataSet((28, 28), "MNIST/raw", "MNIST", tuple("0123456789")),
    "fashion_mnist": _DataSet((28, 28), "FashionMNIST/raw", "FashionMNIST", FASHION_NAMES),
    "cifar100": _DataSet((32, 32, 3), "cifar-100-python", "CIFAR100", CIFAR100_FINE_NAMES),
    "omniglot": _DataSet((105, 105), "omniglot-py", "Omniglot"),
    "mini_imagenet": _DataSet((84, 84, 3), "mini_imagenet", None),
}


@dataclass(frozen=True, eq=False)
class ImageArrays:
    """The checked arrays of one data set.

    Attributes:
        name: one of ``DATA_SETS``.
        source: the file or folder that they were read from.
        x_train: training images, ``[n, H, W]`` or ``[n, H, W, 3]`` (Omniglot: the background alphabets).
        y_train: class of each (CIFAR-100: the fine class; Omniglot: the character).
        x_test: test images (Omniglot: the evaluation alphabets, whose characters are other ones).
        y_test: class of each.
        class_names: one per class (Omniglot: ``alphabet/character01``).
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


def data_folder(data_dir: str | Path | None = None) -> Path:
    """The folder of the data: the argument, else ``$ROUTING_MARL_DATA``, else a cache folder of the user."""
    if data_dir is not None:
        return Path(data_dir).expanduser()
    if folder := os.environ.get(ENVIRONMENT_VARIABLE):
        return Path(folder).expanduser()
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("routing-marl"))


def find_arrays(name: str, data_dir: str | Path | None = None) -> ImageArrays:
    """Reads and checks a data set: ``<data dir>/<name>.npz``, else files in a folder under the data dir.

    The folder is torchvision's; for ``mini_imagenet`` it is ``<data dir>/mini_imagenet/class/image``, brought to 84x84,
    where the first five sixths of each class, by name, are for training (500 of 600).

    Args:
        name: one of ``DATA_SETS``.
        data_dir: see :func:`data_folder`.

    Raises:
        UserError: it is not there (the message says where it was looked for, and how to get it) or damaged.
    """
    known, data = _known(name), data_folder(data_dir)
    path, folder = _places(name, data)
    if path.exists():
        named = ("class_names",) if known.class_names is None else ()
        optional = ("class_names", "y_coarse_train", "y_coarse_test") if known.class_names else ()
        return _checked(name, path, read_npz(path, ("x_train", "y_train", "x_test", "y_test", *named), optional))
    if folder.is_dir():
        return _checked(name, folder, _read_folder(name, data))
    keys = "x_train, y_train, x_test, y_test" + (", class_names" if known.class_names is None else "")
    get = f"run `routing-marl data --download {name}`, or" if known.torchvision_class else "it can't be downloaded;"
    raise UserError(f"{name}: not found, neither {path} nor {folder}; {get} write such a file with {keys}")


def scikit_digits() -> tuple[UInt8[np.ndarray, "image 8 8"], Int64[np.ndarray, " image"]]:
    """Scikit-learn's 1,797 real 8x8 digits, which come with it: images and digits."""
    pixels, digit = _digits()
    return np.round(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8), digit.astype(np.int64)


def _digits() -> tuple[Shaped[np.ndarray, "image 64"], Shaped[np.ndarray, " image"]]:
    # Scikit-learn brings scipy and pandas along, longer to load than the data is to learn: its file will do.
    package = importlib.util.find_spec("sklearn")
    for folder in (package and package.submodule_search_locations) or ():
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if path.exists():
            values = np.loadtxt(path, delimiter=",")
            return values[:, :-1], values[:, -1]
    from sklearn.datasets import load_digits

    pixels, digit = load_digits(return_X_y=True)
    return pixels, digit


def download(name: str, data_dir: str | Path | None = None) -> ImageArrays:
    """Downloads a data set with torchvision into the data dir (unless it is there already), and reads it.

    Args:
        name: one of ``DATA_SETS`` that torchvision has, so not ``mini_imagenet``.
        data_dir: see :func:`data_folder`; made where it does not exist.

    Raises:
        UserError: the download failed, or the data dir can't be written.
    """
    known, data = _known(name), data_folder(data_dir)
    path, folder = _places(name, data)
    if path.exists() or known.torchvision_class is None:
        return find_arrays(name, data_dir)
    try:
        data.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{data}: can't be made ({error.strerror}); name another data folder") from error
    return _checked(name, folder, _read_folder(name, data, download=True))


def describe(data_dir: str | Path | None = None) -> list[DataRow]:
    """What data there is, one row per data set; reads each file that it finds. Never raises for bad files."""
    return [_row(name, data_folder(data_dir)) for name in DATA_SETS]


def _row(name: str, data: Path) -> DataRow:
    try:
        found = find_arrays(name, data)
    except UserError as error:
        path, folder = _places(name, data)
        return DataRow(name, False, f"{path}, {folder}", problem=str(error))
    files = [found.source] if found.source.is_file() else [*found.source.rglob("*")]
    size = sum(file.stat().st_size for file in files if file.is_file())
    counts = len(found.y_train), len(found.y_test), len(found.class_names)
    return DataRow(name, True, str(found.source), found.x_train.shape[1:], *counts, size)


def _known(name: str) -> _DataSet:
    if name not in DATA_SETS:
        raise UserError(f"no data set {name!r}; there are {', '.join(DATA_SETS)}")
    return DATA_SETS[name]


def _places(name: str, data: Path) -> tuple[Path, Path]:
    return data / f"{name}.npz", data / DATA_SETS[name].folder


def _read_folder(name: str, data: Path, *, download: bool = False) -> Arrays:
    if name == "mini_imagenet":
        return _read_mini_imagenet(data / DATA_SETS[name].folder)
    if name == "omniglot":
        return _read_omniglot(data, download=download)
    arrays = {}
    for part in ("train", "test"):
        found = _torchvision(name, data, download, train=part == "train")
        arrays[f"x_{part}"], arrays[f"y_{part}"] = np.asarray(found.data), np.asarray(found.targets)
    return arrays


def _torchvision(name: str, data: Path, download: bool, **part: bool) -> Any:
    import torchvision.datasets  # takes a second, and most runs read an .npz file

    try:
        return getattr(torchvision.datasets, str(DATA_SETS[name].torchvision_class))(data, download=download, **part)
    except Exception as error:  # whatever torchvision, urllib or the file system meet first
        action = "download failed" if download else "torchvision can't read it"
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        place = data / DATA_SETS[name].folder
        raise UserError(f"{place}: {action} ({reason}); remove the folder and download again") from error


def _read_omniglot(data: Path, *, download: bool) -> Arrays:
    arrays: Arrays = {}
    names: list[str] = []
    for part, folder in (("train", "images_background"), ("test", "images_evaluation")):
        if download:
            _torchvision("omniglot", data, download=True, background=part == "train")
        place = data / DATA_SETS["omniglot"].folder / folder
        if not place.is_dir():
            raise UserError(f"{place}: no such folder; run `routing-marl data --download omniglot`")
        characters = {f"{a.name}/{c.name}": image_files(c) for a in subfolders(place) for c in subfolders(a)}
        arrays[f"x_{part}"] = read_classes(place, characters)
        arrays[f"y_{part}"] = len(names) + np.repeat(np.arange(len(characters)), [*map(len, characters.values())])
        names += characters
    return {**arrays, "class_names": np.array(names)}


def _read_mini_imagenet(folder: Path) -> Arrays:
    classes = {path.name: image_files(path) for path in subfolders(folder)}
    images = read_classes(folder, classes, (84, 84))
    images = images if images.ndim == 4 else np.repeat(images[..., None], 3, axis=3)
    sizes = np.array([*map(len, classes.values())])
    label = np.repeat(np.arange(len(classes)), sizes)
    rank = np.arange(len(label)) - np.repeat(sizes.cumsum() - sizes, sizes)
    train = rank < np.repeat(sizes * 5 // 6, sizes)
    x = {"x_train": images[train], "y_train": label[train], "x_test": images[~train], "y_test": label[~train]}
    return {**x, "class_names": np.array([*classes])}


def _checked(name: str, source: Path, arrays: Arrays) -> ImageArrays:
    known, parts = DATA_SETS[name], {}
    class_names = known.class_names or tuple(map(str, arrays["class_names"].ravel()))
    if "class_names" in arrays and arrays["class_names"].tolist() != [*class_names]:
        raise UserError(f"{source}: class_names are not those of {name} in their usual order")
    if len(set(class_names)) < len(class_names):
        raise UserError(f"{source}: class_names has a name twice; one name per class is needed")
    if name == "omniglot" and (odd := [label for label in class_names if "/" not in label]):
        raise UserError(f"{source}: class_names has {odd[0]!r}; alphabet/character is needed")
    for part in ("train", "test"):
        x, y = f"x_{part}", f"y_{part}"
        parts[x] = check_images(arrays[x], f"{source}: {x}", known.shape)
        parts[y] = check_labels(arrays[y], f"{source}: {y}", len(parts[x]), n_classes=len(class_names))
        coarse = f"y_coarse_{part}"
        if name == "cifar100" and coarse in arrays:
            told = check_labels(arrays[coarse], f"{source}: {coarse}", len(parts[x]))
            if (told != np.array(CIFAR100_FINE_TO_COARSE)[parts[y]]).any():
                raise UserError(f"{source}: {coarse} contradicts {y}; CIFAR-100's own superclasses are needed")
    return ImageArrays(name, source, class_names=class_names, **parts)
