"""What the doors have in common: the engine behind them, the spaces in front of them, and checked arguments."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces

from routing_marl.config import EngineConfig, Precision
from routing_marl.engine import FEATURE_BOUND, RoutingEngine, SplitName
from routing_marl.errors import UserError
from routing_marl.network import MakeNetwork, routing_all_fc
from routing_marl.protocol import GameSpec
from routing_marl.recipes import make_suite
from routing_marl.suites import TaskSuite


def build_engine(
    *,
    suite: str | Path | TaskSuite = "digits",
    blocks: int | Sequence[int] | None = None,
    depth: int = 3,
    recursive: bool = False,
    allow_stop: bool = False,
    network: MakeNetwork | None = None,
    episodes: int = 1,
    instances: int = 1,
    rho: float = 0.3,
    history: int = 100,
    lr: float = 1e-3,
    lr_decay: float = 0.1,
    lr_decay_epochs: int = 10,
    precision: Precision = "fp32",
    device: torch.device | str = "cpu",
    observation: Literal["index", "features"] = "index",
    data_dir: str | Path | None = None,
    seed: int | np.integer[Any] | None = None,
) -> RoutingEngine:
    """The game behind a door, of the arguments that the head of :mod:`routing_marl.envs.routing_v0` describes.

    One argument more is here: ``episodes``, the number E of parallel episodes.

    Raises:
        UserError: an argument is not as described there, or the suite's data is missing.
    """
    if observation not in ("index", "features"):
        raise UserError(f"observation is {observation!r}; it must be one of 'index', 'features'")
    layers: dict[str, Any] = {"blocks": blocks, "depth": depth, "recursive": recursive, "allow_stop": allow_stop}
    if network is not None and layers != {"blocks": None, "depth": 3, "recursive": False, "allow_stop": False}:
        raise UserError(f"network is given, and so is one of {', '.join(layers)}; give the one or the others")
    try:
        place = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device is {device!r}; it must be one that torch has here ({reason})") from None
    return RoutingEngine(
        make_suite(suite, data_dir),
        network or partial(routing_all_fc, **layers),
        EngineConfig(
            instances=instances,
            episodes=episodes,
            rho=rho,
            history=history,
            lr=lr,
            lr_decay=lr_decay,
            lr_decay_epochs=lr_decay_epochs,
            precision=precision,
        ),
        features=observation == "features",
        device=place,
        seed=int(seed) if isinstance(seed, np.integer) else seed,
    )


def observation_box(spec: GameSpec) -> spaces.Box:
    """The space of the vectors that :func:`routing_marl.protocol.as_vectors` makes."""
    n_ones = spec.n_tasks + spec.n_depths + 1
    low = [0.0] * n_ones + [-FEATURE_BOUND] * spec.n_features
    high = [1.0] * n_ones + [FEATURE_BOUND] * spec.n_features
    return spaces.Box(np.array(low, np.float32), np.array(high, np.float32), dtype=np.float32)


def begin(engine: RoutingEngine, seed: Any, options: Mapping[str, Any]) -> SplitName:
    """What ``reset(seed=..., options=...)`` means before an episode; returns the split to play.

    Raises:
        UserError: a seed or an option is not as it should be; nothing has changed then.
    """
    split, keep_blocks = options.get("split", "train"), options.get("keep_blocks", False)
    engine.suite.split(split)
    if keep_blocks not in (False, True):
        raise UserError(f"options['keep_blocks'] is {keep_blocks!r}; it must be one of False, True")
    if seed is not None:
        engine.start(int(seed) if isinstance(seed, np.integer) else seed, keep_blocks=bool(keep_blocks))
    checked: SplitName = split
    return checked
