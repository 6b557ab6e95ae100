"""The tensor-native routing game: the only place where routes are applied, agents are paid and blocks are trained.

``reset`` draws a minibatch for every parallel episode and encodes it, D calls of ``step`` route it, the last of them
trains encoder and blocks on the loss of that very pass. PettingZoo, Gymnasium and our own training loop are thin
views of this class.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from routing_marl.activations import largest_tensor
from routing_marl.config import EngineConfig
from routing_marl.errors import UserError
from routing_marl.minibatches import Minibatches, sequential
from routing_marl.network import MakeNetwork, Network
from routing_marl.optim import RowAdam
from routing_marl.protocol import GameSpec, Observation, Trajectory
from routing_marl.randomness import RandomStream, check_seed
from routing_marl.rewards import Agreement, final_reward
from routing_marl.suites import TaskSuite

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")

FEATURE_BOUND = 10.0
"""Features in observations are clipped to this size, so that observation spaces are bounded."""

EVALUATED_IMAGES = 4000
"""Most images of an evaluation batch ..."""

EVALUATED_NUMBERS = 2**27
"""... and most numbers in the largest tensor that it makes: half a gigabyte, of which a network keeps a few at once."""

_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

# A client may collect its rollouts in inference mode; blocks learn all the same, from tensors that allow it.
_OUTSIDE_INFERENCE_MODE = torch.inference_mode(False)


class Batch(NamedTuple):
    """The instances of one batch of parallel episodes.

    Attributes:
        image: index into the suite's images.
        label: class within the task.
        weight: 1, or 0 for instances that only fill up the batch; None where all count.
    """

    image: Int[Tensor, "episode task instance"]
    label: Int[Tensor, "episode task instance"]
    weight: Float[Tensor, "episode task instance"] | None = None


class Outcome(NamedTuple):
    """How each instance of finished episodes came out.

    Attributes:
        correct: whether the prediction was right.
        loss: cross-entropy, in nats.
    """

    correct: Bool[Tensor, "episode task instance"]
    loss: Float[Tensor, "episode task instance"]


class Step(NamedTuple):
    """What one routing step gave.

    Attributes:
        observation: what agents see next.
        final_reward: +1 right, -1 wrong, averaged over the decision's instances; 0 before the last depth.
        collaboration_reward: ``rho`` times the agreement of the action.
        illegal: True where the action was not legal and another one took its place.
        terminated: whether this was the last depth.
        outcome: per instance, at the last depth; None before.
        action: what was done (an illegal choice stands here as what it was replaced by).
    """

    observation: Observation
    final_reward: Float[Tensor, "episode task"]
    collaboration_reward: Float[Tensor, "episode task"]
    illegal: Bool[Tensor, "episode task"]
    terminated: bool
    outcome: Outcome | None
    action: Int[Tensor, "episode task"]

    @property
    def reward(self) -> Float[Tensor, "episode task"]:
        """What each agent is paid for this step."""
        return self.final_reward + self.collaboration_reward


class _Play:
    """An episode under way."""

    def __init__(self, batch: Batch, v: Tensor, learning: bool) -> None:
        self.batch = batch
        self.v = v
        self.learning = learning
        self.stopped: Bool[Tensor, "episode task"] | None = None
        self.mask: Bool[Tensor, "episode task action"]
        self.passed: list[tuple[Tensor, Tensor | None]] = []  # to go back to; not while learning
        self.actions: list[Tensor] = []
        self.rewards: list[Tensor] = []
        self.masks: list[Tensor] = []
        self.active: list[Tensor] = []
        self.features: list[Tensor] = []


class RoutingEngine:
    """A suite, a routed network, its optimizer, and the rules of the game.

    Nothing is drawn before the first ``reset``: without a seed, a clone made before it (by copy, pickle or
    cloudpickle) becomes another game, one made after it goes on as its twin would. Clones share the images when made
    by copy. A clone made in the middle of an episode begins with a reset.

    Args:
        suite: the tasks; moved to ``device``.
        make_network: builds the network for a suite; called with torch's generator seeded.
        config: how the game is played and how blocks learn.
        features: whether observations hold the pooled representation.
        device: where everything lives.
        seed: of the weights and of the data order; None for fresh entropy at the first reset.
    """

    def __init__(
        self,
        suite: TaskSuite,
        make_network: MakeNetwork,
        config: EngineConfig = EngineConfig(),  # noqa: B008 (frozen)
        *,
        features: bool = False,
        device: torch.device | str = "cpu",
        seed: int | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.suite = suite.to(self.device)
        self.config = config
        self._make_network = make_network
        self._seed = check_seed(seed)
        self._play: _Play | None = None
        self._started = False
        self._streams: dict[str, RandomStream] = {}
        self._minibatches: dict[str, Minibatches] = {}
        self._build(seed=0)
        self._feature_sizes = [shape[0] for shape in self.network.shapes]
        self.spec = GameSpec(
            legal=self.network.legal,
            n_tasks=suite.n_tasks,
            n_features=max(self._feature_sizes) if features else 0,
            device=self.device,
            fixed_masks=self.network.stop_action is None,
        )

    # -- the game ----------------------------------------------------------------------------------------------------

    def start(self, seed: int | None = None, *, keep_blocks: bool = False) -> None:
        """Begins the game anew: weights, optimizer, data order and running averages, all from the seed.

        Args:
            seed: None for fresh entropy.
            keep_blocks: only the data order begins anew; what was learned stays.
        """
        stream = RandomStream(check_seed(seed))
        network_seed, *order_seeds = torch.randint(2**62, (4,), generator=stream.generator).tolist()
        self._started = True
        self._play = None
        if not keep_blocks:
            self._build(network_seed)
        self._streams = {name: RandomStream(s) for name, s in zip(SPLITS, order_seeds, strict=True)}
        self._minibatches = {}

    @_OUTSIDE_INFERENCE_MODE
    def reset(self, split: SplitName = "train", batch: Batch | None = None) -> Observation:
        """Draws the next minibatch of a split and encodes it.

        Args:
            split: blocks learn on ``train`` only; on the others the network is in evaluation mode, and playing
                changes nothing but the position in that split's data order.
            batch: the instances to play, instead of the next minibatch.
        """
        if split not in SPLITS:
            raise UserError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
        if not self._started:
            self.start(self._seed)
        learning = split == "train"
        if self.network.training != learning:
            self.network.train(learning)
        with self._computing(learning):
            batch = batch or Batch(*self._order(split).draw())
            # index_select copies whole images where indexing goes byte by byte.
            images = self.suite.images.index_select(0, batch.image.flatten())
            v = self.network.encode(images.view(*batch.image.shape, *images.shape[1:]))
        self._play = _Play(batch, v, learning)
        if self.network.stop_action is not None:
            self._play.stopped = torch.zeros(v.shape[:2], dtype=torch.bool, device=self.device)
        return self._observe(self._play)

    @_OUTSIDE_INFERENCE_MODE
    def step(
        self,
        actions: Int[Tensor, "episode task"],
        reported: Float[Tensor, "episode task action"] | None = None,
    ) -> Step:
        """Routes all episodes one depth further; after the last depth the blocks have learned.

        Args:
            actions: 0 to ``n_actions - 1``. An illegal one acts as PASS, or as the first legal action where PASS is
                illegal.
            reported: the agents' own probabilities, where ``agreement`` is "reported".

        Raises:
            UserError: the actions are not of the game, or there is nothing where something should be reported; nothing
                has changed then. (Numbers that are no action's: on the CPU only. A GPU fails by itself, later.)
        """
        play = self._playing()
        if reported is None and self.config.agreement == "reported":
            raise UserError("agreement is 'reported', but no probabilities were given; step needs `reported`")
        depth, mask, before = len(play.actions), play.mask, (play.v, play.stopped)
        with self._computing(play.learning):
            choice, legal = _looked_up(actions, mask)
            substitute = self._substitutes[depth]
            if play.stopped is not None:  # for those that have stopped, only STOP is legal
                substitute = torch.where(play.stopped, self.network.stop_action or 0, substitute)
            action = torch.where(legal, choice, substitute)
            active = None
            if play.stopped is not None:
                active = ~play.stopped
                play.active.append(active)
                play.stopped = play.stopped | (action == self.network.stop_action)
            if not play.learning:
                play.passed.append(before)
            play.v = self.network.route(depth, play.v, action)
            if play.learning:
                self._agreement.record(depth, action, active)
            agreement = self._agreement(depth, action, reported if self.config.agreement == "reported" else None)
            collaboration = self.config.rho * (agreement if active is None else agreement * active)
            play.actions.append(action)
            play.masks.append(mask)
            outcome = self._finish(play) if depth + 1 == self.spec.n_depths else None
            final = torch.zeros_like(collaboration) if outcome is None else final_reward(outcome.correct)
            play.rewards.append(collaboration if outcome is None else collaboration + final)
        return Step(self._observe(play), final, collaboration, ~legal, outcome is not None, outcome, action)

    def rewind(self, depth: int) -> Observation:
        """Goes back to an earlier depth of an episode in which nobody learns, to try another route from there.

        Nothing is encoded again, and what was done before that depth stands.
        """
        play = self._playing(finished=None)
        if play.learning:
            raise UserError("blocks learn in this episode; only those of validation and test can be rewound")
        if not 0 <= depth <= len(play.actions):
            raise UserError(f"depth is {depth}; the episode has gone from 0 to {len(play.actions)}")
        if depth < len(play.actions):
            play.v, play.stopped = play.passed[depth]
            for record in (play.passed, play.actions, play.rewards, play.masks, play.active):
                del record[depth:]
        del play.features[depth:]  # which is observed again
        return self._observe(play)

    @property
    def trajectory(self) -> Trajectory:
        """The episodes that have just finished, for the agents to learn from."""
        play = self._playing(finished=True)
        shape = (self.spec.n_depths, *play.actions[0].shape)
        fixed = play.stopped is None
        legal = self.spec.legal[:, None, None].expand(*shape, -1)
        return Trajectory(
            actions=torch.stack(play.actions),
            rewards=torch.stack(play.rewards),
            masks=legal if fixed else torch.stack(play.masks),
            active=self.spec.legal.new_ones(()).expand(shape) if fixed else torch.stack(play.active),
            features=torch.stack(play.features[:-1]) if play.features else None,
        )

    @property
    def batch(self) -> Batch:
        """The instances of the episodes under way or just finished."""
        return self._playing(finished=None).batch

    @property
    def epoch(self) -> int:
        """The epoch of the training data that the game is in, from 0."""
        return self._order("train").epoch if self._started else 0

    @property
    def steps_per_epoch(self) -> int:
        """Updates in an epoch: until the largest task has been seen once."""
        width = self.config.episodes * self.config.instances
        return -(-max(self.suite.train.sizes) // width)

    def batches(self, split: SplitName, max_images: int | None = None) -> Iterator[Batch]:
        """Every instance of a split once, in large batches, for evaluation; decisions as in training.

        Args:
            split: what to go through.
            max_images: upper bound of a batch's images (it holds at least one decision of each task); by default, what
                memory has room for.
        """
        for parts in sequential(self.suite.split(split), self.config.instances, max_images or self._images_at_once):
            yield Batch(*parts)

    # -- saving ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that the rest of the game depends on, between two episodes. Starts the game if it has not."""
        if not self._started:
            self.start(self._seed)
        return copy.deepcopy(
            {
                "network": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "agreement": self._agreement.state_dict(),
                "streams": {name: stream.state_dict() for name, stream in self._streams.items()},
                "orders": {name: order.state_dict() for name, order in self._minibatches.items()},
                "updates": self.updates,
                "failed_at": self.failed_at,
            }
        )

    @_OUTSIDE_INFERENCE_MODE
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on, to the bit, from where ``state_dict`` was taken by a game of the same making."""
        self.start(0)
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._agreement.load_state_dict(state["agreement"])
        for name, stream in self._streams.items():
            stream.load_state_dict(state["streams"][name])
        for name, saved in state["orders"].items():
            self._order(name).load_state_dict(saved)
        self.updates = state["updates"]
        self.failed_at = state["failed_at"].to(self.device)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_play": None}  # a graph under way can't be copied

    # -- inside ------------------------------------------------------------------------------------------------------

    @_OUTSIDE_INFERENCE_MODE
    def _build(self, seed: int) -> None:
        """Network, optimizer and running averages from a seed, without a trace in torch's global generator."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.network: Network = self._make_network(self.suite).to(self.device)
        own_rates = self.network.own_rates()
        groups: list[dict[str, Any]] = [{"params": [parameter], "own_rate": r} for parameter, r in own_rates.items()]
        groups.append({"params": [p for p in self.network.parameters() if p not in own_rates]})
        self.optimizer = RowAdam(groups, lr=self.config.lr)
        legal, passing = self.network.legal, self.network.pass_action
        # What acts in place of an illegal action, at each depth.
        self._substitutes = torch.where(legal[:, passing], passing, legal.int().argmax(-1)).unbind()
        self._agreement = Agreement(self.network.legal, self.suite.n_tasks, self.config.history)
        self.updates = 0
        """Number of updates of the blocks so far."""
        self.failed_at = torch.full((), -1, device=self.device)
        """The first update whose loss was not finite; -1 while all were. A tensor: reading it waits."""

    @cached_property
    def _images_at_once(self) -> int:
        """Networks differ: in cross-stitch every image passes through a column per task."""
        images = self.suite.images[:1].expand(1, self.spec.n_tasks, 1, *self.suite.image_shape)
        routes = torch.stack(self._substitutes)[:, None, None].expand(-1, 1, self.spec.n_tasks)
        self.network.eval()
        with self._computing(learning=False):
            per_image = largest_tensor(lambda: self.network(images, routes)) / self.spec.n_tasks
        return max(1, min(EVALUATED_IMAGES, int(EVALUATED_NUMBERS / per_image)))

    def _order(self, split: SplitName) -> Minibatches:
        if split not in self._minibatches:
            self._minibatches[split] = Minibatches(
                self.suite.split(split), self.config.episodes, self.config.instances, self._streams[split]
            )
        return self._minibatches[split]

    def _playing(self, *, finished: bool | None = False) -> _Play:
        if self._play is None:
            raise UserError("no episode is under way; call reset first")
        if finished is not None and finished != (len(self._play.actions) == self.spec.n_depths):
            done, wanted = ("running", "play it to the end") if finished else ("over", "call reset first")
            raise UserError(f"the episode is {done}; {wanted}")
        return self._play

    def _mask(self, play: _Play) -> Bool[Tensor, "episode task action"]:
        depth = min(len(play.actions), self.spec.n_depths - 1)
        legal = self.spec.legal[depth].expand(*play.v.shape[:2], -1)
        if play.stopped is None:
            return legal
        only_stop = torch.arange(self.spec.n_actions, device=self.device) == self.network.stop_action
        return torch.where(play.stopped[..., None], only_stop, legal)

    def _observe(self, play: _Play) -> Observation:
        features = None
        if self.spec.n_features:
            pooled = play.v.detach().float().flatten(4).mean(-1) if play.v.dim() > 4 else play.v.detach().float()
            pooled = pooled.mean(2).clamp(-FEATURE_BOUND, FEATURE_BOUND)
            features = nn.functional.pad(pooled, (0, self.spec.n_features - pooled.shape[-1]))
            play.features.append(features)
        play.mask = self._mask(play)
        return Observation(len(play.actions), play.mask, features)

    def _finish(self, play: _Play) -> Outcome:
        logits, label = self.network.logits(play.v), play.batch.label
        loss = nn.functional.cross_entropy(logits.flatten(0, 2), label.flatten(), reduction="none")
        if play.learning:
            auxiliary = self.network.auxiliary_loss()
            self._update(loss.mean() if auxiliary is None else loss.mean() + auxiliary)
        play.v = play.v.detach()
        return Outcome(logits.detach().argmax(-1) == label, loss.detach().view(label.shape))

    def _update(self, loss: Tensor) -> None:
        cuts = self.epoch // self.config.lr_decay_epochs if self.config.lr_decay_epochs else 0
        for group in self.optimizer.param_groups:
            group["lr"] = group.get("own_rate", self.config.lr) * self.config.lr_decay**cuts
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        failed = (self.failed_at < 0) & ~loss.detach().isfinite()
        self.failed_at = torch.where(failed, self.updates, self.failed_at)
        self.updates += 1

    @contextmanager
    def _computing(self, learning: bool) -> Iterator[None]:
        """Gradients as the game needs them, whatever the caller's grad mode, and autocast where asked for."""
        bf16 = self.config.precision == "bf16"
        with torch.set_grad_enabled(learning), torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            yield


def _looked_up(
    actions: Any, mask: Bool[Tensor, "episode task action"]
) -> tuple[Int[Tensor, "episode task"], Bool[Tensor, "episode task"]]:
    """The actions, and whether each is legal; looks at shapes and types only, which no device has to be waited for."""
    shape, n_actions = mask.shape[:2], mask.shape[2]
    wrong, on = f"a {type(actions).__name__}", ""
    if isinstance(actions, Tensor):
        wrong = f"{list(actions.shape)} of {actions.dtype}"
        if actions.device != mask.device:
            wrong, on = f"{wrong} on {actions.device}", f", on {mask.device}"
        elif actions.shape == shape and actions.dtype in _WHOLE:
            # A copy: a client's inference tensor could not be kept for the backward pass.
            choice = actions.long().clone()
            try:
                return choice, mask.gather(-1, choice[..., None])[..., 0]
            except RuntimeError:
                wrong = f"from {int(choice.min())} to {int(choice.max())}"
    right = f"a tensor of whole numbers from 0 to {n_actions - 1}, of shape {list(shape)} (episode, task){on}"
    raise UserError(f"the actions are {wrong}; they must be {right}")
