"""What the benchmarks have in turns: training steps of routed, dense, cross-stitch and plain networks."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from routing_marl.agents import WPL, FixedRoutes, all_shared, per_task
from routing_marl.architecture import SimpleConvNet
from routing_marl.baselines.cross_stitch import CrossStitch
from routing_marl.config import EngineConfig, Precision
from routing_marl.engine import RoutingEngine
from routing_marl.errors import UserError
from routing_marl.measuring import Step
from routing_marl.network import routing_all_fc
from routing_marl.protocol import Agent, Observation, Trajectory
from routing_marl.recipes import make_suite
from routing_marl.suites import TaskSuite
from routing_marl.training import play_episode


@dataclass(frozen=True)
class Settings:
    """How long and where to measure.

    Attributes:
        seconds: time for each comparison.
        device: where.
        data_dir: where CIFAR-100 is looked for; without it, random images of the same size serve.
        out: folder for long runs, which go on there if they were stopped; None to keep nothing.
    """

    seconds: float = 8.0
    device: str = "cpu"
    data_dir: str | None = None
    out: Path | None = None


def random_suite(n_tasks: int, n_images: int = 4000, seed: int = 0) -> TaskSuite:
    """Random images: they cost what real ones cost."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n_images, 32, 32, 3), dtype=np.uint8)
    half = n_images // 2

    def tasks(first: int) -> dict[str, tuple[Any, Any]]:
        labels = np.arange(100) % 5
        return {f"task_{t}": (first + rng.choice(half, 100, replace=False), labels) for t in range(n_tasks)}

    return TaskSuite.from_arrays("random images", images, tasks(0), tasks(half))


def cifar(settings: Settings) -> tuple[TaskSuite, str]:
    """CIFAR-100's tasks, and what they are made of: random images of the same size where the data is missing."""
    try:
        return make_suite("cifar100_mtl", settings.data_dir), "real images"
    except UserError:
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (60_000, 32, 32, 3), dtype=np.uint8)
        labels = np.arange(60_000)

        def tasks(start: int, stop: int) -> dict[str, tuple[Any, Any]]:
            return {f"task_{t}": (labels[start + t : stop : 20], labels[: (stop - start) // 20] % 5) for t in range(20)}

        return TaskSuite.from_arrays("random images", images, tasks(0, 50_000), tasks(50_000, 60_000)), "random images"


def fc_engine(
    settings: Settings,
    *,
    suite: TaskSuite | None = None,
    n_tasks: int = 20,
    blocks: int | None = None,
    instances: int = 10,
    episodes: int = 1,
    precision: Precision = "fp32",
    allow_pass: bool = True,
) -> RoutingEngine:
    """The game on routing-all-fc; on random images, unless a suite is given."""
    return RoutingEngine(
        suite or random_suite(n_tasks),
        partial(routing_all_fc, blocks=blocks, allow_pass=allow_pass and blocks != 1),
        EngineConfig(instances=instances, episodes=episodes, precision=precision),
        device=settings.device,
        seed=0,
    )


def game(settings: Settings, *, routes: str = "wpl", **engine_settings: Any) -> Step:
    """A training step: WPL's, or of fixed routes where there is one block or they are asked for."""
    fixed = engine_settings.get("blocks") == 1 or routes == "per_task"
    engine = fc_engine(settings, allow_pass=not fixed, **engine_settings)
    spec = engine.spec
    if not fixed:
        return partial(play_episode, engine, WPL(spec, seed=0))
    shared = engine_settings.get("blocks") == 1
    table = all_shared(spec.n_tasks, 3) if shared else per_task(spec.n_tasks, 3, spec.n_tasks)
    return partial(play_episode, engine, FixedRoutes(spec, table))


def cross_stitch_game(settings: Settings, n_tasks: int, instances: int = 4) -> Step:
    """A training step of a cross-stitch network."""
    config = EngineConfig(instances=instances)
    engine = RoutingEngine(random_suite(n_tasks), CrossStitch, config, device=settings.device, seed=0)
    return partial(play_episode, engine, FixedRoutes(engine.spec, all_shared(n_tasks, 1)))


def plain_torch(settings: Settings, batch: int, precision: Precision) -> Step:
    """The dense net as anybody would write it: no suite, no engine, no agents."""
    suite = random_suite(20).to(settings.device)
    encoder = SimpleConvNet((32, 32, 3))
    head = [nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 5)]
    network = nn.Sequential(encoder, *head).to(settings.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    mean, deviation = suite.mean.view(-1, 1, 1), suite.std.view(-1, 1, 1)

    def step() -> None:
        index = torch.randint(2000, (batch,), device=settings.device)
        labels = torch.randint(5, (batch,), device=settings.device)
        images = suite.images[index].permute(0, 3, 1, 2)
        with torch.autocast(torch.device(settings.device).type, torch.bfloat16, enabled=precision == "bf16"):
            loss = nn.functional.cross_entropy(network((images / 255 - mean) / deviation), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


class Timed:
    """An agent, and the seconds that it took to act and to learn."""

    # ruff: noqa: D102 (the methods are those of every agent)

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self.seconds = 0.0

    def act(self, observation: Observation, *, greedy: bool = False) -> torch.Tensor:
        start = time.perf_counter()
        action = self._agent.act(observation, greedy=greedy)
        self.seconds += time.perf_counter() - start
        return action

    def learn(self, trajectory: Trajectory) -> Mapping[str, torch.Tensor]:
        start = time.perf_counter()
        result = self._agent.learn(trajectory)
        self.seconds += time.perf_counter() - start
        return result

    def state_dict(self) -> dict[str, Any]:
        return self._agent.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._agent.load_state_dict(state)
