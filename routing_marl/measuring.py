"""How figures are measured: in one process, in turns, so that a machine's moods hit all that a ratio compares."""

import platform
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

Step = Callable[[], object]


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Attributes:
        key: its name in the JSON file.
        what: one line.
        value: the median.
        low: the first quartile over rounds.
        high: the third quartile.
        target: ``(">=" or "<=", number)``; None where the number is only reported.
        unit: of the value; empty for ratios.
    """

    key: str
    what: str
    value: float
    low: float
    high: float
    target: tuple[str, float] | None = None
    unit: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        if self.target is None:
            return None
        sign, bound = self.target
        return self.value >= bound if sign == ">=" else self.value <= bound


def rounds(step: Step, seconds: float, warmup: int = 3) -> Iterator[float]:
    """Seconds of each call, as long as there is time; at least one."""
    for _ in range(warmup):
        step()
    end = time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        step()
        wait_for_device()
        now = time.perf_counter()
        yield now - start
        if now >= end:
            return


def interleaved(steps: Mapping[str, Step], seconds: float) -> dict[str, list[float]]:
    """Times of each step, taken in turns."""
    for step in steps.values():
        for _ in range(3):
            step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[next(iter(steps))]) < 5:
        for name, step in steps.items():
            times[name] += rounds(step, 0.0, warmup=0)
    return times


def wait_for_device() -> None:
    """Until the GPU, if there is one, has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratio(
    key: str,
    what: str,
    times: Mapping[str, list[float]],
    above: str,
    below: str,
    target: tuple[str, float] | None = None,
) -> Figure:
    """Time of one over time of the other, round by round."""
    return figure(key, what, (np.array(times[above]) / np.array(times[below])).tolist(), target)


def figure(key: str, what: str, values: list[float], target: tuple[str, float] | None = None, unit: str = "") -> Figure:
    """The median of some values, and their quartiles; each is one of the values, which may be infinite."""
    low, value, high = np.quantile(values, [0.25, 0.5, 0.75], method="inverted_cdf").tolist()
    return Figure(key, what, value, low, high, target, unit)


def resident() -> float:
    """Resident memory of this process, in bytes; where the system doesn't say, the highest so far."""
    try:
        with open("/proc/self/status") as file:
            return next(1024.0 * int(line.split()[1]) for line in file if line.startswith("VmRSS"))
    except (OSError, StopIteration):
        unit = 1 if platform.system() == "Darwin" else 1024
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
