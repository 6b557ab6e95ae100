"""The built-in suites by name."""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from routing_marl.cluster_recipes import clusters, digit_clusters, mnist_rotated
from routing_marl.errors import UserError
from routing_marl.npz_suite import load_npz
from routing_marl.omniglot import omniglot_mtl, omniglot_mtl_105
from routing_marl.paper_recipes import cifar100_mtl, digits, fashion_mtl, mini_imagenet_mtl, mnist_mtl
from routing_marl.suites import TaskSuite


@dataclass(frozen=True)
class Recipe:
    """How a built-in suite is made.

    Attributes:
        build: takes ``seed`` and ``validation``, and ``data_dir`` where the suite needs data sets.
        data_sets: the data sets that it is made of.
        has_full_test: whether ``build`` takes ``full_test``.
    """

    build: Callable[..., TaskSuite]
    data_sets: tuple[str, ...] = ()
    has_full_test: bool = False


RECIPES = {
    "digits": Recipe(digits),
    "mnist_mtl": Recipe(mnist_mtl, ("mnist",), has_full_test=True),
    "fashion_mtl": Recipe(fashion_mtl, ("fashion_mnist",), has_full_test=True),
    "cifar100_mtl": Recipe(cifar100_mtl, ("cifar100",)),
    "mini_imagenet_mtl": Recipe(mini_imagenet_mtl, ("mini_imagenet",)),
    "omniglot_mtl": Recipe(omniglot_mtl, ("omniglot",)),
    "omniglot_mtl_105": Recipe(omniglot_mtl_105, ("omniglot",)),
    "mnist_rotated": Recipe(mnist_rotated, ("mnist",)),
    "clusters": Recipe(clusters, ("cifar100", "mnist", "omniglot")),
    "digit_clusters": Recipe(digit_clusters),
}


def make_suite(
    suite: str | Path | TaskSuite,
    data_dir: str | Path | None = None,
    seed: int = 0,
    *,
    validation: float | None = None,
    full_test: bool = False,
) -> TaskSuite:
    """The suite of that name, or of that .npz file or folder; a ready suite passes through unchanged.

    Args:
        suite: one of ``RECIPES``, the path of an .npz file (see :func:`routing_marl.npz_suite.load_npz`) or of a
            folder of images (see :meth:`TaskSuite.from_folder`), or a suite (the other arguments are not looked at
            then).
        data_dir: see :func:`routing_marl.data.data_folder`.
        seed: decides which images go where.
        validation: size of the validation split; None for the suite's own default (see each).
        full_test: all test images for each task instead of the paper's 200 (``mnist_mtl`` and ``fashion_mtl`` only).

    Raises:
        UserError: there is no such suite, or its data is missing or wrong.
    """
    if isinstance(suite, TaskSuite):
        return suite
    chosen: dict[str, Any] = {} if validation is None else {"validation": validation}
    recipe = RECIPES.get(str(suite))
    if full_test:
        if recipe is None or not recipe.has_full_test:
            raise UserError(f"suite {suite}: full_test is for mnist_mtl and fashion_mtl; others test on all there is")
        chosen["full_test"] = True
    if recipe is not None:
        if recipe.data_sets:
            chosen["data_dir"] = data_dir
        return recipe.build(seed=seed, **chosen)
    if suite != "" and Path(suite).is_dir():
        return TaskSuite.from_folder(suite, seed=seed, **chosen)
    if isinstance(suite, Path) or suite.endswith(".npz") or "/" in suite or "\\" in suite:
        return load_npz(suite, seed, **chosen)
    close = get_close_matches(suite, RECIPES, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise UserError(
        f"no suite {suite!r}; there are {', '.join(RECIPES)}, and any path of an .npz file or of a folder{hint}"
    )
