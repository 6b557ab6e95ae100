r"""Whether agents converge, how fast, and to what: measures of a run, derived from the routes that it kept.

``docs/diagnostics.md`` says what each means when it is high or low. Entropies are in nats.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform
from scipy.special import entr, rel_entr

from routing_marl.routes import Routes, read_routes

ALL = -1
"""As a depth: of whole routes. As a task: of all tasks together."""

MEASURES = {
    "entropy": "policy entropy / log of legal actions",
    "kl": "KL from the policy of the epoch before",
    "flip": "share of greedy decisions that changed",
    "settled_after": "last epoch in which greedy routes changed",
    "expected_return": "return that the agent expected",
    "realised_return": "return that it got",
    "blocks_in_use": "exp of the entropy of blocks",
    "pass_share": "share of decisions that use no block",
    "action_entropy": "entropy of actions over all tasks",
    "action_entropy_given_task": "entropy of actions within a task",
    "mutual_information": "between task and action",
    "route_overlap": "mean over pairs of tasks",
    "adjusted_mutual_information": "of routes and the known structure",
}
"""Names and one-line meanings."""

Shares = Float[np.ndarray, "*batch task action"]

# -- measures --------------------------------------------------------------------------------------------------------


def entropy(shares: Shares) -> Float[np.ndarray, "*batch task"]:
    """Of each distribution, in nats."""
    return np.asarray(entr(shares).sum(-1))


def relative_entropy(
    policy: Float[np.ndarray, "*batch depth task action"], legal: Bool[np.ndarray, "depth action"]
) -> Float[np.ndarray, "*batch depth task"]:
    """Entropy over its largest possible value; 0 where only one action is legal."""
    most = np.log(np.maximum(legal.sum(-1), 2))[:, None]
    return np.asarray(entropy(policy) / most)


def kl(new: Shares, old: Shares) -> Float[np.ndarray, "*batch task"]:
    """KL(new || old): infinite where an action that had been given up comes back."""
    return np.asarray(rel_entr(new, old).sum(-1))


def flip(new: Shares, old: Shares) -> Float[np.ndarray, "*batch task"]:
    """Total variation: the least share of decisions that must have changed; 0 or 1 for agents without features."""
    return np.asarray(np.abs(new - old).sum(-1) / 2)


def settled_after(usage: Float[np.ndarray, "epoch depth task action"]) -> Int[np.ndarray, "depth task"]:
    """The epoch, counted from 1, in which greedy routes changed for the last time; 1 where they never did."""
    changed = (flip(usage[1:], usage[:-1]) > 0).transpose(1, 2, 0)
    last = changed.shape[-1] - np.argmax(changed[..., ::-1], axis=-1) if changed.shape[-1] else np.zeros(1)
    return np.where(changed.any(-1), last + 1, 1).astype(np.int64)


def blocks_in_use(usage: Shares, n_blocks: int) -> Float[np.ndarray, "*batch"]:
    """``exp(H(block))`` over the decisions that use one, tasks alike; 0 where none does."""
    mass = usage[..., :n_blocks].mean(-2)
    total = mass.sum(-1, keepdims=True)
    effective = np.exp(entr(mass / np.where(total > 0, total, 1)).sum(-1))
    return np.where(total[..., 0] > 0, effective, 0.0)


def mutual_information(usage: Shares) -> Float[np.ndarray, "*batch"]:
    """Between task and action, tasks alike: H(action) - H(action | task)."""
    return np.asarray(entr(usage.mean(-2)).sum(-1) - entropy(usage).mean(-1))


def route_similarity(usage: Float[np.ndarray, "depth task action"]) -> Float[np.ndarray, "task task"]:
    """Overlap of each two tasks' actions, averaged over depths: the share of depths at which they do the same."""
    return np.asarray(np.minimum(usage[:, :, None], usage[:, None]).sum(-1).mean(0))


def route_tree(similarity: Float[np.ndarray, "task task"]) -> Float[np.ndarray, "merge 4"]:
    """Average linkage over ``1 - similarity``, as :mod:`scipy.cluster.hierarchy` has it; needs two tasks."""
    distance = np.clip(1 - (similarity + similarity.T) / 2, 0, 1)
    np.fill_diagonal(distance, 0)
    return np.asarray(hierarchy.linkage(squareform(distance, checks=False), "average", optimal_ordering=True))


def structure_found(
    usage: Float[np.ndarray, "depth task action"], clusters: Int[np.ndarray, " task"]
) -> tuple[float, list[float]]:
    """Adjusted mutual information with a known structure: of whole routes, and of each depth.

    Whole routes are clustered by their tree, cut into as many groups as the structure has; at a depth, tasks of the
    same (most frequent) action are one group.
    """
    from sklearn.metrics import adjusted_mutual_info_score  # half a second of imports that few commands need

    n_groups = len(np.unique(clusters))
    groups = hierarchy.fcluster(route_tree(route_similarity(usage)), n_groups, "maxclust")
    by_depth = [float(adjusted_mutual_info_score(clusters, shares.argmax(-1))) for shares in usage]
    return float(adjusted_mutual_info_score(clusters, groups)), by_depth


# -- all of them -----------------------------------------------------------------------------------------------------


def diagnose(run: Path | str | Routes) -> pd.DataFrame:
    """All measures of a run, tidy.

    Args:
        run: its folder, or what it kept.

    Returns:
        Columns ``epoch`` (from 1), ``depth``, ``task`` (-1: see :data:`ALL`), ``measure`` (of :data:`MEASURES`) and
        ``value``. What compares with the epoch before begins at epoch 2; ``settled_after`` stands at the last epoch.
    """
    routes = run if isinstance(run, Routes) else read_routes(Path(run))
    usage = routes.usage.astype(np.float64)
    n_epochs, _, n_tasks, _ = usage.shape
    parts = []
    if routes.policy is not None:
        policy = routes.policy.astype(np.float64)
        parts += [
            _by_task("entropy", relative_entropy(policy, routes.legal)),
            _by_task("kl", kl(policy[1:], policy[:-1]), first_epoch=2),
        ]
    parts += [
        _by_task("flip", flip(usage[1:], usage[:-1]), first_epoch=2),
        _by_task("settled_after", settled_after(usage)[None].astype(np.float64), first_epoch=n_epochs),
    ]
    if routes.returns is not None:
        names = ("realised_return", "expected_return")
        parts += [
            _by_task(name, values.astype(np.float64))
            for name, values in zip(names, routes.returns.swapaxes(0, 1), strict=False)
        ]
    parts += [
        _by_depth("blocks_in_use", blocks_in_use(usage, int(routes.n_blocks))),
        _by_depth("pass_share", usage[..., int(routes.n_blocks) :].sum(-1).mean(-1)),
        _by_depth("action_entropy", np.asarray(entr(usage.mean(-2)).sum(-1))),
        _by_depth("action_entropy_given_task", entropy(usage).mean(-1)),
        _by_depth("mutual_information", mutual_information(usage)),
    ]
    if n_tasks > 1:
        pairs = ~np.eye(n_tasks, dtype=bool)
        overlap = [route_similarity(shares)[pairs].mean() for shares in usage]
        parts.append(_of_routes("route_overlap", overlap))
    if n_tasks > 1 and routes.clusters is not None:
        found = [structure_found(shares, routes.clusters) for shares in usage]
        parts += [
            _of_routes("adjusted_mutual_information", [whole for whole, _ in found]),
            _by_depth("adjusted_mutual_information", np.array([by_depth for _, by_depth in found])),
        ]
    return pd.concat(parts, ignore_index=True)


def _by_task(measure: str, values: Float[np.ndarray, "epoch depth task"], first_epoch: int = 1) -> pd.DataFrame:
    epoch, depth, task = (index.ravel() for index in np.indices(values.shape))
    return _tidy(epoch + first_epoch, depth, task, measure, values.ravel())


def _by_depth(measure: str, values: Float[np.ndarray, "epoch depth"]) -> pd.DataFrame:
    epoch, depth = (index.ravel() for index in np.indices(values.shape))
    return _tidy(epoch + 1, depth, ALL, measure, values.ravel())


def _of_routes(measure: str, values: list[float]) -> pd.DataFrame:
    return _tidy(np.arange(1, len(values) + 1), ALL, ALL, measure, values)


def _tidy(epoch: Any, depth: Any, task: Any, measure: str, value: Any) -> pd.DataFrame:
    return pd.DataFrame({"epoch": epoch, "depth": depth, "task": task, "measure": measure, "value": value})
