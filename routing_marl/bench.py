"""Benchmarks: what routing costs beside the convolutions. Prints ratios; nothing in here is a timed test."""

import multiprocessing
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from routing_marl.agents import WPL, PolicyGradient, QLearning, per_task
from routing_marl.allocator import keep_freed_memory
from routing_marl.bench_games import (
    Settings,
    Timed,
    cifar,
    cross_stitch_game,
    fc_engine,
    game,
    plain_torch,
    random_suite,
)
from routing_marl.bench_long import time_to_cross_stitch
from routing_marl.engine import RoutingEngine
from routing_marl.envs.routing_v0 import RoutingParallelEnv
from routing_marl.evaluation import evaluate
from routing_marl.measuring import Figure, Step, figure, interleaved, ratio, resident, rounds
from routing_marl.paper_recipes import digits
from routing_marl.synchronisation import synchronisations
from routing_marl.training import play_episode


def routed_over_dense(settings: Settings) -> Iterator[Figure]:
    """Full training steps of routing-all-fc, with WPL, over the same net with one block per layer and no routing."""
    for precision in ("fp32", "bf16"):
        steps = {
            "dense": game(settings, blocks=1, precision=precision),
            "routed": game(settings, precision=precision),
            "per_instance": game(settings, instances=1, episodes=10, precision=precision),
            "plain": plain_torch(settings, 200, precision),
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
    steps = {str(n): game(settings, n_tasks=n, instances=b) for n, b in sizes.items()}
    times = interleaved(steps, 4 * settings.seconds)
    for n, bound in ((200, 1.10), (1000, 1.25)):
        what = f"s per instance, {n} tasks and blocks / 20, batch 1,000"
        yield ratio(f"cost_per_instance_tasks_{n}", what, times, str(n), "20", ("<=", bound))
    steps = {str(n): game(settings, blocks=n) for n in (20, 1000)}
    times = interleaved(steps, settings.seconds)
    what = "s per instance, 20 tasks, 1,000 blocks per layer / 20, batch 200"
    yield ratio("cost_per_instance_blocks_1000", what, times, "1000", "20", ("<=", 1.10))


def cross_stitch_over_routed(settings: Settings) -> Iterator[Figure]:
    """Cross-stitch's cost per instance over routing's grows with the number of tasks."""
    for n_tasks in (5, 10, 20):
        steps = {
            "cross_stitch": cross_stitch_game(settings, n_tasks),
            "routed": game(settings, n_tasks=n_tasks, instances=4),
        }
        what = f"s per instance, {n_tasks} tasks x 4: cross-stitch / routed"
        times = interleaved(steps, settings.seconds)
        yield ratio(f"cross_stitch_over_routed_{n_tasks}", what, times, "cross_stitch", "routed")


def agents_share(settings: Settings) -> Iterator[Figure]:
    """Time in ``act`` and ``learn`` over the whole training step."""
    for name, make in {"wpl": WPL, "q_learning": QLearning, "policy_gradient": PolicyGradient}.items():
        engine = fc_engine(settings)
        agent = Timed(make(engine.spec, seed=0))
        shares = []
        for seconds in rounds(partial(play_episode, engine, agent), settings.seconds / 2):
            shares.append(agent.seconds / seconds)
            agent.seconds = 0.0
        what = f"time in act and learn / training step, 20 tasks x 10: {name}"
        yield figure(f"agents_share_{name}", what, shares, ("<=", 0.05))


def door_over_engine(settings: Settings) -> Iterator[Figure]:
    """The PettingZoo door over the engine's own loop, and the door alone on small images."""
    engine = fc_engine(settings)
    env = RoutingParallelEnv(fc_engine(settings))
    routes = per_task(20, 3, 20).to(settings.device)
    steps: dict[str, Step] = {
        "engine": partial(_engine_episode, engine, routes),
        "door": partial(_door_episode, env, routes.tolist()),
    }
    times = interleaved(steps, settings.seconds)
    what = "instances/s, 20 agents x 10, fixed routes: PettingZoo door / engine"
    yield ratio("door_over_engine", what, times, "engine", "door", (">=", 0.85))
    small = RoutingParallelEnv(fc_engine(settings, suite=digits(), instances=1))
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
    native = RoutingEnv(fc_engine(settings, suite=digits(), instances=1, episodes=episodes))
    door = RoutingParallelEnv(fc_engine(settings, suite=digits(), instances=1))
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
    suite, source = cifar(settings)
    for instances in (1, 10):
        engine = fc_engine(settings, suite=suite, instances=instances, precision="bf16")
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
    engine = fc_engine(settings)
    agent = WPL(engine.spec, seed=0)
    play_episode(engine, agent)
    with synchronisations() as found:
        for _ in range(3):
            play_episode(engine, agent)
    yield figure("host_syncs", "operators per training step that wait for a GPU", [len(found) / 3], ("<=", 0.0))


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
            "routed (WPL)": game(settings, n_tasks=n_tasks, instances=instances),
            "task-specific": game(settings, n_tasks=n_tasks, instances=instances, routes="per_task"),
        }
        if n_tasks <= 20:  # beyond, a step of cross-stitch takes minutes
            steps["cross-stitch"] = cross_stitch_game(settings, n_tasks, instances=max(1, 40 // n_tasks))
        for name, times in interleaved(steps, settings.seconds).items():
            batch = n_tasks * (max(1, 40 // n_tasks) if name == "cross-stitch" else instances)
            curves[name][n_tasks] = 1000 * float(np.median(times)) / batch
    return curves


def _engine_episode(engine: RoutingEngine, routes: torch.Tensor) -> None:
    engine.reset()
    for actions in routes:
        engine.step(actions[None])


def _door_episode(env: RoutingParallelEnv, routes: list[list[int]], options: dict[str, Any] | None = None) -> None:
    env.reset(options=options)
    for actions in routes:
        env.step(dict(zip(env.possible_agents, actions, strict=True)))


def _memory(settings: Settings) -> tuple[float, float]:
    """Bytes that training takes beyond a tiny run's, and bytes of what has to be there. In a process of its own."""
    tiny = fc_engine(settings, suite=random_suite(2), instances=1)
    play_episode(tiny, WPL(tiny.spec, seed=0))
    before = resident()
    suite, _ = cifar(settings)
    keep_freed_memory()  # after loading, as the commands do
    engine = fc_engine(settings, suite=suite, instances=1)
    agent = WPL(engine.spec, seed=0)
    for _ in range(50):
        play_episode(engine, agent)
    state = [v for s in engine.optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    held = [suite.images, *engine.network.parameters(), *state, *engine.network.buffers()]
    return resident() - before, float(sum(tensor.numel() * tensor.element_size() for tensor in held))
