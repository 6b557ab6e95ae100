"""On a real GPU. Elsewhere these skip, and the watch over operators on the CPU stands in for them."""

import warnings
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_training import PLAYABLE

from routing_marl.agents import FixedRoutes, per_task
from routing_marl.assembly import make_game
from routing_marl.config import EngineConfig, NetworkConfig, RunConfig
from routing_marl.engine import RoutingEngine
from routing_marl.evaluation import evaluate
from routing_marl.network import routing_all_fc
from routing_marl.rows import MEAN_TASK
from routing_marl.suites import TaskSuite
from routing_marl.training import play_episode, train

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]

N_TASKS = 4


@pytest.fixture(scope="module")
def suite() -> TaskSuite:
    """Four tasks of three classes, each class brighter than the one before."""
    rng = np.random.default_rng(0)
    labels = np.arange(96) % 3
    images = rng.integers(0, 60, (96, 16, 16, 3), dtype=np.uint8) + 80 * labels[:, None, None, None].astype(np.uint8)
    train, test = (
        {f"task_{t}": (np.arange(first + t, first + 48, N_TASKS), labels[t:48:N_TASKS]) for t in range(N_TASKS)}
        for first in (0, 48)
    )
    return TaskSuite.from_arrays("bright", images, train, test)


@pytest.fixture
def fp32():
    """Convolutions in full precision, so that devices can be compared."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@contextmanager
def waiting_is_an_error():
    torch.cuda.synchronize()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that not all waiting is seen yet
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


NETWORKS = {"recursive": NetworkConfig(recursive=True, allow_stop=True), "convolutions": NetworkConfig(routed_convs=1)}
GAMES = [(method, precision, NetworkConfig()) for method in PLAYABLE for precision in ("fp32", "bf16")]
GAMES += [(method, "fp32", network) for method in ("wpl", "actor_critic") for network in NETWORKS.values()]


@pytest.mark.parametrize(("method", "precision", "network"), GAMES)
def test_training_never_waits_for_the_gpu(method, precision, network, suite) -> None:
    engine_config = EngineConfig(instances=2, episodes=2, precision=precision)
    config = RunConfig(method, "bright", engine=engine_config, network=network)
    engine, agent = make_game(config, suite, "cuda")
    for _ in range(3):  # the first episodes load kernels and make state
        play_episode(engine, agent)
    with waiting_is_an_error():
        for _ in range(engine.steps_per_epoch + 1):  # a new order is drawn on the way
            play_episode(engine, agent)
    assert engine.failed_at.device.type == "cuda" and int(engine.failed_at) == -1


def test_the_watch_sees_what_waits() -> None:
    with pytest.raises(RuntimeError, match="synchroniz"), waiting_is_an_error():
        torch.ones(3, device="cuda").nonzero()


@pytest.mark.parametrize("network", [{}, {"routed_convs": 1}, {"recursive": True}])
def test_both_devices_play_the_same_game(network, suite, fp32) -> None:
    def losses(device):
        engine = RoutingEngine(
            suite, lambda s: routing_all_fc(s, **network), EngineConfig(instances=2), device=device, seed=3
        )
        spec = engine.spec
        agent = FixedRoutes(spec, per_task(spec.n_tasks, spec.n_depths, N_TASKS))
        outcomes = [play_episode(engine, agent).outcome for _ in range(6)]
        metrics = evaluate(engine, agent, "test").metrics
        return torch.stack([outcome.loss.cpu() for outcome in outcomes]), metrics.loss.cpu()

    here, there = losses("cpu"), losses("cuda")
    torch.testing.assert_close(there[0][0], here[0][0], rtol=1e-4, atol=1e-5)
    # Rounding differs, and Adam's first steps are signs of gradients: near zero they can differ too.
    torch.testing.assert_close(there[0], here[0], rtol=0.02, atol=0.02)
    torch.testing.assert_close(there[1], here[1], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("method", ["wpl", "q_learning", "policy_gradient_network", "gumbel_softmax"])
def test_a_run_learns_and_can_be_resumed(method, suite, tmp_path) -> None:
    config = RunConfig(
        method, "bright", epochs=30, engine=EngineConfig(instances=2, lr=3e-3, lr_decay_epochs=0), device="cuda"
    )
    whole = train(config, tmp_path / "whole", suite=suite)
    accuracy = [row["accuracy"] for row in whole.rows if row["split"] == "train" and row["task"] == MEAN_TASK]
    assert max(accuracy) > 0.6  # a guess is right in a third
    train(replace(config, epochs=12), tmp_path / "parts", suite=suite)
    resumed = train(config, tmp_path / "parts", resume=True, suite=suite)
    assert resumed.epoch == 30 and resumed.engine.updates == whole.engine.updates


@pytest.mark.parametrize("method", PLAYABLE)
@pytest.mark.parametrize(("first", "then"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_a_checkpoint_goes_on_and_is_measured_on_another_device(method, first, then, suite, tmp_path, fp32) -> None:
    config = RunConfig(method, "bright", epochs=1, engine=EngineConfig(instances=4))
    losses = []
    for device in (first, then):
        run = train(replace(config, device=device), tmp_path, resume=True, suite=suite)
        losses.append(evaluate(run.engine, run.agent, "test").metrics.loss.cpu())
    if method != "random":  # whose routes are drawn anew
        torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-4)
    assert train(replace(config, epochs=2, device=then), tmp_path, resume=True, suite=suite).epoch == 2
