"""Checks of hyperparameters: one line that names the parameter, its value, and what would be right."""

import math
from collections.abc import Sequence

from routing_marl.errors import UserError


def check_number(name: str, value: float, low: float = 0.0, high: float = math.inf) -> float:
    """Returns ``value``, or raises UserError where it is no finite number from ``low`` to ``high``."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not (number and low <= value <= high):
        right = f"a number from {low:g} to {high:g}" if math.isfinite(high) else f"a finite number of at least {low:g}"
        raise UserError(f"{name} is {value!r}; it must be {right}")
    return float(value)


def check_count(name: str, value: int, low: int = 1) -> int:
    """Returns ``value``, or raises UserError where it is no whole number of at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise UserError(f"{name} is {value!r}; it must be a whole number of at least {low}")
    return value


def check_choice(name: str, value: str, choices: Sequence[str]) -> str:
    """Returns ``value``, or raises UserError where it is none of ``choices``."""
    if value not in choices:
        raise UserError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, choices))}")
    return value
