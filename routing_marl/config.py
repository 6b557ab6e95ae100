"""Settings: frozen dataclasses that become the command line. No torch in here, so that ``--help`` is instant."""

import math
from dataclasses import dataclass
from typing import Literal

from routing_marl.errors import UserError

Precision = Literal["fp32", "bf16"]


def require(condition: bool, name: str, value: object, right: str) -> None:
    """Raises UserError, naming the setting, its value and what would be right, unless the condition holds."""
    if not condition:
        raise UserError(f"{name} is {value!r}; {right}")


@dataclass(frozen=True)
class EngineConfig:
    """How the game is played and how its blocks learn."""

    instances: int = 1
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
            require(
                isinstance(value, int) and value >= 1, name, value, "it must be a whole number of at least 1"
            )
        require(_finite(self.rho) and 0 <= self.rho <= 1, "rho", self.rho, "it must lie in [0, 1]")
        require(
            _finite(self.lr) and self.lr >= 0, "lr", self.lr, "a learning rate must be finite and at least 0"
        )
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


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _among(name: str, value: object, choices: tuple[str, ...]) -> None:
    require(value in choices, name, value, f"it must be one of {', '.join(choices)}")
