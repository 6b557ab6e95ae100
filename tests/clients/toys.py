"""A game that one can only win by routing: two tasks that want opposite answers to the same images."""

import warnings
from typing import Any

import numpy as np
import pytest

from routing_marl.agents import RandomAgent
from routing_marl.engine import RoutingEngine
from routing_marl.evaluation import evaluate
from routing_marl.protocol import Agent
from routing_marl.suites import TaskSuite

GAME: dict[str, Any] = {"blocks": 2, "depth": 2, "instances": 8, "rho": 0.0, "lr": 3e-3}
"""Two depths of two blocks. Agents that pick at random teach every block both answers, and score 1/2."""


def opposites(n_train: int = 256, n_test: int = 128) -> TaskSuite:
    """ "Is the left half the brighter one?" and "is it the darker one?", on noisy 8x8 images."""
    rng = np.random.default_rng(0)
    n = n_train + n_test
    left = rng.integers(0, 2, n)
    images = rng.integers(0, 160, (n, 8, 8))
    images[left == 1, :, :4] += 90
    images[left == 0, :, 4:] += 90

    def tasks(first: int, count: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        index = np.arange(first, first + count)
        return {"brighter": (index, left[index]), "darker": (index, 1 - left[index])}

    return TaskSuite.from_arrays("opposites", images.astype(np.uint8), tasks(0, n_train), tasks(n_train, n_test))


def held_out_accuracy(engine: RoutingEngine, agent: Agent) -> float:
    """Mean over tasks, on the test split, with greedy routes and the network as it is."""
    return float(evaluate(engine, agent, "test").metrics.accuracy.mean())


def assert_learned(engine: RoutingEngine, agent: Agent, least: float = 0.85) -> None:
    """Greedy routes are right on held-out images, and random ones through the same network are not."""
    greedy = held_out_accuracy(engine, agent)
    at_random = np.mean([held_out_accuracy(engine, RandomAgent(engine.spec, seed=seed)) for seed in range(5)])
    assert greedy >= least, f"greedy routes score {greedy:.2f}"
    assert greedy >= at_random + 0.2, f"greedy routes score {greedy:.2f}, random ones {at_random:.2f}"


def need(*libraries: str) -> None:
    """Skips the module where a library is missing. Imports it, deaf to its own deprecations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for library in libraries:
            pytest.importorskip(library)
