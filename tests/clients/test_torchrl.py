"""TorchRL: the native environment passes its checker, and plain PPO learns on it."""

import copy
from typing import Any

import pytest
import torch
from toys import GAME, assert_learned, need, opposites

need("tensordict", "torchrl.collectors", "torchrl.envs", "torchrl.objectives")
pytestmark = [pytest.mark.client, pytest.mark.filterwarnings("ignore")]

from tensordict.nn import TensorDictModule  # noqa: E402
from torchrl.collectors import Collector  # noqa: E402
from torchrl.envs import PettingZooWrapper  # noqa: E402
from torchrl.envs.utils import check_env_specs  # noqa: E402
from torchrl.modules import MLP, MaskedCategorical, ProbabilisticActor  # noqa: E402
from torchrl.objectives import ClipPPOLoss, ValueEstimators  # noqa: E402

from routing_marl.agents.adapters import TorchRLAgent  # noqa: E402
from routing_marl.envs import routing_v0  # noqa: E402
from routing_marl.envs.building import build_engine  # noqa: E402
from routing_marl.envs.torchrl import RoutingEnv  # noqa: E402
from routing_marl.errors import UserError  # noqa: E402

SUITE = opposites()


def make(**changes: Any) -> RoutingEnv:
    return RoutingEnv(**{**GAME, "suite": SUITE, "episodes": 8, **changes})


def make_actor(env: RoutingEnv, seed: int = 0) -> ProbabilisticActor:
    torch.manual_seed(seed)
    n_inputs = env.observation_spec["agents", "observation"].shape[-1]
    logits = MLP(n_inputs, env.engine.spec.n_actions, num_cells=[32])
    module = TensorDictModule(logits, [("agents", "observation")], [("agents", "logits")])
    return ProbabilisticActor(
        module,
        in_keys={"logits": ("agents", "logits"), "mask": ("agents", "action_mask")},
        out_keys=[("agents", "action")],
        distribution_class=MaskedCategorical,
        return_log_prob=True,
        log_prob_key=("agents", "log_prob"),
    )


@pytest.mark.parametrize(
    "game", [{}, {"observation": "features"}, {"episodes": 1}, {"recursive": True, "allow_stop": True}]
)
def test_torchrl_checks_it(game: dict[str, Any]) -> None:
    env = make(**game)
    check_env_specs(env)
    check_env_specs(env.evaluation(episodes=3))
    assert env.full_action_spec_unbatched["agents", "action"].shape == (2,)


def test_it_is_the_engine_to_the_bit() -> None:
    env = make(observation="features")
    twin = build_engine(**{**GAME, "suite": SUITE, "episodes": 8, "observation": "features"})
    env.set_seed(3)
    twin.start(3)
    rollout = env.rollout(20, break_when_any_done=False)
    for moment in rollout.unbind(1):
        if moment["state"][0, 0] == 1:
            observation = twin.reset()
        assert torch.equal(moment["agents", "action_mask"], observation.mask)
        assert torch.equal(moment["agents", "observation"][..., -twin.spec.n_features :], observation.features)
        step = twin.step(moment["agents", "action"])
        observation = step.observation
        assert torch.equal(moment["next", "agents", "reward"][..., 0], step.reward)
        assert moment["next", "done"].all() == moment["next", "agents", "done"].any() == step.terminated
    for name, tensor in twin.network.state_dict().items():
        assert torch.equal(tensor, env.engine.network.state_dict()[name])


def test_evaluation_plays_the_same_network_and_teaches_it_nothing() -> None:
    env = make()
    env.set_seed(0)
    view = env.evaluation(episodes=3)
    env.rollout(4, break_when_any_done=False)
    state = env.reset()
    state["agents", "action"] = torch.zeros(8, 2, dtype=torch.long)
    state = env.step(state)["next"]  # within an episode
    before = copy.deepcopy(env.engine.network.state_dict())
    seen = view.rollout(4, break_when_any_done=False)
    assert seen.batch_size == (3, 4)
    assert view.engine.network is env.engine.network
    assert all(torch.equal(before[name], value) for name, value in env.engine.network.state_dict().items())
    state["agents", "action"] = torch.zeros(8, 2, dtype=torch.long)
    assert env.step(state)["next", "done"].all()
    env.set_seed(1)
    env.reset()
    view.reset()
    assert view.engine.network is env.engine.network


def test_a_partial_reset_is_refused() -> None:
    env = make()
    state = env.reset()
    state["_reset"] = torch.arange(8)[:, None] < 3
    with pytest.raises(UserError, match="begin and end together"):
        env.reset(state)


def test_torchrls_own_wrapper_takes_our_pettingzoo_door() -> None:
    env = PettingZooWrapper(routing_v0.parallel_env(suite=SUITE), group_map={"agents": ["task_0", "task_1"]})
    check_env_specs(env)
    assert env.rollout(6, break_when_any_done=False)["next", "agents", "info", "accuracy"].shape == (6, 2)


def test_ppo_learns() -> None:
    env = make(seed=0)
    actor = make_actor(env)
    n_inputs = env.observation_spec["agents", "observation"].shape[-1]
    critic = TensorDictModule(
        MLP(n_inputs, 1, num_cells=[32]), [("agents", "observation")], [("agents", "state_value")]
    )
    loss = ClipPPOLoss(actor, critic, entropy_coeff=0.01, normalize_advantage=True)
    loss.set_keys(
        reward=env.reward_key,
        action=env.action_key,
        value=("agents", "state_value"),
        done=("agents", "done"),
        terminated=("agents", "terminated"),
        sample_log_prob=("agents", "log_prob"),
    )
    loss.make_value_estimator(ValueEstimators.GAE, gamma=1.0, lmbda=0.95)
    optimizer = torch.optim.Adam(loss.parameters(), 1e-2)
    collector = Collector(env, actor, frames_per_batch=8 * 8, total_frames=8 * 8 * 50)
    for data in collector:
        with torch.no_grad():
            loss.value_estimator(data)
        for _ in range(4):
            losses = loss(data.reshape(-1))
            optimizer.zero_grad()
            (losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]).backward()
            optimizer.step()
    collector.shutdown()
    assert_learned(env.engine, TorchRLAgent(env.engine.spec, actor))
