"""How large the tensors of a forward pass become, whichever operators make them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


def largest_tensor(call: Callable[[], object]) -> int:
    """Numbers in the largest tensor that any operator gives while ``call`` runs, without gradients."""
    watch = _Watch()
    with torch.no_grad(), watch:
        call()
    return watch.largest


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, list | tuple) else [out]:
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
        return out
