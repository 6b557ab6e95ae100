"""What values are taught: rewards, and what is expected of the rest (Sutton & Barto 2018, section 12.1)."""

import torch
from jaxtyping import Float
from torch import Tensor

from routing_marl.protocol import Trajectory


def lambda_targets(
    trajectory: Trajectory, hoped: Float[Tensor, "depth episode task"], gamma: float, trace_decay: float
) -> Float[Tensor, "depth episode task"]:
    """The lambda-return of every decision: ``r + gamma ((1 - lambda) hoped' + lambda target')``.

    ``hoped'`` and ``target'`` are those of the next depth. Where the agent had stopped there, it had nothing to
    decide and nothing to hope for: the target is what it was paid. Minus the value of the state itself this is the
    generalised advantage of Schulman et al. 2016 (arXiv 1506.02438).

    Args:
        trajectory: finished episodes.
        hoped: what a decision is worth to the one before it: the best legal value (Q-learning), the value of the
            action taken (SARSA), or the value of the state (actor-critic).
        gamma: discount of later rewards.
        trace_decay: lambda; 0 looks one step ahead, 1 gives the returns.
    """
    rewards = trajectory.rewards.to(hoped.dtype).unbind(0)
    later = torch.where(trajectory.active, 1.0 - trace_decay, 0.0).to(hoped.dtype)
    targets = [rewards[-1]]
    for depth in range(len(rewards) - 1, 0, -1):
        after = targets[-1].lerp(hoped[depth], later[depth])
        targets.append(rewards[depth - 1] + gamma * after)
    return torch.stack(targets[::-1])
