import copy
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from routing_marl import class_names, data
from routing_marl.errors import UserError
from routing_marl.npz_suite import load_npz
from routing_marl.paper_recipes import cifar100_mtl, digits, mnist_mtl
from routing_marl.partition import Split
from routing_marl.recipes import make_suite
from routing_marl.suite_report import count_rows
from routing_marl.suites import TaskSuite


def of_task(split, task):
    chosen = slice(int(split.offset[task]), int(split.offset[task + 1]))
    return split.image[chosen], split.label[chosen]


def same(a, b):
    return all(
        torch.equal(getattr(a.splits[part], key), getattr(b.splits[part], key))
        for part in a.splits
        for key in ("image", "label", "offset")
    )


def assert_disjoint(suite):
    seen = [set(split.image.tolist()) for split in suite.splits.values()]
    assert len(set.union(*seen)) == sum(map(len, seen))


def counts(suite):
    return {(row.task, row.split): row.per_class for row in count_rows(suite)}


def stamped(n, shape):
    """Images that carry their own number in the first two bytes."""
    images = np.zeros((n, int(np.prod(shape))), np.uint8)
    images[:, 0], images[:, 1] = np.divmod(np.arange(n), 256)
    return images.reshape(n, *shape)


@pytest.fixture(scope="module")
def fake_data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    y_train = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 2100))
    y_test = np.repeat(np.arange(10), 30)
    np.savez(
        folder / "mnist.npz",
        x_train=stamped(len(y_train), (28, 28)),
        y_train=y_train,
        x_test=stamped(len(y_test), (28, 28)),
        y_test=y_test,
    )
    y_train = np.random.default_rng(0).permutation(np.repeat(np.arange(100), 10))
    y_test = np.repeat(np.arange(100), 3)
    np.savez(
        folder / "cifar100.npz",
        x_train=stamped(len(y_train), (32, 32, 3)),
        y_train=y_train,
        x_test=stamped(len(y_test), (32, 32, 3)),
        y_test=y_test,
    )
    return folder


# --- digits ---------------------------------------------------------------------------------------------------


def test_digits_are_ten_tasks_over_the_same_images():
    suite = digits(0)
    assert suite.n_tasks == 10 and suite.n_classes == (2,) * 10
    assert suite.images.shape == (1797, 8, 8, 1) and suite.images.max() == 255
    assert [split.sizes[0] for split in suite.splits.values()] == [1078, 360, 359]
    for split in suite.splits.values():
        index = [set(of_task(split, task)[0].tolist()) for task in range(10)]
        assert all(one == index[0] and len(one) == split.sizes[0] for one in index)
    assert_disjoint(suite)
    contents = [{suite.images[i].numpy().tobytes() for i in s.image.unique()} for s in suite.splits.values()]
    assert len(set.union(*contents)) == sum(map(len, contents)) == 1797


def test_digits_labels_and_strata_are_right():
    from sklearn.datasets import load_digits

    suite, target = digits(7), torch.from_numpy(load_digits().target)
    for part, share in (("train", 0.6), ("validation", 0.2), ("test", 0.2)):
        for task in range(10):
            image, label = of_task(suite.split(part), task)
            assert torch.equal(label, (target[image] == task).long())
            assert abs(int(label.sum()) - share * int((target == task).sum())) <= 2


def test_digits_seeds_and_validation():
    assert same(digits(3), digits(3))
    assert not same(digits(3), digits(4))
    none = digits(0, validation=0.0)
    assert none.validation is None and none.train.sizes[0] == 1438
    with pytest.raises(UserError, match=r"no validation split; build it with, say, validation=0\.1"):
        none.split("validation")
    with pytest.raises(UserError, match=r"validation is 0\.8; a fraction from 0 to below 0\.8"):
        digits(0, validation=0.8)
    with pytest.raises(UserError, match="seed is -1"):
        digits(-1)


def test_mean_and_deviation_are_those_of_the_training_images():
    suite = digits(0)
    pixels = suite.images[suite.train.image.unique()].double() / 255
    torch.testing.assert_close(suite.mean, pixels.mean().float()[None])
    torch.testing.assert_close(suite.std, pixels.std(correction=0).float()[None])


# --- the paper's suites, on fake data of the right form -------------------------------------------------------


def check_mnist(suite, y_train, n_train):
    labels = torch.from_numpy(y_train)
    for part, positives in (("train", 1000), ("validation", 100), ("test", 20)):
        for task in range(10):
            assert counts(suite)[f"is_{task}", part] == (9 * positives, positives)
    for task in range(10):
        image, label = of_task(suite.train, task)
        assert len(image.unique()) == 10_000
        assert labels[image].bincount().tolist() == [1000] * 10
        assert torch.equal(label, (labels[image] == task).long())
    assert int(suite.train.image.max()) < n_train <= int(suite.test.image.min())
    assert int(suite.validation.image.max()) < n_train
    assert_disjoint(suite)


def test_mnist_mtl_follows_the_recipe(fake_data):
    suite = mnist_mtl(fake_data, validation=0.1)
    y_train = data.find_arrays("mnist", fake_data).y_train
    check_mnist(suite, y_train, 21_000)
    # The right image stands behind each index, in both parts of the joined array.
    first = suite.images[suite.train.image, 0, 0, 0].long() * 256 + suite.images[suite.train.image, 0, 1, 0]
    assert torch.equal(first, suite.train.image)
    last = suite.images[suite.test.image, 0, 0, 0].long() * 256 + suite.images[suite.test.image, 0, 1, 0]
    assert torch.equal(last + 21_000, suite.test.image)


def test_mnist_mtl_training_split_does_not_depend_on_the_rest(fake_data):
    plain, full = mnist_mtl(fake_data, 5), mnist_mtl(fake_data, 5, validation=0.5, full_test=True)
    assert torch.equal(plain.train.image, full.train.image)
    assert plain.validation is None
    assert counts(full)["is_3", "test"] == (270, 30)
    assert not torch.equal(plain.train.image, mnist_mtl(fake_data, 6).train.image)


def test_mnist_mtl_names_what_is_too_few(tmp_path):
    x, y = np.zeros((100, 28, 28), np.uint8), np.arange(100) % 10
    np.savez(tmp_path / "mnist.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    with pytest.raises(UserError, match="10 training images of a 0; 2000 are needed"):
        mnist_mtl(tmp_path)


def check_cifar(suite, arrays):
    assert suite.n_classes == (5,) * 20
    fine = torch.from_numpy(np.concatenate([arrays.y_train, arrays.y_test]))
    used = set()
    for task in range(20):
        members = [k for k in range(100) if class_names.CIFAR100_FINE_TO_COARSE[k] == task]
        for split in suite.splits.values():
            image, label = of_task(split, task)
            assert torch.equal(fine[image], torch.tensor(members)[label])
        assert list(suite.class_names[task]) == [arrays.class_names[k] for k in members]
        used.update(members)
    assert len(used) == 100
    assert int(suite.train.image.max()) < len(arrays.y_train) <= int(suite.test.image.min())
    assert len(suite.train.image.unique()) == len(suite.train.image)
    assert_disjoint(suite)


def test_cifar100_mtl_labels_and_counts(fake_data):
    arrays = data.find_arrays("cifar100", fake_data)
    suite = cifar100_mtl(fake_data)
    check_cifar(suite, arrays)
    assert suite.validation is None
    assert all(row.per_class == ((10,) * 5 if row.split == "train" else (3,) * 5) for row in count_rows(suite))
    held = cifar100_mtl(fake_data, validation=0.2)
    check_cifar(held, arrays)
    wanted = {"train": (8,) * 5, "validation": (2,) * 5, "test": (3,) * 5}
    assert all(row.per_class == wanted[row.split] for row in count_rows(held))
    assert not same(held, cifar100_mtl(fake_data, seed=1, validation=0.2))


# --- suites of one's own --------------------------------------------------------------------------------------


def small(**changes):
    x, y = stamped(40, (5, 6)), np.arange(40) % 4
    arguments = {
        "images": x,
        "train": {"odd": y % 2, "which": y},
        "test": {"odd": y[:8] % 2, "which": y[:8]},
        "test_images": x[:8] + np.uint8(1),
    }
    arguments.update(changes)
    return TaskSuite.from_arrays("small", **arguments)


def test_from_arrays_takes_unequal_tasks_in_either_form():
    y = np.arange(40) % 4
    partial = np.where(np.arange(40) < 30, y % 2, -1)
    suite = small(train={"odd": partial, "which": (np.arange(20, 40), y[20:])})
    assert suite.train.sizes == (30, 20) and suite.n_classes == (2, 4)
    assert suite.class_mask.tolist() == [[True, True, False, False], [True] * 4]
    assert suite.max_classes == 4 and suite.image_shape == (5, 6, 1)
    assert of_task(suite.train, 1)[0].tolist() == list(range(20, 40))
    assert of_task(suite.test, 0)[0].tolist() == list(range(40, 48))


def test_from_arrays_takes_torch_and_colour_and_copies_both():
    x = torch.zeros(40, 5, 6, 3, dtype=torch.uint8)
    y = torch.arange(40) % 2
    train, test = torch.where(torch.arange(40) < 30, y, -1), torch.where(torch.arange(40) < 30, -1, y)
    suite = TaskSuite.from_arrays("own", x, {"a": train}, {"a": test})
    x += 1
    assert suite.images.sum() == 0 and suite.image_shape == (5, 6, 3)
    assert suite.train.sizes == (30,) and suite.test.sizes == (10,)
    assert suite.mean.tolist() == [0, 0, 0] and suite.std.tolist() == [1, 1, 1]


@settings(deadline=None, max_examples=40)
@given(st.integers(10, 60), st.sampled_from([0.1, 0.2, 0.25, 0.5]), st.integers(0, 50))
def test_held_out_are_whole_images_in_equal_shares(per_class, fraction, seed):
    n = 4 * per_class
    y = np.random.default_rng(seed).permutation(n) % 4
    tasks = {"which": y, "large": np.where(y > 0, (y > 1) * 1, -1)}
    x = np.zeros((n, 2, 2), np.uint8)
    suite = TaskSuite.from_arrays("own", x, tasks, tasks, test_images=x, validation=fraction, seed=seed)
    assert_disjoint(suite)
    held = of_task(suite.validation, 0)[0]
    assert len(held) == round(fraction * n)
    assert len(held) + suite.train.sizes[0] == n
    assert all(abs(count - fraction * per_class) < 1.01 for count in counts(suite)["which", "validation"])
    assert set(of_task(suite.validation, 1)[0].tolist()) == {i for i in held.tolist() if y[i] > 0}


def test_validation_may_be_given():
    y = np.arange(40) % 2
    first = np.where(np.arange(40) < 30, y, -1)
    suite = small(train={"odd": first}, validation={"odd": (np.arange(30, 40), y[30:])}, test={"odd": y[:8]})
    assert suite.validation.sizes == (10,)


Y = np.arange(40) % 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {}, "test": {}}, "zero tasks"),
        ({"train": {"a": Y * 0}, "test": {"a": Y[:8] * 0}}, "task a, train: one class only"),
        ({"train": {"a": Y * 0 - 1}, "test": {"a": Y[:8]}}, "task a, train: no instances"),
        ({"train": {"a": Y}, "test": {"a": Y[:8] * 0 - 1}}, "task a, test: no instances"),
        ({"train": {"a": Y}, "test": {"a": Y[:8] + 1}}, "test: label 4; labels go from 0 to 3"),
        ({"train": {"a": Y - 2}, "test": {"a": Y[:8]}}, "task a: label -2; labels start at -1"),
        ({"train": {"a": Y + 1}, "test": {"a": Y[:8]}}, "no training label 0, but 4"),
        ({"train": {"a": Y[:39]}, "test": {"a": Y[:8]}}, r"shape \[39\] for 40 images"),
        ({"train": {"a": Y / 3}, "test": {"a": Y[:8]}}, "float64; whole numbers"),
        ({"train": {"a": Y * np.nan}, "test": {"a": Y[:8]}}, "holds NaN"),
        ({"train": {"a": np.array(["x"] * 40)}, "test": {"a": Y[:8]}}, "whole numbers"),
        ({"train": {"a": [object()] * 40}, "test": {"a": Y[:8]}}, "object array"),
        ({"train": {"a": [[1], [1, 2]]}, "test": {"a": Y[:8]}}, "rows of unequal length"),
        ({"train": {"a": (Y + 40, Y)}, "test": {"a": Y[:8]}}, "indices out of range"),
        ({"train": {"a": (Y, Y)}, "test": {"a": Y[:8]}}, "stands there twice"),
        ({"train": {"a": (Y, Y, Y)}, "test": {"a": Y[:8]}}, r"a tuple of 3; \(indices, labels\)"),
        ({"train": {"a": Y}, "test": {"b": Y[:8]}}, "task a is not both in train and in test"),
        ({"test_images": None, "test": {"odd": Y % 2, "which": Y}}, "image 0 is in train and in test"),
        ({"images": np.zeros((40, 5, 6))}, "images: float64 images; uint8"),
        ({"images": np.full((40, 5, 6), np.nan)}, "images: holds NaN"),
        ({"images": torch.zeros(40, 5, 6)}, "float32 images; uint8"),
        ({"images": np.zeros((40, 5), np.uint8)}, r"images of shape \[40, 5\]"),
        ({"images": np.zeros((40, 6, 6), np.uint8)}, "must be the same"),
        ({"validation": 1.0}, r"validation is 1\.0; a fraction"),
        ({"validation": float("nan")}, "validation is nan"),
        ({"validation": 0.01}, "validation: no instances"),
        ({"class_names": {"odd": "ab"}}, "class_names lacks a task"),
        ({"class_names": {"odd": "ab", "which": "abc"}}, "label 3; labels go from 0 to 2"),
        ({"clusters": {"odd": 0}}, "clusters are not of the tasks; one number per task"),
        ({"clusters": {"odd": 0, "which": 2}}, "clusters must be 2 numbers of 0, 1, ..., none left out"),
    ],
)
def test_wrong_arrays_are_refused_by_name(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        small(**changes)
    assert "\n" not in str(caught.value)


def test_a_hand_made_suite_is_checked_too():
    suite = small()
    bad = Split.of([(np.array([0, 99]), np.array([0, 1]))] * 2)
    with pytest.raises(UserError, match="image index out of range; there are 48"):
        TaskSuite("x", suite.images, suite.task_names, (2, 4), bad, suite.test, suite.mean, suite.std)
    with pytest.raises(UserError, match="two tasks of one name"):
        TaskSuite("x", suite.images, ("a", "a"), (2, 4), suite.train, suite.test, suite.mean, suite.std)
    with pytest.raises(UserError, match="do not fit together"):
        TaskSuite("x", suite.images, ("a", "b"), (2,), suite.train, suite.test, suite.mean, suite.std)


def test_copies_share_the_images_and_pickles_hold_them():
    suite = small(validation=0.25)
    for twin in (copy.copy(suite), copy.deepcopy(suite), copy.deepcopy({"env": [suite]})["env"][0]):
        assert twin.images.data_ptr() == suite.images.data_ptr()
    twin = pickle.loads(pickle.dumps(suite))
    assert torch.equal(twin.images, suite.images) and same(twin, suite)
    assert suite.clusters is None and small(clusters={"which": 0, "odd": 1}).clusters.tolist() == [1, 0]
    assert twin.train.sizes == suite.train.sizes and twin.task_names == suite.task_names


def test_moving_keeps_everything():
    suite = small(validation=0.25, clusters={"odd": 0, "which": 1})
    assert suite.to("cpu") is suite
    if torch.cuda.is_available():
        moved = suite.to("cuda")
        assert moved.images.is_cuda and moved.class_mask.is_cuda and moved.validation.image.is_cuda
        assert same(moved.to("cpu"), suite) and moved.clusters.tolist() == [0, 1]


# --- .npz files -----------------------------------------------------------------------------------------------


def save(folder, **changes):
    arrays = {
        "x_train": stamped(40, (5, 6)),
        "y_train": Y,
        "x_test": stamped(8, (5, 6)),
        "y_test": Y[:8],
    }
    arrays.update(changes)
    path = folder / "mine.npz"
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def test_npz_with_classes_becomes_one_task_per_class(tmp_path):
    suite = make_suite(str(save(tmp_path)))
    assert suite.name == "mine" and suite.task_names == ("is_0", "is_1", "is_2", "is_3")
    assert counts(suite)["is_2", "train"] == (30, 10) and counts(suite)["is_2", "test"] == (6, 2)


def test_npz_with_a_task_per_image(tmp_path):
    task = np.arange(40) // 16
    names = np.array(["a", "b", "c"])
    path = save(tmp_path, task_train=task, task_test=np.arange(8) % 3, y_test=Y[:8] % 2, task_names=names)
    suite = load_npz(path)
    assert suite.task_names == ("a", "b", "c") and suite.train.sizes == (16, 16, 8)
    image, label = of_task(suite.train, 1)
    assert image.tolist() == list(range(16, 32)) and label.tolist() == Y[16:32].tolist()


def test_npz_with_a_column_per_task(tmp_path):
    y = np.stack([Y % 2, np.where(Y > 0, Y - 1, -1)], axis=1)
    suite = make_suite(save(tmp_path, y_train=y, y_test=y[:8]), validation=0.25)
    assert suite.n_classes == (2, 3)
    assert suite.train.sizes == (30, 22) or suite.train.sizes == (30, 23)
    assert suite.validation.sizes[0] == 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": None, "y_test": None}, "lacks x_test, y_test; it holds x_train, y_train"),
        ({"x_train": np.zeros((40, 5, 6), np.float32)}, "x_train: float32 images"),
        ({"x_train": np.full((40, 5, 6), np.nan)}, "x_train: holds NaN"),
        ({"x_train": np.zeros((40, 5), np.uint8)}, "x_train: images of shape"),
        ({"x_test": np.zeros((8, 4, 4), np.uint8)}, "must be the same"),
        ({"x_train": np.array([None] * 40)}, "x_train is an object array"),
        ({"y_train": np.array([None] * 40)}, "y_train is an object array"),
        ({"y_train": Y[:39]}, r"y_train: shape \[39\] for 40 images"),
        ({"y_train": np.zeros((40, 2, 2), int)}, r"\[n\] or \[n, T\] is needed"),
        ({"y_train": np.zeros((40, 0), int), "y_test": np.zeros((8, 0), int)}, "zero tasks"),
        ({"y_train": Y * 0, "y_test": Y[:8] * 0}, "one class only"),
        ({"y_train": Y * 1.5}, "y_train: float64"),
        ({"y_train": Y * np.nan}, "y_train: holds NaN"),
        ({"y_train": Y - 1}, "label -1; labels start at 0"),
        ({"y_train": Y * 10**12}, "among 40 images; classes are numbered"),
        ({"y_test": Y[:8] + 1}, "label 4; the labels of y_train end at 3"),
        ({"y_test": Y[:8, None]}, "4 tasks for training and 1 for testing"),
        ({"task_train": Y}, "only one of task_train and task_test"),
        ({"task_train": Y // 2, "task_test": Y[:8]}, "2 tasks for training and 4 for testing"),
        ({"task_train": Y * 10**12, "task_test": Y[:8]}, "none left out"),
        ({"task_train": Y - 1, "task_test": Y[:8]}, "task_train: label -1"),
        ({"task_names": np.array(["a", "b"])}, "task_names must be 4 different strings"),
        ({"task_names": np.arange(4)}, "task_names must be 4 different strings"),
    ],
)
def test_wrong_npz_files_are_refused_by_name(tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        make_suite(save(tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_damaged_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        make_suite(str(tmp_path / "nowhere.npz"))
    with pytest.raises(UserError, match="not a file"):
        load_npz(tmp_path)
    whole = save(tmp_path).read_bytes()
    path = tmp_path / "bad.npz"
    for content in (b"", b"no archive", whole[: len(whole) // 2], whole[:-30]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"not a readable \.npz file"):
            make_suite(path)
    flipped = bytearray(whole)
    flipped[400] ^= 0xFF  # inside x_train: the checksum finds it
    path.write_bytes(flipped)
    with pytest.raises(UserError, match=r"not a readable \.npz file"):
        make_suite(path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(UserError, match=r"a single array, no \.npz file"):
        make_suite(path)


# --- make_suite -----------------------------------------------------------------------------------------------


def test_make_suite_finds_each(fake_data, monkeypatch):
    monkeypatch.setenv(data.ENVIRONMENT_VARIABLE, str(fake_data))
    for name in ("digits", "mnist_mtl", "cifar100_mtl"):
        assert make_suite(name).name == name
    assert make_suite("mnist_mtl", full_test=True).test.sizes == (300,) * 10
    assert make_suite("digits", validation=0.0).validation is None
    suite = small()
    assert make_suite(suite, seed=3) is suite


def test_make_suite_names_what_exists():
    with pytest.raises(UserError, match=r"no suite 'mnist'; there are digits, .*; did you mean mnist_mtl\?"):
        make_suite("mnist")
    with pytest.raises(UserError, match=r"any path of an \.npz file or of a folder$"):
        make_suite("zzz")
    with pytest.raises(UserError, match="full_test is for mnist_mtl"):
        make_suite("digits", full_test=True)
    with pytest.raises(UserError, match="no split 'dev'; there are train, validation, test"):
        digits().split("dev")


# --- real data ------------------------------------------------------------------------------------------------


def real(name):
    folder = os.environ.get(data.ENVIRONMENT_VARIABLE)
    if not folder or not (Path(folder) / f"{name}.npz").exists():
        pytest.skip(f"no {name}.npz under {data.ENVIRONMENT_VARIABLE}")
    return data.find_arrays(name, folder)


@pytest.mark.data
def test_real_mnist_mtl():
    arrays = real("mnist")
    suite = make_suite("mnist_mtl", validation=0.1)
    check_mnist(suite, arrays.y_train, 60_000)
    assert len(suite.train.image.unique()) > 40_000
    torch.testing.assert_close(suite.mean, torch.tensor([0.1307]), atol=2e-3, rtol=0)
    torch.testing.assert_close(suite.std, torch.tensor([0.3081]), atol=2e-3, rtol=0)


@pytest.mark.data
def test_real_cifar100_mtl():
    arrays = real("cifar100")  # skips where there is none
    suite = make_suite("cifar100_mtl")
    check_cifar(suite, arrays)
    assert suite.train.sizes == (2500,) * 20 and suite.test.sizes == (500,) * 20
    torch.testing.assert_close(suite.mean, torch.tensor([0.5071, 0.4865, 0.4409]), atol=1e-4, rtol=0)
    torch.testing.assert_close(suite.std, torch.tensor([0.2673, 0.2564, 0.2762]), atol=1e-4, rtol=0)
    index = suite.test.image[::997]
    assert torch.equal(suite.images[index], torch.from_numpy(arrays.x_test)[index - 50_000])
