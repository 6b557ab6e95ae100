"""What a run was computed on and with: kept beside its results, no part of what decides them."""

import os
import platform
from importlib import metadata
from typing import Any

import torch

from routing_marl import __version__

ENVIRONMENT = "environment.json"

_LIBRARIES = ("numpy", "pettingzoo", "gymnasium")


def environment(device: str) -> dict[str, Any]:
    """Versions, machine and threads, as plain values.

    Args:
        device: the one that the run uses, ``cpu``, ``cuda`` or ``cuda:1``.
    """
    on_gpu = torch.device(device).type == "cuda"
    return {
        "routing-marl": __version__,
        "torch": str(torch.__version__),
        **{name: metadata.version(name) for name in _LIBRARIES},
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if on_gpu else device,
        "cuda": torch.version.cuda if on_gpu else None,
    }
