"""Benchmarks: what routing costs beside the convolutions. Prints ratios; nothing in here is a timed test."""

import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import nn

from routing_marl.agents import WPL, FixedRoutes, PolicyGradient, QLearning, all_shared, per_task
from routing_marl.allocator import keep_freed_memory
from routing_marl.architecture import SimpleConvNet
from routing_marl.baselines.cross_stitch import CrossStitch
from routing_marl.config import EngineConfig, Precision, RunConfig
from routing_marl.display import progress_bars
from routing_marl.engine import RoutingEngine
from routing_marl.envs.routing_v0 import RoutingParallelEnv
from routing_marl.errors import UserError
from routing_marl.evaluation import evaluate
from routing_marl.measuring import Figure, Step, figure, interleaved, ratio, resident, rounds
from routing_marl.network import routing_all_fc
from routing_marl.paper_recipes import digits
from routing_marl.pool import local_runner
from routing_marl.protocol import Agent, Observation, Trajectory
from routing_marl.recipes import make_suite
from routing_marl.suites import TaskSuite
from routing_marl.synchronisation import synchronisations
from routing_marl.training import Run, play_episode


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


# -- what is measured ------------------------------------------------------------------------------------------------


def routed_over_dense(settings: Settings) -> Iterator[Figure]:
    """Full training steps of routing-all-fc, with WPL, over the same net with one block per layer and no routing."""
    for precision in ("fp32", "bf16"):
        steps = {
            "dense": _game(settings, blocks=1, precision=precision),
            "routed": _game(settings, precision=precision),
            "per_instance": _game(settings, instances=1, episodes=10, precision=precision),
            "plain": _plain_torch(settings, 200, precision),
        }
        times = interleaved(steps, 2 * settings.seconds)
        what = f"instances/s, 20 tasks x 10, 32x32x3, {precision}"
        yield ratio(f"routed_over_dense_{precision}", f"{what}: routed / dense", times, "dense", "routed", (">=", 0.90))
        what_each = f"{what}: one decision per instance / dense"
        key = f"routed_over_dense_per_instance_{precision}"
        yield ratio(key, what_each, times, "dense", "per_instance", (">=", 0.80))
        what_plain = f"{what}: our dense net / a bare loop in torch"
        yield ratio(f"dense_over_plain_torch_{precision}", what_plain, times, "plain", "dense", (">=", 0.97))


def cost_per_instance(settings: Settings) -> Iterator[Figure]:
    """Many tasks, many blocks: the cost of an instance at the same total batch of 1,000."""
    sizes = {20: 50, 200: 5, 1000: 1}
    steps = {str(n): _game(settings, n_tasks=n, instances=b) for n, b in sizes.items()}
    times = interleaved(steps, 4 * settings.seconds)
    for n, bound in ((200, 1.10), (1000, 1.25)):
        what = f"s per instance, {n} tasks and blocks / 20, batch 1,000"
        yield ratio(f"cost_per_instance_tasks_{n}", what, times, str(n), "20", ("<=", bound))
    steps = {str(n): _game(settings, blocks=n) for n in (20, 1000)}
    times = interleaved(steps, settings.seconds)
    what = "s per instance, 20 tasks, 1,000 blocks per layer / 20, batch 200"
    yield ratio("cost_per_instance_blocks_1000", what, times, "1000", "20", ("<=", 1.10))


def cross_stitch_over_routed(settings: Settings) -> Iterator[Figure]:
    """Cross-stitch's cost per instance over routing's grows with the number of tasks."""
    for n_tasks in (5, 10, 20):
        steps = {
            "cross_stitch": _cross_stitch(settings, n_tasks),
            "routed": _game(settings, n_tasks=n_tasks, instances=4),
        }
        what = f"s per instance, {n_tasks} tasks x 4: cross-stitch / routed"
        times = interleaved(steps, settings.seconds)
        yield ratio(f"cross_stitch_over_routed_{n_tasks}", what, times, "cross_stitch", "routed")


def agents_share(settings: Settings) -> Iterator[Figure]:
    """Time in ``act`` and ``learn`` over the whole training step."""
    for name, make in {"wpl": WPL, "q_learning": QLearning, "policy_gradient": PolicyGradient}.items():
        engine = _engine(settings)
        agent = _Timed(make(engine.spec, seed=0))
        shares = []
        for seconds in rounds(partial(play_episode, engine, agent), settings.seconds / 2):
            shares.append(agent.seconds / seconds)
            agent.seconds = 0.0
        what = f"time in act and learn / training step, 20 tasks x 10: {name}"
        yield figure(f"agents_share_{name}", what, shares, ("<=", 0.05))


def door_over_engine(settings: Settings) -> Iterator[Figure]:
    """The PettingZoo door over the engine's own loop, and the door alone on small images."""
    engine = _engine(settings)
    env = RoutingParallelEnv(_engine(settings))
    routes = per_task(20, 3, 20)
    steps: dict[str, Step] = {
        "engine": partial(_engine_episode, engine, routes),
        "door": partial(_door_episode, env, routes.tolist()),
    }
    times = interleaved(steps, settings.seconds)
    what = "instances/s, 20 agents x 10, fixed routes: PettingZoo door / engine"
    yield ratio("door_over_engine", what, times, "engine", "door", (">=", 0.85))
    small = RoutingParallelEnv(_engine(settings, suite=digits(), instances=1))
    n_agents, n_depths = len(small.possible_agents), 3
    routes = per_task(n_agents, n_depths, n_agents)
    play = partial(_door_episode, small, routes.tolist(), {"split": "test"})
    speeds = [n_agents * n_depths / seconds for seconds in rounds(play, settings.seconds / 2)]
    what = f"PettingZoo agent-steps/s, test split of digits, {torch.get_num_threads()} threads"
    yield figure("env_steps_per_s", what, speeds, unit="1/s")


def torchrl_over_wrapper(settings: Settings) -> Iterator[Figure]:
    """TorchRL's frames/s in the native environment, over those in its own wrapper of the PettingZoo door."""
    try:
        from torchrl.envs import PettingZooWrapper

        from routing_marl.envs.torchrl import RoutingEnv
    except ImportError:
        return
    episodes, n_depths = 64, 3
    native = RoutingEnv(_engine(settings, suite=digits(), instances=1, episodes=episodes))
    door = RoutingParallelEnv(_engine(settings, suite=digits(), instances=1))
    wrapper = PettingZooWrapper(door, group_map={"agents": list(door.possible_agents)})
    actions = torch.arange(len(door.possible_agents))

    def policy(tensordict: Any) -> Any:  # TorchRL goes by this name
        return tensordict.set(("agents", "action"), actions.expand(*tensordict.batch_size, -1))

    names = {"native": native, "native_test": native.evaluation("test"), "wrapper": wrapper}
    steps = {name: partial(env.rollout, n_depths, policy) for name, env in names.items()}
    times = interleaved(steps, settings.seconds)
    for name in ("native", "native_test"):
        times[name] = [seconds / episodes for seconds in times[name]]
    what = "TorchRL frames/s, digits, 10 agents x 1, 64 parallel episodes: native / its wrapper of our PettingZoo door"
    yield ratio("torchrl_over_wrapper", f"{what}, blocks learn", times, "wrapper", "native", (">=", 50.0))
    yield ratio("torchrl_over_wrapper_test", f"{what}, native on test", times, "wrapper", "native_test")


def epochs_per_hour(settings: Settings) -> Iterator[Figure]:
    """Epochs of CIFAR-100 with evaluation, extrapolated from a sample of steps and one evaluation of the test split."""
    suite, source = _cifar(settings)
    for instances in (1, 10):
        engine = _engine(settings, suite=suite, instances=instances, precision="bf16")
        agent = WPL(engine.spec, seed=0)
        step = np.median(list(rounds(partial(play_episode, engine, agent), settings.seconds)))
        evaluation = next(rounds(partial(evaluate, engine, agent, "test"), 0.0, warmup=0))
        hours = (engine.steps_per_epoch * step + evaluation) / 3600
        what = f"epochs/h of cifar100_mtl ({source}), WPL, bf16, batch {20 * instances}, with evaluation"
        yield figure(f"epochs_per_hour_batch_{20 * instances}", what, [float(1 / hours)], unit="1/h")


def peak_memory(settings: Settings) -> Iterator[Figure]:
    """Resident memory of a training process, beyond that of a tiny one, over what has to be there."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        resident, needed = pool.apply(_memory, (settings,))
    what = "resident memory / (data + parameters + optimizer state), cifar100_mtl, WPL, batch 20"
    yield figure("peak_memory", what, [resident / needed], ("<=", 1.5))


def host_syncs(settings: Settings) -> Iterator[Figure]:
    """Operators per training step for which the host would wait for a GPU, on the path that a GPU takes."""
    engine = _engine(settings)
    agent = WPL(engine.spec, seed=0)
    play_episode(engine, agent)
    with synchronisations() as found:
        for _ in range(3):
            play_episode(engine, agent)
    yield figure("host_syncs", "operators per training step that wait for a GPU", [len(found) / 3], ("<=", 0.0))


def time_to_cross_stitch(settings: Settings) -> Iterator[Figure]:
    """Training time of WPL until it has cross-stitch's final test accuracy, over cross-stitch's own. Half an hour."""
    # What reads tables is loaded where it is needed: it takes as long as torch.
    from routing_marl.comparison import compare
    from routing_marl.grid import expand, read_grid
    from routing_marl.statistics import time_to_accuracy
    from routing_marl.summary import final_scores

    base = RunConfig(method="wpl", device=settings.device, data_dir=settings.data_dir)
    configs = [config for grid in read_grid(Path("paper_cross_stitch")) for config in expand(grid, base)]
    make_suite(configs[0].suite, settings.data_dir)  # says what is missing before any work starts
    with ExitStack() as stack:
        out = settings.out or Path(stack.enter_context(TemporaryDirectory()))
        report = stack.enter_context(progress_bars(Console(), len(configs)))
        frame, failures = compare(configs, out, runner=local_runner(1, torch.get_num_threads()), on_progress=report)
    if failures:
        raise UserError(f"{failures[0].config.name} failed: {failures[0].reason}")
    ratios: list[float] = []
    goals: list[float] = []
    for _, runs in frame.groupby("seed"):
        stitched = final_scores(runs[runs["method"] == "cross_stitch"])
        ((goal, whole),) = stitched[["accuracy", "wall_s"]].to_numpy(float).tolist()
        reached = time_to_accuracy(runs[runs["method"] == "wpl"], goal, unit="wall_s")
        ratios += (reached.to_numpy() / whole).tolist()
        goals.append(goal)
    what = f"training time of WPL to {100 * np.mean(goals):.1f} % / cross-stitch's of {configs[0].epochs} epochs"
    yield figure("time_to_cross_stitch", what, ratios, ("<=", 0.15))


BENCHMARKS: dict[str, Callable[[Settings], Iterator[Figure]]] = {
    benchmark.__name__: benchmark
    for benchmark in (
        routed_over_dense,
        cost_per_instance,
        cross_stitch_over_routed,
        agents_share,
        door_over_engine,
        torchrl_over_wrapper,
        epochs_per_hour,
        peak_memory,
        host_syncs,
        time_to_cross_stitch,
    )
}

LONG = ("time_to_cross_stitch",)
"""Those that take longer than a few minutes; only run when asked for."""


def cost_curve(settings: Settings) -> dict[str, dict[int, float]]:
    """Milliseconds per instance against the number of tasks, batch of about 200: for the picture."""
    curves: dict[str, dict[int, float]] = {"routed (WPL)": {}, "task-specific": {}, "cross-stitch": {}}
    for n_tasks in (2, 5, 10, 20, 50, 100, 200):
        instances = max(1, 200 // n_tasks)
        steps = {
            "routed (WPL)": _game(settings, n_tasks=n_tasks, instances=instances),
            "task-specific": _game(settings, n_tasks=n_tasks, instances=instances, routes="per_task"),
        }
        if n_tasks <= 20:  # beyond, a step of cross-stitch takes minutes
            steps["cross-stitch"] = _cross_stitch(settings, n_tasks, instances=max(1, 40 // n_tasks))
        for name, times in interleaved(steps, settings.seconds).items():
            batch = n_tasks * (max(1, 40 // n_tasks) if name == "cross-stitch" else instances)
            curves[name][n_tasks] = 1000 * float(np.median(times)) / batch
    return curves


# -- how ------------------------------------------------------------------------------------------------------------


def _suite(n_tasks: int, n_images: int = 4000, seed: int = 0) -> TaskSuite:
    """Random images: they cost what real ones cost."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n_images, 32, 32, 3), dtype=np.uint8)
    half = n_images // 2

    def tasks(first: int) -> dict[str, tuple[Any, Any]]:
        labels = np.arange(100) % 5
        return {f"task_{t}": (first + rng.choice(half, 100, replace=False), labels) for t in range(n_tasks)}

    return TaskSuite.from_arrays("random images", images, tasks(0), tasks(half))


def _cifar(settings: Settings) -> tuple[TaskSuite, str]:
    try:
        return make_suite("cifar100_mtl", settings.data_dir), "real images"
    except UserError:
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (60_000, 32, 32, 3), dtype=np.uint8)
        labels = np.arange(60_000)

        def tasks(start: int, stop: int) -> dict[str, tuple[Any, Any]]:
            return {f"task_{t}": (labels[start + t : stop : 20], labels[: (stop - start) // 20] % 5) for t in range(20)}

        return TaskSuite.from_arrays("random images", images, tasks(0, 50_000), tasks(50_000, 60_000)), "random images"


def _engine(
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
    return RoutingEngine(
        suite or _suite(n_tasks),
        partial(routing_all_fc, blocks=blocks, allow_pass=allow_pass and blocks != 1),
        EngineConfig(instances=instances, episodes=episodes, precision=precision),
        device=settings.device,
        seed=0,
    )


def _game(settings: Settings, *, routes: str = "wpl", **engine_settings: Any) -> Step:
    """A training step: WPL's, or of fixed routes where there is one block or they are asked for."""
    fixed = engine_settings.get("blocks") == 1 or routes == "per_task"
    engine = _engine(settings, allow_pass=not fixed, **engine_settings)
    spec = engine.spec
    if not fixed:
        return partial(play_episode, engine, WPL(spec, seed=0))
    shared = engine_settings.get("blocks") == 1
    table = all_shared(spec.n_tasks, 3) if shared else per_task(spec.n_tasks, 3, spec.n_tasks)
    return partial(play_episode, engine, FixedRoutes(spec, table))


def _cross_stitch(settings: Settings, n_tasks: int, instances: int = 4) -> Step:
    config = EngineConfig(instances=instances)
    engine = RoutingEngine(_suite(n_tasks), CrossStitch, config, device=settings.device, seed=0)
    return partial(play_episode, engine, FixedRoutes(engine.spec, all_shared(n_tasks, 1)))


def _plain_torch(settings: Settings, batch: int, precision: Precision) -> Step:
    """The dense net as anybody would write it: no suite, no engine, no agents."""
    suite = _suite(20).to(settings.device)
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


class _Timed:
    """An agent, and the seconds that it took to act and to learn."""

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


def _engine_episode(engine: RoutingEngine, routes: torch.Tensor) -> None:
    engine.reset()
    for actions in routes:
        engine.step(actions[None])


def _door_episode(env: RoutingParallelEnv, routes: list[list[int]], options: dict[str, Any] | None = None) -> None:
    env.reset(options=options)
    for actions in routes:
        env.step(dict(zip(env.possible_agents, actions, strict=True)))


def _test_accuracy(run: Run) -> float:
    return next(float(r["accuracy"]) for r in reversed(run.rows) if r["split"] == "test" and r["task"] == -1)


def _memory(settings: Settings) -> tuple[float, float]:
    """Bytes that training takes beyond a tiny run's, and bytes of what has to be there. In a process of its own."""
    tiny = _engine(settings, suite=_suite(2), instances=1)
    play_episode(tiny, WPL(tiny.spec, seed=0))
    before = resident()
    suite, _ = _cifar(settings)
    keep_freed_memory()  # after loading, as the commands do
    engine = _engine(settings, suite=suite, instances=1)
    agent = WPL(engine.spec, seed=0)
    for _ in range(50):
        play_episode(engine, agent)
    state = [v for s in engine.optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    held = [suite.images, *engine.network.parameters(), *state, *engine.network.buffers()]
    return resident() - before, float(sum(tensor.numel() * tensor.element_size() for tensor in held))
