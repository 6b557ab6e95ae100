"""A PPO in one file, as CleanRL writes them, on the PettingZoo door: it needs torch and nothing else."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Categorical
from toys import GAME, assert_learned, opposites

from routing_marl.agents.adapters import CallablesAgent
from routing_marl.envs import routing_v0

pytestmark = pytest.mark.client

N_UPDATES, N_EPISODES, N_EPOCHS, CLIP, ENTROPY, RATE = 40, 16, 4, 0.2, 0.01, 1e-2


def test_ppo_learns() -> None:
    env = routing_v0.parallel_env(suite=opposites(), **GAME, seed=0)
    agents = env.possible_agents
    n_inputs, n_actions = env.observation_space("task_0").shape[0], int(env.action_space("task_0").n)
    torch.manual_seed(0)
    actor = nn.Sequential(nn.Linear(n_inputs, 32), nn.Tanh(), nn.Linear(32, n_actions))  # shared: it sees the task
    critic = nn.Sequential(nn.Linear(n_inputs, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam([*actor.parameters(), *critic.parameters()], RATE)

    def policy(seen: torch.Tensor, masks: torch.Tensor) -> Categorical:
        return Categorical(logits=torch.where(masks, actor(seen), -1e9))

    for _ in range(N_UPDATES):
        steps: list[tuple[torch.Tensor, ...]] = []
        for _ in range(N_EPISODES):
            observations, infos = env.reset()
            rewards, first = [], len(steps)
            while env.agents:
                seen = torch.from_numpy(np.stack([observations[agent] for agent in agents]))
                masks = torch.from_numpy(np.stack([infos[agent]["action_mask"] for agent in agents])).bool()
                with torch.no_grad():
                    chosen = policy(seen, masks)
                    actions = chosen.sample()
                observations, paid, _, _, infos = env.step(dict(zip(agents, actions.numpy(), strict=True)))
                steps.append((seen, masks, actions, chosen.log_prob(actions)))
                rewards.append(torch.tensor([paid[agent] for agent in agents]))
            returns = torch.stack(rewards).flip(0).cumsum(0).flip(0)  # gamma is 1
            steps[first:] = [(*step, value) for step, value in zip(steps[first:], returns, strict=True)]
        seen, masks, actions, old, returns = (torch.cat(column) for column in zip(*steps, strict=True))
        advantage = returns - critic(seen)[:, 0].detach()
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        for _ in range(N_EPOCHS):
            now = policy(seen, masks)
            ratio = (now.log_prob(actions) - old).exp()
            gain = torch.min(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)
            value_loss = (critic(seen)[:, 0] - returns).square()
            optimizer.zero_grad()
            (0.5 * value_loss - gain - ENTROPY * now.entropy()).mean().backward()
            optimizer.step()

    def act(observation: np.ndarray, mask: np.ndarray) -> int:
        return int(policy(torch.from_numpy(observation), torch.from_numpy(mask).bool()).probs.argmax())

    assert_learned(env.engine, CallablesAgent(env.engine.spec, dict.fromkeys(agents, act)))
