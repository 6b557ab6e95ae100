"""Where the host waits for the device: whether it may, and finding out that it does, without a GPU.

A GPU runs behind the host that feeds it, until the host wants to know a value. So on a GPU nothing may depend on values
but values: no shape, no choice of code. On the CPU there is nothing to wait for, and knowing the routes saves work.

On the CPU, every operator whose result or shape has to be known on the host can be seen as it is dispatched; what
Python reads without an operator (``tolist``) is caught at its method.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

OPERATORS = frozenset(
    {"_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "equal", "allclose", "bincount", "histc"}
    | {"_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive"}
    | {"_coalesce", "coalesce", "_to_sparse"}
)
"""Operators whose result, or its shape, must be known on the host."""

READS = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__")
"""Methods with which Python reads a tensor's values."""


_as_on_gpu = False


def may_wait(device: torch.device) -> bool:
    """Whether code may look at values of tensors on this device, because that costs nothing there."""
    return device.type == "cpu" and not _as_on_gpu


@contextmanager
def as_on_gpu() -> Iterator[None]:
    """Has the CPU take the path that a GPU takes."""
    global _as_on_gpu
    before, _as_on_gpu = _as_on_gpu, True
    try:
        yield
    finally:
        _as_on_gpu = before


@contextmanager
def synchronisations() -> Iterator[list[str]]:
    """Collects, while a block runs as on a GPU, each operator or method that would make the host wait.

    Operators are seen wherever they come from, autograd and optimizers included.
    """
    found: list[str] = []

    def reading(name: str) -> Any:
        original = getattr(Tensor, name)

        def read(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            found.append(f"Tensor.{name}")
            return original(tensor, *args, **kwargs)

        return read

    with ExitStack() as stack:
        for name in READS:
            stack.enter_context(mock.patch.object(Tensor, name, reading(name)))
        stack.enter_context(as_on_gpu())
        stack.enter_context(_Watch(found))
        yield found


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, found: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        indices = args[1] if name.startswith(("index", "_index_put")) and isinstance(args[1], list | tuple) else ()
        by_mask = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)
        counts = name == "repeat_interleave" and "output_size" not in (kwargs or {})
        if name in OPERATORS or by_mask or counts:
            self._found.append(str(func))
        return func(*args, **(kwargs or {}))
