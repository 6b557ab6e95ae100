"""One random stream per engine and per agent, none global."""

import hashlib
from typing import Any

import torch

from routing_marl.errors import UserError


def check_seed(seed: int | None) -> int | None:
    """Returns ``seed``, or raises UserError where it is neither None nor a whole number from 0 to 2**63 - 1."""
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63):
        raise UserError(f"seed is {seed!r}; a seed is a whole number from 0 to 2**63 - 1, or None")
    return seed


class RandomStream:
    """A ``torch.Generator`` that is made when it is first needed.

    Without a seed it takes fresh entropy at that moment, so that a clone made before (by copy, pickle or
    cloudpickle) does not draw the same numbers as its twin. A clone made afterwards goes on from the same state.
    """

    def __init__(self, seed: int | None = None, device: torch.device | str = "cpu") -> None:
        self._seed = check_seed(seed)
        self._device = torch.device(device)
        self._generator: torch.Generator | None = None

    @property
    def generator(self) -> torch.Generator:
        """The generator to hand to torch's random functions."""
        if self._generator is None:
            self._generator = torch.Generator(self._device)
            if self._seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(self._seed)
        return self._generator

    def reseed(self, seed: int) -> None:
        """Starts the stream anew from ``seed``."""
        self._seed, self._generator = check_seed(seed), None

    def state_dict(self) -> dict[str, Any]:
        """The position in the stream (makes the generator if there is none yet)."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a position that ``state_dict`` returned; one of another kind of device is only a seed here."""
        position = state["generator"].cpu()
        if len(position) == len(self.generator.get_state()):
            self.generator.set_state(position)
        else:
            self.reseed(int.from_bytes(hashlib.sha256(position.numpy().tobytes()).digest()[:7], "big"))

    def __getstate__(self) -> dict[str, Any]:
        state = None if self._generator is None else self._generator.get_state()
        return {"seed": self._seed, "device": str(self._device), "state": state}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["seed"], state["device"])  # type: ignore[misc]
        if state["state"] is not None:
            self.generator.set_state(state["state"])
