"""The Nash gap of a routing game: what each agent could gain if it alone took another route, blocks frozen.

With frozen blocks an agent's final reward depends on its own route only, and its collaboration reward on its own
actions and on the habits of all agents (or on what they report), which frozen play does not change, the deviator's own
included. So one episode in which *every* agent deviates measures the deviation of each of them, and all is played by
the engine itself.

The best of many routes is best partly by luck: its gain on the data that it was chosen on (``gap``) is too large on
average. Chosen on one random half of the instances and measured on the other (``gain``), it is not.
"""

import math
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from routing_marl.engine import Batch, RoutingEngine, SplitName
from routing_marl.errors import UserError
from routing_marl.evaluation import reported
from routing_marl.protocol import Agent
from routing_marl.randomness import RandomStream

Table = Int[Tensor, "depth task"]
Reports = list[Float[Tensor, "episode task action"] | None]

_MAX_SWEEPS = 20


class NashGap(NamedTuple):
    """What deviations would gain, per task, in units of reward (undiscounted).

    Attributes:
        value: mean return of the play as it is.
        gap: gain of the best route, chosen and measured on all instances: on average too large.
        gain: gain of routes chosen on one half of the instances and measured on the other.
        half_width: half the width of the 95 % interval of ``gain`` (normal, paired differences over instances).
        route: the best route, of ``gap``.
        exhaustive: whether all routes were tried; otherwise the best action was looked for depth by depth, from the
            route that is taken, until no single change helped.
    """

    value: Float[Tensor, " task"]
    gap: Float[Tensor, " task"]
    gain: Float[Tensor, " task"]
    half_width: Float[Tensor, " task"]
    route: Table
    exhaustive: bool


@torch.no_grad()
def nash_gap(
    engine: RoutingEngine,
    agent: Agent,
    split: SplitName = "validation",
    *,
    greedy: bool = True,
    max_routes: int = 2048,
    seed: int = 0,
) -> NashGap:
    """Measures the best deviation of every agent.

    Args:
        engine: the game; nothing in it changes.
        agent: who plays.
        split: ``"validation"`` or ``"test"``.
        greedy: whether the play that is deviated from is greedy, or sampled as in training.
        max_routes: up to how many routes all are tried.
        seed: of the halves.

    Raises:
        UserError: the split is ``"train"``, or the suite has no such split.
    """
    if split == "train":
        raise UserError("split is 'train'; deviations are measured on validation or test, where blocks don't learn")
    return _Search(engine, agent, split, greedy, seed).best_deviations(max_routes)


class _Search:
    """The play as it is, on all of a split, and the routes that deviate from it.

    Values are one per instance, ``[E, T, B]`` for each batch.
    """

    def __init__(self, engine: RoutingEngine, agent: Agent, split: SplitName, greedy: bool, seed: int) -> None:
        self.engine, self.split = engine, split
        self.spec = engine.spec
        self.batches = list(engine.batches(split))
        self.reports: list[Reports] = []
        self.values: list[Tensor] = []
        usage = torch.zeros(self.spec.n_depths, self.spec.n_tasks, self.spec.n_actions, device=engine.device)
        for batch in self.batches:
            observation, said = engine.reset(split, batch), []
            for _ in range(self.spec.n_depths):
                said.append(reported(agent, observation, engine))
                step = engine.step(agent.act(observation, greedy=greedy), said[-1])
                observation = step.observation
            assert step.outcome is not None
            self.values.append(self._per_instance(step.final_reward, step.outcome.correct))
            self.reports.append(said)
            usage += torch.nn.functional.one_hot(engine.trajectory.actions, self.spec.n_actions).sum(1)
        self.usual = usage.argmax(-1).cpu()  # the route of each agent, where it has one
        generator = RandomStream(seed).generator
        weights = [batch.weight for batch in self.batches]
        halves = [torch.rand(batch.label.shape, generator=generator) < 0.5 for batch in self.batches]
        # Each instance counts in the first or in the second half; the third row is both.
        self.weights = [
            torch.stack([half.to(engine.device), ~half.to(engine.device), torch.ones_like(half, device=engine.device)])
            * (1.0 if weight is None else weight)
            for half, weight in zip(halves, weights, strict=True)
        ]

    def best_deviations(self, max_routes: int) -> NashGap:
        """The search, and what it found."""
        actions = [legal.nonzero().flatten().tolist() for legal in self.spec.legal.cpu()]
        exhaustive = math.prod(map(len, actions)) <= max_routes
        first, second, both = self._best_of_all(actions) if exhaustive else self._best_by_depth(actions)
        gains = [self._gains(table) for table in (first, second, both)]
        value, gap, gain, variance = (torch.zeros(self.spec.n_tasks, device=self.engine.device) for _ in range(4))
        n = torch.stack([weight[2].sum((0, 2)) for weight in self.weights]).sum(0)
        crossed = []
        for index, (in_first, in_second, counts) in enumerate(self.weights):
            value += (counts * self.values[index]).sum((0, 2)) / n
            gap += (counts * gains[2][index]).sum((0, 2)) / n
            # What was chosen on one half is measured on the other.
            crossed.append(in_second * gains[0][index] + in_first * gains[1][index])
            gain += crossed[-1].sum((0, 2)) / n
        for difference, weight in zip(crossed, self.weights, strict=True):
            variance += (weight[2] * (difference - gain[:, None]) ** 2).sum((0, 2)) / (n - 1).clamp(min=1)
        half_width = 1.96 * (variance / n).sqrt()
        return NashGap(value.cpu(), gap.cpu(), gain.cpu(), half_width.cpu(), both, exhaustive)

    def _best_of_all(self, actions: list[list[int]]) -> list[Table]:
        stop = self.engine.network.stop_action
        routes = [route for route in product(*actions) if stop not in route or _stops(route, stop)]
        tables = torch.tensor(routes)[..., None].expand(-1, -1, self.spec.n_tasks)
        return [torch.tensor(routes)[sums.argmax(0)].T for sums in self._sums(tables)]

    def _best_by_depth(self, actions: list[list[int]]) -> list[Table]:
        return [self._improved(actions, part) for part in range(3)]

    def _improved(self, actions: list[list[int]], part: int) -> Table:
        """Changes one depth at a time, while that helps on this part of the instances."""
        table = self.usual.clone()
        best = self._sums(table[None])[part, 0]
        for _ in range(_MAX_SWEEPS):
            before = table.clone()
            for depth, choices in enumerate(actions):
                tables = table.repeat(len(choices), 1, 1)
                tables[:, depth] = torch.tensor(choices)[:, None]
                sums, choice = self._sums(tables)[part].max(0)
                better = sums > best
                best = torch.where(better, sums, best)
                table[depth] = torch.where(better, torch.tensor(choices)[choice], table[depth])
            if torch.equal(before, table):
                break
        return table

    def _gains(self, table: Table) -> list[Tensor]:
        """What a route gains over the play as it is, instance by instance."""
        found = (next(self._play(index, table[None])) for index in range(len(self.batches)))
        return [value - usual for value, usual in zip(found, self.values, strict=True)]

    def _sums(self, tables: Int[Tensor, "route depth task"]) -> Float[Tensor, "part route task"]:
        """Sums of values over each half of the instances, and over both."""
        sums = torch.zeros(3, len(tables), self.spec.n_tasks, device=self.engine.device, dtype=torch.float64)
        for index, weights in enumerate(self.weights):
            for route, value in enumerate(self._play(index, tables)):
                sums[:, route] += (weights * value).sum((1, 3))
        return sums.cpu()

    def _play(self, index: int, tables: Int[Tensor, "route depth task"]) -> Iterator[Tensor]:
        """The values of routes on one batch. Only what comes after their common beginning is played again."""
        batch: Batch = self.batches[index]
        self.engine.reset(self.split, batch)
        begins = [0] * len(tables)
        if len(tables) > 1:
            begins[1:] = (tables[1:] != tables[:-1]).any(-1).int().argmax(1).tolist()
        on_device = tables.to(self.engine.device)
        for table, begin in zip(on_device, begins, strict=True):
            self.engine.rewind(begin)
            for depth in range(begin, self.spec.n_depths):
                # Reports are those of the play that is deviated from: habits, not plans.
                step = self.engine.step(table[depth].expand(batch.label.shape[:2]), self.reports[index][depth])
            assert step.outcome is not None
            yield self._per_instance(step.final_reward, step.outcome.correct)

    def _per_instance(self, final_reward: Tensor, correct: Tensor) -> Tensor:
        """The returns of the episode that has just finished, with each instance's own final reward."""
        rest = self.engine.trajectory.rewards.sum(0) - final_reward
        return rest[..., None] + 2.0 * correct - 1.0


def _stops(route: tuple[int, ...], stop: int) -> bool:
    """Whether nothing but STOP comes after the first STOP."""
    return set(route[route.index(stop) :]) == {stop}
