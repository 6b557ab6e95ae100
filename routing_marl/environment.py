"""What a run is computed on and with: the device it asks for, and what is kept of it all beside its results."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from routing_marl import __version__
from routing_marl.errors import UserError

ENVIRONMENT = "environment.json"

_LIBRARIES = ("numpy", "pettingzoo", "gymnasium")


def environment(device: str) -> dict[str, Any]:
    """Versions, machine and threads, as plain values.

    ``commit`` is that of the source tree that runs, with ``-dirty`` where it was changed; None outside one.

    Args:
        device: the one that the run uses, ``cpu``, ``cuda`` or ``cuda:1``.
    """
    on_gpu = torch.device(device).type == "cuda"
    return {
        "routing-marl": __version__,
        "commit": _commit(),
        "torch": str(torch.__version__),
        **{name: metadata.version(name) for name in _LIBRARIES},
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if on_gpu else device,
        "cuda": torch.version.cuda if on_gpu else None,
    }


def pick_device(device: str) -> str:
    """The device that ``auto`` stands for; UserError where there is no such device."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        index = torch.device(device).index or 0
    except RuntimeError as error:
        raise UserError(f"device is {device!r}; it must be auto, cpu, cuda or, say, cuda:1") from error
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device is {device!r}, but torch sees no GPU here; use auto or cpu")
    if device.startswith("cuda") and index >= torch.cuda.device_count():
        raise UserError(f"device is {device!r}, but torch sees {torch.cuda.device_count()} GPUs, numbered from 0")
    return device


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _commit() -> str | None:
    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # A package installed somewhere below another project's checkout is not of that project's commit.
    tracked = git("ls-files", "--error-unmatch", Path(__file__).name)
    return git("describe", "--always", "--dirty", "--exclude=*", "--abbrev=12") if tracked else None
