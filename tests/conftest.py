"""Shapes in signatures are checked while the tests run; small helpers that several tests share."""

import pytest
import torch
from jaxtyping import install_import_hook

install_import_hook("routing_marl", "beartype.beartype")

# Tensors are tiny here: more threads only wait for each other, for minutes where cores are busy.
torch.set_num_threads(1)


@pytest.fixture(params=["cpu", "gpu"])
def path(request):
    """Both ways through blocks and optimizer: the CPU's, that looks at the routes, and the one that a GPU takes."""
    from routing_marl.synchronisation import as_on_gpu

    if request.param == "cpu":
        yield request.param
    else:
        with as_on_gpu():
            yield request.param
