"""Counting right answers, on the device: accuracy, balanced accuracy and loss per task."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import one_hot

from routing_marl.engine import Batch, Outcome, RoutingEngine, SplitName
from routing_marl.protocol import Agent, Observation
from routing_marl.suites import TaskSuite


class TaskMetrics(NamedTuple):
    """How well each task is solved.

    Attributes:
        accuracy: share of right predictions.
        balanced_accuracy: mean over the task's classes of the share of right predictions: "always no" has 1/2.
        loss: mean cross-entropy, in nats.
    """

    accuracy: Float[Tensor, " task"]
    balanced_accuracy: Float[Tensor, " task"]
    loss: Float[Tensor, " task"]


class Tally:
    """Adds outcomes up, batch by batch, without waiting for the device; ``metrics`` reads the sums."""

    def __init__(self, suite: TaskSuite, device: torch.device) -> None:
        self._shape = (suite.n_tasks, suite.max_classes)
        tasks = torch.arange(suite.n_tasks, device=device)
        self._first = (tasks * suite.max_classes)[:, None]
        # Rows: instances, right ones, loss; columns: the classes of one task after the other.
        self._sums = torch.zeros(3, suite.n_tasks * suite.max_classes, device=device, dtype=torch.float64)
        self._waiting: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []  # adding up costs as much for many as for one

    def add(self, batch: Batch, outcome: Outcome) -> None:
        """Counts the instances of one batch, by their weight."""
        column = self._first + batch.label
        weight = torch.ones_like(outcome.loss) if batch.weight is None else batch.weight
        self._waiting.append((column.flatten(), weight.flatten(), outcome.correct.flatten(), outcome.loss.flatten()))
        if len(self._waiting) == 64:
            self._add_up()

    def _add_up(self) -> None:
        if self._waiting:
            column, weight, correct, loss = (torch.cat(parts) for parts in zip(*self._waiting, strict=True))
            self._sums.index_add_(1, column, torch.stack([weight, weight * correct, weight * loss]).double())
            self._waiting.clear()

    def metrics(self) -> TaskMetrics:
        """The metrics so far, on the CPU. Waits for the device."""
        self._add_up()
        n, right, loss = self._sums.cpu().view(3, *self._shape)
        seen, total = n > 0, n.sum(1).clamp(min=1)
        recall = right / n.clamp(min=1)
        return TaskMetrics(
            (right.sum(1) / total).float(),
            (recall.sum(1) / seen.sum(1).clamp(min=1)).float(),
            (loss.sum(1) / total).float(),
        )


class Evaluation(NamedTuple):
    """A split, played greedily.

    Attributes:
        metrics: how well each task is solved.
        usage: the share of each task's decisions that took each action; of each block, and last of none, where gates of
            the network's own decide.
        policy: the probability that each task's agent gives to each action; None where agents don't say.
        dropped: the share of choices of blocks that found no room; nan where blocks have no capacity.
    """

    metrics: TaskMetrics
    usage: Float[Tensor, "depth task action"]
    policy: Float[Tensor, "depth task action"] | None
    dropped: float


@torch.no_grad()
def evaluate(engine: RoutingEngine, agent: Agent, split: SplitName) -> Evaluation:
    """Plays every instance of a split once, with greedy routes; nobody learns."""
    spec = engine.spec
    tally = Tally(engine.suite, engine.device)
    usage = torch.zeros(1, 1, 1, device=engine.device)
    dropped: Tensor | None = None
    shape = (spec.n_depths, spec.n_tasks, spec.n_actions)
    policy = torch.zeros(shape, device=engine.device) if hasattr(agent, "policy") else None
    episodes = 0
    for batch in engine.batches(split):
        observation = engine.reset("test", batch)  # whatever split the batch is of, nobody learns
        for depth in range(spec.n_depths):
            if policy is not None:
                policy[depth] += agent.policy(observation).sum(0)  # type: ignore[attr-defined]
            step = engine.step(agent.act(observation, greedy=True), reported(agent, observation, engine))
            observation = step.observation
        assert step.outcome is not None
        tally.add(batch, step.outcome)
        actions = engine.trajectory.actions
        parallel, by_gates = actions.shape[1], engine.network.gate_usage()
        usage = usage + (one_hot(actions, spec.n_actions).sum(1) if by_gates is None else parallel * by_gates)
        if (share := engine.network.dropped()) is not None:
            dropped = parallel * share if dropped is None else dropped + parallel * share
        episodes += parallel
    probabilities = None if policy is None else (policy / episodes).cpu()
    share_dropped = math.nan if dropped is None else float(dropped) / episodes
    return Evaluation(tally.metrics(), (usage / episodes).cpu(), probabilities, share_dropped)


def reported(
    agent: Agent, observation: Observation, engine: RoutingEngine
) -> Float[Tensor, "episode task action"] | None:
    """What agents report of themselves, where the game wants to know: ``agent.reported``, else ``agent.policy``."""
    if engine.config.agreement == "empirical":
        return None
    report = getattr(agent, "reported", None) or agent.policy  # type: ignore[attr-defined]
    probabilities: Tensor = report(observation)
    return probabilities
