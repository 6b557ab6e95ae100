"""Shapes in signatures are checked while the tests run; small helpers that several tests share."""

import torch
from jaxtyping import install_import_hook

install_import_hook("routing_marl", "beartype.beartype")

# Tensors are tiny here: more threads only wait for each other, for minutes where cores are busy.
torch.set_num_threads(1)
