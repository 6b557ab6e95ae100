"""Probabilities over legal actions: projecting, masking, sampling, measuring.

Everything is batched over leading axes, out of place, and free of host synchronisation (no ``.item()``, no
boolean indexing), so that it runs on a GPU without waiting. A mask has at least one legal action.

Sources: the ``clip`` projection is the one of Rosenbaum et al. 2018 (arXiv 1711.01239), Algorithm 2; the
Euclidean projection is that of Held, Wolfe & Crowder 1974 (see Duchi et al. 2008, figure 1).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Values = Float[Tensor, "*#batch action"]
Mask = Bool[Tensor, "*#batch action"]


def uniform(mask: Mask) -> Values:
    """The same probability for every legal action.

    >>> uniform(torch.tensor([True, False, True]))
    tensor([0.5000, 0.0000, 0.5000])
    """
    return mask / mask.sum(-1, keepdim=True)


def restrict(policy: Values, mask: Mask) -> Values:
    """Conditions a policy on the legal actions; uniform over them where it gives them no mass at all.

    >>> restrict(torch.tensor([0.2, 0.2, 0.6]), torch.tensor([True, False, True]))
    tensor([0.2500, 0.0000, 0.7500])
    """
    mass = torch.where(mask, policy, 0.0)
    empty = mass.sum(-1, keepdim=True) <= 0
    mass = torch.where(mask, mass + empty, 0.0)
    return mass.div_(mass.sum(-1, keepdim=True))


def masked_softmax(logits: Values, mask: Mask) -> Values:
    """Softmax over the legal actions, exactly zero elsewhere."""
    # torch.softmax wakes all threads even for a handful of numbers, and waits for them: 10 to 100 times slower
    # than this where the cores are busy.
    scores = torch.where(mask, logits, -torch.inf)
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return weights / weights.sum(-1, keepdim=True)


def masked_log_softmax(logits: Values, mask: Mask) -> Values:
    """Logarithm of the softmax over the legal actions; very small, but finite, elsewhere.

    Finite, since an infinite one times a probability of zero is no number, nor is its gradient.
    """
    scores = torch.where(mask, logits, -1e9)
    scores = scores - scores.detach().amax(-1, keepdim=True)
    return scores - scores.exp().sum(-1, keepdim=True).log()


def epsilon_greedy(values: Values, mask: Mask, epsilon: Float[Tensor, ""]) -> Values:
    """``1 - epsilon`` shared by the best legal actions, ``epsilon`` shared by all legal ones.

    >>> epsilon_greedy(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([True, True, False]), torch.tensor(0.5))
    tensor([0.2500, 0.7500, 0.0000])
    """
    legal_values = torch.where(mask, values, -torch.inf)
    best = legal_values == legal_values.amax(-1, keepdim=True)
    return torch.lerp(uniform(best), uniform(mask), epsilon)


def clip_projection(values: Values, legal: Mask, floor: float = 0.0) -> Values:
    """The paper's way back onto the simplex: ``clip(x) / sum clip(x)``, ``clip(x) = max(0, min(1, x))``.

    With a floor, every legal action has it, and what was clipped above it is scaled to the rest of the mass.
    A policy that is already right stays as it is. Uniform where nothing is left above the floor.

    >>> clip_projection(torch.tensor([0.6, -0.2, 0.2]), torch.ones(3, dtype=torch.bool))
    tensor([0.7500, 0.0000, 0.2500])
    """
    excess = values.clamp(floor, 1.0)
    excess = (excess.sub_(floor) if floor else excess).mul_(legal)
    total = excess.sum(-1, keepdim=True)
    empty = total <= 0
    share = excess.div_(total + empty).addcmul_(uniform(legal), empty.to(excess.dtype))
    return _above(floor, share * _spare(legal, floor) if floor else share, legal)


def euclidean_projection(values: Values, legal: Mask, floor: float = 0.0) -> Values:
    """The nearest point of the simplex whose legal entries are at least ``floor`` and whose others are zero.

    It subtracts one threshold from all entries, and cuts at the floor. Here the threshold is -0.2 / 2: the
    second entry ends at zero, and the two others share what is missing.

    >>> euclidean_projection(torch.tensor([0.6, -0.2, 0.2]), torch.ones(3, dtype=torch.bool))
    tensor([0.7000, 0.0000, 0.3000])
    """
    excess = torch.where(legal, values - floor, -torch.inf)
    largest = excess.sort(-1, descending=True).values
    count = torch.arange(1, values.shape[-1] + 1, device=values.device)
    # The threshold that makes the k largest entries sum to the spare mass rises with k exactly as long as the
    # k-th entry survives it, so the right k needs no search: it is where the threshold is largest.
    threshold = ((largest.cumsum(-1) - _spare(legal, floor)) / count).amax(-1, keepdim=True)
    return _above(floor, (excess - threshold).clamp(min=0.0), legal)


def _spare(legal: Mask, floor: float) -> Float[Tensor, "*#batch 1"] | float:
    """Mass that is left when every legal action has the floor."""
    return 1.0 - floor * legal.sum(-1, keepdim=True) if floor else 1.0


def _above(floor: float, excess: Values, legal: Mask) -> Values:
    return torch.where(legal, excess + floor, 0.0) if floor else excess


def sample(probabilities: Values, generator: torch.Generator) -> Int[Tensor, "*#batch"]:
    """Draws one action per distribution; never one of probability zero.

    The first action whose cumulated probability exceeds a uniform number. Unlike ``torch.multinomial`` this takes any
    number of leading axes and checks nothing on the host; one number per distribution, since with 1,000 agents of 1,000
    actions a number per action takes longer than all else that agents do.
    """
    cumulated = probabilities.cumsum(-1)
    total = cumulated[..., -1:].contiguous()
    uniform_number = torch.rand(total.shape, generator=generator, device=total.device, dtype=total.dtype)
    drawn = torch.searchsorted(cumulated, uniform_number * total, right=True)
    # Rounded up to the total, the number would point behind the last action that has any probability.
    return torch.minimum(drawn, torch.searchsorted(cumulated, total))[..., 0]


def greedy_action(scores: Values, mask: Mask) -> Int[Tensor, "*#batch"]:
    """The legal action of the highest score; the lowest index where several have it."""
    return torch.where(mask, scores, -torch.inf).argmax(-1)
