import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from test_recipes import write_omniglot
from test_suites import assert_disjoint, counts, of_task

from routing_marl import data
from routing_marl.errors import UserError
from routing_marl.image_folders import read_images
from routing_marl.recipes import make_suite
from routing_marl.suites import TaskSuite


def write(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **options)


def pictures(n, shape=(5, 6), seed=0):
    return np.random.default_rng([seed, n, *shape]).integers(0, 256, (n, *shape), dtype=np.uint8)


def write_tasks(root, tasks, n=10, shape=(5, 6)):
    """root/task/class/k.png; the pixels by path."""
    written = {}
    for task, classes in tasks.items():
        for name in classes:
            for k, pixels in enumerate(pictures(n, shape, seed=len(written))):
                path = root / task / name / f"{k:02}.png"
                write(path, pixels)
                written[path] = pixels
    return written


TASKS = {"fruit": ["apple", "pear"], "birds": ["robin", "toucan", "goose"]}


def test_folders_become_tasks_and_classes(tmp_path):
    written = write_tasks(tmp_path / "mine", TASKS)
    (tmp_path / "mine/fruit/apple/notes.txt").write_text("no image")
    (tmp_path / "mine/.cache").mkdir()
    suite = TaskSuite.from_folder(tmp_path / "mine")
    assert suite.name == "mine" and suite.task_names == ("birds", "fruit")
    assert suite.class_names == (("goose", "robin", "toucan"), ("apple", "pear"))
    assert suite.image_shape == (5, 6, 1) and len(suite.images) == 50
    assert counts(suite)["birds", "train"] == (8,) * 3 and counts(suite)["fruit", "test"] == (2,) * 2
    assert_disjoint(suite)
    class_of = {pixels.tobytes(): path.parts[-3:-1] for path, pixels in written.items()}
    for split in suite.splits.values():
        for task, name in enumerate(suite.task_names):
            for image, label in zip(*of_task(split, task), strict=True):
                told = class_of[suite.images[image].numpy().tobytes()]
                assert told == (name, suite.class_names[task][label])


def test_folder_options_and_names_on_the_command_line(tmp_path, monkeypatch):
    write_tasks(tmp_path / "mine", TASKS)
    suite = TaskSuite.from_folder(tmp_path / "mine", size=(4, 3), test=0.5, validation=0.2, seed=1)
    assert suite.image_shape == (4, 3, 1)
    assert [counts(suite)["fruit", part] for part in suite.splits] == [(4, 4), (1, 1), (5, 5)]
    monkeypatch.chdir(tmp_path)
    assert make_suite("mine").name == make_suite(str(tmp_path / "mine/")).name == "mine"
    assert make_suite("mine", validation=0.25).validation.sizes == (6, 4)
    with pytest.raises(UserError, match=r"mine: test is 1\.0"):
        TaskSuite.from_folder("mine", test=1.0)


def test_folders_of_splits_are_the_splits(tmp_path):
    write_tasks(tmp_path / "train", TASKS, 6)
    write_tasks(tmp_path / "test", {"fruit": ["pear"], "birds": ["robin", "goose"]}, 3)
    suite = TaskSuite.from_folder(tmp_path)
    assert counts(suite)["birds", "train"] == (6,) * 3 and counts(suite)["birds", "test"] == (3, 3, 0)
    assert counts(suite)["fruit", "test"] == (0, 3) and suite.validation is None
    write_tasks(tmp_path / "validation", TASKS, 2)
    assert counts(TaskSuite.from_folder(tmp_path))["fruit", "validation"] == (2, 2)
    write_tasks(tmp_path / "more", TASKS, 2)
    with pytest.raises(UserError, match="more: beside folders train and test; there may be validation, and no other"):
        TaskSuite.from_folder(tmp_path)


def test_images_of_several_tasks_are_stored_once_and_stay_in_one_split(tmp_path):
    images = pictures(40)
    for k, pixels in enumerate(images):
        write(tmp_path / f"odd/{k % 2}/{k:02}.png", pixels)
        write(tmp_path / f"large/{k // 20}/{k:02}.bmp", pixels)
    suite = TaskSuite.from_folder(tmp_path)
    assert len(suite.images) == 40
    assert_disjoint(suite)
    for split in suite.splits.values():
        assert set(of_task(split, 0)[0].tolist()) == set(of_task(split, 1)[0].tolist())
    write(tmp_path / "odd/1/again.png", images[4])
    with pytest.raises(UserError, match=r"odd/1/again\.png: the same image as .*odd/0/04\.png; once in a task"):
        TaskSuite.from_folder(tmp_path)


def test_an_image_in_two_splits_is_named(tmp_path):
    train = write_tasks(tmp_path / "train", TASKS, 2)
    write_tasks(tmp_path / "test", TASKS, 2)
    write(tmp_path / "test/birds/robin/00.png", [*train.values()][3])
    with pytest.raises(UserError, match=r"00\.png|01\.png: in test too; an image belongs to one split"):
        TaskSuite.from_folder(tmp_path)


def test_grey_stays_grey_and_one_colour_image_makes_all_colour(tmp_path):
    grey, colour = pictures(1)[0], pictures(1, (5, 6, 3))[0]
    write(tmp_path / "a.png", grey)
    write(tmp_path / "b.png", colour)
    Image.fromarray(colour).quantize(8).save(tmp_path / "c.gif")
    Image.fromarray(grey > 99).save(tmp_path / "d.png")  # one bit
    files = [tmp_path / name for name in ("a.png", "b.png", "c.gif", "d.png")]
    np.testing.assert_array_equal(read_images(files[:1]), grey[None])
    np.testing.assert_array_equal(read_images([files[0], files[3]])[1], np.where(grey > 99, 255, 0))
    both = read_images(files)
    np.testing.assert_array_equal(both[0], np.repeat(grey[..., None], 3, axis=2))
    np.testing.assert_array_equal(both[1], colour)


def spoil(folder, kind):
    """Makes one file of a good folder bad; returns its name."""
    path = folder / "fruit/pear/03.png"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("no image")
    elif kind == "half":
        buffer = io.BytesIO()
        Image.fromarray(pictures(1, (64, 64))[0]).save(buffer, format="png")
        for file in folder.rglob("*.png"):
            file.write_bytes(buffer.getvalue() + file.name.encode())
        path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    elif kind == "size":
        write(path, pictures(1, (5, 7))[0])
    elif kind == "bomb":
        header = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 10_000, 8, 0, 0, 0, 0)
        whole = path.read_bytes()  # signature and length: 12 bytes; the header itself: 17; its checksum: 4
        path.write_bytes(whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:])
    elif kind == "deep":
        Image.fromarray(np.zeros((5, 6), np.uint16)).save(path)
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    return path.name


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty", "not a readable image"),
        ("text", "not a readable image"),
        ("half", "not a readable image"),
        ("size", r"5 x 7, but .*00\.png is 5 x 6; images of one size are needed"),
        ("bomb", "not a readable image .*decompression bomb"),
        ("deep", r"an image of mode I;16; grey or colour of 8 bits"),
        ("folder", "not a readable image"),
    ],
)
def test_a_bad_image_is_named_in_one_line(tmp_path, kind, message):
    write_tasks(tmp_path, TASKS)
    name = spoil(tmp_path, kind)
    with pytest.raises(UserError, match=rf"fruit/pear/{name}: {message}") as caught:
        TaskSuite.from_folder(tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_bad_folders_are_named(tmp_path):
    for make, message in (
        (lambda root: None, "bad: no folders of tasks in it"),
        (lambda root: (root / "task").mkdir(), "bad/task: no folders of classes in it"),
        (lambda root: (root / "task/class").mkdir(), "bad/task/class: no images in it; files ending in .png"),
        (lambda root: write(root / "task/class/1.png", pictures(1)[0]), "one class only"),
    ):
        (tmp_path / "bad").mkdir(exist_ok=True)
        make(tmp_path / "bad")
        with pytest.raises(UserError, match=message):
            TaskSuite.from_folder(tmp_path / "bad", test=0.0)
    with pytest.raises(UserError, match="no such folder"):
        TaskSuite.from_folder(tmp_path / "nowhere")


# --- data sets that come as folders ---------------------------------------------------------------------------


def test_omniglots_folders_give_the_same_as_npz(tmp_path, monkeypatch):
    x, y, names = write_omniglot(tmp_path, ("Gujarati", "Sylheti"), drawings=3)
    packed = data.find_arrays("omniglot", tmp_path)
    (tmp_path / "omniglot.npz").unlink()
    background = len(np.unique(packed.y_train))
    for k, name in enumerate(names):
        part = "images_background" if k < background else "images_evaluation"
        for drawing, pixels in enumerate(x[y == k]):
            write(tmp_path / "omniglot-py" / part / name.rsplit("/", 1)[0] / f"0001_{drawing + 1:02}.png", pixels)
    found = data.find_arrays("omniglot", tmp_path)
    for key in ("x_train", "y_train", "x_test", "y_test"):
        np.testing.assert_array_equal(getattr(found, key), getattr(packed, key))
    assert found.class_names == tuple(name.rsplit("/", 1)[0] for name in names)
    (tmp_path / "omniglot-py/images_evaluation").rename(tmp_path / "gone")
    with pytest.raises(UserError, match="images_evaluation: no such folder; run `routing-marl data --down"):
        data.find_arrays("omniglot", tmp_path)
    asked = []

    def fetch(root, download, background):
        asked.append((download, background))
        if not background:
            (tmp_path / "gone").rename(tmp_path / "omniglot-py/images_evaluation")

    monkeypatch.setattr("torchvision.datasets.Omniglot", fetch)
    assert data.download("omniglot", tmp_path).class_names == found.class_names
    assert asked == [(True, True), (True, False)]


def test_mini_imagenet_from_folders_of_classes(tmp_path):
    with pytest.raises(UserError, match=r"mini_imagenet: not found.*can't be downloaded; write .*class_names"):
        data.download("mini_imagenet", tmp_path)
    for name, level in (("n01", 10), ("n02", 200)):
        for k in range(12):
            write(tmp_path / f"mini_imagenet/{name}/{k:02}.jpg", np.full((30, 40, 3), level + k), quality=100)
    found = data.find_arrays("mini_imagenet", tmp_path)
    assert found.x_train.shape == (20, 84, 84, 3) and found.x_test.shape == (4, 84, 84, 3)
    assert found.class_names == ("n01", "n02") and found.y_test.tolist() == [0, 0, 1, 1]
    wanted = [*range(10, 20), *range(200, 210)]
    assert np.abs(found.x_train.mean((1, 2, 3)) - wanted).max() < 2
    assert np.abs(found.x_test.mean((1, 2, 3)) - [20, 21, 210, 211]).max() < 2
    (tmp_path / "mini_imagenet/n03").mkdir()
    with pytest.raises(UserError, match="mini_imagenet/n03: no images in it"):
        data.find_arrays("mini_imagenet", tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a/1", "a/1"], "class_names has a name twice"),
        (["a/1", "b"], "class_names has 'b'; alphabet/character is needed"),
        (["a/1"], "label 1; labels go from 0 to 0"),
    ],
)
def test_class_names_that_the_file_tells_are_checked(tmp_path, names, message):
    x = np.zeros((2, 105, 105), np.uint8)
    arrays = {"x_train": x, "y_train": np.array([0, 1]), "x_test": x, "y_test": np.array([0, 1])}
    np.savez(tmp_path / "omniglot.npz", **arrays)
    with pytest.raises(UserError, match="lacks class_names"):
        data.find_arrays("omniglot", tmp_path)
    np.savez(tmp_path / "omniglot.npz", **arrays, class_names=np.array(names))
    with pytest.raises(UserError, match=message):
        data.find_arrays("omniglot", tmp_path)
