"""A first agent hands every instance to one of K routing agents, which routes it.

Rosenbaum et al. 2018 (arXiv 1711.01239): the third of their ways to arrange agents, beside one agent for all and one
agent per task. It collapses easily: one routing agent gets everything.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from routing_marl.agents.actor_critic_network import ActorCriticNetwork, PolicyGradientNetwork
from routing_marl.agents.checks import check_count, check_number
from routing_marl.errors import UserError
from routing_marl.protocol import Agent, GameSpec, Observation, Trajectory

MAX_ROUTING_AGENTS = 10
"""Routing agents by default, at most: every one of them is asked about every instance."""


class Dispatcher:
    """Assigns at depth 0, from what is seen there, each decision's instances to a routing agent for the whole route.

    Dispatching is a game of its own, with one depth, K actions and the return of the whole route as its reward. The
    routing agents play another one: each assignment is an episode of theirs, in which one of the K is active and the
    others have nothing to decide. So both can be any agents, tables and networks alike, that learn what they learn
    everywhere; the only thing that this class adds is who sits where.

    With as many routing agents as tasks and a dispatcher that sends task t to agent t, they are an agent per task. A
    learner that averages over parallel episodes (policy gradient, networks) divides by all of them, so that its step is
    T times smaller here; Adam doesn't notice. One that learns episode by episode (tables of Q and WPL) takes T times
    as long.

    Args:
        spec: the game.
        dispatch: the dispatching agent, of the game :func:`dispatching_game`.
        routing: the routing agents, of the game :func:`routing_game`.
        gamma: discount of later rewards, for the dispatching agent's return.

    Attributes:
        assignment: who routes whom in the episodes under way; None before the first.

    Raises:
        UserError: a parameter is out of range.
    """

    def __init__(self, spec: GameSpec, dispatch: Agent, routing: Agent, *, routing_agents: int, gamma: float = 1.0):
        self.spec = spec
        self.dispatch = dispatch
        self.routing = routing
        self._n_routing = check_count("routing_agents", routing_agents)
        self._gamma = check_number("gamma", gamma, 0.0, 1.0)
        self.assignment: Int[Tensor, "episode task"] | None = None

    @torch.no_grad()
    def act(self, observation: Observation, *, greedy: bool = False) -> Int[Tensor, "episode task"]:
        """Assigns (at depth 0), then lets the assigned agents act."""
        if observation.depth == 0:
            self.assignment = self.dispatch.act(self._before(observation), greedy=greedy)
        assignment = self._assigned(observation.mask.shape[:2])
        actions = self.routing.act(self._seats(observation), greedy=greedy)
        return actions.gather(1, assignment.flatten().unsqueeze(-1)).view(assignment.shape)

    @torch.no_grad()
    def policy(self, observation: Observation) -> Float[Tensor, "episode task action"]:
        """Those of the assigned agents; at depth 0, all policies weighted by the probability of their agent.

        Raises:
            AttributeError: the dispatching or the routing agents have no policy.
        """
        if observation.depth == 0:
            weight: Tensor = self.dispatch.policy(self._before(observation))  # type: ignore[attr-defined]
        else:
            weight = self._one_hot(self._assigned(observation.mask.shape[:2])).float()
        policies: Tensor = self.routing.policy(self._seats(observation))  # type: ignore[attr-defined]
        return (weight.unsqueeze(-1) * policies.view(*weight.shape, -1)).sum(2)

    @property
    def expected_return(self) -> Callable[[Observation], Float[Tensor, "episode task"]]:
        """What the assigned agents expect; no such attribute where routing agents don't say."""
        ask = self.routing.expected_return  # type: ignore[attr-defined]

        def of_the_assigned(observation: Observation) -> Float[Tensor, "episode task"]:
            assignment = self._assigned(observation.mask.shape[:2])
            expected: Tensor = ask(self._seats(observation))
            return expected.gather(1, assignment.flatten().unsqueeze(-1)).view(assignment.shape)

        return of_the_assigned

    @torch.no_grad()
    def learn(self, trajectory: Trajectory) -> Mapping[str, Tensor]:
        """Both learn from the episodes that were just acted in; returns the mean return and how far they collapsed.

        In nats over ``log K``, so that 1 is all there is: ``dispatch_entropy``, of the shares of the routing agents
        (0: one gets everything), ``dispatch_entropy_given_task``, the mean over tasks of the same (0: each task has an
        agent of its own), both of the policy where the dispatcher has one. Their difference is what the assignment
        tells of the task: 0 where the dispatcher ignores it.
        """
        shape = trajectory.actions.shape[1:]
        assignment = self._assigned(shape)
        # [D, E, T, ...] -> [D, E * T, K, ...]: an episode of the routing agents is one assignment.
        seat = self._one_hot(assignment.flatten())

        def seated(field: Tensor) -> Tensor:
            flat = field.flatten(1, 2).unsqueeze(2)
            return flat.expand(*flat.shape[:2], self._n_routing, *flat.shape[3:])

        features = trajectory.features
        self.routing.learn(
            Trajectory(
                seated(trajectory.actions),
                seated(trajectory.rewards),
                seated(trajectory.masks),
                seated(trajectory.active) & seat,
                None if features is None else seated(features),
            )
        )
        before = self._before(Observation(0, trajectory.masks[0], None if features is None else features[0]))
        chances = self._chances(before, assignment)
        returns = trajectory.returns(self._gamma)[:1]
        everybody = torch.ones_like(trajectory.active[:1])
        first = None if before.features is None else before.features[None]
        self.dispatch.learn(Trajectory(assignment[None], returns, before.mask[None], everybody, first))
        return {"return": returns.mean(), **collapse_measures(chances.mean(0))}

    def _chances(
        self, before: Observation, assignment: Int[Tensor, "episode task"]
    ) -> Float[Tensor, "episode task routing_agent"]:
        if hasattr(self.dispatch, "policy"):
            chances: Tensor = self.dispatch.policy(before)
            return chances
        return self._one_hot(assignment).float()

    def _one_hot(self, assignment: Int[Tensor, "*assigned"]) -> Bool[Tensor, "*assigned routing_agent"]:
        # Not torch's: that one looks whether the numbers are small enough, and waits for them.
        return assignment.unsqueeze(-1) == torch.arange(self._n_routing, device=assignment.device)

    def _assigned(self, shape: torch.Size) -> Int[Tensor, "episode task"]:
        if self.assignment is None or self.assignment.shape != shape:
            raise UserError(f"no routing agent is assigned to episodes of shape {tuple(shape)}; act at depth 0 first")
        return self.assignment

    def _before(self, observation: Observation) -> Observation:
        """What the dispatching agent sees."""
        return Observation(
            0, observation.mask.new_ones(*observation.mask.shape[:2], self._n_routing), observation.features
        )

    def _seats(self, observation: Observation) -> Observation:
        """What the routing agents see: every assignment is an episode in which all of them might be asked."""
        mask = observation.mask.flatten(0, 1).unsqueeze(1).expand(-1, self._n_routing, -1)
        features = observation.features
        if features is not None:
            features = features.flatten(0, 1).unsqueeze(1).expand(-1, self._n_routing, -1)
        return Observation(observation.depth, mask, features)

    def state_dict(self) -> dict[str, Any]:
        """Those of both populations; episodes under way are not saved."""
        return {"dispatch": self.dispatch.state_dict(), "routing": self.routing.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what ``state_dict`` returned."""
        if state.keys() != {"dispatch", "routing"}:
            raise UserError(f"the state has {sorted(state)}; Dispatcher needs dispatch and routing")
        self.dispatch.load_state_dict(state["dispatch"])
        self.routing.load_state_dict(state["routing"])


def dispatching_game(spec: GameSpec, routing_agents: int) -> GameSpec:
    """The game of the dispatching agent: one decision, between the routing agents."""
    choices = spec.legal.new_ones(1, check_count("routing_agents", routing_agents))
    return replace(spec, legal=choices, fixed_masks=False)


def routing_game(spec: GameSpec, routing_agents: int) -> GameSpec:
    """The game of the routing agents: they stand where the tasks stood."""
    # Agents to whom nothing was handed have nothing to decide.
    return replace(spec, n_tasks=check_count("routing_agents", routing_agents), fixed_masks=False)


def dispatcher_of_networks(
    spec: GameSpec,
    *,
    routing_agents: int | None = None,
    task_label: bool = True,
    hidden_units: int = 64,
    start_scale: float = 10.0,
    network_rate: float = 0.003,
    entropy: float = 0.01,
    gamma: float = 1.0,
    trace_decay: float = 0.9,
    seed: int | None = None,
) -> Dispatcher:
    """A dispatching network that all tasks share (REINFORCE), and a routing network of each routing agent (A2C).

    Args:
        spec: the game.
        routing_agents: K; by default one per task, but no more than ``MAX_ROUTING_AGENTS``.
        task_label: whether the dispatching agent sees the task, beside the features.
        hidden_units: width of the hidden layers; 0 for linear functions.
        start_scale: about how large the first outputs are: how far new agents are from indifference.
        network_rate: learning rate (Adam).
        entropy: weight of the entropy bonus.
        gamma: discount of later rewards.
        trace_decay: lambda of the routing agents.
        seed: of weights and sampled actions; None for fresh entropy.

    Raises:
        UserError: a parameter is out of range.
    """
    k = min(spec.n_tasks, MAX_ROUTING_AGENTS) if routing_agents is None else routing_agents
    settings: dict[str, Any] = {
        "hidden_units": hidden_units,
        "start_scale": start_scale,
        "network_rate": network_rate,
        "entropy": entropy,
        "gamma": gamma,
    }
    dispatch = PolicyGradientNetwork(
        dispatching_game(spec, k), share_network=True, task_label=task_label, seed=seed, **settings
    )
    other_seed = None if seed is None else (seed + 1) % 2**63
    routing = ActorCriticNetwork(routing_game(spec, k), trace_decay=trace_decay, seed=other_seed, **settings)
    return Dispatcher(spec, dispatch, routing, routing_agents=k, gamma=gamma)


def collapse_measures(chances: Float[Tensor, "task routing_agent"]) -> dict[str, Tensor]:
    """Entropy of who routes, and its mean within tasks, each over ``log K`` (0 where there is but one).

    >>> both = collapse_measures(torch.eye(2))
    >>> [round(float(value), 3) for value in both.values()]
    [1.0, 0.0]
    """
    most = math.log(chances.shape[-1]) or 1.0
    overall, within = (torch.special.entr(shares).sum(-1) / most for shares in (chances.mean(0), chances))
    return {"dispatch_entropy": overall, "dispatch_entropy_given_task": within.mean()}
