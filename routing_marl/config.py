"""Settings: frozen dataclasses that become the command line. No torch in here, so that ``--help`` is instant."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from routing_marl.errors import UserError

Precision = Literal["fp32", "bf16"]


def require(condition: bool, name: str, value: object, right: str) -> None:
    """Raises UserError, naming the setting, its value and what would be right, unless the condition holds."""
    if not condition:
        raise UserError(f"{name} is {value!r}; {right}")


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _among(name: str, value: object, choices: tuple[str, ...]) -> None:
    require(value in choices, name, value, f"it must be one of {', '.join(choices)}")


def flattened(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for name, value in plain.items():
        flat |= flattened(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


@dataclass(frozen=True)
class EngineConfig:
    """How the game is played and how its blocks learn."""

    instances: int = 8
    """Instances B that share one decision of an agent."""
    episodes: int = 1
    """Parallel episodes E of one update."""
    rho: float = 0.3
    """Size of the collaboration reward, against a final reward of -1 to 1."""
    history: int = 100
    """Episodes that the agreement of an action looks back on."""
    agreement: Literal["empirical", "reported"] = "empirical"
    """Whose probabilities the agreement is made of: seen choices, or what agents report."""
    lr: float = 1e-3
    """Learning rate of encoder and blocks (Adam)."""
    lr_decay: float = 0.1
    """Factor on the learning rate after every `lr-decay-epochs` epochs."""
    lr_decay_epochs: int = 10
    """Epochs between two cuts of the learning rate; 0 for never."""
    precision: Precision = "fp32"
    """fp32, or bf16 autocast."""

    def __post_init__(self) -> None:
        """Checks every setting."""
        for name in ("instances", "episodes", "history"):
            value = getattr(self, name)
            require(isinstance(value, int) and value >= 1, name, value, "it must be a whole number of at least 1")
        require(_finite(self.rho) and 0 <= self.rho <= 1, "rho", self.rho, "it must lie in [0, 1]")
        require(_finite(self.lr) and self.lr >= 0, "lr", self.lr, "a learning rate must be finite and at least 0")
        require(
            _finite(self.lr_decay) and 0 < self.lr_decay <= 1,
            "lr-decay",
            self.lr_decay,
            "it must lie in (0, 1]",
        )
        require(
            isinstance(self.lr_decay_epochs, int) and self.lr_decay_epochs >= 0,
            "lr-decay-epochs",
            self.lr_decay_epochs,
            "it must be a whole number of at least 0",
        )
        _among("agreement", self.agreement, ("empirical", "reported"))
        _among("precision", self.precision, ("fp32", "bf16"))


@dataclass(frozen=True)
class AgentConfig:
    """Settings of the methods; what is not given keeps the method's own default (``routing-marl methods``)."""

    gamma: float | None = None
    """Discount of later rewards, in [0, 1]."""
    policy_rate: float | None = None
    """Step size of the policy (wpl*, and the tables of policy_gradient and actor_critic)."""
    return_rate: float | None = None
    """Learning rate of the expected returns (wpl*)."""
    advantage: Literal["sampled", "averaged"] | None = None
    """What moves the policy: the action taken, or all at once (wpl*)."""
    projection: Literal["clip", "euclidean"] | None = None
    """How a policy gets back onto the simplex (wpl*)."""
    floor: float | None = None
    """Least probability of a legal action (wpl*)."""
    alpha: float | None = None
    """Learning rate of the values (q_learning, sarsa)."""
    trace_decay: float | None = None
    """How far back a reward is credited at once, in [0, 1] (lambda of q_*, sarsa*, actor_critic*, single_agent*)."""
    epsilon_start: float | None = None
    """Share of random actions at the start (q_*, sarsa*)."""
    epsilon_end: float | None = None
    """Share of random actions in the end (q_*, sarsa*)."""
    epsilon_steps: int | None = None
    """Updates from the first to the last share (q_*, sarsa*)."""
    baseline_rate: float | None = None
    """Learning rate of the baseline or critic (policy_gradient, actor_critic)."""
    entropy: float | None = None
    """Weight of the entropy bonus (policy_gradient*, actor_critic*, single_agent*, dispatcher)."""
    network_rate: float | None = None
    """Learning rate of the agents' networks, Adam (those that have networks)."""
    hidden_units: int | None = None
    """Width of their hidden layer; 0 for linear functions."""
    start_scale: float | None = None
    """About how large the first outputs of agents' networks are: how far a new agent is from indifference."""
    share_network: bool | None = None
    """One network for all agents, instead of one each (*_network)."""
    task_label: bool | None = None
    """Whether a network that agents share sees the task (*_network with share-network, single_agent, dispatcher)."""
    routing_agents: int | None = None
    """Agents that a dispatcher chooses from (dispatcher)."""
    gate_rate: float | None = None
    """Learning rate of the gates' logits (soft_routing, gumbel_softmax, gumbel_matrix)."""
    annealing_rate: float | None = None
    """How fast the temperature falls to 0.5, per update (gumbel_softmax)."""
    initial_probability: float | None = None
    """Probability of a block to be active at the start (gumbel_matrix)."""
    budget: float | None = None
    """Share of active blocks that costs nothing (gumbel_matrix)."""
    budget_weight: float | None = None
    """Weight of the penalty on more active blocks than that (gumbel_matrix)."""
    capacity: float | None = None
    """Room of a block in training, against an even distribution (switch, st_moe)."""
    eval_capacity: float | None = None
    """Room of a block in evaluation (switch, st_moe)."""
    balance: float | None = None
    """Weight of the load-balancing loss (switch, st_moe)."""
    z_loss: float | None = None
    """Weight of the loss on the size of the gate's logits (st_moe)."""
    jitter: float | None = None
    """Relative noise on what the gate sees in training (switch, st_moe)."""
    initial_scale: float | None = None
    """Scale of the first weights' variance (switch, st_moe)."""
    off_diagonal: float | None = None
    """What the other columns together start with in a mixture (cross_stitch, cross_stitch_fc)."""

    def given(self) -> dict[str, object]:
        """The settings that were given, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


def conv_layers(routed_convs: int, joint_convs: bool) -> int:
    """Layers that so many routed convolutions are: joint ones are one."""
    return min(routed_convs, 1) if joint_convs else routed_convs


@dataclass(frozen=True)
class NetworkConfig:
    """The layers, and which of them are routed (routing-all-fc, routing-all)."""

    blocks: int | None = None
    """Function blocks per routed layer; by default one per task."""
    depth: int = 3
    """Routed fully connected layers."""
    hidden: int = 128
    """Width of the fully connected layers."""
    recursive: bool = False
    """One set of blocks that all depths share, instead of one set per depth."""
    allow_pass: bool = True
    """Whether agents may skip a layer whose shapes allow it (PASS)."""
    allow_stop: bool = False
    """Whether agents may end their route early (STOP; recursive only)."""
    convs: int = 4
    """Convolutional layers."""
    filters: int = 32
    """Filters of each convolutional layer."""
    routed_convs: int = 0
    """How many of the convolutional layers, the last ones, are routed too; all of them: routing-all."""
    joint_convs: bool = False
    """The routed convolutions are one layer: a block of it is all of them, and is taken at once."""
    own_fc: bool = False
    """Fully connected layers of each task's own: only the convolutions are routed (--routed-convs)."""
    same_start: bool = False
    """The blocks of a layer start as copies of each other, so that early routes make no difference."""

    def __post_init__(self) -> None:
        """Checks every setting."""
        for name in ("depth", "hidden", "convs", "filters"):
            value = getattr(self, name)
            require(isinstance(value, int) and value >= 1, name, value, "it must be a whole number of at least 1")
        blocks = self.blocks
        require(blocks is None or blocks >= 1, "blocks", blocks, "it must be a whole number of at least 1")
        require(not self.allow_stop or self.recursive, "allow-stop", self.allow_stop, "STOP needs --recursive")
        most = 0 if self.recursive else self.convs
        right = "it must lie between 0 and convs (0 with --recursive)"
        require(0 <= self.routed_convs <= most, "routed-convs", self.routed_convs, right)
        for name in ("own_fc", "joint_convs"):
            given = getattr(self, name)
            require(not given or self.routed_convs > 0, name.replace("_", "-"), given, "it needs --routed-convs")

    @property
    def conv_layers(self) -> int:
        """Layers that the routed convolutions are."""
        return conv_layers(self.routed_convs, self.joint_convs)

    def layer_blocks(self, n_tasks: int) -> tuple[int, ...]:
        """Function blocks of each layer that is not the shared encoder's, convolutions first (not recursive)."""
        blocks = self.blocks or n_tasks
        return (*[blocks] * self.conv_layers, *[n_tasks if self.own_fc else blocks] * self.depth)


@dataclass(frozen=True)
class RunConfig:
    """One run: a method on a suite from a seed."""

    method: str = "wpl"
    suite: str = "digits"
    seed: int = 0
    epochs: int = 10
    validation: float | None = None
    full_test: bool = False
    engine: EngineConfig = EngineConfig()
    network: NetworkConfig = NetworkConfig()
    agent: AgentConfig = AgentConfig()
    data_dir: str | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        """Checks what does not need the suite."""
        require(0 <= self.seed < 2**63, "seed", self.seed, "it must be a whole number from 0 to 2**63 - 1")
        require(self.epochs >= 1, "epochs", self.epochs, "it must be a whole number of at least 1")
        _among("device", self.device.split(":")[0], ("auto", "cpu", "cuda"))

    def identity(self) -> dict[str, Any]:
        """What decides the numbers that come out, as plain values: all but the data's place and the device."""
        plain = asdict(self)
        del plain["data_dir"], plain["device"]
        return plain

    @classmethod
    def from_identity(cls, plain: dict[str, Any], data_dir: str | None = None, device: str = "auto") -> "RunConfig":
        """The configuration that has this identity."""
        parts = {"engine": EngineConfig, "network": NetworkConfig, "agent": AgentConfig}
        built = {name: part(**plain[name]) for name, part in parts.items()}
        return cls(**{**plain, **built}, data_dir=data_dir, device=device)

    @property
    def settings(self) -> str:
        """What is no default, as ``name=value name=value``; method, suite, seed and epochs are told elsewhere."""
        plain, defaults = self.identity(), RunConfig().identity()
        given = {name: plain[name] for name in ("validation", "full_test") if plain[name] != defaults[name]}
        for part in ("engine", "network", "agent"):
            given |= {name: value for name, value in plain[part].items() if value != defaults[part][name]}
        return " ".join(f"{name}={_short(value)}" for name, value in given.items())

    @property
    def name(self) -> str:
        """A short name for files, unlike that of any run of other settings; new options leave it as it is."""
        defaults = flattened(RunConfig().identity())
        given = {name: value for name, value in flattened(self.identity()).items() if value != defaults[name]}
        digest = hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:8]
        return f"{Path(self.suite).stem}-{self.method.replace(':', '.')}-{self.seed}-{digest}"


def _short(value: object) -> str:
    """Numbers without needless digits, as long as they stay the same numbers."""
    return f"{value:g}" if _finite(value) and float(f"{value:g}") == value else str(value)
