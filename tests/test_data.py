import os
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from routing_marl import class_names, data
from routing_marl.errors import UserError


def write_mnist(folder, n=30, **changes):
    arrays = {
        "x_train": np.arange(n, dtype=np.uint8)[:, None, None] + np.zeros((1, 28, 28), np.uint8),
        "y_train": np.arange(n) % 10,
        "x_test": np.full((10, 28, 28), 200, np.uint8),
        "y_test": np.arange(10),
    }
    arrays.update(changes)
    np.savez(folder / "mnist.npz", **{key: value for key, value in arrays.items() if value is not None})
    return arrays


def write_idx(folder, arrays, data_set="MNIST"):
    raw = folder / data_set / "raw"
    raw.mkdir(parents=True)
    for part, prefix in (("train", "train"), ("test", "t10k")):
        for key, kind in (("x", "images-idx3"), ("y", "labels-idx1")):
            array = arrays[f"{key}_{part}"].astype(np.uint8)
            header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            (raw / f"{prefix}-{kind}-ubyte").write_bytes(header + array.tobytes())


def test_npz_comes_back_as_written(tmp_path):
    written = write_mnist(tmp_path)
    found = data.find_arrays("mnist", tmp_path)
    assert found.source == tmp_path / "mnist.npz"
    for key, array in written.items():
        np.testing.assert_array_equal(getattr(found, key), array)


def test_torchvision_files_give_the_same_as_npz(tmp_path):
    written = write_mnist(tmp_path)
    write_idx(tmp_path, written)
    (tmp_path / "mnist.npz").unlink()
    found = data.find_arrays("mnist", tmp_path)
    assert found.source == tmp_path / "MNIST/raw"
    for key, array in written.items():
        np.testing.assert_array_equal(getattr(found, key), array)


def test_damaged_torchvision_files_are_named(tmp_path):
    write_idx(tmp_path, write_mnist(tmp_path))
    (tmp_path / "mnist.npz").unlink()
    (tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte").write_bytes(b"no")
    with pytest.raises(UserError, match="MNIST/raw: torchvision can't read it"):
        data.find_arrays("mnist", tmp_path)
    (tmp_path / "cifar-100-python").mkdir()
    (tmp_path / "cifar-100-python/train").write_bytes(b"never unpickled: the checksum is wrong")
    with pytest.raises(UserError, match="cifar-100-python: torchvision can't read it"):
        data.find_arrays("cifar100", tmp_path)


def test_the_folder_is_argument_then_environment_then_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(data.ENVIRONMENT_VARIABLE, str(tmp_path / "there"))
    assert data.data_folder(tmp_path) == tmp_path
    assert data.data_folder() == tmp_path / "there"
    assert data.data_folder("~/x") == Path.home() / "x"
    monkeypatch.delenv(data.ENVIRONMENT_VARIABLE)
    pytest.importorskip("platformdirs")
    assert "routing-marl" in str(data.data_folder())


def test_missing_data_says_where_and_how(tmp_path):
    with pytest.raises(UserError) as caught:
        data.find_arrays("cifar100", tmp_path)
    message = str(caught.value)
    for part in ("cifar100.npz", "cifar-100-python", "--download cifar100", "x_train", str(tmp_path)):
        assert part in message
    assert "\n" not in message
    with pytest.raises(UserError, match="no data set 'imagenet'; there are mnist, fashion_mnist, cifar100, omniglot, "):
        data.find_arrays("imagenet", tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, "lacks y_test"),
        ({"x_train": np.zeros((30, 28, 28))}, "x_train: float64 images; uint8"),
        ({"x_train": np.full((30, 28, 28), np.nan)}, "x_train: holds NaN"),
        ({"x_train": np.zeros((30, 28, 27), np.uint8)}, r"x_train: images of shape \[30, 28, 27\]"),
        ({"x_test": np.zeros((0, 28, 28), np.uint8)}, "x_test: images of shape"),
        ({"y_train": np.zeros(29, int)}, r"y_train: shape \[29\] for 30 images"),
        ({"y_train": np.full(30, 10)}, "label 10; labels go from 0 to 9"),
        ({"y_train": np.full(30, -1)}, "label -1; labels start at 0"),
        ({"y_train": np.full(30, np.nan)}, "y_train: holds NaN"),
        ({"y_train": np.zeros(30)}, "y_train: float64; whole numbers"),
        ({"y_train": np.array([{}] * 30)}, "y_train is an object array"),
        ({"class_names": np.array(list("9876543210"))}, "class_names are not those of mnist"),
    ],
)
def test_wrong_files_are_refused_by_name(tmp_path, changes, message):
    write_mnist(tmp_path, **changes)
    with pytest.raises(UserError, match=message) as caught:
        data.find_arrays("mnist", tmp_path)
    assert "\n" not in str(caught.value)


def test_coarse_labels_must_agree_with_the_fine_ones(tmp_path):
    arrays = {
        "x_train": np.zeros((2, 32, 32, 3), np.uint8),
        "y_train": np.array([0, 1]),
        "x_test": np.zeros((2, 32, 32, 3), np.uint8),
        "y_test": np.array([0, 1]),
    }
    np.savez(tmp_path / "cifar100.npz", **arrays, y_coarse_train=np.array([4, 1]))
    assert data.find_arrays("cifar100", tmp_path).class_names[:2] == ("apple", "aquarium_fish")
    np.savez(tmp_path / "cifar100.npz", **arrays, y_coarse_train=np.array([4, 2]))
    with pytest.raises(UserError, match="y_coarse_train contradicts y_train"):
        data.find_arrays("cifar100", tmp_path)


def test_superclass_table_is_a_partition():
    assert len(set(class_names.CIFAR100_FINE_NAMES)) == 100
    assert np.bincount(class_names.CIFAR100_FINE_TO_COARSE).tolist() == [5] * 20
    assert list(class_names.CIFAR100_COARSE_NAMES) == sorted(class_names.CIFAR100_COARSE_NAMES)
    # The mapping that is passed around (fine classes 0 .. 9 and 99), independent of the table's form.
    assert class_names.CIFAR100_FINE_TO_COARSE[:10] == (4, 1, 14, 8, 0, 6, 7, 7, 18, 3)
    assert class_names.CIFAR100_FINE_TO_COARSE[99] == 13


def test_describe_tells_what_is_there_and_never_raises(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "cifar100.npz").write_bytes(b"")
    rows = {row.name: row for row in data.describe(tmp_path)}
    assert [*rows] == [*data.DATA_SETS]
    mnist, cifar = rows["mnist"], rows["cifar100"]
    assert mnist.found and mnist.problem is None
    assert (mnist.image_shape, mnist.n_train, mnist.n_test, mnist.n_classes) == ((28, 28), 30, 10, 10)
    assert mnist.bytes_on_disk == (tmp_path / "mnist.npz").stat().st_size
    assert not cifar.found and "not a readable .npz" in cifar.problem


def test_download_asks_torchvision_and_reports_failure(tmp_path, monkeypatch):
    datasets = pytest.importorskip("torchvision.datasets")
    written = write_mnist(tmp_path)
    (tmp_path / "mnist.npz").unlink()
    asked = []

    class Fake:
        def __init__(self, root, train, download):
            asked.append((Path(root), train, download))
            part = "train" if train else "test"
            self.data, self.targets = written[f"x_{part}"], written[f"y_{part}"].tolist()

    monkeypatch.setattr(datasets, "MNIST", Fake)
    assert len(data.download("mnist", tmp_path / "new").y_train) == 30
    assert asked == [(tmp_path / "new", True, True), (tmp_path / "new", False, True)]

    def offline(root, train, download):
        raise OSError("no route\nto host")

    monkeypatch.setattr(datasets, "MNIST", offline)
    with pytest.raises(UserError, match=r"download failed \(no route\)"):
        data.download("mnist", tmp_path / "new")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="can't be made"):
        data.download("mnist", tmp_path / "file" / "below")


def test_a_download_leaves_what_is_there_alone(tmp_path, monkeypatch):
    write_mnist(tmp_path)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert data.download("mnist", tmp_path).source == tmp_path / "mnist.npz"


@pytest.mark.data
def test_the_table_is_the_one_in_the_real_file():
    folder = os.environ.get(data.ENVIRONMENT_VARIABLE)
    if not folder or not (Path(folder) / "cifar100.npz").exists():
        pytest.skip("no cifar100.npz under ROUTING_MARL_DATA")
    with np.load(Path(folder) / "cifar100.npz") as real:
        assert real["fine_to_coarse"].tolist() == list(class_names.CIFAR100_FINE_TO_COARSE)
        assert real["coarse_names"].tolist() == list(class_names.CIFAR100_COARSE_NAMES)
        assert real["class_names"].tolist() == list(class_names.CIFAR100_FINE_NAMES)
    assert data.find_arrays("cifar100").x_train.shape == (50000, 32, 32, 3)


def test_digits_are_scikit_learns_whether_its_file_is_found_or_it_has_to_be_asked(monkeypatch):
    from sklearn.datasets import load_digits

    images, digits = data.scikit_digits()
    pixels, target = load_digits(return_X_y=True)
    assert images.dtype == np.uint8 and digits.dtype == np.int64 and images.shape == (1797, 8, 8)
    np.testing.assert_array_equal(images.reshape(-1, 64), np.round(pixels * 255 / 16))
    np.testing.assert_array_equal(digits, target)
    monkeypatch.setattr(data.importlib.util, "find_spec", lambda name: None)
    for ours, asked in zip((images, digits), data.scikit_digits(), strict=True):
        np.testing.assert_array_equal(ours, asked)
