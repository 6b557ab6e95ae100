"""The data order: endless shuffled minibatches for learning, and one pass over everything for evaluation.

Both give indices, never images, and neither makes the host wait for the device.
"""

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import torch
from jaxtyping import Float32, Int32, Int64
from torch import Tensor

from routing_marl.errors import UserError
from routing_marl.partition import Split
from routing_marl.randomness import RandomStream

Weighted: TypeAlias = tuple[
    Int64[Tensor, "episode task instance"],
    Int64[Tensor, "episode task instance"],
    Float32[Tensor, "episode task instance"],
]
"""Image index, label and weight."""


class Minibatches:
    """Endless minibatches of one split, each task shuffled on its own.

    An epoch is as many draws as the largest task needs to be seen once. Smaller tasks start over, each pass
    in a fresh order; within an epoch no instance comes again before all others of its task have come. What is
    left of a task's last pass is dropped at the end of the epoch.

    Args:
        split: what to draw from.
        n_episodes: parallel episodes E of a draw.
        instances: instances B per episode and task.
        stream: where the randomness comes from, first used by the first draw. It may live on another device
            than the split; whoever owns it saves its state.
    """

    def __init__(self, split: Split, n_episodes: int, instances: int, stream: RandomStream) -> None:
        _check_positive(n_episodes=n_episodes, instances=instances)
        self._split = split
        self._shape = (n_episodes, instances)
        self._stream = stream
        self._sizes = split.offset.diff()
        self._order: Int32[Tensor, "task position"] | None = None
        self._cursor = 0
        self._epoch = 0
        self.steps_per_epoch = -(-max(split.sizes) // (n_episodes * instances))

    @property
    def epoch(self) -> int:
        """Number of the epoch that the last draw belonged to, from 0."""
        return self._epoch

    def draw(self) -> tuple[Int64[Tensor, "episode task instance"], Int64[Tensor, "episode task instance"]]:
        """The next minibatch: for each instance the index of its image, and its label within its task."""
        if self._order is None or self._cursor == self.steps_per_epoch:
            self._epoch += self._order is not None
            self._order, self._cursor = self._shuffle(), 0
        draws = self._order.view(len(self._order), self.steps_per_epoch, *self._shape)
        item = draws[:, self._cursor].transpose(0, 1).long()
        self._cursor += 1
        return self._split.image[item], self._split.label[item]

    def restart(self) -> None:
        """Forgets the order: the next draw begins epoch 0 with whatever the stream gives then."""
        self._order, self._cursor, self._epoch = None, 0, 0

    def _shuffle(self) -> Int32[Tensor, "task position"]:
        sizes = self._split.sizes
        length = self.steps_per_epoch * self._shape[0] * self._shape[1]
        # Long enough that every task's passes that begin within `length` are complete before the sort; a pass
        # keeps its columns, so what is incomplete lies behind `length` and is cut off.
        padded = max(-(-length // size) * size for size in sizes)
        generator = self._stream.generator
        random = torch.rand(len(sizes), padded, dtype=torch.float64, generator=generator, device=generator.device)
        if self._sizes.is_cuda and not random.is_cuda:
            random = random.pin_memory()  # else the host would wait for the copy
        random = random.to(self._sizes.device, non_blocking=True)
        passes = torch.arange(padded, device=self._sizes.device) // self._sizes[:, None]
        order = (passes + random).argsort(dim=1, stable=True)[:, :length]
        return (self._split.offset[:-1, None] + order % self._sizes[:, None]).int()

    def state_dict(self) -> dict[str, Any]:
        """The order of the running epoch and the place in it; the stream's own state is not in it."""
        return {"order": self._order, "cursor": self._cursor, "epoch": self._epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on, to the bit, from what ``state_dict`` returned (with the stream's state restored too).

        Raises:
            UserError: the state comes from other tasks, or from another number of episodes or instances.
        """
        order, width = state["order"], self._shape[0] * self._shape[1]
        wanted = (len(self._split.sizes), self.steps_per_epoch * width)
        if order is not None and tuple(order.shape) != wanted:
            raise UserError(f"data order: saved for {list(order.shape)} (tasks, positions), not {list(wanted)}")
        self._order = None if order is None else order.to(self._sizes.device, torch.int32)
        self._cursor, self._epoch = int(state["cursor"]), int(state["epoch"])


def sequential(split: Split, instances: int, max_images: int) -> Iterator[Weighted]:
    """Every instance of every task exactly once, in order, in large batches.

    Args:
        split: what to go through.
        instances: instances B per episode and task.
        max_images: upper bound for ``E * T * B``, from which E follows (E is at least 1, whatever the bound).

    Returns:
        An iterator of image index, label and weight, each ``[E, T, B]``. The weight is 1 the first time that an
        instance comes; tasks that have run out start over with weight 0. The last batch may have fewer episodes.
    """
    _check_positive(instances=instances, max_images=max_images)
    return _in_order(split, instances, max(1, max_images // (len(split.sizes) * instances)))


def _in_order(split: Split, instances: int, at_once: int) -> Iterator[Weighted]:
    sizes, device = split.offset.diff(), split.offset.device
    episodes = -(-max(split.sizes) // instances)
    for start in range(0, episodes, at_once):
        stop = min(start + at_once, episodes)
        position = torch.arange(start * instances, stop * instances, device=device).view(-1, 1, instances)
        item = split.offset[:-1, None] + position % sizes[:, None]
        yield split.image[item], split.label[item], (position < sizes[:, None]).float()


def _check_positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise UserError(f"{name} is {number}; it must be at least 1")
