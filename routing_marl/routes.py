"""What a run keeps of its routes: the file ``routes.npz``, from which diagnostics and pictures are made."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from routing_marl.engine import RoutingEngine
from routing_marl.errors import UserError

ROUTES = "routes.npz"


class Routes(NamedTuple):
    """What a run keeps of its routes, in ``routes.npz``: after every epoch, on its last held-out split.

    Attributes:
        usage: share of each task's greedy decisions that took each action. Where gates of the network's own decide
            (:meth:`routing_marl.network.Network.gate_usage`), the share that they give to each block, and last to none.
        legal: the actions that shapes allow; where gates decide, those that they ever took.
        n_blocks: function blocks; the actions behind them are PASS and, where there is one, STOP.
        task_names: one per task.
        policy: the mean probability that each agent gives to each action; None where agents don't say.
        returns: mean return of the epoch's training decisions: realised and, where agents tell, expected.
        clusters: the known structure of the tasks, where the suite has one.
    """

    usage: Float[np.ndarray, "epoch depth task action"]
    legal: Bool[np.ndarray, "depth action"]
    n_blocks: Int[np.ndarray, ""]
    task_names: np.ndarray
    policy: Float[np.ndarray, "epoch depth task action"] | None = None
    returns: Float[np.ndarray, "epoch part depth task"] | None = None
    clusters: Int[np.ndarray, " task"] | None = None


def routes_kept(
    engine: RoutingEngine, usage: list[Tensor], policies: list[Tensor], returns: list[Tensor]
) -> dict[str, Any]:
    """The arrays of ``routes.npz``; :class:`Routes` describes them."""
    clusters = engine.suite.clusters
    shares = np.stack([epoch.numpy() for epoch in usage])
    by_gates = shares.shape[-1] > engine.spec.n_actions  # then agents have nothing to choose
    kept = Routes(
        usage=shares,
        legal=np.asarray((shares > 0).any((0, 2))) if by_gates else engine.spec.legal.cpu().numpy(),
        n_blocks=np.array(shares.shape[-1] - 1 if by_gates else engine.network.pass_action),
        task_names=np.array(engine.suite.task_names),
        policy=np.stack([policy.numpy() for policy in policies]) if policies and not by_gates else None,
        returns=np.stack([both.numpy() for both in returns]),
        clusters=None if clusters is None else clusters.cpu().numpy(),
    )
    return {name: array for name, array in kept._asdict().items() if array is not None}


def read_routes(run: Path) -> Routes:
    """Reads what a run kept.

    Args:
        run: its folder.

    Raises:
        UserError: there is no such file, it is broken, or an earlier version wrote it.
    """
    path = run / ROUTES
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in Routes._fields if name in file}
    except FileNotFoundError as error:
        raise UserError(f"{path} is not there; give the folder of a run, with its routes.npz") from error
    except Exception as error:  # damaged files raise whatever the reader meets first
        raise UserError(f"{path} is not a readable .npz file of a run (cut off, or another kind of file)") from error
    missing = [name for name in ("usage", "legal", "n_blocks", "task_names") if name not in arrays]
    if missing:
        raise UserError(f"{path} has no {', '.join(missing)}; train the run again with this version")
    return Routes(**arrays)
