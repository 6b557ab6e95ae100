"""The suites that came after the paper's: recipes on made-up files with the real ones' keys, then on the real data."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_data import write_idx
from test_suites import assert_disjoint, counts, fake_data, of_task, real, same, stamped  # noqa: F401 (a fixture)

from routing_marl.class_names import CIFAR100_COARSE_NAMES, FASHION_NAMES, OMNIGLOT_ALPHABETS
from routing_marl.cluster_recipes import clusters, digit_clusters, mnist_rotated
from routing_marl.data import find_arrays
from routing_marl.errors import UserError
from routing_marl.omniglot import omniglot_mtl, omniglot_mtl_105
from routing_marl.paper_recipes import fashion_mtl, mini_imagenet_mtl
from routing_marl.partition import rank_within_class
from routing_marl.pixels import framed, in_colour, resized
from routing_marl.recipes import RECIPES, make_suite


def write_omniglot(folder, alphabets=OMNIGLOT_ALPHABETS, drawings=20):
    """Alphabets of two or three characters, in two parts as in the original, and one that nobody asks for."""
    characters = [f"{a}/character{k + 1:02}/1" for i, a in enumerate((*alphabets, "Zulu")) for k in range(2 + i % 2)]
    half = len(characters) // 2 + 1
    y = np.repeat(np.arange(len(characters)), drawings)
    x = stamped(len(y), (105, 105))
    first = y < half
    np.savez(
        folder / "omniglot.npz",
        x_train=x[first],
        y_train=y[first],
        x_test=x[~first],
        y_test=y[~first],
        class_names=np.array(characters),
    )
    return x, y, characters


def write_mini_imagenet(folder, n_classes=52):
    y_train, y_test = np.repeat(np.arange(n_classes), 5), np.repeat(np.arange(n_classes), 2)
    np.savez(
        folder / "mini_imagenet.npz",
        x_train=stamped(len(y_train), (84, 84, 3)),
        y_train=y_train,
        x_test=stamped(len(y_test), (84, 84, 3)),
        y_test=y_test,
        class_names=np.array([f"class {k}" for k in range(n_classes)]),
    )


@pytest.fixture(scope="module")
def folder(fake_data):  # noqa: F811
    """MNIST and CIFAR-100 of the neighbouring tests, and the other data sets beside them."""
    write_omniglot(fake_data)
    write_mini_imagenet(fake_data)
    mnist = find_arrays("mnist", fake_data)
    rng = np.random.default_rng(0)
    y_test = rng.permutation(np.repeat(np.arange(10), 210))
    np.savez(
        fake_data / "fashion_mnist.npz",
        x_train=mnist.x_train,
        y_train=mnist.y_train,
        x_test=stamped(len(y_test), (28, 28)),
        y_test=y_test,
    )
    np.savez(
        fake_data / "mnist.npz",
        x_train=rng.integers(0, 256, (21_000, 28, 28), dtype=np.uint8),
        y_train=mnist.y_train,
        x_test=rng.integers(0, 256, (len(y_test), 28, 28), dtype=np.uint8),
        y_test=y_test,
    )
    return fake_data


def every(suite, part):
    """The counts of each class of each task in a split."""
    return [per_class for (_, split), per_class in counts(suite).items() if split == part]


# --- Omniglot -------------------------------------------------------------------------------------------------


def check_omniglot(suite):
    assert suite.task_names == OMNIGLOT_ALPHABETS
    for part, drawings in (("train", 10), ("validation", 4), ("test", 6)):
        assert every(suite, part) == [(drawings,) * n for n in suite.n_classes]
    assert len(suite.images) == 20 * sum(suite.n_classes)
    assert_disjoint(suite)


def test_omniglot_follows_the_recipe(folder):
    suite = omniglot_mtl_105(folder)
    check_omniglot(suite)
    assert suite.n_classes == (2, 3) * 10 and suite.image_shape == (105, 105, 1)
    data = find_arrays("omniglot", folder)
    y = np.concatenate([data.y_train, data.y_test])
    for split in suite.splits.values():
        for task, alphabet in enumerate(suite.task_names):
            image, label = of_task(split, task)
            pixels = 255 - suite.images[image, 0, :2, 0].long()  # the stamp, turned to white on black
            for character, k in zip(y[pixels[:, 0] * 256 + pixels[:, 1]], label, strict=True):
                assert data.class_names[character].startswith(f"{alphabet}/{suite.class_names[task][k]}/")


def test_omniglot_is_brought_to_28_pixels(folder):
    suite = omniglot_mtl(folder)
    check_omniglot(suite)
    assert suite.name == "omniglot_mtl" and suite.image_shape == (28, 28, 1)
    assert same(suite, omniglot_mtl_105(folder))  # who has which drawing doesn't depend on the size


def test_omniglot_seeds_and_validation(folder):
    assert same(omniglot_mtl(folder, 3), omniglot_mtl(folder, 3))
    assert not same(omniglot_mtl(folder, 3), omniglot_mtl(folder, 4))
    none = omniglot_mtl(folder, validation=0.0)
    assert none.validation is None and set(every(none, "train")) == {(14,) * 2, (14,) * 3}
    assert torch.equal(none.test.image, omniglot_mtl(folder).test.image)
    with pytest.raises(UserError, match=r"omniglot_mtl: validation is 0\.7; a fraction from 0 to below 0\.7"):
        omniglot_mtl(folder, validation=0.7)


def test_omniglot_names_an_alphabet_that_is_not_there(tmp_path):
    write_omniglot(tmp_path, OMNIGLOT_ALPHABETS[:3], drawings=1)
    with pytest.raises(UserError, match=r"omniglot\.npz: no characters of the alphabet Tibetan"):
        omniglot_mtl(tmp_path)


# --- mini-ImageNet, Fashion-MNIST -----------------------------------------------------------------------------


def check_mini_imagenet(suite, arrays, n_train, n_test):
    assert suite.n_tasks == 10 and suite.image_shape == (84, 84, 3)
    assert every(suite, "train") == [(n_train,) * 5] * 10 and every(suite, "test") == [(n_test,) * 5] * 10
    used = [name for names in suite.class_names for name in names]
    assert len(set(used)) == 50
    y = torch.from_numpy(np.concatenate([arrays.y_train, arrays.y_test]))
    for split in suite.splits.values():
        for task, names in enumerate(suite.class_names):
            image, label = of_task(split, task)
            assert [arrays.class_names[k] for k in y[image]] == [names[k] for k in label]
    assert int(suite.train.image.max()) < len(arrays.y_train) <= int(suite.test.image.min())
    assert_disjoint(suite)


def test_mini_imagenet_follows_the_recipe(folder):
    arrays = find_arrays("mini_imagenet", folder)
    suite = mini_imagenet_mtl(folder)
    check_mini_imagenet(suite, arrays, 5, 2)
    assert same(suite, mini_imagenet_mtl(folder)) and suite.validation is None
    other = mini_imagenet_mtl(folder, seed=1)
    check_mini_imagenet(other, arrays, 5, 2)
    assert other.class_names != suite.class_names
    assert every(mini_imagenet_mtl(folder, validation=0.2), "validation") == [(1,) * 5] * 10


def test_mini_imagenet_needs_fifty_classes(tmp_path):
    write_mini_imagenet(tmp_path, 49)
    with pytest.raises(UserError, match="49 classes; 50 are needed"):
        mini_imagenet_mtl(tmp_path)


def test_fashion_mtl_is_mnist_mtl_on_other_images(folder):
    suite = fashion_mtl(folder, validation=0.1)
    assert suite.task_names[:2] == ("is_t-shirt_top", "is_trouser") and suite.task_names[-1] == "is_ankle_boot"
    for part, positives in (("train", 1000), ("validation", 100), ("test", 20)):
        assert every(suite, part) == [(9 * positives, positives)] * 10
    y = torch.from_numpy(find_arrays("fashion_mnist", folder).y_train)
    image, label = of_task(suite.train, 9)
    assert torch.equal(label, (y[image] == FASHION_NAMES.index("Ankle boot")).long())
    assert_disjoint(suite)
    full = make_suite("fashion_mtl", folder, full_test=True)
    assert every(full, "test") == [(1890, 210)] * 10


def test_fashion_mnist_is_read_from_torchvisions_files(tmp_path):
    written = {
        "x_train": stamped(20, (28, 28)),
        "y_train": np.arange(20) % 10,
        "x_test": stamped(10, (28, 28)),
        "y_test": np.arange(10),
    }
    write_idx(tmp_path, written, "FashionMNIST")
    found = find_arrays("fashion_mnist", tmp_path)
    assert found.source == tmp_path / "FashionMNIST/raw" and found.class_names == FASHION_NAMES
    for key, array in written.items():
        np.testing.assert_array_equal(getattr(found, key), array)


# --- suites of known clusters ---------------------------------------------------------------------------------


def check_rotated(suite, n_train, n_test):
    assert suite.task_names == ("plain_1", "plain_2", "rotated_1", "rotated_2")
    assert suite.clusters.tolist() == [0, 0, 1, 1]
    assert suite.train.sizes == (n_train,) * 4 and suite.test.sizes == (n_test,) * 4
    assert_disjoint(suite)
    for split in suite.splits.values():
        (plain, label), (again, _), (turned, label_turned), _ = (of_task(split, task) for task in range(4))
        assert torch.equal(plain, again) and torch.equal(label, label_turned)
        some = slice(None, None, 499)
        expected = np.rot90(suite.images[plain[some]].numpy(), axes=(1, 2))  # counter-clockwise
        np.testing.assert_array_equal(suite.images[turned[some]].numpy(), expected)


def test_mnist_rotated_has_each_image_twice_and_turned(folder):
    suite = mnist_rotated(folder)
    check_rotated(suite, 21_000, 2100)
    y = torch.from_numpy(find_arrays("mnist", folder).y_train)
    assert torch.equal(of_task(suite.train, 0)[1], y)
    held = mnist_rotated(folder, validation=0.1)
    assert held.validation.sizes == (2100,) * 4 and held.train.sizes == (18_900,) * 4
    assert_disjoint(held)


def check_clusters(suite):
    assert suite.clusters.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert suite.image_shape == (32, 32, 3)
    assert_disjoint(suite)
    assert all(len(split.image.unique()) == len(split.image) for split in suite.splits.values())  # none in two tasks
    assert suite.n_classes[:8] == (5,) * 4 + (10,) * 4
    assert every(suite, "train")[4:8] == [(250,) * 10] * 4 and every(suite, "test")[4:8] == [(50,) * 10] * 4
    assert every(suite, "train")[8:] == [(14,) * n for n in suite.n_classes[8:]]
    assert every(suite, "test")[8:] == [(6,) * n for n in suite.n_classes[8:]]


def test_clusters_follow_the_recipe(folder):
    suite = clusters(folder)
    check_clusters(suite)
    assert every(suite, "train")[:4] == [(10,) * 5] * 4 and every(suite, "test")[:4] == [(3,) * 5] * 4
    cifar, mnist = find_arrays("cifar100", folder), find_arrays("mnist", folder)
    trees, digits_3 = suite.task_names.index("trees"), suite.task_names.index("digits_3")
    assert "trees" in CIFAR100_COARSE_NAMES
    for part, x, y in (("train", cifar.x_train, cifar.y_train), ("test", cifar.x_test, cifar.y_test)):
        image, label = of_task(suite.split(part), trees)
        stamp = suite.images[image].flatten(1)[:, :2].long()  # the stamp survives: CIFAR's images are as they were
        number = stamp[:, 0] * 256 + stamp[:, 1]
        assert [cifar.class_names[k] for k in y[number]] == [suite.class_names[trees][k] for k in label]
        np.testing.assert_array_equal(suite.images[image].numpy(), x[number])
    known = {image.tobytes(): int(k) for image, k in zip(mnist.x_train, mnist.y_train, strict=True)}
    image, label = of_task(suite.train, digits_3)
    for pixels, k in zip(suite.images[image].numpy()[::50], label[::50], strict=True):
        assert known[pixels[2:30, 2:30, 1].tobytes()] == k  # training digits, framed, and called what they are
    assert suite.images[image, :2].max() == suite.images[image, :, 30:].max() == 0
    assert same(suite, clusters(folder)) and not same(suite, clusters(folder, seed=1))
    held = clusters(folder, validation=0.2)
    assert every(held, "validation")[4] == (50,) * 10 and every(held, "train")[4] == (200,) * 10


def test_digit_clusters_contradict_each_other_and_agree_within():
    suite = digit_clusters()
    assert suite.clusters.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2] and suite.n_classes == (10,) * 9
    assert len(suite.images) == 1797
    assert_disjoint(suite)
    label_of = torch.full((9, 1797), -1)
    for split in suite.splits.values():
        for task in range(9):
            image, label = of_task(split, task)
            label_of[task, image] = label
    test = suite.test.image.unique()
    assert suite.test.sizes == (len(test),) * 9 == (359,) * 9
    for one in range(9):
        for other in range(9):
            agree = (label_of[one, test] == label_of[other, test]).float().mean()
            assert agree == float(suite.clusters[one] == suite.clusters[other])
    for world in range(3):
        thirds = [of_task(suite.train, 3 * world + k)[0] for k in range(3)]
        assert torch.cat(thirds).unique().numel() == sum(map(len, thirds)) == 1797 - 359
        assert max(map(len, thirds)) - min(map(len, thirds)) <= 10
    assert not torch.equal(of_task(suite.train, 0)[0], of_task(suite.train, 3)[0])


def test_digit_clusters_call_the_digits_by_name():
    from sklearn.datasets import load_digits

    suite, digit = digit_clusters(2, validation=0.25), load_digits().target
    assert len(suite.splits) == 3 and len(set(suite.validation.sizes)) == 1
    assert_disjoint(suite)
    for split in suite.splits.values():
        for task in range(9):
            image, label = of_task(split, task)
            assert [suite.class_names[task][k] for k in label] == [str(d) for d in digit[image]]
    assert same(suite, digit_clusters(2, validation=0.25)) and not same(suite, digit_clusters(3, validation=0.25))
    with pytest.raises(UserError, match=r"digit_clusters: validation is 1\.5"):
        digit_clusters(validation=1.5)


# --- parts ----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 4), max_size=40), st.integers(0, 9))
def test_ranks_count_through_each_class(labels, seed):
    label = np.array(labels, np.int64)
    rank, size = rank_within_class(label, np.random.default_rng(seed))
    for k in set(labels):
        members = label == k
        assert sorted(rank[members]) == [*range(members.sum())] and (size[members] == members.sum()).all()


def test_images_keep_their_middle_and_their_mean():
    images = np.random.default_rng(0).integers(0, 256, (1030, 12, 12), dtype=np.uint8)
    assert (resized(np.full((2, 105, 105), 77, np.uint8), 28) == 77).all()
    small = resized(images, 4)
    assert abs(small.mean() - images.mean()) < 2
    np.testing.assert_array_equal(small[1027:], resized(images[1027:], 4))
    edge = np.zeros((1, 12, 12), np.uint8)
    edge[:, :, 6:] = 240
    assert (resized(edge, 4)[0, :, 0] == 0).all() and (resized(edge, 4)[0, :, 3] == 240).all()
    larger = framed(images[:3], 15)
    np.testing.assert_array_equal(larger[:, 1:13, 1:13], images[:3])
    assert larger.sum() == images[:3].sum() and larger.shape == (3, 15, 15)
    np.testing.assert_array_equal(in_colour(images[:3])[..., 2], images[:3])


def test_every_recipe_is_built_by_its_name(folder):
    for name, recipe in RECIPES.items():
        suite = make_suite(name, folder, validation=0.5)
        assert suite.name == name and suite.validation is not None
        assert make_suite(name, folder, seed=1).train.image.shape == make_suite(name, folder).train.image.shape
        if not recipe.has_full_test:
            with pytest.raises(UserError, match="full_test is for mnist_mtl and fashion_mtl"):
                make_suite(name, folder, full_test=True)


def test_missing_data_sets_are_named(tmp_path):
    for name, recipe in RECIPES.items():
        if recipe.data_sets:
            with pytest.raises(UserError, match=f"{recipe.data_sets[0]}: not found, neither"):
                make_suite(name, tmp_path)


# --- real data ------------------------------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.parametrize("name", ["omniglot_mtl", "omniglot_mtl_105"])
def test_real_omniglot(name):
    real("omniglot")
    suite = make_suite(name)
    check_omniglot(suite)
    assert suite.n_classes[:4] == (48, 28, 26, 42) and sum(suite.n_classes) == 668
    assert 0.05 < float(suite.mean) < 0.12  # little ink, white on black


@pytest.mark.data
def test_real_mini_imagenet():
    arrays = real("mini_imagenet")
    check_mini_imagenet(make_suite("mini_imagenet_mtl"), arrays, 500, 100)


@pytest.mark.data
def test_real_mnist_rotated():
    real("mnist")
    check_rotated(make_suite("mnist_rotated"), 60_000, 10_000)


@pytest.mark.data
def test_real_clusters():
    for name in ("mnist", "cifar100", "omniglot"):
        real(name)
    suite = make_suite("clusters")
    check_clusters(suite)
    assert every(suite, "train")[:4] == [(500,) * 5] * 4 and every(suite, "test")[:4] == [(100,) * 5] * 4
    assert suite.n_classes[8:] == (48, 28, 26, 42)
